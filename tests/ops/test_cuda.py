"""The CUDA kernels: tests that need the emulator, checks of the compiled code, and tests that need a GPU.

The emulator (tests/ops/conftest.py) also runs the tests of all backends.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from cats.ops import device_table
from tests.ops.common import ADAMW, STATISTICS, Backend, check_all, mixed_weights, same

# In the emulator


@pytest.fixture
def backend(emulated: Any) -> Backend:
    return Backend("cuda", "cpu", interpreted=True)


def everything(backend: Backend, grads: list[list[Any]], rows: int = 1) -> list[Tensor]:
    """The results of all operators."""
    weights = torch.tensor([mixed_weights(len(grads))] * rows, dtype=torch.float64)
    combined, dots, sqnorms = backend.combine_dots(grads, weights)
    params, *moments = ([torch.full_like(g, 0.5) for g in grads[0]] for _ in range(3))
    updated = backend.combine_adamw_(params, grads, weights[0], *moments, step=3, **ADAMW)
    along, gram = backend.dots(grads, combined[-1]), backend.gram(grads)
    signs = backend.graddrop(grads, seed=1, leak=0.25)
    return [
        *signs,
        *(t for row in combined for t in row),
        dots,
        sqnorms,
        along,
        gram,
        *updated,
        *params,
        *moments[0],
        *moments[1],
    ]


def test_the_emulator_finds_missing_waits_and_divergent_barriers(emulator: Any) -> None:
    expected = [*range(1, 64), 0]
    seen = []
    for order, with_barrier in [(0, True), (1, True), (2, True), (0, False), (1, False)]:
        emulator.set_order(order)
        target = torch.full((64,), -1)
        emulator.neighbour(target.data_ptr(), with_barrier)
        seen.append(target.tolist() == expected)
    emulator.set_order(0)
    assert seen == [True, True, True, False, False]
    source, seen = torch.arange(64), []
    for waits in (True, False):  # for the copies to shared memory
        target = torch.full((64,), -1)
        emulator.copied(source.data_ptr(), target.data_ptr(), waits)
        seen.append(torch.equal(source, target))
    assert seen == [True, False]
    with pytest.raises(RuntimeError, match="wait at different places"):
        emulator.divergent()


@pytest.mark.parametrize("tasks", [3, 16, 33])
def test_no_order_of_the_threads_changes_a_bit(backend: Backend, emulator: Any, tasks: int) -> None:
    # If a barrier is missing, another order of the threads gives another result.
    grads = backend.normal(tasks, [(150,), (65,)])
    results = []
    for order in (0, 1, 2):
        emulator.set_order(order)
        results.append(everything(backend, grads, rows=2))
    emulator.set_order(0)
    assert same(results[0], results[1]) and same(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tasks", [12, 31, 50, 70, 128])
def test_tiles_of_gram_take_the_place_of_others(
    backend: Backend, emulator: Any, tasks: int, dtype: torch.dtype
) -> None:
    # More tiles than shared memory holds, the last one not full, and a task without a gradient in one parameter.
    grads = backend.integers(tasks, [(700,), (37,)], dtype)
    grads[tasks // 2][0] = None
    filled = [torch.cat([torch.zeros(700) if row[0] is None else row[0].double(), row[1].double()]) for row in grads]
    expected = torch.stack(filled).double()
    for order in (1, 2):
        emulator.set_order(order)
        assert torch.equal(backend.gram(grads), expected @ expected.T)
    emulator.set_order(0)


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_nothing_beside_a_tensor_is_read_or_written(backend: Backend, dtype: torch.dtype, offset: int) -> None:
    # NaNs surround every tensor, which begins `offset` elements after an address that is a multiple of 16.
    def inside(t: Tensor) -> Tensor:
        memory = torch.full((64 + t.numel() + 64,), float("nan"), dtype=t.dtype)
        memories.append((memory, 16 + offset, t.numel()))
        return memory[16 + offset :][: t.numel()].copy_(t)

    for size in (1, 7, 8, 1023, 1025):
        memories: list[tuple[Tensor, int, int]] = []
        grads = [[inside(g) for g in row] for row in backend.integers(3, [(size,)], dtype)]
        out = [inside(torch.zeros(size, dtype=dtype))]
        check_all(backend, grads, mixed_weights(3), out=out, exact=True)
        moments = [
            [inside(torch.zeros(size, dtype=torch.float64 if dtype == torch.float64 else torch.float32))] for _ in "mv"
        ]
        backend.combine_adamw_(out, grads, mixed_weights(3), *moments, step=1, **ADAMW)
        for memory, first, count in memories:
            assert memory[first : first + count].isfinite().all()
            assert memory[:first].isnan().all() and memory[first + count :].isnan().all()


def test_matrix_units_round_towards_zero_for_short_runs_only(backend: Backend) -> None:
    # Numbers of one sign: if all sums of these 20000 terms were rounded towards zero, 1e-4 would be missing.
    grads = [[torch.full((20_000,), 0.1 + 0.01 * n)] for n in range(9)]
    check_all(backend, grads, [1.0] * 9)
    gram, oracle = backend.gram(grads), torch.stack([g.double() for (g,) in grads])
    assert ((gram / (oracle @ oracle.T) - 1).abs() < STATISTICS / 2).all()


@pytest.mark.parametrize("tasks", [3, 20])
def test_chunks_in_several_batches(
    backend: Backend, emulated: Any, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr(device_table, "MIN_CHUNK", 64)
    grads = backend.integers(tasks, [(70,), (129,), (7,), (64,), (3,)])
    groups = [1, 0, 1, 3, 0]
    for chunks in (1, 2, 5):
        monkeypatch.setattr(emulated, "WORKSPACE", chunks * tasks * (tasks + 1) // 2 * 8)
        check_all(backend, grads, mixed_weights(tasks), groups=groups, exact=True)


def test_more_tasks_than_the_kernels_take(backend: Backend) -> None:
    check_all(backend, backend.integers(129, [(5,), (300,)]), mixed_weights(129), exact=True)


def test_what_the_kernels_cannot_do_is_refused(emulator: Any) -> None:
    with pytest.raises(ValueError, match="1 to 128"):
        emulator.cuda_gram(0, 1, 0, 0, 1, 0, 1, 129, 0, 0)
    with pytest.raises(ValueError, match="rows of weights"):
        emulator.cuda_combine(0, 1, 0, 0, 1, 0, 1, 65, 0, 2, 0, 0, 0)
    with pytest.raises(ValueError, match="1 to 128"):
        emulator.cuda_graddrop(0, 1, 0, 0, 1, 0, 1, 129, 0, 0, 0)
    with pytest.raises(ValueError, match="no type"):
        emulator.cuda_graddrop(0, 1, 0, 0, 1, 4, 1, 2, 0, 0, 0)
    with pytest.raises(ValueError, match="no type"):
        emulator.cuda_gram(0, 1, 0, 0, 1, 4, 1, 2, 0, 0)


def test_traffic_writes_what_it_says(emulator: Any) -> None:
    source, target = torch.ones(100_000), torch.ones(70_004)
    emulator.cuda_traffic(source.data_ptr(), 400_000, target.data_ptr(), 280_000, 0)
    assert not target[:70_000].any() and target[70_000:].all() and source.all()


@pytest.mark.parametrize("together", [1, 3, 64])
def test_row_dots_in_any_blocks_of_rows(
    backend: Backend, emulator: Any, emulated: Any, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    # Teams of 1, 16 and 32 threads; a part of a row for each team, and several.
    monkeypatch.setattr(emulated, "rows_together", lambda count, width: together)
    for width in (3, 64, 4104):
        (x, y), rows = backend.integers(1, [(70, width)] * 2)[0], torch.arange(70) % 5 - 1
        normal, results = backend.normal(1, [(70, width)])[0][0], []
        expected = torch.stack([(x.double() * y.double())[rows == n].sum() for n in range(4)])
        for order in (0, 1, 2):
            emulator.set_order(order)
            assert torch.equal(backend.row_dots(x, y, rows, 4), expected)
            results.append(backend.row_dots(normal, y, rows, 4))
        emulator.set_order(0)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_blocks_of_rows_are_for_large_gpus(emulated: Any) -> None:
    sizes = [(500, 64), (500, 32_768), (32_768, 64), (32_768, 1024), (32_768, 32_768), (1 << 20, 64), (1, 1)]
    assert [emulated.rows_together(*size) for size in sizes] == [4, 1, 32, 32, 4, 64, 4]


NVCC = ["-std=c++17", "-O3", "-fmad=false", "-gencode=arch=compute_80,code=[sm_80,sm_90]"]


SOURCES = ["combine.cu", "combine_half.cu", "graddrop.cu", "gram.cu", "reduce.cu", "row_dots.cu", "write.cu"]


# Part of a kernel's name -> threads that run on a multiprocessor at a time.
THREADS = {
    "ELi2ELi1ELb0": 5 * 256,
    "ELi4ELi1ELb0": 4 * 256,
    "ELi2ELi1ELb1": 2 * 256,
    "ELi4ELi1ELb1": 2 * 256,
    "ELi8ELi1ELb": 512,
    "ELi8ELi4ELb": 256,
    "graddrop_kernel": 2 * 256,
    "gram_small_kernel": 256,
    "ELi16EEEvNS_13GramArguments": 5 * 128,
    "ELi32EEEvNS_13GramArguments": 3 * 128,
    "ELi64EEEvNS_13GramArguments": 2 * 192,
    "ELi96EEEvNS_13GramArguments": 2 * 192,
    "ELi128EEEvNS_13GramArguments": 320,
    "reduce_kernel": 1024,
    "row_dots_kernel": 10 * 128,
    "traffic_kernel": 1024,
    "prepare_adamw_kernel": 1,
    "write_kernel": 256,
}


@pytest.fixture(scope="module")
def compiled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """For each source file, the report of ptxas and the PTX."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")

    def build(source: str) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp("objects")
        command = [nvcc, *NVCC, "-Xptxas", "-v", "-keep", "-c", root / "csrc" / source, "-o", "object.o"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr, (folder / source).with_suffix(".ptx").read_text()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOURCES, pool.map(build, SOURCES), strict=True))


