"""The documents: every code block runs, every command is valid, and every path and setting that they name exists."""

from __future__ import annotations

import html
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import cats
from cats.nmt.config.checks import format_value, type_name
from cats.nmt.config.schema import FIELDS, TYPES
from cats.nmt.config.sections.method import METHODS
from cats.nmt.config.toml import presets
from cats.nmt.errors import UserError
from docs.hooks import settings
from tests.conftest import ROOT
from tests.documents import Block, blocks, check_command, commands, run_python

# Pages about other libraries are run where these are installed.
OPTIONAL = {"accelerate", "lightning", "torchjd", "transformers"}
FOLDERS = [".", "bench", "cats/nmt", "csrc", "examples", "docs"]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).glob("**/*.md" if folder == "docs" else "*.md")
)
RUN = [name for name in DOCUMENTS if name == "README.md" or name.startswith("docs/")]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def run(document: str) -> dict[str, object]:
    try:
        return run_python(document, blocks(read(document)))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("document", [name for name in RUN if "```python" in read(name)])
def test_the_python_of_a_document_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_of_a_document_are_valid(document: str) -> None:
    for block in blocks(read(document)):
        if block.language == "bash":
            for words in commands(block.code):
                check_command(words)


def test_the_loop_of_the_readme_trains() -> None:
    names = run("README.md")
    assert isinstance(names["optimizer"], cats.CATS)
    assert names["total"]() < names["before"]  # type: ignore[operator]
    # The weights start equal. After 100 updates they differ, because the tasks do.
    assert len(set(names["optimizer"].alpha.values())) == 3


def test_a_broken_document_is_noticed() -> None:
    page = "```python\na = 1\n```\n\n<!-- setup:\nb = 2\n-->\n\n  ```python\n  c = a + b\n  ```\n"
    found = blocks(page)
    assert found == [Block("python", "a = 1\n", 2), Block("setup", "\nb = 2\n", 5), Block("python", "c = a + b\n", 10)]
    assert run_python("page", found)["c"] == 3

    with pytest.raises(NameError) as error:
        run_python("page", blocks(page.replace("a + b", "a + d")))
    assert (error.traceback[-1].path, error.traceback[-1].lineno) == ("page", 9)  # counted from 0
    no_run = "```python no-run\nimport not_here\n```\n"
    run_python("page", blocks(no_run))
    with pytest.raises(SyntaxError):
        run_python("page", blocks(no_run.replace("import ", "import, ")))
    for wrong in ("```\nx\n```\n", "```pyhton\nx\n```\n", "```python\nx = 1\n", "```python\nx\n````\n```text\n"):
        with pytest.raises(ValueError, match="block"):
            blocks(wrong)


def test_a_wrong_command_is_noticed() -> None:
    code = """\
# a comment: cats nothing
.venv/bin/cats train --data my/corpus \\
    --preset ted && cats data inspect my/corpus   # "cats"
echo "Monday" | cats translate runs/NAME --to az > out
torchrun --nproc-per-node 8 -m cats train; ls cats
"""
    assert [words[0] for words in commands(code)] == ["train", "data", "translate", "train"]
    for words in commands(code):
        check_command(words)
    for wrong in (
        "train --date x",
        "train --set train.lrr=1",
        "train --method nope",
        "train --set train.lr=-1",
        "plot",
    ):
        with pytest.raises(UserError):
            check_command(wrong.split())
    with pytest.raises(AssertionError):
        check_command(["train", "--preset", "nope"])
    with pytest.raises(KeyError):
        check_command(["trian"])


def named_paths(text: str) -> set[str]:
    """The targets of local links, and all paths in backticks: words with a slash or with the suffix of a file."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # commands, which other tests run
    words = set(re.findall(r"`([^`\s]+)`", text))
    return links(text) | {word for word in words if "/" in word or word.endswith((".py", ".md", ".toml", ".txt"))}


def links(text: str) -> set[str]:
    """The targets of local links."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return {
        link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link and not link.startswith("mailto:")
    }


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_path_in_a_document_exists(document: str) -> None:
    paths = named_paths(read(document))
    assert paths and not sorted(path for path in paths if not (ROOT / path).exists())


