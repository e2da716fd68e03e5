"""A benchmark that is stopped leaves the results of the cases before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as operators
from bench import show
from bench.common.results import FOLDER, ResultFiles, from_json, provenance
from bench.engines import __main__ as engines
from bench.engines import run as engines_run
from bench.engines.records import EngineResults
from bench.operators import run as operators_run
from bench.operators.records import OperatorResults
from bench.scaling import __main__ as scaling
from bench.scaling import measure
from bench.tasks import __main__ as tasks
from bench.tasks import run as tasks_run
from bench.tasks.records import Training
from bench.trainer import preparing
from bench.trainer.records import Prepared


@dataclass(frozen=True)
class Made:
    """Made-up results."""

    values: list[float]


def committed(kind: str, key: str, results: Any) -> list[Any]:
    """The cases of the committed result that has most of them."""
    found = [json.loads(path.read_text()) for path in FOLDER.glob(f"*{kind}.json")]
    return getattr(from_json(results, max(found, key=lambda value: len(value.get(key, [])))), key)


def stops_after(values: list[Any]) -> Callable[..., Any]:
    """A function that returns one value after the other, and is then interrupted, as by Ctrl-C."""
    left: Iterator[Any] = iter(values)

    def measure(*_: Any, **__: Any) -> Any:
        for value in left:
            return value
        raise KeyboardInterrupt

    return measure


def kept(folder: Path) -> str:
    """The tables of an interrupted run, which are those that its JSON file gives."""
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2 and names[0].endswith("-unfinished.json") and names[1].endswith("-unfinished.md"), names
    text = (folder / names[1]).read_text(encoding="utf-8")
    assert text.startswith("Unfinished: ") and text.endswith(show.markdown(folder / names[0]))
    return text


def test_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ResultFiles(tmp_path, "cpu-2.5-made", provenance("made", []), lambda _, made: f"{made.values}\n")
    older = tmp_path / "cpu-2.5-made.json"
    older.write_text("an older result of the same day")
    for values in ([1.0], [1.0, 2.0]):
        files.update(Made(values))
        assert (tmp_path / "cpu-2.5-made-unfinished.md").read_text().endswith(f"\n\n{values}\n")
        assert json.loads((tmp_path / "cpu-2.5-made-unfinished.json").read_text())["values"] == values
    assert older.read_text() == "an older result of the same day"
    files.finish(Made([3.0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu-2.5-made.json", "cpu-2.5-made.md"]
    assert json.loads(older.read_text())["values"] == [3.0]
    assert capsys.readouterr().out == older.with_suffix(".md").read_text() == "[3.0]\n"


def test_without_a_folder_the_tables_are_only_printed(capsys: pytest.CaptureFixture[str]) -> None:
    files = ResultFiles(None, "made", provenance("made", []), lambda _, made: f"{made.values}\n")
    files.update(Made([1.0]))
    files.finish(Made([2.0]))
    assert capsys.readouterr().out == "[2.0]\n"


def test_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = committed("", "cases", OperatorResults)[:2]
    monkeypatch.setattr(operators.roofline, "peaks", lambda device: {"float32": 1e9})
    monkeypatch.setattr(operators_run, "prepare", lambda workload, device: (None, None))
    monkeypatch.setattr(operators_run, "run_case", stops_after(cases))
    with pytest.raises(KeyboardInterrupt):
        operators.main(["--quick", "--out", str(tmp_path)])
    text = kept(tmp_path)
    assert all(f"| {case.name} | " in text for case in cases)


def test_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece")
    step = committed("-engines", "outer_steps", EngineResults)[0]
    monkeypatch.setattr(engines.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(engines_run, "outer_step", stops_after([step]))
    with pytest.raises(KeyboardInterrupt):
        engines.main(["--quick", "--out", str(tmp_path)])
    assert f"K = {step.tasks}" in kept(tmp_path) or f"K={step.tasks}" in kept(tmp_path)


def test_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two problems is stopped: the first one is kept."""
    first, second = "regression, K=2, equal tasks", "regression, K=2, last loss × 10"
    cells = [(method, seed) for method in ("equal", "GradNorm") for seed in (0, 1)]
    made = [Training(first, method, seed, [0.1, 0.2 + seed], [0.5, 0.5]) for method, seed in cells]

    class Pool:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, *_: Any) -> Iterator[Training]:
            yield from made
            yield Training(second, "equal", 0, [0.1, 0.2], [0.5, 0.5])
            raise KeyboardInterrupt

    monkeypatch.setattr(tasks_run, "ProcessPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        tasks.main(["--problems", "K=2, ", "--methods", "GradNorm", "--seeds", "2", "--out", str(tmp_path)])
    text = kept(tmp_path)
    assert f"| {first} | 0.7 ± 0.71 |" in text and second not in text


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = {"median": 1.0, "low": 1.0, "high": 1.0, "samples": 1, "clock": "wall"}
    lines = [
        ["pass", 50, time],
        ["pass", 100, {**time, "median": 2.0}],
        ["memory", 1 << 20, time],
        ["step", "plain", time],
    ]

    def spawn(work: Any, arguments: tuple[Path, int, Any], nprocs: int) -> None:
        if nprocs > 1:
            raise KeyboardInterrupt
        (arguments[0] / measure.FOUND).write_text(json.dumps([1000, lines]))

    monkeypatch.setattr(measure.mp, "spawn", spawn)
    with pytest.raises(KeyboardInterrupt):
        scaling.main(["--out", str(tmp_path)])
    assert "| plain |" in kept(tmp_path)


@pytest.mark.skipif("sys.platform != 'linux'")
def test_preparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "measured", stops_after([Prepared(1000, 1.0, 2.0, 3.0)]))
    with pytest.raises(KeyboardInterrupt):
        preparing.main(["--pairs", "1000", "2000", "--out", str(tmp_path)])
    assert "| 1,000 | 1 | 2 | 3 |" in kept(tmp_path)
