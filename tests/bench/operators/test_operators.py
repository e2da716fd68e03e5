"""The benchmarks' arithmetic, and that no time is reported for a wrong answer. Speed itself is not tested."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import __main__ as command
from bench.common import measure, roofline
from bench.operators import baselines, cases, overhead, report, run, step, targets
from bench.operators.cases import Problem, Workload, flat, work
from bench.operators.oracle import SUMS, Oracle, Outcome
from cats import ops

CPU = torch.device("cpu")
SHAPES = [[40, 30], [7], [], [513]]
PEAK = {"float32": 1e11, "float64": 5e10}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile as it would be without a compiler: the functions as they are written."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


# ---- cases


def test_transformer_base_is_the_published_model() -> None:
    shapes = cases.transformer_base()
    attention, ffn, norm = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 2 * 512
    assert len(shapes) == 1 + 6 * 16 + 6 * 26
    assert sum(map(math.prod, shapes)) == 32_000 * 512 + 6 * (3 * attention + 2 * ffn + 5 * norm)


@pytest.mark.parametrize(
    ("operator", "read", "written"),
    [
        ("combine", 4 * 8, 4),
        ("combine_dots", 4 * 8, 4),
        ("dots", 4 * 9, 0),
        ("gram", 4 * 8, 0),
        ("gram, combine", 2 * 4 * 8, 4),
        ("combine_adamw_", 4 * 8 + 12, 12),
    ],
)
def test_bytes_that_must_move(operator: str, read: int, written: int) -> None:
    least = work(operator, 8, 1000, torch.float32)
    assert (least.read, least.written, least.moved) == (1000 * read, 1000 * written, 1000 * (read + written))


def test_bytes_of_other_dtypes() -> None:
    assert work("combine_adamw_", 8, 1, torch.bfloat16).moved == 16 + 2 * 2 + 4 * 4
    assert work("combine_adamw_", 8, 1, torch.float64).moved == 64 + 2 * 8 + 4 * 8
    assert work("gram", 3, 1, torch.float16).read == 6
    with pytest.raises(ValueError, match="no operator 'sum'"):
        work("sum", 1, 1, torch.float32)


def test_every_suite_has_every_operator_and_distinct_names() -> None:
    for suite in (cases.quick(), cases.cpu(), cases.gpu()):
        names = [f"{op} {w.name}" for w in suite for op in w.operators]
        assert len(set(names)) == len(names)
        assert {op for w in suite for op in w.operators} >= set(cases.OPERATORS)
        assert all(set(w.compiled) <= set(w.operators) for w in suite)
    assert all(w.tasks * w.elements * w.dtype.itemsize > 0.8 * 2**30 for w in cases.gpu() if w.layout == "flat")


# ---- the gate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shapes", [SHAPES, [[70_001]]])
def test_every_contender_passes_the_gate(uncompiled: None, dtype: torch.dtype, shapes: list[list[int]]) -> None:
    """Each form computes what the oracle does, so that those refused in a run are refused for a reason."""
    operators = (*cases.OPERATORS, cases.TWO_PASSES)
    problem = Problem(Workload(3, shapes, dtype, operators, operators, "list"), CPU)
    oracle = Oracle(problem)
    for operator in operators:
        refused: list[dict[str, Any]] = []
        names = []
        for contender in run._contenders(operator, problem, refused):
            error, _ = run.gate(operator, contender, problem, oracle)
            assert contender.kind != baselines.BACKEND or error <= 1
            names.append(contender.name)
        assert "reference" in names and len(names) == len(set(names))
        assert {r["kind"] for r in refused} <= {baselines.TORCHJD, baselines.COMPILED}


CORRUPTIONS: dict[str, tuple[str, Callable[[Problem, Outcome], Outcome]]] = {
    # One element of 1,721 wrong by 8 float32 roundings of the sum of three terms, whose bound is 4 of the magnitudes'.
    "combined": ("combine", lambda p, o: _scaled(o, 3, 1 + 2.0**-16)),
    "dots": ("combine_dots", lambda p, o: o._replace(dots=o.dots + _norms(p) * 3 * SUMS)),
    "sqnorms": ("combine_dots", lambda p, o: o._replace(sqnorms=o.sqnorms * (1 + 3 * SUMS))),
    "gram": ("gram", lambda p, o: o._replace(gram=o.gram + torch.outer(_norms(p), _norms(p)) * 3 * SUMS)),
    "state": ("combine_adamw_", lambda p, o: _moved(p, o)),
}


def _norms(problem: Problem) -> torch.Tensor:
    return torch.stack([sum(g.double().square().sum() for g in grads) for grads in problem.grads]).sqrt()


def _scaled(outcome: Outcome, index: int, factor: float) -> Outcome:
    assert outcome.combined is not None
    outcome.combined[index].view(-1)[-1:].mul_(factor)
    return outcome


def _moved(problem: Problem, outcome: Outcome) -> Outcome:
    problem.state[0][0].view(-1)[5] += 1e-6
    return outcome


@pytest.mark.parametrize("part", CORRUPTIONS)
def test_the_gate_refuses_a_wrong_answer(part: str) -> None:
    operator, corrupt = CORRUPTIONS[part]
    problem = Problem(Workload(3, SHAPES), CPU)
    oracle = Oracle(problem)
    right = baselines.call(operator, problem, "reference")
    wrong = baselines.Contender("wrong", baselines.BACKEND, lambda: corrupt(problem, right()))
    assert run.gate(operator, baselines.Contender("right", baselines.BACKEND, right), problem, oracle)[0] <= 1
    with pytest.raises(run.Wrong, match=f"{part} is wrong by"):
        run.gate(operator, wrong, problem, oracle)


def test_the_gate_refuses_old_outputs_and_missing_parts() -> None:
    problem = Problem(Workload(3, SHAPES), CPU)
    oracle = Oracle(problem)
    baselines.call("combine", problem, "reference")()
    for outcome, said in ((Outcome(combined=problem.out), "wrong by inf"), (Outcome(), "no combined")):
        idle = baselines.Contender("idle", baselines.BACKEND, lambda outcome=outcome: outcome)
        with pytest.raises(run.Wrong, match=said):
            run.gate("combine", idle, problem, oracle)


def test_a_wrong_backend_gets_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cases, "quick", lambda: [flat(3, 1000, operators=("dots",))])
    right = ops.dots
    monkeypatch.setattr(ops, "dots", lambda *args, **options: right(*args, **options) + 1e-7)
    assert command.main(["--quick", "--only", "dots"]) == 1
    printed = capsys.readouterr()
    assert "backend reference: dots is wrong by" in printed.err
    assert "| dots K=3 P=1e3 float32 flat | reference |" not in printed.out
    assert "| dots K=3 P=1e3 float32 flat | loop of dot |" in printed.out


# ---- time, memory, fits


def test_quantiles_and_summary() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 9.0, 7.0]
    for share in (0, 0.2, 0.5, 0.8, 1):
        assert measure.quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-15)
    found = measure.summary(values, "wall")
    assert (found.median, found.low, found.high, found.samples) == (4.5, 2.0, 7.0, 6)


def test_fit_is_least_squares() -> None:
    x, y = [1.0, 2.0, 4.0, 7.0], [3.1, 4.9, 9.2, 14.8]
    line = measure.fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), rel=1e-12)
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-12)
    assert measure.fit([1, 2, 3], [5, 7, 9]) == measure.Fit(2, 3, 1)


class FakeClock(measure.WallClock):
    """Takes as long as it says, and writes down when it was asked."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.label, self.seconds, self.log = name, seconds, log

    def sample(self) -> float:
        self.log.append(self.label)
        return self.seconds


