"""The benchmark of the trainer: that unlike things are not compared, and that who is missing is said."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.operators.baselines import Absent
from bench.trainer import baselines, comparison, end_to_end, gpu_training, pipeline, preparing
from bench.trainer.comparison import JOEY, JOEY_OWN, LOOP, MARIAN, OURS, Size

TINY = Size(
    "tiny",
    ("tokenizer.vocab_size=600", "model.d_model=32", "model.ffn=48", "model.dropout=0.2", "sampling.batch_tokens=150"),
    threads=1,
    updates=2,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("babel")
    pytest.importorskip("sentencepiece")
    return end_to_end.prepared(comparison.configuration(TINY, None), tmp_path_factory.mktemp("corpus") / "tiny")


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- turns


def test_turns_rotate_and_the_first_round_warms_up() -> None:
    log: list[str] = []

    def turn(name: str) -> comparison.Turn:
        return lambda r: log.append(f"{name}{r}") or float(10 * r)  # type: ignore[func-returns-value]

    rates = comparison.interleave({name: turn(name) for name in "abc"}, 2, [])
    assert " ".join(log) == "a0 b0 c0 b1 c1 a1 c2 a2 b2"
    assert rates == {name: [10.0, 20.0] for name in "abc"}


def test_who_fails_is_named_and_the_others_go_on() -> None:
    def fails(r: int) -> float:
        if r == 1:
            raise Absent("out of memory")
        return 1.0

    missing: list[dict[str, Any]] = []
    rates = comparison.interleave({OURS: lambda r: 2.0, "other": fails}, 3, missing)
    assert rates == {OURS: [2.0, 2.0, 2.0]}
    assert missing == [{"contender": "other", "reason": "out of memory"}]


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down from round to round moves the rates, and not what is said of them."""
    ours, other = comparison.compared({OURS: [8.0, 4.0, 2.0], "other": [4.0, 2.0, 1.0]})
    assert (ours["times"]["median"], other["times"]["median"]) == (1, 2)
    assert (other["times"]["low"], other["times"]["high"]) == (2, 2)
    assert other["per_second"]["median"] == 2 and other["per_second"]["samples"] == 3


# ---- the gate


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_plain_loop_is_the_same_computation(corpus: Path, tmp_path: Path) -> None:
    ours = comparison.Ours(TINY, corpus, tmp_path / "run")
    batches = ours.batches(comparison.GATE_UPDATES + 1)
    weights = {name: value.clone() for name, value in ours.trainer.model.state_dict().items()}
    wanted = ours.gate(batches[0])
    assert wanted[1] < wanted[0] - 0.005
    assert {m.p for m in ours.trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}

    job = ours.job(None)
    loop = baselines.Loop(job, batches, [], weights)
    comparison.check_nll(loop.gate(comparison.GATE_UPDATES)["nll"], wanted)
    assert {m.p for m in loop.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    found = loop.train(3, 1)
    assert found["tokens"] == int((batches[3][2] != 0).sum()) and found["seconds"] > 0

    for change, said in (
        ({"lr": 1.1 * job["lr"]}, "updates"),
        ({"smoothing": 0.5}, "updates"),
        ({"heads": 2}, "model"),
    ):
        other = baselines.Loop(job | change, batches, [], weights)
        with pytest.raises(Absent, match=f"not the same {said}: "):
            comparison.check_nll(other.gate(comparison.GATE_UPDATES)["nll"], wanted)


def test_translations_must_be_as_long_and_mostly_ours() -> None:
    ours = [[i] * comparison.LENGTH for i in range(10)]
    found = [*ours[:9], [5] * comparison.LENGTH]
    assert comparison.check_lines(found, ours, 0.9) == 0.9
    with pytest.raises(Absent, match="90% of its translations are ours"):
        comparison.check_lines(found, ours, 0.95)
    for wrong in ([*ours[:9], [9] * 3], ours[:9]):
        with pytest.raises(Absent, match="not of 24 tokens"):
            comparison.check_lines(wrong, ours, 0.0)


def test_a_model_without_end() -> None:
    from cats.nmt.model.transformer import Transformer

    torch.manual_seed(1)
    model = Transformer(50, 16, 2, 16, 1, 1, 0.0).eval()
    comparison.endless(model, 3)
    source = torch.randint(4, 50, (5, 7))
    logits = model(source, torch.randint(4, 50, (5, 6))).detach()
    torch.testing.assert_close(logits[..., 3], torch.full((5, 6), -30.0), rtol=0, atol=1e-3)
    assert logits[..., 4:].amin() > -20


def test_ids_of_unknown_and_padding_change_places() -> None:
    assert baselines.swap(torch.tensor([[0, 1, 2], [3, 1, 40]])).tolist() == [[1, 0, 2], [3, 0, 40]]


# ---- processes


def test_missing_rivals_have_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"batches": [], "sources": [], "weights": {}}, tmp_path / "empty.pt")
    python = Path(sys.executable)

    def start(python: Path, rival: str) -> comparison.Process:
        return comparison.Process(python, rival, {"threads": 1}, tmp_path / "empty.pt", tmp_path / "log")

    with pytest.raises(Absent, match=r"no .*/nowhere/bin/python; bench/README.md says"):
        start(tmp_path / "nowhere/bin/python", JOEY)
    with pytest.raises(Absent, match="KeyError: 'nobody'"):
        start(python, "nobody")
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(comparison, "WORKER", worker)
    worker.write_text("import no_such_library")
    with pytest.raises(Absent, match="it ended: ModuleNotFoundError: No module named 'no_such_library'"):
        start(python, JOEY)
    worker.write_text("import time; time.sleep(60)")  # the rival's: it is killed when the patience below is over
    monkeypatch.setattr(comparison, "PATIENCE", 0.3)
    with pytest.raises(Absent, match="no answer for"):
        start(python, JOEY)


