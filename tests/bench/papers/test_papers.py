"""Every figure of the papers has commands that parse and valid settings at both scales; nothing is trained."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sentencepiece")

from bench.papers.__main__ import main
from bench.papers.commands import Command, commands, run
from bench.papers.experiments import EXPERIMENTS
from bench.papers.figures import FIGURES
from cats.nmt.cli import compare, pareto, plot
from cats.nmt.cli.main import COMMANDS, DATA_COMMANDS
from cats.nmt.cli.parser import Parser
from cats.nmt.config.schema import FIELDS
from cats.nmt.data.cldr.sets import LANGUAGES

SIZES = {  # instead of reading a corpus
    **{name: 1000 for names in LANGUAGES.values() for name in names},
    **dict.fromkeys(("zh", "ro", "hi", "az-az", "be-be", "gl-gl", "gu-gu", "sw-sw"), 100),
    **dict.fromkeys(("fr", "de", "en-en"), 10_000),
}


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_all_commands_parse_and_all_settings_are_valid(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cats.nmt.training.load_corpus.load_corpus", lambda *_, **__: SimpleNamespace(sizes=SIZES))
    found = commands(FIGURES.values(), scale, tmp_path / "out", tmp_path / "data")
    assert len({command.words for command in found}) == len(found)  # what figures share is trained once
    runs = 0
    for command in found:
        name, *rest = command.words
        module = DATA_COMMANDS[rest.pop(0)] if name == "data" else COMMANDS[name]
        parser = Parser(f"cats {name}", "")
        module.add_arguments(parser)
        options = parser.parse(rest)
        if name == "compare":
            runs += len(compare.planned(options))
        elif name == "pareto":
            runs += sum(len(point.runs) for front in pareto.planned(options) for point in front.points)
        elif name == "plot":
            assert not options.against or options.against in FIELDS
            known = plot.against_setting(options.against) if options.against else plot.over_time()
            assert options.pictures and set(options.pictures) <= set(known)
    assert 100 < runs < (250 if scale == "tiny" else 300)  # the tiny scale has some four hours
    assert not any(tmp_path.iterdir())


def test_every_experiment_is_needed_and_every_figure_is_described(root: Path) -> None:
    assert {name for figure in FIGURES.values() for name in figure.experiments} == set(EXPERIMENTS)
    described = (root / "docs" / "papers.md").read_text(encoding="utf-8")
    for figure in FIGURES.values():
        assert f"| {figure.name} | {figure.claim} |" in described
        assert figure.draw or figure.tables


def test_a_dry_run_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cats-5", "cats-6", "--dry-run"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("cats compare --methods T=1") and first.endswith("--out runs/papers-tiny/related")
    assert [line.partition(" ")[2].partition(" ")[0] for line in others] == ["plot", "plot"]


def test_an_unknown_figure_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cats-9"]) == 2
    assert capsys.readouterr().err.startswith("bench: no figure cats-9; there are cats-2,")


@pytest.mark.parametrize(
    ("statuses", "expected", "count"), [((2, 0, 0), 2, 3), ((0, 130, 0), 130, 2), ((0, 0, 0), 0, 3)]
)
def test_a_failure_is_stepped_over_and_ctrl_c_is_not(
    statuses: tuple[int, ...],
    expected: int,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Command] = []

    def fake(command: Command) -> int:
        calls.append(command)
        return statuses[len(calls) - 1]

    monkeypatch.setattr("bench.papers.__main__.run", fake)
    assert main(["cats-5", "cats-6", "--out", str(tmp_path)]) == expected
    shown = capsys.readouterr()
    assert len(calls) == count
    assert ("cats-6: " in shown.out) == (expected != 130)
    assert ("1 of 3 commands failed; the first: cats compare" in shown.err) == (expected == 2)


def test_folders_are_found_when_a_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = tmp_path / "runs [1] of mine"
    for name in ("T=1-seed1", "T=1-seed2", "cats-seed1"):
        (tmp_path / "ted" / name).mkdir(parents=True)
        (tmp_path / "ted" / f"{name}.toml").touch()
    seen: list[list[str]] = []

    def fake(words: list[str]) -> SimpleNamespace:
        seen.append(words[3:])
        return SimpleNamespace(returncode=3 if words[3] == "analyse" else 0)

    monkeypatch.setattr("bench.papers.commands.subprocess.run", fake)
    assert run(Command(("plot", f"{tmp_path}/*/T=1-seed*", "--out", "x"))) == 0
    assert seen == [["plot", f"{tmp_path}/ted/T=1-seed1", f"{tmp_path}/ted/T=1-seed2", "--out", "x"]]
    assert run(Command(("analyse", f"{tmp_path}/ted/cats-seed*"))) == 3
    assert seen[1:] == [["analyse", f"{tmp_path}/ted/cats-seed1"]]
    assert run(Command(("data", "cldr", "there"), made=tmp_path)) == 0 and len(seen) == 2


def test_names_of_folders_may_have_spaces(tmp_path: Path) -> None:
    out, data = tmp_path / "my runs", tmp_path / "my text"
    trained, drawn = commands([FIGURES["cats-5"]], "paper", out, data)
    assert {str(data / "ted-related"), str(out / "related")} < set(trained.words)
    assert f"{out}/related/*/cats-seed*" in drawn.words and drawn.words[-1] == str(out / "figures" / "cats-5")
    (out / "related" / "ted" / "cats-seed11").mkdir(parents=True)
    printed = subprocess.run(
        ["sh", "-c", str(drawn).replace("cats", "printf %s\\\\n", 1)], capture_output=True, text=True
    )
    assert f"{out}/related/ted/cats-seed11" in printed.stdout.splitlines()


def test_a_corpus_that_was_not_completed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpora" / "toy"
    statuses = iter([130, 0])

    def fake(words: list[str]) -> SimpleNamespace:
        folder = Path(words[-1])
        assert not folder.exists()
        folder.mkdir(parents=True)
        return SimpleNamespace(returncode=next(statuses))

    monkeypatch.setattr("bench.papers.commands.subprocess.run", fake)
    command = Command(("data", "cldr", "--out", str(corpus)), made=corpus)
    assert run(command) == 130 and not corpus.exists()
    assert run(command) == 0 and [path.name for path in corpus.parent.iterdir()] == ["toy"]
    assert run(command) == 0
