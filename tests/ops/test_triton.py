"""The Triton kernels: their machine code for sm_80 and sm_90 (without a GPU), the tiles, addresses beyond 2^31.

Run as a script, this file compiles kernels and prints facts about their machine code. This needs its own process,
because in the process of the tests the kernels are decorated for Triton's interpreter.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
TASKS = (1, 2, 3, 5, 8, 16, 33, 92, 128)
# Shared memory that one program can have, in bytes: CUDA C++ Programming Guide, technical specifications.
SHARED = {80: 163 << 10, 90: 227 << 10}
POINTERS = {
    **dict.fromkeys(("table", "chunks", "order", "bounds", "owners", "words"), "*i64"),
    **dict.fromkeys(
        ("weights", "leak", "partials", "scalars", "found_inf", "grad_scale", "left", "right", "result"), "*fp64"
    ),
}


class Case(NamedTuple):
    """A kernel with arguments as its launcher may pass them."""

    operator: str
    tasks: int
    dtype: str
    capability: int
    aligned: bool = True


def grid(tasks: tuple[int, ...], capabilities: tuple[int, ...], operators: tuple[str, ...]) -> Iterator[Case]:
    for operator, count, dtype, capability in itertools.product(operators, tasks, DTYPES, capabilities):
        if operator in GRAM and (dtype == "float64" or (operator != "gram" and dtype != "float32")):
            continue  # computed by the reference, or in one launch
        for aligned in (True, False):
            yield Case(operator, count, dtype, capability, aligned)


OPERATORS = ("combine", "combine_dots", "combine_dots of 2", "dots", "combine_adamw_", "combine_adamw_ scaled")
GRAM = ("gram", "gram of a pair", "gram of the second block")  # the launches for more tasks than a block has
OPERATORS += ("graddrop", "graddrop of parts")  # parts begin at positions that are no multiples of 4
ROW_DOTS = ("row_dots", "row_dots narrow", "row_dots with float32")
REDUCTIONS = [Case(name, count, "float64", 90) for name in ("reduce", "reduce_slots") for count in (2, 128)]
# Small and large tiles, one and several tasks per thread, one and two blocks, padded or not.
QUICK = [
    *(Case(op, k, d, 90) for op in ("combine_dots", "combine_adamw_", "gram") for k in (2, 8, 33, 128)
      for d in ("float32", "bfloat16")),
    *(Case(op, k, "float32", 90) for op in GRAM[1:] for k in (92, 128)),
    *(Case(op, k, d, 80) for op in ("combine_dots", "gram") for k, d in ((8, "bfloat16"), (128, "float32"))),
    *(Case("graddrop", k, d, 90) for k in (2, 8, 33) for d in ("float32", "bfloat16")),
    *(Case("graddrop of parts", 8, d, 90) for d in ("float32", "float64")),
    *(Case(op, 16, "float32", 90) for op in ("combine", "combine_dots of 2", "dots", "combine_adamw_ scaled")),
    *(Case(op, 92, "bfloat16", 90) for op in ROW_DOTS),
    Case("row_dots", 8, "float32", 80),
    Case("combine_dots", 8, "float32", 90, False),
    Case("gram", 8, "float32", 90, False),
    Case("combine_dots", 8, "float64", 90),
    Case("combine_dots", 8, "float16", 90),
    *REDUCTIONS,
]  # fmt: skip
FULL = [
    *grid(TASKS, (80, 90), OPERATORS),
    *grid(TASKS, (80, 90), GRAM[:1]),
    *grid((92, 128), (80, 90), GRAM[1:]),
    *grid((1, 8, 128), (80, 90), ROW_DOTS),
    *REDUCTIONS,
]


# In the process that compiles


def configuration(case: Case) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """The kernel, its constexpr arguments and its launch options, from the functions that the launchers call."""
    common, combine, dots, adamw, graddrop, gram, row_dots = (
        importlib.import_module(f"cats.kernels.{name}")
        for name in ("common", "combine", "dots", "adamw", "graddrop", "gram", "row_dots")
    )
    dtype = DTYPES[case.dtype]
    if case.operator.startswith("combine_adamw_"):
        constants, options = adamw.options(case.tasks, dtype, case.aligned)
        absent = {} if "scaled" in case.operator else {"found_inf": None, "grad_scale": None}
        return adamw.adamw_kernel, constants | absent, options
    if case.operator.startswith("combine"):
        results = 2 if "of 2" in case.operator else 1
        constants, options = combine.options(case.tasks, dtype, case.aligned, results, "dots" in case.operator)
        absent = {} if "dots" in case.operator else {"partials": None}
        return combine.combine_kernel, constants | absent, options
    if case.operator == "dots":
        return dots.dots_kernel, *dots.options(case.tasks, (dtype, dtype), case.aligned)
    if case.operator.startswith("graddrop"):
        fours = case.operator == "graddrop"
        return graddrop.graddrop_kernel, *graddrop.options(case.tasks, dtype, case.aligned, fours)
    if case.operator in ROW_DOTS:
        width = 64 if "narrow" in case.operator else 4096
        return row_dots.row_dots_kernel, *row_dots.options(width, case.tasks, row_dtypes(case), case.aligned)
    if case.operator == "reduce":
        constants, options = common.reduce_options(2 * case.tasks)
        return common.reduce_kernel, {"SPLIT": case.tasks, "TOTAL": 2 * case.tasks, **constants}, options
    if case.operator == "reduce_slots":
        constants, options = gram.REDUCE_OPTIONS
        return gram.reduce_slots_kernel, {"SIZE": case.tasks**2, **constants}, options
    if case.tasks <= gram.UNROLLED:
        return gram.gram_kernel, *gram.unrolled_options(case.tasks, dtype, case.aligned)
    products = gram.products(case.tasks, dtype, case.aligned)
    product = products[min(len(products) - 1, GRAM.index(case.operator))]
    return gram.gram_blocks_kernel, *gram.blocks_options(case.tasks, dtype, case.aligned, product)


def row_dtypes(case: Case) -> tuple[torch.dtype, torch.dtype]:
    """Of the two matrices of row_dots: a 16-bit one may come with a float32 one."""
    dtype = DTYPES[case.dtype]
    return dtype, torch.float32 if "with float32" in case.operator and dtype.itemsize == 2 else dtype


def compiled(case: Case) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants, options = configuration(case)
    names = kernel.arg_names
    pointers = {name: f"*{SHORT[dtype]}" for name, dtype in zip("xy", row_dtypes(case), strict=True)} | POINTERS
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    # As in a launch: torch's memory is aligned, and integers are not specialised.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", case.capability, 32)
    binary = triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})
    threads = 32 * options["num_warps"]
    # Loads of gradients per thread in the main loop; at least one for matrix products.
    groups, each = constants.get("GROUPS", 1), constants.get("EACH", case.tasks)
    vectors = max(1, groups * each * constants.get("LANES", 0) // threads)
    if case.operator in ROW_DOTS:
        vectors = 2 * constants["PARTS"] * constants["ROWS"] * constants["LANES"] // threads
    size = constants.get("WIDTH", 0) * DTYPES[case.dtype].itemsize
    facts = {"shared": binary.metadata.shared, "vectors": vectors, "vector": size, "threads": threads}
    return {**resources(binary.asm["cubin"]), **main_loop(binary.asm["ptx"]), **facts}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, bytes of stack and of local memory, and the most accesses to these in an innermost loop."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, code = (
            subprocess.run([*command, file.name], check=True, capture_output=True, text=True).stdout
            for command in ([tools / "cuobjdump", "--dump-resource-usage"], [tools / "nvdisasm", "-c"])
        )
    lines = code.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.L_x_\d+):", line))}
    branches = [(m[1], i) for i, line in enumerate(lines) if (m := re.search(r"\bBRA .*`\((\.L_x_\d+)\)", line))]
    spills = [len(re.findall(r"\b(?:LDL|STL)\b", "\n".join(lines[a:b]))) for a, b in innermost(labels, branches)]
    used = {name.lower(): int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]
    return {**used, "spills": max(spills, default=0)}


def innermost(labels: dict[str, int], branches: list[tuple[str, int]]) -> list[tuple[int, int]]:
    """The first and last lines of the innermost loops."""
    loops = [(labels[name], i) for name, i in branches if name in labels and labels[name] < i]
    return [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]


def main_loop(ptx: str) -> dict[str, int]:
    """Counts in the innermost loop with the most 16-byte loads.

    wide: these; narrow: other loads; ahead: loads into shared memory for a later tile; doubles: float64 arithmetic.
    """
    lines = ptx.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\$L\w+):", line))}
    branches = [(m[1], i) for i, line in enumerate(lines) if (m := re.search(r"\bbra(?:\.uni)?\s+(\$L\w+)", line))]
    found = [{"wide": 0, "narrow": 0, "ahead": 0, "doubles": 0}]
    for begin, end in innermost(labels, branches):
        body = "\n".join(lines[begin:end])
        wide = r"ld\.global\S*\.(?:v4\.b32|v2\.b64)|cp\.async\.c[ag]\.shared\.global[^;]*, (?:0x10|16)\b"
        narrow = r"ld\.global(?!\S*\.v[24]\.)\S*\.[bfu]\d|cp\.async\.c[ag]\.shared\.global[^;]*, (?:0x)?[48]\b"
        patterns = {"wide": wide, "narrow": narrow, "ahead": r"cp\.async\.c[ag]\.shared", "doubles": r"\.f64"}
        found.append({name: len(re.findall(pattern, body)) for name, pattern in patterns.items()})
    return max(found, key=lambda counts: (counts["wide"], counts["ahead"]))


if __name__ == "__main__":
    # Triton reads this when it decorates a kernel. What is decorated for the interpreter cannot be compiled.
    os.environ.pop("TRITON_INTERPRET", None)
    for line in sys.stdin:
        print(json.dumps(compiled(Case(*json.loads(line)))), flush=True)


# In the process that tests


def compile_all(cases: list[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
    pytest.importorskip("triton", reason="triton is not installed")
    shares = cases[0::2], cases[1::2]
    processes = []
    for share in shares:
        process = subprocess.Popen(
            [sys.executable, __file__], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write("".join(json.dumps(case) + "\n" for case in share))
        process.stdin.close()
        process.stdin = None
        processes.append(process)
    for share, process in zip(shares, processes, strict=True):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        yield from zip(share, map(json.loads, output.splitlines()), strict=True)


def check_machine_code(cases: list[Case]) -> None:
    problems = []
    for case, code in compile_all(cases):
        # A few values that only the ends of chunks need may spill around the main loop, where it costs no time. Two
        # combinations of many float64 gradients have too few registers by one.
        spills = 2 if case.operator == "combine_dots of 2" and case.dtype == "float64" and case.tasks > 64 else 0
        good = code["spills"] <= spills and code["stack"] <= 128 and code["local"] == 0
        good &= code["reg"] * code["threads"] <= 1 << 16 and code["shared"] <= SHARED[case.capability]
        if case.aligned and not case.operator.startswith("reduce"):
            half = code["vectors"] if code["vector"] == 8 else 0  # busy kernels load 8 bytes at once
            good &= half > 0 or code["wide"] >= code["vectors"]
            # The next tiles are loaded during the arithmetic, except where a row is a single tile.
            good &= code["ahead"] >= code["vectors"] or case.operator == "row_dots narrow"
            if case.dtype != "float64":
                good &= code["doubles"] == 0
                # Other tensors are a single row, which is spread over all threads. So a thread may load less than 16
                # bytes of them; a warp loads neighbouring bytes, once for at least four wide loads of gradients.
                others = 3 if case.operator.startswith("combine_adamw_") else int(case.operator == "dots")
                good &= code["narrow"] <= half + others
        if not good:
            problems.append((case, code))
    assert not problems, "\n".join(map(str, problems))


@pytest.mark.slow
def test_machine_code() -> None:
    """No spills, not too much shared memory, and a main loop with 16-byte loads and without float64 arithmetic."""
    check_machine_code(QUICK)


@pytest.mark.slow
def test_machine_code_of_every_configuration() -> None:
    check_machine_code(FULL)


def test_parts_of_the_main_loop_are_told_apart() -> None:
    ptx = """
