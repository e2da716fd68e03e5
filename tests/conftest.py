"""Settings and fixtures of all tests. The first lines must run before anything imports a Triton kernel."""

import os

import torch

if not torch.cuda.is_available():
    # Triton reads this variable when a kernel is decorated. If it were set later, Triton would look for a GPU driver.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The tests' tensors are small: more threads cost time, and two suffice to find what depends on their number.
torch.set_num_threads(min(2, torch.get_num_threads()))

# The result of a test must not depend on how busy the machine is or on the examples that hypothesis happens to draw.
hypothesis.settings.register_profile("cats", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("cats")

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before items are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("long_interpreted") and "triton" in item.name:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a benchmark's command that must be refused, as on a machine without a GPU. Returns its one line of error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(main: Callable[[list[str]], int], arguments: list[str]) -> str:
        try:
            status: Any = main(arguments)
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and error.count("\n") == 1
        return error

    return run


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone's folder."""
    return ROOT


@pytest.fixture(scope="session")
def help8() -> Path:
    """The folder of eight English-xx pairs in Moses form: $CATS_HELP8, else beside the clone."""
    folder = Path(os.environ.get("CATS_HELP8") or ROOT.parent / "shared" / "corpora" / "help8")
    if not folder.is_dir():
        pytest.skip(f"no corpus at {folder}; set CATS_HELP8 to its folder")
    return folder