@pytest.mark.parametrize("module", ["cats", "cats.curvature", "cats.engines", "cats.ops", "cats.weighting"])
def test_every_public_name_is_in_the_reference(module: str) -> None:
    """A module is shown with all its names, or each of them by itself; a few are shown from where they are defined."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    shown = set(re.findall(r"^(?:::: |      heading: )(\S+)$", text, re.MULTILINE))
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    whole = module in shown and module != "cats.engines"  # of which only the docstring is shown
    assert names and (whole or names - {"cats.__version__", "cats.ops"} <= shown)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_exists(document: str) -> None:
    """Links only: these documents also name files of a run directory or of a corpus in backticks."""
    paths = [(ROOT / document).parent / link for link in links(read(document))]
    assert not [path for path in paths if not path.exists()]


def test_the_page_of_settings_has_all_of_them_with_default_meaning_and_type() -> None:
    rows = [row for row in settings.settings().splitlines() if row.startswith("| `")]
    assert len(rows) == len(FIELDS)
    for row, (name, field) in zip(rows, FIELDS.items(), strict=True):
        first, second = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
        assert first == f"`{name}`<br>`{format_value(field.default)}`"
        meaning, kind = second.split("<br>")
        assert html.unescape(meaning.replace("\\", "")) == field.metadata["help"]
        assert kind.startswith(f"*{type_name(TYPES[name])}")
        if need := field.metadata["need"]:
            assert need.text in kind.replace("\\", "")
        if name != "method.name":
            assert all(f"`{choice}`" in kind for choice in field.metadata["choices"])


def test_generated_parts_are_asked_for_by_a_page_and_complete() -> None:
    asked = [name for page in RUN for name in re.findall(r"^<!-- generated: (.*) -->$", read(page), re.MULTILINE)]
    assert sorted(asked) == sorted(settings.GENERATED)
    assert set(re.findall(r"^## (\S+)$", settings.all_presets(), re.MULTILINE)) == presets().keys()
    assert set(re.findall(r"^\| `(\S+)`", settings.methods(), re.MULTILINE)) == {*METHODS}


def test_the_page_about_installing_has_every_extra() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `(\w+)` \|", read("docs/install.md").partition("## Extras")[2], re.MULTILINE)) == {
        *extras
    }


@pytest.mark.parametrize("document", [name for name in RUN if "integrations/" in name or "checkpoints" in name])
def test_every_test_named_by_a_document_exists(document: str) -> None:
    """As tests/FILE.py::NAME, or as NAME alone on a page that names one file of tests in its text."""
    text = read(document)
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    alone = re.findall(r"`(test_\w+)`", text)
    for file, name in [*named, *((named[0][0], name) for name in alone)]:
        assert not name or f"def {name}(" in read(file), f"{file} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lists_are_written_so_that_the_site_knows_them_too(document: str) -> None:
    assert not lists_of_other_markdown(read(document))


def lists_of_other_markdown(text: str) -> list[str]:
    """Lists on a code host only: the site needs an empty line before a list, and four spaces before inner items."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    item = r"(?:[-*]|\d+\.) "
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if not re.match(rf"\s*{item}|#", part)]
    late = [part for part in paragraphs if re.search(r"^(?:[-*]|1\.) ", part, re.MULTILINE)]
    return late + re.findall(rf"^ {{1,3}}{item}.*", text, re.MULTILINE)


def test_lists_of_other_markdown_are_found() -> None:
    assert not lists_of_other_markdown("text\n\n- a\n  b - c\n- d\n    - e\n\n1. f\n2. g\n\na - b\n")
    assert lists_of_other_markdown("text:\n- a\n") and lists_of_other_markdown("- a\n  - b\n")


def test_paths_are_found() -> None:
    text = "`a/b.py` and `c.md`, [a link](d#part), [far](https://e.org/f), `name.attribute`\n```\n`g/h.py`\n```\n"
    assert named_paths(text) == {"a/b.py", "c.md", "d"}
