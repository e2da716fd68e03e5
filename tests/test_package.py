"""The package as a whole: what a wheel contains, what `import cats` imports, which module may import which."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import cats


def run_python(code: str, folder: Path, *flags: str, **environment: str) -> str:
    """Runs `code` in `folder` in a new interpreter and returns its standard output."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` builds, without CUDA. Built from a copy of the files that the build reads."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "cats", "kernels", "csrc"):
        for path in [root / name, *(root / name).rglob("*")]:
            made = "__pycache__" in path.parts or path.suffix == ".so" or path.name == "_build.py"
            if path.is_file() and not made:
                target = source / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"],
        cwd=source,
        env={**os.environ, "CATS_CUDA": "0"},
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


# ---- names and versions


def test_public_names() -> None:
    assert {name for name in cats.__all__ if not hasattr(cats, name)} == set()
    assert {"CATS", "MultiTask", "ops", "weighting"} < set(cats.__all__)
    assert {*cats.__all__, "optim", "multitask"} < set(dir(cats))
    with pytest.raises(AttributeError, match="no_such_name"):
        cats.no_such_name  # noqa: B018


def test_modules_of_public_names_need_no_import_of_their_own(root: Path) -> None:
    # cats.multitask comes first: cats.optim would bring it in.
    assert run_python("import cats; print(cats.multitask.MultiTask.__name__, cats.optim.CATS.__name__)", root) == (
        "MultiTask CATS"
    )


def test_one_version(root: Path, wheel: Path) -> None:
    newest = re.search(r"^## \[(\d[^]]*)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == cats.__version__
    assert f"\nversion: {cats.__version__}\n" in (root / "CITATION.cff").read_text()
    assert wheel.name.startswith(f"cats_optim-{cats.__version__}-cp3")


def test_the_description_of_the_package_has_no_links_into_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        head, _, text = files.read(name).decode().partition("\n\n")
    assert "\nDescription-Content-Type: text/markdown" in head and text.startswith("# CATS")
    assert all(link.startswith(("https:", "#")) for link in re.findall(r"\]\(([^)]*)\)", text))


def test_wheels_and_workflows_are_for_the_pythons_that_the_library_accepts(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    named = [text.rpartition(" ")[2] for text in settings["project"]["classifiers"] if re.search(r":: 3\.\d", text)]
    accepted = SpecifierSet(settings["project"]["requires-python"])
    assert named == [f"3.{minor}" for minor in range(40) if accepted.contains(f"3.{minor}")]
    assert settings["tool"]["cibuildwheel"]["build"] == [f"cp{version.replace('.', '')}-*" for version in named]
    workflow = (root / ".github" / "workflows" / "tests.yml").read_text()
    assert f"python: {json.dumps(named)}" in workflow
    [torch_] = [text for text in settings["project"]["dependencies"] if text.startswith("torch")]
    assert f'torch: ["~={torch_.partition("=")[2]}.0", "{torch_.removeprefix("torch")}"]' in workflow


def test_constraints_satisfy_what_the_library_accepts(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE))
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for texts in lists for text in texts]
    for requirement in wanted:
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert {requirement.name for requirement in wanted} == {*pins, project["name"]}, "a pin nobody needs"


def test_nobody_is_told_to_install_from_an_index(root: Path) -> None:
    # The package is on none, so anybody could register its name there.
    below = (path for folder in ("cats", "bench", "docs", "examples") for path in (root / folder).rglob("*"))
    files = [*root.glob("*.md"), *(path for path in below if path.suffix in (".md", ".py", ".ipynb"))]
    told = re.compile(r"pip install[^\n]*\bcats[-_]optim\b(?!-)")  # not the file cats_optim-0.1.0.tar.gz
    assert len(files) > 300
    assert not [path for path in files if told.search(path.read_text(encoding="utf-8"))]


# ---- what an import brings in


def test_import_brings_in_torch_and_nothing_heavier(root: Path) -> None:
    assert "torch" not in run_python("import sys, cats; print(*sys.modules)", root).split()
    brought = run_python(
        "import sys, torch; before = set(sys.modules); import cats; cats.ops, cats.weighting, cats.CATS;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))",
        root,
    ).split()
    assert "cats" in brought
    # torch itself imports tqdm, but `brought` has only what cats adds.
    heavy = {"triton", "sentencepiece", "sacrebleu", "matplotlib", "babel", "tqdm", "scipy", "pandas"}
    assert heavy.isdisjoint(brought)
    assert "cats.nmt" not in run_python("import sys, cats; print(*sys.modules)", root).split()


# ---- who may import whom


