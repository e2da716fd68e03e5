"""cats.nmt.scoring.scores: scores.json is read and written without a change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError
from cats.nmt.scoring import tables
from cats.nmt.scoring.report import markdown
from cats.nmt.scoring.scores import METRICS, read_scores, to_json, write_scores
from tests.nmt.scoring.samples import content, scores


def full(**more: Any) -> dict[str, Any]:
    """All measures of a task or a group, in the order of the file."""
    quality = {"bleu": 1.5, "bleu_13a": 1.25, "chrf": 20.0, "chrfpp": 19.0, "spbleu": None}
    lines = {"lines": more.pop("lines")} if "lines" in more else {}
    likelihood = {"nll": 2.5, "perplexity": math.exp(2.5)}
    return quality | lines | likelihood | {"off_target": 0.25, "off_target_references": None} | more


def of_the_baseline(**more: Any) -> dict[str, Any]:
    return {name: full()[name] for name in METRICS[:5]} | more


def complete() -> dict[str, Any]:
    """The content of scores.json in the order in which evaluate has always written it; HiRes is empty."""
    baseline = {"languages": {"az": of_the_baseline(lines=5)}, "groups": {"all": of_the_baseline()}}
    baseline["groups"]["hires"] = dict.fromkeys(METRICS)
    stratum = {"languages": {"az": full(lines=2)}, "groups": {"all": full(), "hires": dict.fromkeys(METRICS)}}
    return {
        "languages": {"az": full(lines=5, pairs=150)},
        "groups": {"all": full(languages=["az"]), "hires": {**dict.fromkeys(METRICS), "languages": []}},
        "lookup": baseline,
        "headline": "new-pair",
        "beats_lookup": {"all": False, "hires": None},
        "strata": {"new-pair": {**stratum, "lookup": baseline}},
        "signatures": {"bleu": {"az": "tok:13a"}},
        "zero_shot": {"az-ru": full(lines=3)},
        "corpus": "é",
        "split": "test",
        "checkpoint": "best",
        "method": "cats",
        "temperature": "inf",
        "seed": 1,
        "steps": 200,
        "seconds": None,
        "tokens_per_second": None,
        "peak_memory": None,
        "cpu_seconds": None,
        "files": {"test.az.txt": "0123abcd"},
    }


def test_a_file_is_written_as_it_was_read(tmp_path: Path) -> None:
    text = json.dumps(complete(), indent=2, ensure_ascii=False) + "\n"
    (tmp_path / "scores.json").write_text(text, encoding="utf-8")
    found = read_scores(tmp_path)
    write_scores(tmp_path / "again.json", found)
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert list(again) == [*complete(), "checksum"] and again.pop("checksum")
    assert json.dumps(again, indent=2, ensure_ascii=False) + "\n" == text
    assert found.run.temperature == math.inf and found.scored_tasks == ["az"]
    assert found.model.tasks["az"].get("off_target") == 0.25 and found.nearest_neighbour.tasks["az"].get("nll") is None
    assert read_scores(tmp_path, "again.json") == found


def test_files_of_older_versions(tmp_path: Path) -> None:
    """They have fewer metrics and no zero-shot directions."""
    (tmp_path / "scores.json").write_text(json.dumps(content()))
    found = read_scores(tmp_path)
    assert found == scores() and found.zero_shot == {}
    az = found.model.tasks["az"]
    assert (az.get("chrf"), az.get("nll"), az.get("chrfpp"), az.get("off_target")) == (40.0, 1.25, None, None)


def test_a_run_without_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no scores\.json; make it with: cats evaluate"):
        markdown.write(tmp_path)
    for text in (
        "{",
        "[" * 100_000,
        "[]",
        "1",
        '{"languages": {}}',
        json.dumps(content(languages=[])),
        json.dumps(content(lookup=None)),
    ):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(UserError, match=r"scores\.json is damaged"):
            markdown.write(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.json", scores())
    text = (tmp_path / "scores.json").read_text(encoding="utf-8")
    (tmp_path / "scores.json").write_text(text.replace("60.04", "70.04"), encoding="utf-8")
    with pytest.raises(UserError, match=r"scores\.json is damaged or of an older version"):
        read_scores(tmp_path)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


SLOW = [pytest.param(value, marks=pytest.mark.slow) for value in (True, -1, 1e300, [], [[]], {"x": 1}, "inf")]


@pytest.mark.parametrize("wrong", [None, 10**400, {}, "remove", *SLOW], ids=lambda value: str(value)[:9])
def test_wrong_values_anywhere_give_one_line_or_a_table(tmp_path: Path, wrong: Any) -> None:
    """Without a checksum, as in older files: every value is replaced by one of another type, or removed."""
    for place in places(complete()):
        changed = complete()
        *above, last = place
        part: Any = changed
        for key in above:
            part = part[key]
        if wrong == "remove":
            del part[last]
        else:
            part[last] = wrong
        (tmp_path / "scores.json").write_text(json.dumps(changed))
        try:
            found = read_scores(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        markdown.text("run", found, {"best": found, "last": found}, [], Config())
        tables.scores_csv(found)
        json.dumps(to_json(found), allow_nan=False)