def test_interleaving_rotates_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(np.arange(1000.0))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))  # each sample seems to take a second
    log: list[str] = []
    found = measure.interleave({name: FakeClock(name, 0.5, log) for name in "abc"}, budget=18.0)
    rounds = "".join(log[3:])  # the first three estimate the cost
    assert rounds == "abcbcacab" * 2
    assert {name: (t.median, t.samples) for name, t in found.items()} == dict.fromkeys("abc", (0.5, 6))


def test_slow_contenders_sit_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.1, 1.0, 3.0])  # fast takes 0.1 s, slow 2 s
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    log: list[str] = []
    clocks = {"f": FakeClock("f", 0.1, log), "s": FakeClock("s", 2.0, log)}
    found = measure.interleave(clocks, budget=4.0)
    assert (found["f"].samples, found["s"].samples) == (20, measure.LEAST_ROUNDS)
    places = [i for i, name in enumerate(log[2:]) if name == "s"]
    assert max(b - a for a, b in itertools.pairwise(places)) <= 6


def test_extra_memory_sees_a_temporary() -> None:
    size = 1 << 26
    kept = torch.zeros(size, dtype=torch.uint8)
    used = measure.extra_memory(lambda: torch.ones(size, dtype=torch.uint8), CPU)
    if used is None:
        pytest.skip("the system does not tell the peak of the resident memory")
    # Other threads of the process may allocate or free a little at the same time.
    assert used == pytest.approx(size, rel=0.05)
    assert (measure.extra_memory(lambda: kept.fill_(1), CPU) or 0) < size / 16


