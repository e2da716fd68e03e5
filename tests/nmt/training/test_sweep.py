"""Sweeps are read from finished runs, JSON and CSV, and train a run of double-power-law."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.errors import UserError
from cats.nmt.training.sweep import read_sweep
from cats.nmt.training.trainer import train
from tests.nmt.common import metrics, settings, write_short_corpus

LENGTHS = {"xa": 5.0, "xb": 5.0}
ROWS = [(1, 3, 2.0, 2.5), (1, 1, 2.1, 2.2), (3, 1, 2.3, 2.1), (1, 2, 2.0, 2.4), (2, 1, 2.2, 2.15)]


def as_json(rows: list[tuple[float, ...]]) -> str:
    return json.dumps([{"ratios": {"xa": a, "xb": b}, "losses": {"xa": c, "xb": d}} for a, b, c, d in rows])


def test_files(tmp_path: Path) -> None:
    lines = ["run,task,ratio,loss"]
    for n, (a, b, c, d) in enumerate(ROWS):
        lines += [f"{n},xb,{b},{d}", f"{n},xa,{a},{c}"]
    (tmp_path / "sweep.csv").write_text("\n".join(lines))
    (tmp_path / "sweep.json").write_text(as_json(ROWS))
    for name in ("sweep.csv", "sweep.json"):
        ratios, losses = read_sweep(tmp_path / name, ["xa", "xb"], LENGTHS)
        assert ratios[:, 0] == pytest.approx([1 / 4, 1 / 2, 3 / 4, 1 / 3, 2 / 3])
        assert ratios[:, 1] == pytest.approx(1 - ratios[:, 0])
        assert losses.tolist() == [[c, d] for _, _, c, d in ROWS]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1", r"a\.json is not a sweep: write \["),
        ("a.json", '[{"ratios": {"xa": 1, "xb": 2}}]', r"a\.json is not a sweep"),
        ("a.json", as_json([(1, 0, 2, 2)]), r"a\.json: run 1 has no ratio above 0 of xb"),
        ("a.json", '[{"ratios": {"xa": 1, "xb": 2}, "losses": {"xb": 2}}]', r"run 1 has no loss above 0 of xa"),
        ("a.json", as_json([(10**400, 1, 2, 2)]), r"run 1 has no ratio above 0 of xa"),
        ("a.csv", "run,task\n1,xa\n", r"a\.csv is not a sweep: it needs the columns run,task,ratio,loss"),
        ("a.csv", "run,task,ratio,loss\n1,xa,much,2\n", r"a\.csv is not a sweep"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_sweep(tmp_path / name, ["xa", "xb"], LENGTHS)
    assert "\n" not in str(error.value)


def test_runs_of_constant_temperatures(tmp_path: Path) -> None:
    corpus, few = write_short_corpus(tmp_path / "toy"), ["train.steps=10", "train.validate_every=5"]
    for temperature in ("1", "inf"):
        config = settings(corpus, *few, "method.name=temperature", f"sampling.temperature={temperature}")
        train(config, tmp_path / "runs" / temperature, quiet=True)
    for other in ("method.name=restart", "method.token_weights=[1,2]"):  # passed over
        train(settings(corpus, *few, "method.name=static", other), tmp_path / "runs" / other, quiet=True)
    train(settings(corpus, *few, "method.name=temperature"), tmp_path / "runs" / "stopped", quiet=True)
    lines = (tmp_path / "runs" / "stopped" / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    early = "".join(line for line in lines if json.loads(line)["step"] <= 5)  # not finished: passed over, too
    (tmp_path / "runs" / "stopped" / "metrics.jsonl").write_text(early, encoding="utf-8")
    ratios, losses = read_sweep(tmp_path / "runs", ["xa", "xb"], LENGTHS)
    # 60 and 20 pairs; the sampler rounds the sentences of 10 batches.
    assert ratios[:, 0].tolist() == pytest.approx([0.75, 0.5], abs=0.05) and losses.shape == (2, 2)
    valid = [line["valid"]["nll"]["xa"] for line in metrics(tmp_path / "runs" / "1") if "valid" in line]
    assert losses[0, 0] == min(valid)
    config = settings(corpus, *few, "method.name=temperature", "train.steps=5")
    train(config, tmp_path / "runs" / "short", quiet=True)
    with pytest.raises(UserError, match=r"need the same train\.steps, which is 10 in 1, 5 in short; move some"):
        read_sweep(tmp_path / "runs", ["xa", "xb"], LENGTHS)
    with pytest.raises(UserError, match="has no finished runs of these tasks with constant ratios"):
        read_sweep(tmp_path / "toy", ["xa", "xb"], LENGTHS)
    with pytest.raises(UserError, match="there is no sweep"):
        read_sweep(tmp_path / "absent", ["xa", "xb"], LENGTHS)


def test_a_run_with_the_solved_ratios(tmp_path: Path) -> None:
    corpus = write_short_corpus(tmp_path / "toy")
    (tmp_path / "sweep.json").write_text(as_json(ROWS))
    chosen = [f"method.options=sweep={tmp_path / 'sweep.json'}", "train.steps=10", "train.validate_every=10"]
    train(settings(corpus, "method.name=double-power-law", *chosen), tmp_path / "run", quiet=True)
    first = next(line for line in metrics(tmp_path / "run") if "probabilities" in line)
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(UserError, match=r"method\.name = double-power-law: it is fitted to a sweep"):
        train(settings(corpus, "method.name=double-power-law"), tmp_path / "none", quiet=True)
