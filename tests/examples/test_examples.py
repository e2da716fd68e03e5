"""The programs of examples/ print what they say that they print, and the notebook runs."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import socket
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.distributed.common import needs_gloo
from tests.processes import spawn

FOLDER = ROOT / "examples"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py"))
NOTEBOOK = "weights_and_similarity.ipynb"
PACKAGES = {
    "accelerate_loop.py": ["accelerate"],
    "huggingface_trainer.py": ["accelerate", "transformers"],
    "lightning_manual.py": ["lightning"],
    "own_corpus.py": ["babel", "sacrebleu", "sentencepiece"],
    "torchjd_weighting.py": ["torchjd", "quadprog"],
    NOTEBOOK: ["babel", "ipykernel", "matplotlib", "nbclient", "nbformat", "sentencepiece"],
}
SEVERAL_PROCESSES = ["fsdp2.py", "torchrun_ddp.py"]
# The last bits of a sum depend on the processor, the number of threads and the version of torch. Most programs print
# the same digits everywhere. The scores of a translation model moved by up to 7 % between AVX2 and code without it, and
# its smallest NLL, 0.157, by 0.032 between two processors with AVX-512. So: a share of the number, and a part added.
ROUNDING = {"own_corpus.py": (0.1, 0.03)}
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def docstring(program: str) -> str:
    text = ast.get_docstring(ast.parse((FOLDER / program).read_text(encoding="utf-8")))
    assert text is not None
    return text


def promised(program: str) -> str:
    """What the docstring says that the program prints: the indented lines after "Prints"."""
    block = re.search(r"^Prints[^\n]*:\n\n((?: {4}[^\n]*\n?)+)", docstring(program), re.MULTILINE)
    assert block is not None, f"{program}: its docstring does not end with what it prints"
    return block[1]


def differences(found: str, expected: str, rounding: float = 0.0, added: float = 0.0) -> list[str]:
    """Where two outputs differ: the words, the whole numbers, and the others by more than 1 in the last digit.

    rounding, added: what those others may differ by besides, relative to the expected number and as a number. See
        ROUNDING.
    """
    if NUMBER.sub("#", found).split() != NUMBER.sub("#", expected).split():
        return [f"printed:\n{found}\nexpected:\n{expected}"]
    pairs = zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True)
    return [f"{a} instead of {b}" for a, b in pairs if a != b and not is_near(a, b, rounding, added)]


def is_near(a: str, b: str, rounding: float, added: float) -> bool:
    """Whether they differ by at most 1 in the last digit, that share and that number. Whole numbers must be equal."""
    decimals = len(b.partition(".")[2])
    return decimals > 0 and abs(float(a) - float(b)) <= rounding * abs(float(b)) + added + 1.001 * 10**-decimals


def require(name: str) -> None:
    for package in PACKAGES.get(name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in SEVERAL_PROCESSES])
def test_a_program_prints_what_it_says(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    require(program)
    runpy.run_path(str(FOLDER / program), run_name="__main__")
    assert not differences(capsys.readouterr().out, promised(program), *ROUNDING.get(program, (0.0, 0.0)))


@needs_gloo
def test_programs_of_several_processes_print_what_they_say(tmp_path: Path) -> None:
    with ExitStack() as stack:  # two free ports
        ports = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in SEVERAL_PROCESSES
        ]
    spawn(run_all, (ports, tmp_path), 2)
    for program in SEVERAL_PROCESSES:
        found = "".join((tmp_path / f"{program}-{rank}").read_text(encoding="utf-8") for rank in range(2))
        assert not differences(found, promised(program))


def run_all(rank: int, ports: list[int], folder: Path) -> None:
    """Runs the programs in one of two processes, with the environment that torchrun gives them."""
    torch.set_num_threads(1)
    for program, port in zip(SEVERAL_PROCESSES, ports, strict=True):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in own.items()}
        with (folder / f"{program}-{rank}").open("w", encoding="utf-8") as out, redirect_stdout(out):
            runpy.run_path(str(FOLDER / program), run_name="__main__")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_short_and_listed(program: str) -> None:
    text = (FOLDER / program).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    title = docstring(program).splitlines()[0]
    assert f"| [{program}]({program}) | {title} |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_differences_are_found() -> None:
    assert not differences("loss 0.50, steps 1,200\n", "  loss 0.51,  steps 1,200")
    assert not differences("loss 0.54, steps 1,200\n", "  loss 0.50,  steps 1,200", 0.1)
    for wrong in ("loss 0.57, steps 1,200", "loss 0.50, steps 1,201", "los 0.50, steps 1,200", "loss 0.50"):
        assert differences(wrong, "loss 0.50, steps 1,200", 0.1)
    assert differences("loss 0.52, steps 1,200", "loss 0.50, steps 1,200")


def test_the_notebook_runs(tmp_path: Path) -> None:
    require(NOTEBOOK)
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / NOTEBOOK, as_version=4)
    stored = [(shapes(cell), printed(cell)) for cell in notebook.cells]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute(
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    assert any(text for _, text in stored)
    for cell, (kinds, text) in zip(notebook.cells, stored, strict=True):
        assert shapes(cell) == kinds, "store the notebook with its outputs"
        assert not differences(printed(cell), text)
    assert (FOLDER / NOTEBOOK).stat().st_size < 200_000


def shapes(cell: dict) -> list[str]:
    """The kinds of the outputs of a cell, sorted. The pictures themselves differ between versions of matplotlib."""
    return sorted(kind for output in cell.get("outputs", []) for kind in output.get("data", [output["output_type"]]))


def printed(cell: dict) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []) if output.get("name") == "stdout")
