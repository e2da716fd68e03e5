"""The command `python -m bench.trainer.end_to_end`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import show
from bench.common.measure import Summary
from bench.trainer import end_to_end, pipeline
from bench.trainer.cats_trainer import Size
from bench.trainer.comparison import JOEY, JOEY_OWN, LOOP, MARIAN, OURS
from bench.trainer.records import (
    Contender,
    EndToEndResults,
    GpuTraining,
    TrainingComparison,
    TranslationComparison,
)

from .common import TINY


def test_a_run_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("babel")
    pytest.importorskip("sentencepiece")
    monkeypatch.setattr(end_to_end, "sizes", lambda cores: [TINY])
    monkeypatch.setattr(end_to_end, "BASELINES", tmp_path / "nowhere")
    monkeypatch.setattr(end_to_end, "QUICK_ROUNDS", 1)
    monkeypatch.setattr(pipeline, "PAIRS", 100)
    monkeypatch.setattr(pipeline, "WORDS", 2000)
    monkeypatch.setattr(pipeline, "SECONDS", 0.1)
    assert end_to_end.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*-end-to-end-quick.json")
    results = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "modified", "command", "date", "targets", "seconds"} <= results.keys()
    trained, translated = results["contests"]
    assert [c["name"] for c in trained["contenders"]] == [OURS, LOOP]
    assert [c["name"] for c in translated["contenders"]] == [OURS]
    assert [m["contender"] for m in trained["missing"] + translated["missing"]] == [JOEY, JOEY, MARIAN]
    assert trained["facts"][LOOP]["torch"] == torch.__version__
    assert [p["batch_tokens"] for p in results["pipeline"]] == list(pipeline.BATCH_TOKENS)
    for p in results["pipeline"]:
        assert p["target"]["median"] < p["both"]["median"]
    assert [t["target"] for t in results["targets"]] == ["pipeline, tokens per second"]
    assert re.search(r"\| training, tiny, 1 thread \|.*\n.*\n\| cats \| .* \| 1 \(1–1\) \|\n\| nn.Transformer", printed)
    assert f"- {JOEY}: no {tmp_path / 'nowhere'}" in printed
    assert show.markdown(path) == printed


def test_what_the_trainer_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(end_to_end, "sizes", lambda cores: [Size("odd", ("model.d_model=33",), 1, 1)])
    assert end_to_end.main(["--quick", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("bench: model.d_model") and not list(tmp_path.iterdir())


def test_targets_take_the_worst_case() -> None:
    def seconds(value: float) -> Summary:
        return Summary(value, value, value, 1)

    def contenders(times: dict[str, float]) -> list[Contender]:
        return [Contender(name, seconds(1.0), seconds(value)) for name, value in times.items()]

    def training(size: str, **times: float) -> TrainingComparison:
        return TrainingComparison(size, [], 1, 0, 0, 0, 1, [], {}, contenders(times), [])

    def translation(size: str, **times: float) -> TranslationComparison:
        return TranslationComparison(size, [], 1, 0, 0, 1, 1, {}, contenders(times), [])

    def gpu(preset: str, idle: float) -> GpuTraining:
        return GpuTraining(preset, 0, 0, 0, seconds(1.0), 1.0, idle)

    results = EndToEndResults(
        device="cpu",
        contests=[
            training("demo", **{JOEY: 1.5, JOEY_OWN: 2.0}),
            training("small", **{JOEY: 1.2, JOEY_OWN: 1.3}),
            translation("demo", **{JOEY: 3.5, MARIAN: 1.1}),
        ],
        gpu=[gpu("ted", 0.02), gpu("base", 0.04)],
    )
    found = {t.target: (t.value, t.met, t.worst) for t in end_to_end.targets(results)}
    assert found == {
        f"training, × {JOEY_OWN}": (1.3, True, "small"),
        f"training, × {JOEY}": (1.2, False, "small"),
        f"translation, × {JOEY}": (3.5, True, "demo"),
        "idle share of the GPU": (0.04, False, "base"),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["--quick", "--gpu"], "not allowed with"),
        (["--out", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--baselines", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--gpu"], "needs a CUDA device"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, refusal: Callable[..., str]) -> None:
    assert said in refusal(end_to_end.main, arguments)