def test_rivals_end_with_the_contest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import sys\nfor line in sys.stdin:\n    print('{}', flush=True)")
    monkeypatch.setattr(comparison, "WORKER", worker)
    with pytest.raises(ZeroDivisionError), comparison.processes() as start:
        process = start(Path(sys.executable), JOEY, {}, tmp_path / "none.pt", tmp_path / "log")
        assert process.call("anything") == {}
        raise ZeroDivisionError
    assert process.process.returncode is not None


# ---- the pipeline's text, and the GPU's idle time


def test_made_up_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cats.nmt.data.corpus_files import read_corpus

    monkeypatch.setattr(pipeline, "WORDS", 3000)
    pipeline.write_text(tmp_path / "text", 3, 400)
    corpus = read_corpus(tmp_path / "text", "en", "one-to-many", ())
    assert corpus.sizes == {"xa": 400, "xb": 400, "xc": 400}
    lengths = [len(source.split()) for task in corpus.tasks for source, _ in task.train]
    assert 17 < sum(lengths) / len(lengths) < 21 and min(lengths) >= 2 and max(lengths) <= 80


def test_memory_of_preparing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparing, "BLOCK", 200)
    assert preparing.main(["--pairs", "300", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    (size,) = json.loads(file.read_text())["sizes"]
    assert size["pairs"] == 300 and 50 < size["peak_mib"] < 5000 and size["seconds"] > 0
    assert f"|   300 |         0 | {size['seconds']:>3.0f} |" in capsys.readouterr().out


def test_idle_share() -> None:
    assert gpu_training.idle([(0, 4), (1, 2), (3, 5), (8, 10)]) == pytest.approx(0.3)
    assert gpu_training.idle([(5, 6), (0, 5)]) == 0


@pytest.mark.gpu
def test_a_measurement_on_the_gpu(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_training, "SAMPLES", 2)
    found = gpu_training.measured(comparison.Ours(TINY, corpus, tmp_path / "run").trainer)
    assert found["per_second"]["median"] > 0 and found["batch_tokens"] == 150
    # A forward multiplies every parameter of a matrix once for a token at least, a backward twice.
    assert found["rate"] > 2 * found["parameters"] * found["per_second"]["median"]
    assert 0 < found["idle"] < 1


def test_tokens_of_updates(corpus: Path, tmp_path: Path) -> None:
    trainer = comparison.Ours(TINY, corpus, tmp_path / "run").trainer
    gpu_training.updates(trainer, 1)
    tokens, seconds = gpu_training.updates(trainer, 2)
    batches = [trainer.training.batch(trainer.sampler.batch(step)) for step in (1, 2)]
    assert tokens == sum(len(batch.target_cells) for batch in batches) and seconds > 0 and trainer.step == 3


# ---- the command


def test_a_run_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("babel")
    pytest.importorskip("sentencepiece")
    monkeypatch.setattr(comparison, "sizes", lambda cores: [TINY])
    monkeypatch.setattr(end_to_end, "RIVALS", tmp_path / "nowhere")
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


def test_what_the_trainer_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "sizes", lambda cores: [Size("odd", ("model.d_model=33",), 1, 1)])
    assert end_to_end.main(["--quick", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("bench: model.d_model") and not list(tmp_path.iterdir())


def test_targets_take_the_worst_case() -> None:
    def contest_of(part: str, size: str, **times: float) -> dict[str, Any]:
        found = [{"name": name, "times": {"median": value}} for name, value in times.items()]
        return {"part": part, "size": size, "contenders": found}

    results = {
        "contests": [
            contest_of("training", "demo", **{JOEY: 1.5, JOEY_OWN: 2.0}),
            contest_of("training", "small", **{JOEY: 1.2, JOEY_OWN: 1.3}),
            contest_of("translation", "demo", **{JOEY: 3.5, MARIAN: 1.1}),
        ],
        "gpu": [{"preset": "ted", "idle": 0.02}, {"preset": "base", "idle": 0.04}],
    }
    found = {t["target"]: (t["value"], t["met"], t["worst"]) for t in end_to_end.targets(results)}
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
        (["--rivals", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--gpu"], "needs a CUDA device"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, refusal: Callable[..., str]) -> None:
    assert said in refusal(end_to_end.main, arguments)
