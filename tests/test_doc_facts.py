"""Facts in the documents: settings, names and numbers are those of the code and of the committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cats
from bench.operators import cases
from cats.nmt.config.schema import FIELDS, SECTIONS, Config
from cats.nmt.config.toml import apply_overrides, read_config
from cats.ops import dispatch
from tests.conftest import ROOT

MIGRATE = ROOT / "docs" / "migrate"
RESULTS = ROOT / "bench" / "results"
OPERATORS = "intel-xeon-2-50ghz-2-cores-2026-11-21.json"


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of each table, without the lines below the headers."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip()[1:-1].split("|")]


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# The other libraries.


@pytest.mark.parametrize("page", ["joeynmt", "fairseq", "sockeye"])
def test_settings_that_stand_for_those_of_others_exist(page: str) -> None:
    count = 0
    for row in rows((MIGRATE / f"{page}.md").read_text(encoding="utf-8")):
        ours = in_backticks(" ".join(row[1:]))
        settings = [word for word in ours if re.match(rf"({'|'.join(SECTIONS)})\.", word)]
        assert {word.partition("=")[0] for word in settings} <= FIELDS.keys(), row
        apply_overrides(Config(), [word for word in settings if "=" in word])  # raises if a value is not allowed
        count += len(settings)
    assert count > 30


@pytest.mark.parametrize("page", ["joeynmt", "fairseq"])
def test_configurations_for_users_of_others_are_read(page: str, tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (MIGRATE / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    assert read_config(tmp_path / "config.toml") != Config()


@pytest.mark.parametrize("page", ["torchjd", "libmtl"])
def test_names_that_stand_for_those_of_others_exist(page: str) -> None:
    for name in re.findall(r"`cats\.([\w.]+)", (MIGRATE / f"{page}.md").read_text(encoding="utf-8")):
        found: Any = cats
        for part in name.split("."):
            found = getattr(found, part)


def test_weightings_that_stand_for_those_of_libmtl_can_be_made() -> None:
    text = (MIGRATE / "libmtl.md").read_text(encoding="utf-8")
    table = text.partition("## Weightings")[2].partition("## Settings")[0]
    words = [word for row in rows(table) for word in in_backticks(row[1])]
    calls = [word for word in words if word.endswith(")") and not word.startswith(("{", '"'))]
    assert len(calls) >= 14
    names = {name: getattr(cats.weighting, name) for name in cats.weighting.__all__} | {"N": 100}
    for call in calls:
        try:
            eval(call, {"__builtins__": {}}, names)
        except ImportError as error:  # TorchJD or a solver of it is not installed
            assert "torchjd" in call, (call, error)
    assert {word for word in words if word.isidentifier()} - {"None"} <= names.keys()


def test_torchjd_gives_the_same_gradient_of_shared_parameters() -> None:
    """What the page for its users says: shared parameters as there, heads times their weights."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    from torchjd.autojac import jac_to_grad, mtl_backward

    torch.manual_seed(0)
    trunk = torch.nn.Linear(5, 4)
    heads = [torch.nn.Linear(4, 1) for _ in range(2)]
    parameters = [*trunk.parameters(), *(p for head in heads for p in head.parameters())]
    x = torch.randn(8, 5)

    def losses(features: torch.Tensor) -> list[torch.Tensor]:
        return [(head(features) - n).square().mean() for n, head in enumerate(heads)]

    features = trunk(x).tanh()
    mtl_backward(losses(features), features, parallel_chunk_size=1)  # without vmap, which takes seconds to load
    jac_to_grad(trunk.parameters(), aggregation.AlignedMTL())
    theirs = [p.grad.clone() for p in parameters]
    base = torch.optim.SGD(parameters)
    base.zero_grad()
    optimizer = cats.MultiTask(base, 2, cats.weighting.torchjd("AlignedMTL"), shared=trunk.parameters())
    optimizer.backward(losses(trunk(x).tanh()))
    optimizer.step()
    scales = [1.0, 1.0, optimizer.alpha[0], optimizer.alpha[0], optimizer.alpha[1], optimizer.alpha[1]]
    for p, expected, scale in zip(parameters, theirs, scales, strict=True):
        # float32 gradients, and weights from a float64 Gram matrix here and a float32 one there
        torch.testing.assert_close(p.grad, scale * expected, rtol=1e-4, atol=1e-6)