def test_the_limit_is_the_slower_of_memory_and_arithmetic() -> None:
    problem = Problem(flat(32, 1000, operators=("combine", "gram")), CPU)
    peak = {"float32": 1e9, "float64": 1e8, "tf32": 1e12}
    combine, gram = work("combine", 32, 1000, torch.float32), work("gram", 32, 1000, torch.float32)
    assert roofline.operation_seconds("combine", problem, combine, peak) == pytest.approx(2 * 32 * 1000 / 1e9)
    # The triangle on the vector units, 32 · 33 operations a column, or three squares of 2 · 32² on the matrix units.
    assert roofline.operation_seconds("gram", problem, gram, peak) == pytest.approx(6 * 32**2 * 1000 / 1e12)
    assert roofline.operation_seconds("gram", problem, gram, {"float32": 1e9}) == pytest.approx(32 * 33 * 1000 / 1e9)

    problem = Problem(flat(4, 10_000, operators=("gram",)), CPU)
    case = run.run_case("gram", problem, Oracle(problem), {"float32": 1.0, "float64": 1.0}, 0.01)
    assert case["limit"]["set_by"] == "arithmetic" and case["limit"]["seconds"] == 4 * 5 * 10_000
    case = run.run_case("gram", problem, Oracle(problem), {"float32": 1e30, "float64": 1e30}, 0.01)
    assert case["limit"]["set_by"] == "memory"
    for c in case["contenders"]:
        assert c["fraction_of_limit"] * c["seconds"]["median"] == pytest.approx(case["limit"]["seconds"])
        assert c["gb_per_s"] * c["seconds"]["median"] == pytest.approx(4 * 4 * 10_000 / 1e9)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_stay_inside_their_memory(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    """The probe moves the operator's bytes, once or, for two passes, in two parts."""
    operators = (*cases.OPERATORS, cases.TWO_PASSES)
    problem = Problem(flat(3, 1001, dtype=dtype, operators=operators), CPU)
    moved = []

    class Native:
        @staticmethod
        def traffic(source: int, read: int, target: int, written: int, in_place: bool, threads: int) -> None:
            assert source == problem.source.data_ptr() and read <= problem.source.numel()
            assert target == problem.target.data_ptr() and written <= problem.target.numel()
            assert in_place == (operator == "combine_adamw_")
            moved.append((read + written if in_place else read, written))

    monkeypatch.setattr(roofline, "_native", Native if native else None)
    for operator in operators:
        moved.clear()
        least = problem.work(operator)
        name, call = roofline.probe(operator, problem, least)
        call()
        assert name == ("cats._native.traffic" if native else "torch copy_ and sum")
        if native:
            assert (sum(r for r, _ in moved), sum(w for _, w in moved)) == (least.read, least.written)


# ---- targets


def case_of(
    operator: str, tasks: int, elements: int, times: dict[str, tuple[str, float]], **more: Any
) -> dict[str, Any]:
    """A case in which each contender took so many seconds; the limit is one second."""
    return {
        "name": f"{operator} K={tasks}",
        "operator": operator,
        "tasks": tasks,
        "elements": elements,
        "dtype": "float32",
        "layout": "flat",
        "contenders": [
            {
                "name": name,
                "kind": kind,
                "counts": "already" not in name,
                "seconds": {"median": seconds},
                "fraction_of_limit": 1 / seconds,
                "gb_per_s": 10 / seconds,
                "extra_bytes": 0,
            }
            for name, (kind, seconds) in times.items()
        ],
        **more,
    }


def test_targets_take_the_worst_case() -> None:
    found = [
        case_of(
            "combine_dots", 8, 10**7, {"native": ("backend", 1.0), "loop": ("eager", 4.0), "jit": ("compiled", 0.9)}
        ),
        case_of("combine_dots", 2, 10**7, {"native": ("backend", 1.25), "loop": ("eager", 4.0)}),
        case_of("combine_dots", 8, 10**5, {"native": ("backend", 9.0), "loop": ("eager", 1.0)}),  # too small to count
        case_of("gram", 8, 10**7, {"native": ("backend", 1.0), "G @ G.T, stacked already": ("eager", 4.5)}),
        case_of(
            "combine_adamw_",
            8,
            10**7,
            {"native": ("backend", 1.0), "native combine + AdamW(fused)": ("backend + torch", 64 / 56)},
        ),
    ]
    results = {t["target"]: t for t in targets.evaluate("cpu", found, [], [])}
    limit_of, eager, compiled = (t for name, t in results.items() if name.startswith("combine_dots"))
    assert (limit_of["value"], limit_of["met"], limit_of["worst"]) == (0.8, False, "combine_dots K=2")
    assert (eager["value"], eager["met"]) == (3.2, True)
    assert (compiled["value"], compiled["met"]) == (0.9, False)
    assert next(t for name, t in results.items() if name.startswith("gram"))["value"] == 4.5
    assert next(t for name, t in results.items() if name.startswith("combine_adamw_"))["value"] == pytest.approx(1)
    assert not any(name.startswith("combine, dots") for name in results)  # nothing measured, nothing said


def test_stacked_forms_do_not_count_as_the_best_eager_form() -> None:
    case = case_of(
        "gram", 8, 10, {"native": ("backend", 1.0), "mm, stacked already": ("eager", 2.0), "stack": ("eager", 5.0)}
    )
    assert run.ratio(case, case["contenders"][0], baselines.EAGER) == 5
    assert math.isnan(run.ratio(case, case["contenders"][0], baselines.COMPILED))


def test_list_is_compared_with_the_flat_case() -> None:
    flat_case = case_of("combine", 8, 100, {"triton": ("backend", 1.0)})
    other_dtype = case_of("combine", 8, 1000, {"triton": ("backend", 0.1)}, dtype="bfloat16")
    listed = case_of("combine", 8, 90, {"triton": ("backend", 1.25)}, layout="transformer-base")
    results = targets.evaluate("cuda", [flat_case, other_dtype, listed], [], [])
    found = next(t for t in results if t["target"].startswith("list of"))
    assert found["value"] == pytest.approx(0.8) and not found["met"]


def test_overhead_and_linear_cost() -> None:
    calls = [
        {"backend": "native", "tasks": 2, "tensors": n, "kept_us": 10 + 0.25 * n, "new_us": 20 + 0.75 * n}
        for n in (2, 8, 1600)
    ]
    kept, new = overhead.lines(calls)
    assert (kept["us_per_tensor"], new["us_per_tensor"]) == pytest.approx((0.25, 0.75))
    assert kept["us"] == {2: 10.5, 8: 12.0, 1600: 410.0}
    cost = [case_of("combine", k, 1000, {"native": ("backend", 1e-6 * k * 1000 + 1)}) for k in (2, 8, 32)]
    fits = run.linear_fits([*cost, case_of("gram", 64, 1000, {"native": ("backend", 1.0)})])
    assert [(f["operator"], f["points"]) for f in fits] == [("combine", 3)]
    assert (fits[0]["ns_per_element"], fits[0]["intercept_us"]) == pytest.approx((1000, 1e6))
    results = targets.evaluate("cpu", cost, fits, calls)
    assert next(t for t in results if "R²" in t["target"])["met"]
    python = next(t for t in results if t["target"].startswith("Python"))
    assert python["value"] == pytest.approx((20 + 0.75 * 1600) / (30 + 0.5 * 1600)) and not python["met"]


# ---- files and the command


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    report.write_json(path, {"a": [1.5, math.nan, ("x", math.inf)], "b": {"c": None, "ü": True}})
    assert json.loads(path.read_text()) == {"a": [1.5, None, ["x", None]], "b": {"c": None, "ü": True}}
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"]["ü"] is True  # a failure leaves the old file, and nothing beside it
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_run_from_end_to_end(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = [
        flat(3, 20_000, compiled=cases.OPERATORS, operators=(*cases.OPERATORS, cases.TWO_PASSES)),
        flat(9, 100, operators=("dots",)),
    ]
    monkeypatch.setattr(cases, "quick", lambda: suite)
    monkeypatch.setattr(roofline, "MATMUL", {"cpu": 128})
    assert command.main(["--quick", "--only", "K=3", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| gram, combine K=3 P=2e4 float32 flat | reference |" in printed.out
    assert "K=9" not in printed.out
    (path,) = tmp_path.glob("*-quick-part.json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    results = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "modified", "command", "date", "peaks", "targets"} <= results.keys()
    assert results["command"].startswith("python -m bench --quick --only K=3 --out ")
    assert results["machine"]["cores"] >= 1 and results["versions"]["torch"] == torch.__version__
    assert [c["operator"] for c in results["cases"]] == [*cases.OPERATORS, cases.TWO_PASSES]
    for case in results["cases"]:
        kinds = {c["kind"] for c in case["contenders"]}
        assert kinds >= {baselines.BACKEND, baselines.EAGER}
        assert (baselines.COMPILED in kinds) == (case["operator"] in cases.OPERATORS)
        assert all(c["seconds"]["low"] <= c["seconds"]["median"] <= c["seconds"]["high"] for c in case["contenders"])
    assert report.markdown(results) in printed.out


def test_tiny_calls_are_timed_for_every_backend() -> None:
    records = overhead.calls(CPU, rounds=2)
    backends = {r["backend"] for r in records}
    assert "reference" in backends and len(records) == len(backends) * len(overhead.SIZES)
    assert max(r["tensors"] for r in records) == 1600 and all(r["kept_us"] > 0 < r["new_us"] for r in records)


def test_outer_steps_of_the_demo_model() -> None:
    pytest.importorskip("babel")
    pytest.importorskip("sentencepiece")
    threads = torch.get_num_threads()
    try:
        found = step.run(["reference"], steps=1)
    finally:
        torch.set_num_threads(threads)
    (entry,) = found["backends"]
    assert found["tasks"] == 8
    assert 0 < entry["operators_seconds"]["median"] < entry["step_seconds"]["median"]
    assert ops.combine_dots.__name__ == "combine_dots"  # what was put in its place is gone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["--quick", "--gpu"], "not allowed with"),
        (["--only", "K=77"], "no case has 'K=77' in its name"),
        (["--out", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--step", "--only", "K=8"], "--only chooses cases"),
        (["--gpu"], "needs a CUDA device"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, refusal: Callable[..., str]) -> None:
    assert said in refusal(command.main, arguments)
