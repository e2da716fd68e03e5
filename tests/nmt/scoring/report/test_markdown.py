"""cats.nmt.scoring.report.markdown: report.md of a run, and its verdict."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, to_toml
from cats.nmt.quality import Quality
from cats.nmt.scoring import tables
from cats.nmt.scoring.report import markdown
from cats.nmt.scoring.scores import Scores, from_json
from tests.nmt.scoring.samples import baseline, cell, content, png_size, record, scores


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [record(step) for step in range(10, 41, 10)]
    lines.insert(2, {"step": 20, "valid": {"nll": {"ru": 1.0, "az": 2.0}, "all": 1.5}, "best": True})
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "scores.json").write_text(json.dumps(content()))
    (tmp_path / "config.toml").write_text(to_toml(Config()))
    return tmp_path


def test_checkpoints_side_by_side(run: Path) -> None:
    last = content()
    last["languages"]["az"] = cell(41.0, 1.5, pairs=150)
    (run / "scores.last.json").write_text(json.dumps(last))
    markdown.write(run)
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
    three = content(
        groups={"all": cell(50.0, languages=["ru", "az", "be"])} | {g: cell(1.0, languages=n) for g, n in names.items()}
    )
    three["lookup"]["groups"]["midres"] = baseline(1.0)
    assert "| az         | MidRes |" in tables.scores_table(from_json(three)) and "**MidRes**" in tables.scores_table(
        from_json(three)
    )
    (run / "scores.json").write_text(json.dumps(three))
    (run / "config.toml").write_text("[evaluate]\nlores_below = 130\nhires_from = 1000\n")
    markdown.write(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "LoRes are the languages with fewer training pairs than 130, HiRes those with at least 1,000." in text


def against(**chrf: float | None) -> Scores:
    """The usual scores with this chrF of the baseline. The model has 50.0 in all, 40.0 in lores and 60.04 in hires."""
    return scores(lookup={"languages": {}, "groups": {group: baseline(value) for group, value in chrf.items()}})


def test_no_baseline_at_all() -> None:
    nothing = against(all=None, lores=None, hires=None)
    assert markdown.verdict(nothing).startswith("Not compared with the nearest-neighbour baseline")
    assert markdown.verdict(nothing).endswith("the settings leave it out.")
    groups = {name: replace(cell, quality=Quality()) for name, cell in nothing.model.groups.items()}
    untranslated = replace(nothing, model=replace(nothing.model, groups=groups))
    assert markdown.verdict(untranslated).endswith("numbers replaced): nothing was translated.")


def test_verdict_names_every_group_that_is_not_trained() -> None:
    text = markdown.verdict(scores())
    assert text == (
        "Below the nearest-neighbour baseline in All (chrF 50.0 against 50.0), LoRes (chrF 40.0 against 45.0): "
        "the model is not trained."
    )
    beaten = against(all=49.9, lores=39.9, hires=60.0)
    assert markdown.verdict(beaten).endswith("numbers replaced) in every group.")
    some = against(all=None, lores=39.9, hires=None)
    assert markdown.verdict(some).endswith("numbers replaced) in LoRes; the other groups have no baseline.")


def test_write(run: Path) -> None:
    markdown.write(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert tables.scores_table(scores()) in text and markdown.verdict(scores()) in text
    assert "40 updates, best by validation NLL after 20" in text
    assert "10 s of training at 1,234 target tokens/s" in text
    assert "- BLEU (ru, az): `tok:13a`\n- BLEU (be): `tok:char`\n- chrF: `nc:6`\n" in text
    assert "all test lines. NLL" in text and "## By stratum" not in text
    assert "multiplier_lr" in text
    for name in ("loss.png", "alpha.png"):
        width, height = png_size(run / name)
        assert 900 <= width <= 1800 and 400 <= height <= 1000, name
        assert f"({name})" in text
    assert not [path for path in run.iterdir() if path.suffix == ".tmp"]


def test_the_best_model_by_another_metric() -> None:
    lines = [{"step": 20, "valid": {"nll": {"ru": 1.0}, "all": 1.0, "bleu": 9.0}, "best": True}]
    config = apply_overrides(Config(), ["train.validate_bleu=1", "train.best_metric=bleu"])
    text = markdown.text("run", scores(), {"best": scores()}, lines, config)
    assert "40 updates, best by validation BLEU after 20" in text and "best by validation NLL" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="a file system that allows any name")
def test_a_run_whose_name_is_no_text(run: Path, tmp_path: Path) -> None:
    markdown.write(run.rename(tmp_path.with_name("other\udcff")))
    assert (tmp_path.with_name("other\udcff") / "report.md").read_text(encoding="utf-8").startswith("# other?\n")


def test_strata_table(run: Path) -> None:
    part = {key: content()[key] for key in ("languages", "groups", "lookup")}
    headline = scores(strata={"new-pair": part, "seen-skeleton": part}, headline="new-pair")
    text = markdown.text("run", headline, {"best": headline}, [], Config())
    assert "computed on the test lines of stratum new-pair" in text
    row = next(line for line in text.splitlines() if line.startswith("| new-pair "))
    assert [c.strip() for c in row.strip("|").split("|")][1:5] == ["30", "50.0", "50.0", "1.250"]


@pytest.mark.parametrize("lines", [0, 1])
def test_pictures_of_a_run_with_hardly_any_training(run: Path, lines: int) -> None:
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record(10))}\n" for _ in range(lines)))
    markdown.write(run)
    assert png_size(run / "loss.png")[0] > 900