# The kernels.


@pytest.mark.parametrize("page", ["reading", "add-an-operator"])
def test_names_are_in_the_files_that_the_page_says(page: str) -> None:
    folder = ROOT / "docs" / "kernels"
    checked = 0
    for row in rows((folder / f"{page}.md").read_text(encoding="utf-8")):
        if link := re.search(r"\]\(([^)#]+)\)", row[0]):
            path = (folder / link[1]).resolve()
            files = [path] if path.is_file() else path.glob("*.py")  # a folder: one of its files has the name
            code = "".join(file.read_text(encoding="utf-8") for file in files)
            for name in in_backticks(row[1]):
                if name.isidentifier() or name.startswith(("#include", "m.def", "row_dots(Tensor")):
                    assert name.partition(", ...")[0] in code, f"{name} is not in {link[1]}"
                    checked += 1
    assert checked > 20


# The results.


@pytest.mark.parametrize(
    ("page", "count"), [("docs/kernels/roofline.md", 16), ("README.md", 7), ("bench/README.md", 11)]
)
def test_numbers_of_the_operators_are_those_of_the_committed_run(page: str, count: int) -> None:
    measured = json.loads((RESULTS / OPERATORS).read_text(encoding="utf-8"))["cases"]
    checked, columns = 0, []
    for row in rows((ROOT / page).read_text(encoding="utf-8")):
        if row[0] == "operator":
            columns = row
        if len(columns) != len(row) or row[:2] == columns[:2] or "of the roofline" not in columns:
            continue
        cells = dict(zip(columns, row, strict=True))
        operator, _, note = cells["operator"].partition(", ")
        dtype = note if note == "bfloat16" else "float32"
        layout = "transformer-base" if "Transformer" in note else "flat"
        size = 1e6 if note == "P = 1e6" else 1e7
        (own,) = (
            contender
            for case in measured
            if (case["operator"], case["tasks"], case["dtype"]) == (operator, int(cells["K"]), dtype)
            and case["layout"] == layout
            and (layout != "flat" or case["elements"] == size)
            for contender in case["contenders"]
            if contender["name"] == "native"
        )
        assert cells["ms"] == shown(1e3 * own["seconds"]["median"]), row
        assert cells["of the roofline"] == f"{own['fraction_of_limit']:.2f}", row
        if "GB/s" in cells:
            assert cells["GB/s"] == shown(own["gb_per_s"]), row
        checked += 1
    assert checked == count


@pytest.mark.parametrize(("page", "header", "count"), [("README.md", "CUDA, µs", 11), ("bench/README.md", "CUDA", 13)])
def test_numbers_of_the_gpu_are_those_of_the_committed_run(page: str, header: str, count: int) -> None:
    measured = json.loads((RESULTS / "nvidia-h200-2026-11-29.json").read_text(encoding="utf-8"))["cases"]
    checked, columns = 0, []
    for row in rows((ROOT / page).read_text(encoding="utf-8")):
        operator, _, note = row[0].partition(", ")
        if row[0].startswith("-"):
            continue
        if operator not in {case["operator"] for case in measured}:
            columns = row  # perhaps: the rows of other tables are no headers
        if header not in columns or len(row) != len(columns) or row == columns:
            continue
        wanted = (operator, int(row[1]), note or "float32", "flat")
        case = next(c for c in measured if (c["operator"], c["tasks"], c["dtype"], c["layout"]) == wanted)
        own = {c["name"]: c for c in case["contenders"]}
        shares = [f"{own[name]['fraction_of_limit']:.2f}" for name in ("cuda", "triton")]
        if page == "README.md":
            times = [f"{1e6 * own[name]['seconds']['median']:,.0f}" for name in ("cuda", "triton")]
            eager = min(c["seconds"]["median"] for c in case["contenders"] if c["kind"] == "eager" and c["counts"])
            speed_up = f"{eager / own['cuda']['seconds']['median']:.1f}"
            assert row[2:] == [times[0], shares[0], times[1], shares[1], speed_up], row
        else:
            assert row[2:] == shares, row
        checked += 1
    assert checked == count