def test_every_cuda_source_is_compiled_here(root: Path) -> None:
    assert sorted(path.name for path in (root / "csrc").glob("*.cu")) == SOURCES
    # The build uses the same flags, so registers and spills are those of the build.
    setup = (root / "setup.py").read_text(encoding="utf-8")
    assert all(flag in setup for flag in ("-fmad=false", "arch=compute_80,code=[sm_80,sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_no_register_is_spilled(compiled: dict[str, tuple[str, str]], source: str) -> None:
    report, _ = compiled[source]
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers",
        re.DOTALL,
    )
    kernels = pattern.findall(report)
    assert {arch for _, arch, *_ in kernels} == {"sm_80", "sm_90"}
    assert len(kernels) == report.count("Compiling entry function")
    for name, arch, stack, spilled, registers in kernels:
        assert (int(stack), int(spilled)) == (0, 0), f"{name} for {arch}"
        # A multiprocessor has 65536 registers for these threads.
        threads = next(threads for part, threads in THREADS.items() if part in name)
        assert int(registers) * threads <= 65536, f"{name} for {arch}"


@pytest.mark.slow
def test_main_loops_load_16_bytes(compiled: dict[str, tuple[str, str]]) -> None:
    # One load per gradient of a lane, and all loads before the first use: this keeps the memory busy.
    found = {}
    for source in ("combine.cu", "combine_half.cu"):
        for text in re.split(r"\.visible \.entry ", compiled[source][1])[1:]:
            if match := re.search(r"combine_kernelINS_\d+(\w+?)ELi(\d)ELi(\d)ELb(\d)", text.split("(")[0]):
                wide = "ld.global.cs.v4.u32"
                found[match.groups()] = text.count(wide), re.split("fma.rn", text, maxsplit=1)[0].count(wide)
    assert len(found) == 4 * 7
    for (dtype, cap, _, update), (loads, first) in found.items():
        # With an update, also a parameter's elements and its moments. With up to four gradients, they come first, too.
        state = 0 if update == "0" else 5 if "16" in dtype else 3
        assert (loads, first) == (int(cap) + state, int(cap) + (state if cap < "8" else 0)), (dtype, cap, update)

    # graddrop: 16 bytes of each gradient of a lane.
    found = {}
    for text in re.split(r"\.visible \.entry ", compiled["graddrop.cu"][1])[1:]:
        if match := re.search(r"graddrop_kernelINS_\d+(\w+?)ELi(\d)", text.split("(")[0]):
            first = re.split(r"\bfma\.rn|\badd\.f", text, maxsplit=1)[0]
            found[match.groups()] = text.count(wide), first.count(wide)
    assert len(found) == 4 * 2 and all(counts == (int(cap), int(cap)) for (_, cap), counts in found.items()), found

    # row_dots: of each matrix, 16 bytes for each of four places, or the same number of elements for each of two.
    found = {}
    for text in re.split(r"\.visible \.entry ", compiled["row_dots.cu"][1])[1:]:
        if match := re.search(r"row_dots_kernelINS_\d+(\w+?)E(S1_|NS_\d+Float32)", text.split("(")[0]):
            found[match[1], match[2] == "S1_"] = text.count(wide), re.split("fma.rn", text, maxsplit=1)[0].count(wide)
    assert len(found) == 6
    for (dtype, same_dtype), (loads, first) in found.items():
        assert loads == (8 if same_dtype else 6) and first == (2 if dtype == "Float64" else loads), (dtype, same_dtype)

    # gram with matrix units: copies of 16 bytes, for the first tiles and in the loop. A step of 32 x 32 products loads
    # their rows and columns once, on the diagonal only the rows, and multiplies 16 x 8 of them at a time.
    found = {}
    for text in re.split(r"\.visible \.entry ", compiled["gram.cu"][1])[1:]:
        if match := re.search(r"11gram_kernelINS_\d+(\w+?)ELi(\d+)", text.split("(")[0]):
            copies, loads, products = (text.count(name) for name in ("cp.async.cg", "ldmatrix", "mma.sync"))
            found[match[1], int(match[2])] = copies, loads, products
    assert len(found) == 3 * 5
    for (dtype, size), counts in found.items():
        steps, factor = (1, 3) if dtype == "Float32" else ({16: 2, 32: 2}.get(size, 4), 1)
        diagonal, other = {16: ((1, 2), (0, 0)), 32: ((2, 6), (0, 0))}.get(size, ((2, 6), (4, 8)))
        loads, products = (steps * (a + b) for a, b in zip(diagonal, other, strict=True))
        assert counts == ({16: 4, 32: 8, 64: 12}.get(size, 8), loads, products * factor), (dtype, size)


def machine_code(root: Path, folder: Path, source: str, arch: str) -> dict[str, list[str]]:
    """The instructions of each kernel in a source file, by its name in the object file."""
    nvcc, disassembler = shutil.which("nvcc"), shutil.which("nvdisasm")
    if disassembler is None and (triton := importlib.util.find_spec("triton")) and triton.origin:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        disassembler = str(bundled) if bundled.exists() else None
    if nvcc is None or disassembler is None:
        pytest.skip("no nvcc or no nvdisasm")
    flags = [*NVCC[:-1], f"-gencode=arch=compute_80,code={arch}"]
    for command in ([nvcc, *flags, "-cubin", root / "csrc" / source, "-o", "kernels"], [disassembler, "-c", "kernels"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    parts = re.split(r"^\.text\.(\w+):$", done.stdout, flags=re.MULTILINE)
    return {
        name: re.findall(r"/\*[0-9a-f]{4,}\*/ +(.+?) *;", text)
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_probe_of_the_memory_reads(root: Path, tmp_path: Path, arch: str) -> None:
    # The assembler removes loads whose results nothing uses, even if the PTX has them.
    kernels = machine_code(root, tmp_path, "reduce.cu", arch)
    (code,) = (code for name, code in kernels.items() if "traffic_kernel" in name)
    assert sum(" STG." in f" {line}" for line in code) > 8
    # In the main loop eight loads without a condition, one after the other: all are started before the first is used.
    runs = [len(list(lines)) for load, lines in itertools.groupby(code, lambda line: line.startswith("LDG.")) if load]
    assert 8 in runs


@pytest.fixture
def cuda() -> Backend:
    if reason := ops.backends()["cuda"]:
        pytest.skip(reason)
    return Backend("cuda", "cuda", interpreted=False)


@pytest.mark.gpu
def test_the_current_stream_is_used(cuda: Backend) -> None:
    grads = cuda.normal(5, [(1_000_003,), (300, 70), (7,)])
    expected = everything(cuda, grads)
    copies = [[torch.zeros_like(g) for g in row] for row in grads]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # work that does not wait for this on the stream reads zeros
        for row, source in zip(copies, grads, strict=True):
            for copy, g in zip(row, source, strict=True):
                copy.copy_(g)
        results = everything(cuda, copies)
    stream.synchronize()
    assert same(results, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [5, 33])
def test_captured_in_a_graph(cuda: Backend, tasks: int) -> None:
    grads = cuda.normal(tasks, [(100_003,), (300, 70), (7,)])
    weights = torch.tensor(mixed_weights(tasks), dtype=torch.float64, device="cuda")
    out = [torch.empty_like(g) for g in grads[0]]
    params, *moments = ([torch.zeros_like(g) for g in grads[0]] for _ in range(3))
    step, lr = torch.ones((), device="cuda"), torch.tensor(1e-2, device="cuda")
    options = ADAMW | {"lr": lr}

    def call() -> list[Tensor]:
        _, dots, sqnorms = cuda.combine_dots(grads, weights, out=out)
        updated = cuda.combine_adamw_(params, grads, weights, *moments, step=step, **options)
        return [dots, sqnorms, cuda.dots(grads, out), cuda.gram(grads), *updated, *out]

    def reset(seed: int) -> None:
        for row, new in zip(grads, cuda.normal(tasks, [(100_003,), (300, 70), (7,)], seed=seed), strict=True):
            for g, value in zip(row, new, strict=True):
                g.copy_(value)
        for t in (*params, *moments[0], *moments[1]):
            t.zero_()

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in (1, 2):
        reset(seed)
        graph.replay()
        replayed = [t.clone() for t in (*captured, *params, *moments[0], *moments[1])]
        reset(seed)
        assert same(replayed, [*call(), *params, *moments[0], *moments[1]])


@pytest.mark.gpu
def test_no_call_waits_for_the_device(cuda: Backend) -> None:
    grads = cuda.normal(5, [(1_000_003,), (300, 70), (7,)])
    everything(cuda, grads)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(cuda, grads)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_every_device(cuda: Backend) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    grads = cuda.normal(5, [(100_003,), (7,)])
    expected = [t.cpu() for t in everything(cuda, grads)]
    for device in range(torch.cuda.device_count()):  # none of them becomes the current device
        elsewhere = [[g.to(f"cuda:{device}") for g in row] for row in grads]
        results = everything(cuda, elsewhere)
        assert all(t.device.index == device for t in results)
        assert same([t.cpu() for t in results], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [2, 8, 33, 128])
def test_same_bits_in_twenty_runs(cuda: Backend, tasks: int) -> None:
    grads = cuda.normal(tasks, [(1_000_003,), (300, 70)])
    expected = everything(cuda, grads)
    for _ in range(20):
        assert same(everything(cuda, grads), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [3, 8, 16, 33])
def test_same_bits_as_in_the_emulator(cuda: Backend, emulator: Any, request: pytest.FixtureRequest, tasks: int) -> None:
    # Except for the matrix units, the arithmetic and its order are the same.
    grads = cuda.normal(tasks, [(301,), (65,)])
    real = [t.cpu() for t in everything(cuda, grads)]
    emulated = everything(request.getfixturevalue("backend"), [[g.cpu() for g in row] for row in grads])
    for left, right in zip(real, emulated, strict=True):
        if left.shape == (tasks, tasks) and tasks > 8:
            torch.testing.assert_close(left, right, rtol=STATISTICS, atol=STATISTICS * 366)
        else:
            assert torch.equal(left, right)


@pytest.mark.gpu
def test_row_dots_on_streams_and_in_graphs(cuda: Backend) -> None:
    (x, y), rows = cuda.normal(1, [(5000, 700)] * 2)[0], torch.arange(5000, device="cuda") % 9 - 1
    expected = cuda.row_dots(x, y, rows, 8)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert cuda.row_dots(x, y, rows, 8).shape == (8,)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    copy, stream = torch.zeros_like(x), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # work that does not wait for this on the stream reads zeros
        found = cuda.row_dots(copy.copy_(x), y, rows, 8)
    stream.synchronize()
    assert torch.equal(found, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cuda.row_dots(copy, y, rows, 8)
    for factor in (2, 0.5):
        copy.copy_(x * factor)
        graph.replay()
        assert torch.equal(captured, expected * factor)
    assert all(torch.equal(cuda.row_dots(x, y, rows, 8), expected) for _ in range(20))


@pytest.mark.gpu
def test_a_launch_that_fails_is_an_error(cuda: Backend) -> None:
    from cats import _native

    stream = torch.cuda.current_stream().cuda_stream
    with pytest.raises(RuntimeError, match="CUDA"):
        _native.cuda_gram(0, 1, 0, 0, 0, 0, 1, 2, 0, stream)  # a grid without blocks
    assert everything(cuda, cuda.normal(2, [(5,)]))