def test_imports_run_downwards(root: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_import_what_lies_below_them_only(root: Path) -> None:
    # import-linter looks into cats/ only. In a clone, kernels/ is beside it.
    allowed = {"cats.ops.device_table", "cats.ops.interface", "cats.ops.layout", "cats.kernels"}
    for path in sorted((root / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "cats":
                names = {f"cats.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = {node.module}
            assert {name for name in names if name.split(".")[0] == "cats"} <= allowed, path


# ---- kernels/ is cats.kernels, in a clone and in an install


def test_kernels_are_found_in_a_clone_that_is_not_installed(root: Path) -> None:
    # -S ignores .pth files, so an editable install does not count. This is also the case after a plain
    # `pip install .`, because the working directory comes before site-packages.
    found = run_python(
        "import cats, cats.kernels; print(cats.__file__, cats.kernels.__file__)",
        root,
        "-S",
        PYTHONPATH=sysconfig.get_path("purelib"),
    )
    assert found == f"{root / 'cats' / '__init__.py'} {root / 'kernels' / '__init__.py'}"


def test_the_wheel_holds_every_module_and_nothing_else(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "cats = cats.nmt.cli.main:main" in archive.read(entry).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    library = {str(path.relative_to(root)) for path in (root / "cats").rglob("*.py")}
    presets = {str(path.relative_to(root)) for path in (root / "cats/nmt/config/presets").glob("*.toml")}
    kernels = {f"cats/{path.relative_to(root)}" for path in (root / "kernels").rglob("*.py")}
    module = {name for name in held if re.fullmatch(r"cats/_native\.\S+\.so", name)}
    assert len(module) == 1, "a C++ compiler is part of what the tests need"
    page = {f"cats/nmt/scoring/report/page.{kind}" for kind in ("css", "js")}
    assert held == library | presets | page | kernels | module | {"cats/py.typed", "cats/_native.pyi", "cats/_build.py"}


def test_an_installed_library_takes_its_own_kernels(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # another package named kernels, which users may have installed
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("")
    found = run_python(
        "import cats, cats.kernels, kernels; print(cats.kernels.__file__, len(cats.__path__))",
        tmp_path,
        "-S",
        PYTHONPATH=f"{site}{os.pathsep}{sysconfig.get_path('purelib')}",
    )
    assert found == f"{site / 'cats' / 'kernels' / '__init__.py'} 1"


# ---- the two commands of README.md


def commands(root: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python3 -m venv")]


def test_each_readme_command_does_everything_by_itself(root: Path) -> None:
    main, tests = commands(root)
    install = 'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[{}]" && '
    assert main == install.format("nmt") + ".venv/bin/cats train"
    assert tests == install.format("all") + ".venv/bin/python -m pytest -q -n 2"
    pinned = re.search(r"^torch==\S+$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and f"\n{pinned[0]} --index-url" in (root / "README.md").read_text()


STAND_IN = """#!/bin/sh
# Instead of `python3 -m venv FOLDER`: tools that log how they were called. The one that $FAIL names fails.
mkdir -p "$3/bin"
for tool in pip python ruff mypy lint-imports mkdocs; do
    echo '#!/bin/sh' >"$3/bin/$tool"
    echo "tool=$tool"'; echo "$tool $*" >>"$LOG"; read line && exit 9; [ "$FAIL" != "$tool" ]' >>"$3/bin/$tool"
    chmod +x "$3/bin/$tool"
done
"""


@pytest.mark.skipif(os.name != "posix", reason="a bash script")
@pytest.mark.parametrize("fails", ["", "pip", "python", "ruff", "mypy", "lint-imports", "mkdocs"])
def test_ci_runs_the_readme_command_and_its_exit_status_is_the_truth(root: Path, tmp_path: Path, fails: str) -> None:
    for folder in ("bin", "tmp"):
        (tmp_path / folder).mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    log = tmp_path / "log"
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    done = subprocess.run(
        [str(root / ".ci" / "run")],
        env={**os.environ, **environment, "LOG": str(log), "FAIL": fails},
        input="a line that no step may wait for\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    assert ("FAILED" in done.stderr) == bool(fails)
    calls = log.read_text().splitlines()
    assert calls[0] == "pip install -c constraints.txt -e .[all]"
    if fails != "pip":
        assert calls[1] == "python -m pytest -q -n 2"
    # the steps after a failed one still run
    *linters, site = calls[-5:]
    assert linters == ["ruff check .", "ruff format --check .", "mypy ", "lint-imports "]
    assert site.startswith("mkdocs build --strict ")
    assert os.listdir(tmp_path / "tmp") == []