$L__BB0_1:
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    @%p1 bra $L__BB0_1;
$L__BB0_2:
    @%p2 ld.global.b32 { %r1 }, [%rd1 + 0];
    add.f64 %fd1, %fd2, %fd3;
    @%p1 bra $L__BB0_2;
"""
    assert main_loop(ptx) == {"wide": 1, "narrow": 0, "ahead": 0, "doubles": 0}
    assert main_loop(ptx.replace(".v4", "")) == {"wide": 0, "narrow": 0, "ahead": 0, "doubles": 0}
    copy = "    cp.async.cg.shared.global [ %r7 + 0 ], [ %rd9 + 0 ], 0x10, %r8;"
    assert main_loop(ptx.replace("$L__BB0_1:\n", "$L__BB0_1:\n" + copy)) == {
        "wide": 2,
        "narrow": 0,
        "ahead": 1,
        "doubles": 0,
    }
    mixed = ptx.replace("$L__BB0_2:\n", "").replace("bra $L__BB0_1", "nop", 1).replace("_2;", "_1;")
    assert main_loop(mixed) == {"wide": 1, "narrow": 1, "ahead": 0, "doubles": 1}


@pytest.fixture
def kernels() -> Any:
    pytest.importorskip("triton", reason="triton is not installed")
    return lambda name: importlib.import_module(f"cats.kernels.{name}")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_tiles(kernels: Any, dtype: torch.dtype, aligned: bool) -> None:
    common, gram = kernels("common"), kernels("gram")
    for tasks, busy in itertools.product(range(1, common.MAX_TASKS + 1), (False, True)):
        groups, each, lanes, width, warps = common.tile(tasks, dtype, aligned, busy)
        assert (each - 1) * groups < tasks <= each * groups and each <= 8
        # Triton's tiles are powers of two.
        assert all(size & (size - 1) == 0 for size in (groups, lanes, width, warps))
        assert width * dtype.itemsize in ((16, 8) if busy and tasks > 32 else (16,)) if aligned else width == 1
        # A warp has only one group, so that no sum over a group's tasks needs another thread.
        assert groups * lanes in (32 * warps, 64 * warps) and lanes >= 32
        # A thread's elements in 4-byte registers.
        assert each * groups * lanes // (32 * warps) * width * dtype.itemsize // 4 <= 32
        # The error bounds in common.py and gram.py need sums of at most this length.
        assert width <= 8 and common.RUN <= 32
        if tasks > gram.UNROLLED and dtype is not torch.float64:
            products = gram.products(tasks, dtype, aligned)
            for product in products:
                assert product.length * dtype.itemsize <= 8 * 32  # a step of the matrix unit takes 32 bytes of a row
                assert product.length % 16 == 0 and product.warps in (1, 2, 4, 8)
            # Every task is in one block, and every pair of blocks in one product.
            blocks = sorted({(p.a, p.a_rows) for p in products} | {(p.b, p.b_rows) for p in products if p.b_rows})
            assert [first for first, _ in blocks] == [0, 64][: len(blocks)]
            assert blocks[-1][0] < tasks <= sum(blocks[-1]) <= gram.size(tasks)
            inside = [first for p in products if p.inside for first in ((p.a, p.b) if p.b_rows else (p.a,))]
            assert sorted(inside) == [first for first, _ in blocks]
            assert sum(p.b_rows > 0 for p in products) == len(blocks) - 1


def test_a_grid_of_many_groups_can_be_launched(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # CUDA allows 2^31 - 1 blocks in the first dimension of a grid, and 65535 in the others.
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(kernels("common"), "launch", lambda kernel, grid, *arguments, **options: grids.append(grid))
    geometry = types.SimpleNamespace(chunk_count=1, order=None, bounds=None)
    kernels("common").reduce(torch.zeros(256, 1, dtype=torch.float64), geometry, 70_000, 128)
    assert grids and all(size <= 65535 for grid in grids for size in grid[1:])


@pytest.mark.parametrize("operator", ["combine", "gram"])
def test_elements_beyond_2_to_the_31(kernels: Any, operator: str) -> None:
    # 32-bit offsets would wrap around to addresses before the tensors. On a CPU, memory that is not touched is not
    # committed: of these 4 GiB each, only the last pages are. Compiled kernels must not get tensors on the CPU.
    device = torch.device("cpu" if kernels("common").INTERPRETED.value else "cuda")
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GiB of GPU memory")
    start, length = 2**31 + 16, 100
    tensors = [torch.empty(start + length, dtype=torch.bfloat16, device=device) for _ in range(3)]
    for n, tensor in enumerate(tensors):
        tensor[start:] = n + 1
    table = importlib.import_module("cats.ops.device_table")
    single = operator == "combine"
    addresses = [t.data_ptr() for t in (tensors if single else tensors[:2])]
    launch = table.Launch((torch.bfloat16,) * (2 if single else 1), True, 0, 1)
    chunk, order, bounds = ([0, start, length], [0], [0, 1])
    parts = [torch.tensor(part, device=device) for part in ([chunk], order, bounds)]
    geometry = table.Geometry(*parts, [launch])
    pieces = table.DevicePieces(torch.tensor([addresses], device=device), geometry, device, 2, 1, [0])
    if single:
        weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64, device=device)
        kernels("combine")._launch(pieces, weights, None)
        assert (tensors[2][start:] == 1 + 2 * 2).all()
    else:
        expected = torch.tensor([[[1.0, 2.0], [2.0, 4.0]]], dtype=torch.float64, device=device) * length
        assert torch.equal(kernels("gram")._unrolled(pieces), expected)
        assert torch.equal(kernels("gram")._blocks(pieces), expected)


def test_a_program_takes_several_tiles_of_rows(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = kernels("row_dots")
    monkeypatch.setattr(module, "PROGRAMS", 2)
    device = torch.device("cpu" if kernels("common").INTERPRETED.value else "cuda")
    x = (torch.arange(150.0)[:, None] * torch.ones(64)).to(device)
    rows = torch.arange(150) % 4 - 1
    pieces = importlib.import_module("cats.ops.layout").row_pieces(x, torch.ones_like(x), rows.to(device), 3)
    found = module.row_dots(pieces)
    assert found.tolist() == [64.0 * int(torch.arange(150)[rows == n].sum()) for n in range(3)]
