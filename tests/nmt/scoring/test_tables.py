"""cats.nmt.scoring.tables: what every table of scores holds."""

from __future__ import annotations

import math

from cats.nmt.scoring import tables
from tests.nmt.scoring.samples import cell, content, scores


def test_table_golden() -> None:
    assert (
        tables.scores_table(scores())
        == """\
| language  | group | pairs | BLEU | chrF |   NLL | nearest neighbour chrF |
| --------- | ----- | ----: | ---: | ---: | ----: | ---------------------: |
| be        | LoRes |   120 |  n/a |  n/a |   n/a |                    n/a |
| az        | LoRes |   150 | 20.0 | 40.0 | 1.250 |                   45.0 |
| ru        | HiRes | 1,200 | 30.0 | 60.0 | 1.250 |                   55.0 |
| **All**   |       | 1,470 | 25.0 | 50.0 | 1.250 |                   50.0 |
| **LoRes** |       |   270 | 20.0 | 40.0 | 1.250 |                   45.0 |
| **HiRes** |       | 1,200 | 30.0 | 60.0 | 1.250 |                   55.0 |"""
    )


def test_the_other_scores() -> None:
    more = {"bleu_13a": 20.0, "chrfpp": 38.0, "spbleu": None, "perplexity": math.exp(1.25)}
    more |= {"off_target": 0.125, "off_target_references": 0.01}
    languages = content()["languages"]
    languages["az"].update(more)
    some = scores(languages=languages, zero_shot={"az-be": cell(12.0, **more)})
    text = tables.more_scores_table(some)
    assert [c.strip() for c in text.splitlines()[3].strip("|").split("|")] == [
        *("az", "LoRes", "150", "20.0", "38.0", "n/a", "3.49", "12.5", "1.0")
    ]
    assert [c.strip() for c in text.splitlines()[-1].strip("|").split("|")][:4] == ["az-be", "zero-shot", "0", "20.0"]
    assert tables.zero_shot_table(some).splitlines()[-1] == "| az-be     |    10 |  6.0 | 12.0 | 1.250 |"
    assert (
        tables.scores_csv(some).splitlines()[2]
        == f"az,LoRes,150,10,20.0,20.0,40.0,38.0,,1.25,{math.exp(1.25)},0.125,0.01,45.0"
    )
