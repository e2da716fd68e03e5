"""cats.nmt.scoring.report: the table, the verdict, the page and the pictures of a run."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from cats.nmt.config.schema import Config, to_toml
from cats.nmt.errors import UserError
from cats.nmt.scoring import report
from cats.nmt.training.metrics import read_metrics


def cell(chrf: float | None, nll: float | None = 1.25, **more: Any) -> dict[str, Any]:
    return {"bleu": None if chrf is None else chrf / 2, "chrf": chrf, "nll": nll, "lines": 10, **more}


def scores(**changes: Any) -> dict[str, Any]:
    return {
        "languages": {"ru": cell(60.04, pairs=1200), "az": cell(40.0, pairs=150), "be": cell(None, None, pairs=120)},
        "groups": {
            "all": cell(50.0, languages=["ru", "az", "be"]),
            "lores": cell(40.0, languages=["az", "be"]),
            "hires": cell(60.04, languages=["ru"]),
        },
        "lookup": {
            "languages": {"ru": {"chrf": 55.0}, "az": {"chrf": 45.0}, "be": {"chrf": None}},
            "groups": {"all": {"chrf": 50.0}, "lores": {"chrf": 45.0}, "hires": {"chrf": 55.0}},
        },
        "beats_lookup": {"all": False, "lores": False, "hires": True},
        "strata": {},
        "headline": None,
        "signatures": {
            "bleu": {"ru": "tok:13a", "az": "tok:13a", "be": "tok:char"},
            "chrf": {"ru": "nc:6", "az": "nc:6"},
        },
        "corpus": "toy",
        "split": "test",
        "method": "cats",
        "temperature": 1.0,
        "steps": 40,
        "seed": 3,
        "seconds": 10.0,
        "tokens_per_second": 1234.5,
        **changes,
    }


def record(step: int) -> dict[str, Any]:
    names = ("ru", "az", "be")
    return {
        "step": step,
        "losses": {name: 3 / step + i for i, name in enumerate(names) if (step + i) % 20},  # not every task every time
        "alpha": dict(zip(names, (0.5, 0.3, 0.2), strict=True)),
        "tokens": dict.fromkeys(names, 10),
        "seconds": step / 4,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [record(step) for step in range(10, 41, 10)]
    lines.insert(2, {"step": 20, "valid": {"nll": {"ru": 1.0, "az": 2.0}, "all": 1.5}, "best": True})
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "scores.json").write_text(json.dumps(scores()))
    (tmp_path / "config.toml").write_text(to_toml(Config()))
    return tmp_path


def test_table_golden() -> None:
    assert (
        report.table(scores())
        == """\
