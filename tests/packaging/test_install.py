"""The source distribution and the wheel, built and installed as by a user, and tested from another folder.

`pytest -m slow tests/packaging` before a release. It takes minutes, and the network: pip builds in an environment of
its own, for which it gets setuptools and pybind11. torch and the other packages are those of the running Python.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Runs a command as in a new shell: without the clone on the path. Returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CATS_BACKEND")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**inherited, "CATS_CUDA": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def install(distribution: Path, folder: Path, **environment: str) -> Path:
    """Installs a file into a new virtual environment in `folder`, and returns the folder of its programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
    run(*pip, distribution, cwd=folder, **environment)
    # After pip, which would find the dependencies there, and an installed cats, too.
    [site] = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    return programs


@pytest.fixture(scope="module")
def distributions(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution of the files in git, and the wheel that is built from it."""
    if not (root / ".git").exists():
        pytest.skip("not a clone")
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("distributions")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=root).splitlines():
        if (root / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, clone / name)
    builder = tmp_path_factory.mktemp("builder")
    venv.create(builder, with_pip=True)
    run(builder / "bin" / "python", "-m", "pip", "install", "--quiet", "build", cwd=builder)
    run(builder / "bin" / "python", "-m", "build", "--outdir", out, clone, cwd=builder)
    return out


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which the wheel is installed."""
    return install(next(distributions.glob("*.whl")), tmp_path_factory.mktemp("installed"))


def elsewhere(root: Path, folder: Path) -> tuple[Path, list[str]]:
    """A folder that has only the tests, and the commands that test a wheel there. Both are cibuildwheel's."""
    folder.mkdir(exist_ok=True)
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    for name in settings["test-sources"]:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    return folder, settings["test-command"]


def test_the_source_distribution_can_be_tested_and_the_wheel_comes_from_it(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "tests/conftest.py", "tests/ops/cuda_emulator.h", "csrc/kernels.h", "csrc/combine.cuh"}
    assert wanted | {"kernels/combine.py", "constraints.txt", "CITATION.cff"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name == "cats/_build.py"]
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
        assert [name for name in archive.namelist() if name.startswith("cats/_native.") and name.endswith(".so")]


def test_the_wheel_passes_the_tests_of_the_operators(root: Path, installed: Path, tmp_path: Path) -> None:
    folder, commands = elsewhere(root, tmp_path)
    where = run(installed / "python", "-c", "import cats; print(cats.__file__)", cwd=folder, PYTHONSAFEPATH="1")
    assert Path(where.strip()).is_relative_to(installed.parent)
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        # As cibuildwheel does, it does not look for modules in the working directory. pytest looks for tests there.
        run("bash", "-c", command, cwd=folder, PATH=path, PYTHONSAFEPATH="1")


@pytest.mark.parametrize("missing", ["CXX", "PATH"])
def test_without_a_compiler_the_source_distribution_is_installed_and_works(
    root: Path, distributions: Path, tmp_path: Path, missing: str
) -> None:
    (tmp_path / "venv").mkdir()
    nowhere = {"CXX": "/nowhere/c++"} if missing == "CXX" else {"PATH": str(tmp_path / "venv" / "bin")}
    programs = install(next(distributions.glob("*.tar.gz")), tmp_path / "venv", **nowhere)
    shown = run(programs / "cats", "info", "--check", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert "not usable: built without the C++ kernels" in shown and "Checks of cats.ops against float64" in shown
    if missing == "PATH":
        folder, commands = elsewhere(root, tmp_path / "elsewhere")
        command = commands[-1].replace("python", str(programs / "python"), 1)
        run("/bin/bash", "-c", command, cwd=folder, PYTHONSAFEPATH="1", **nowhere)


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_know_the_types_of_the_installed_package(
    root: Path, installed: Path, tmp_path: Path, checker: str
) -> None:
    program = Path(sys.executable).with_name(checker)
    if not program.exists():
        pytest.skip(f"{checker} is not installed")
    python = installed / "python"
    options = ["--strict", "--python-executable", python] if checker == "mypy" else ["--pythonpath", python]
    shutil.copyfile(root / "tests" / "packaging" / "client.py", tmp_path / "client.py")
    run(program, *options, "client.py", cwd=tmp_path)