def test_operations_per_byte_are_those_of_the_benchmark() -> None:
    """The model of the roofline: what the page calculates is what the benchmark counts."""
    text = (ROOT / "docs" / "kernels" / "roofline.md").read_text(encoding="utf-8")
    given = {", ".join(in_backticks(row[0])): row[-1] for row in rows(text) if row[-1].replace(".", "").isdigit()}
    for operator in (*cases.OPERATORS, cases.GRADDROP, cases.TWO_PASSES):
        least = cases.work(operator, 8, 1000, torch.float32)
        assert given[operator] == f"{least.operations / least.moved:.2f}", operator


def test_every_operator_is_in_the_tables_of_the_kernels() -> None:
    for page in "contract.md", "roofline.md":
        text = (ROOT / "docs" / "kernels" / page).read_text(encoding="utf-8")
        assert set(dispatch.OPERATORS) <= {name for row in rows(text) for name in in_backticks(row[0])}, page


def shown(number: float) -> str:
    """Three digits."""
    return f"{number:#.3g}".rstrip(".") if number >= 10 else f"{number:.3g}"


def test_every_committed_result_is_in_the_index_with_its_commit() -> None:
    index, lists = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split("## What is in bench/results")
    listed = {in_backticks(row[0])[0]: row for row in rows(lists) if in_backticks(row[0])}
    for path in sorted(RESULTS.iterdir()):
        entry = path.name if path.is_dir() else f"{path.stem}.json"
        assert entry in index or f"{path.stem}.md" in index, path.name
        if path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))["commit"][:7] in listed[entry][1], path.name
        elif not path.is_dir():  # a picture or tables beside a JSON file
            assert path.suffix in in_backticks(listed[entry][0]), path.name
    assert {name for name in listed if not (RESULTS / name).exists()} == set()


# The guide.

NAMED = set(cats.weighting.__all__) - {"Gramian", "TargetProjection", "TooFewTasksError", "Weighting", "torchjd"}


def weightings_in(cell: str) -> list[Any]:
    return [getattr(cats.weighting, name) for name in in_backticks(cell) if hasattr(cats.weighting, name)]


def test_the_scales_of_the_weightings_are_those_of_the_table() -> None:
    """With two equal losses, a combined gradient that is a sum is twice that of one of them, and a mean is that."""
    model, said = torch.nn.Linear(2, 1), {}

    def loss() -> torch.Tensor:
        return model(torch.ones(1, 2)).square().sum()

    (one,) = torch.autograd.grad(loss(), model.weight)
    for row in rows((ROOT / "docs/guide/learning-rate.md").read_text(encoding="utf-8")):
        for kind in weightings_in(row[0]):
            optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.1), 2, kind())
            optimizer.zero_grad()
            optimizer.backward([loss, loss])
            assert model.weight.grad is not None
            times, said[kind.__name__] = (model.weight.grad / one).mean().item(), row[1]
            if kind is not cats.weighting.Uncertainty:
                assert times == pytest.approx(1.0 if row[1].startswith("mean") else 2.0, rel=1e-6), row
    assert said.keys() == NAMED


def test_what_each_weighting_costs_is_what_it_needs() -> None:
    rows_of = [row for row in rows((ROOT / "docs/guide/cost.md").read_text(encoding="utf-8")) if weightings_in(row[0])]
    for row in rows_of:
        for kind in weightings_in(row[0]):
            weighting = kind()
            one = weighting.period == 0 or weighting.losses_only
            assert row[1].startswith("one backward pass") == (one or kind is cats.weighting.CATS), row
            assert ("forward pass" in row[1]) == weighting.losses_again, row
            assert ("Gram matrix" in row[1]) == weighting.needs_gram, row
    assert {kind.__name__ for row in rows_of for kind in weightings_in(row[0])} == NAMED