| language  | group | pairs | BLEU | chrF |   NLL | lookup chrF |
| --------- | ----- | ----: | ---: | ---: | ----: | ----------: |
| be        | LoRes |   120 |  n/a |  n/a |   n/a |         n/a |
| az        | LoRes |   150 | 20.0 | 40.0 | 1.250 |        45.0 |
| ru        | HiRes | 1,200 | 30.0 | 60.0 | 1.250 |        55.0 |
| **All**   |       | 1,470 | 25.0 | 50.0 | 1.250 |        50.0 |
| **LoRes** |       |   270 | 20.0 | 40.0 | 1.250 |        45.0 |
| **HiRes** |       | 1,200 | 30.0 | 60.0 | 1.250 |        55.0 |"""
    )


def test_the_other_scores() -> None:
    more = {"bleu_13a": 20.0, "chrfpp": 38.0, "spbleu": None, "perplexity": 3.5}
    more |= {"off_target": 0.125, "off_target_references": 0.01}
    some = scores(zero_shot={"az-be": cell(12.0, **more)})
    some["languages"]["az"].update(more)
    text = report.more_scores(some)
    assert [c.strip() for c in text.splitlines()[3].strip("|").split("|")] == [
        *("az", "LoRes", "150", "20.0", "38.0", "n/a", "3.50", "12.5", "1.0")
    ]
    assert [c.strip() for c in text.splitlines()[-1].strip("|").split("|")][:4] == ["az-be", "zero-shot", "0", "20.0"]
    assert report.zero_shot(some).splitlines()[-1] == "| az-be     |    10 |  6.0 | 12.0 | 1.250 |"
    assert report.as_csv(some).splitlines()[2] == "az,LoRes,150,10,20.0,20.0,40.0,38.0,,1.25,3.5,0.125,0.01,45.0"


def test_checkpoints_side_by_side(run: Path) -> None:
    last = scores()
    last["languages"]["az"] = cell(41.0, 1.5, pairs=150)
    (run / "scores.last.json").write_text(json.dumps(last))
    report.write(run)
    section = (run / "report.md").read_text(encoding="utf-8").partition("## Checkpoints")[2].splitlines()
    assert [c.strip() for c in section[2].strip("|").split("|")][3:] == [
        *("BLEU best", "BLEU last", "chrF best", "chrF last", "NLL best", "NLL last")
    ]
    assert [c.strip() for c in section[5].strip("|").split("|")] == [
        *("az", "LoRes", "150", "20.0", "20.5", "40.0", "41.0", "1.250", "1.500")
    ]
    assert "**All**" in section[7]


def test_three_groups(run: Path) -> None:
    names = {"lores": ["be"], "midres": ["az"], "hires": ["ru"]}
    three = scores(
        groups={"all": cell(50.0, languages=["ru", "az", "be"])} | {g: cell(1.0, languages=n) for g, n in names.items()}
    )
    three["lookup"]["groups"]["midres"] = {"chrf": 1.0}
    assert "| az         | MidRes |" in report.table(three) and "**MidRes**" in report.table(three)
    (run / "scores.json").write_text(json.dumps(three))
    (run / "config.toml").write_text("[evaluate]\nlores_below = 130\nhires_from = 1000\n")
    report.write(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "LoRes are the languages with fewer training pairs than 130, HiRes those with at least 1,000." in text


def test_no_lookup_at_all() -> None:
    nothing = scores(beats_lookup={"all": None, "lores": None, "hires": None})
    assert report.verdict(nothing).startswith("No lookup")


def test_verdict_names_every_group_that_is_not_trained() -> None:
    text = report.verdict(scores())
    assert text == "Below lookup in All (chrF 50.0 against 50.0), LoRes (chrF 40.0 against 45.0): not trained."
    beaten = scores(beats_lookup={"all": True, "lores": True, "hires": True})
    assert report.verdict(beaten).endswith("digits replaced) in every group.")
    some = scores(beats_lookup={"all": None, "lores": True, "hires": None})
    assert report.verdict(some).endswith("digits replaced) in LoRes; the rest has none.")


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_write(run: Path) -> None:
    report.write(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert report.table(scores()) in text and report.verdict(scores()) in text
    assert "40 updates, best by validation NLL after 20" in text
    assert "10 s of training at 1,234 target tokens/s" in text
    assert "- BLEU (ru, az): `tok:13a`\n- BLEU (be): `tok:char`\n- chrF: `nc:6`\n" in text
    assert "all test lines; NLL" in text and "## By stratum" not in text
    assert "multiplier_lr" in text
    for name in ("loss.png", "alpha.png"):
        width, height = png_size(run / name)
        assert 900 <= width <= 1800 and 400 <= height <= 1000, name
        assert f"({name})" in text
    assert not [path for path in run.iterdir() if path.suffix == ".tmp"]


def test_strata_table(run: Path) -> None:
    part = {key: scores()[key] for key in ("languages", "groups", "lookup")}
    headline = scores(strata={"new-pair": part, "seen-skeleton": part}, headline="new-pair")
    text = report.markdown(run, headline, [])
    assert "on the test lines of stratum new-pair" in text
    row = next(line for line in text.splitlines() if line.startswith("| new-pair "))
    assert [c.strip() for c in row.strip("|").split("|")][1:5] == ["30", "50.0", "50.0", "1.250"]


@pytest.mark.parametrize("lines", [0, 1])
def test_pictures_of_a_run_that_was_hardly_trained(run: Path, lines: int) -> None:
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record(10))}\n" for _ in range(lines)))
    report.write(run)
    assert png_size(run / "loss.png")[0] > 900


def test_pictures_of_a_run_that_diverged(tmp_path: Path) -> None:
    lines = [{"step": 10, "losses": {"az": 2.0}}, {"step": 20, "losses": {"az": None}, "valid": {"nll": {"az": None}}}]
    report.draw_loss(lines, scores(), tmp_path / "loss.png")
    assert png_size(tmp_path / "loss.png")[0] > 0


def test_pictures_of_many_languages_and_of_weights_at_zero(tmp_path: Path) -> None:
    names = [f"l{i:02}" for i in range(30)]
    many = scores(
        languages={name: cell(50.0, pairs=10 + i) for i, name in enumerate(names)},
        groups={"lores": {"languages": names[:20]}},
    )
    records = [
        {
            "step": step,
            "losses": {n: 1.0 + i for i, n in enumerate(names)},
            "alpha": {n: i % 2 for i, n in enumerate(names)},
        }
        for step in (10, 20)
    ]
    report.draw_loss(records, many, tmp_path / "loss.png")
    report.draw_alpha(records, many, tmp_path / "alpha.png")
    assert png_size(tmp_path / "loss.png")[0] > 900 and png_size(tmp_path / "alpha.png")[0] > 900


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("alpha", [{"az": 0.999, "be": 0.001}, {"az": 0.5, "be": 0.5}, {"az": 1.0, "be": 0.0}])
def test_pictures_of_extreme_weights(alpha: dict[str, float], tmp_path: Path) -> None:
    records = [{"step": step, "alpha": alpha} for step in (10, 20)]
    report.draw_alpha(records, scores(), tmp_path / "alpha.png")
    assert png_size(tmp_path / "alpha.png")[0] > 900


def test_labels_keep_their_distance_and_their_place_where_they_can() -> None:
    assert report._spread([0.2, 0.5, 0.9], 0.05) == [0.2, 0.5, 0.9]
    close = report._spread([0.5, 0.5, 0.51], 0.06)
    assert math.isclose(close[1] - close[0], 0.06) and math.isclose(close[2] - close[1], 0.06)
    assert math.isclose(sum(close) / 3, (0.5 + 0.5 + 0.51) / 3)  # as far up as down
    low = report._spread([0.0, 0.0], 0.06)
    assert low[0] >= 0.03 and math.isclose(low[1] - low[0], 0.06)
    high = report._spread([1.0, 1.0], 0.06)
    assert math.isclose(high[1], 1.0) and math.isclose(high[0], 0.94)
    assert report._spread([], 0.06) == []


def test_running_mean() -> None:
    points = [(i, float(i % 2)) for i in range(80)]
    smoothed = report._smooth(points)
    assert [step for step, _ in smoothed] == list(range(80))
    assert smoothed[40][1] == pytest.approx((0 + 1 + 0 + 1 + 0) / 5)  # two points on either side
    assert report._smooth(points[:3]) == points[:3]


def test_a_run_without_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no scores\.json; make it with: cats evaluate"):
        report.write(tmp_path)
    for text in ("{", "[]", '{"languages": {}}'):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(UserError, match=r"scores\.json is damaged"):
            report.write(tmp_path)


def test_metrics_line_that_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 2')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"st\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'cats-optim\[nmt\]'"):
        report.new_figure(1)
