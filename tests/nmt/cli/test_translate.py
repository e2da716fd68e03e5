"""`cats translate`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli import translate
from cats.nmt.cli.main import main
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint
from cats.nmt.training.load_ensemble import check_vocabularies
from tests.nmt.cli.common import Input


def test_translate_gives_the_test_translations(
    run: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((trained / "toy" / "test.en-az.en").read_bytes())))
    assert main(["translate", str(run), "--to", "az"]) == 0
    assert capfdbinary.readouterr().out == (run / "hyp" / "test.az.txt").read_bytes()
    assert capfdbinary.readouterr().err == b""


def test_translate_files(run: Path, trained: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    source, target = trained / "toy" / "test.en-az.en", tmp_path / "out.txt"
    assert main(["translate", str(run), "--to", "az", "--input", str(source), "--output", str(target)]) == 0
    assert target.read_bytes() == (run / "hyp" / "test.az.txt").read_bytes()
    assert capfdbinary.readouterr() == (b"", b"")
    source = tmp_path / "in.txt"
    source.write_bytes(b"alpha\n\xff\n")
    assert main(["translate", str(run), "--to", "az", "--input", str(source), "--output", str(target)]) == 2
    assert b"in.txt, line 2, byte 1: not UTF-8" in capfdbinary.readouterr().err
    assert target.read_bytes() == (run / "hyp" / "test.az.txt").read_bytes()  # the old file, not half a new one
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "out.txt", "run"}


@pytest.mark.skipif(os.name != "posix", reason="links and devices as POSIX has them")
def test_translate_to_a_device_and_through_a_link(
    run: Path, trained: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    source, expected = trained / "toy" / "test.en-az.en", (run / "hyp" / "test.az.txt").read_bytes()
    command = ["translate", str(run), "--to", "az", "--input", str(source), "--output"]
    assert main([*command, "/dev/stdout"]) == 0
    assert capfdbinary.readouterr() == (expected, b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert main([*command, str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == expected


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_translate_from_a_pipe(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"alpha\n\necho\n")
    os.close(theirs)
    assert main(["translate", str(run), "--to", "az", "--input", f"/dev/fd/{ours}"]) == 0
    os.close(ours)
    assert capfd.readouterr().out.split("\n")[1::2] == ["", ""]


def test_translate_nbest_and_sample(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("alpha bravo\n\n" + "golf hotel\n" * 70)

    def translated(*options: str, lines: str = source.read_text()) -> list[list[str]]:
        source.write_text(lines)
        assert main(["translate", str(run), "--to", "az", "--input", str(source), *options]) == 0
        return [line.split("\t") for line in capfd.readouterr().out.split("\n")[:-1]]

    rows = translated("--nbest", "2", "--penalty", "fairseq")
    assert [row[0] for row in rows] == [*"112", *(str(i) for i in range(3, 73) for _ in range(2))]
    assert rows[2] == ["2", "0.0000", ""] and float(rows[0][1]) >= float(rows[1][1])
    assert [row[2] for row in rows[::2]][:1] == translated("--nbest", "1", "--penalty", "fairseq")[0][2:]
    drawn = translated("--sample", "--temperature", "5", "--seed", "3")
    assert drawn == translated("--sample", "--temperature", "5", "--seed", "3")
    assert drawn != translated("--sample", "--temperature", "5", "--seed", "4")
    assert len({text for (text,) in drawn[2:]}) > 35  # lines after the first block have their own draws too
    assert translated("--sample", "--top-k", "1") == translated("--beam", "1")


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal as Unix has it")
def test_translate_typed_lines(run: Path, root: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cats", "translate", str(run), "--to", "az", "--interactive"]
    process = subprocess.Popen(command, cwd=root, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(ours, b"alpha bravo\n\nalpha bravo\n\x04")
    out, err = process.communicate(timeout=300)
    os.close(ours), os.close(theirs)
    first, blank, second = out.decode().replace("az> ", "").split("\n")[:3]
    assert process.returncode == 0 and err == b"" and out.count(b"az> ") == 4
    assert first == second != "" and blank == ""


def test_translate_from(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    message = f"{run} does not translate from 'ru'; known: en"
    assert refused("translate", run, "--to", "az", "--from", "ru") == message
    best = run / "checkpoints" / "best.pt"
    state = checkpoint.load(best)
    checkpoint.save(best, {"model": state["model"], "digest": state["digest"]})  # as before checkpoints named the tasks
    for tasks, warned in ((["az", "be"], False), (["az-be", "be-az", "be"], True)):
        alpha = dict.fromkeys(tasks, 1.0)
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "alpha": alpha}) + "\n")
        monkeypatch.setattr(sys, "stdin", Input(b"alpha\n"))
        assert main(["translate", str(run), "--to", "az", "--from", "eng"]) == 0
        out, err = capfd.readouterr()
        assert out.count("\n") == 1
        assert err == (f"cats: {run} was not trained to translate from en to az: zero-shot\n" if warned else "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nbest", "0"], "--nbest must be at least 1, not 0"),
        (["--nbest", "3"], "a beam of 2 is too small for the 3 best; set decode.beam (--beam) to 3"),
        (["--top-p", "0.5"], "--top-p is for translations drawn at random; add --sample"),
        (
            ["--sample", "--beam", "3"],
            "--beam is for beam search, not for translations drawn at random; leave out it or --sample",
        ),
        (
            ["--sample", "--length-penalty", "2"],
            "--length-penalty is for beam search, not for translations drawn at random; leave out it or --sample",
        ),
        (
            ["--sample", "--penalty", "google"],
            "--penalty is for beam search, not for translations drawn at random; leave out it or --sample",
        ),
        (["--sample", "--top-p", "0"], "--top-p: decode.top_p must be above 0 and at most 1, not 0.0"),
        (
            ["--penalty", "googel"],
            "--penalty: decode.penalty must be one of google, fairseq, not 'googel' (did you mean google?)",
        ),
        (["--interactive"], "--interactive needs a terminal, and no --input or --output"),
        (["--input", "{folder}/absent"], "{folder}/absent: No such file or directory"),
        (
            ["--output", "{folder}/absent/out"],
            "{folder}/absent/out: its folder does not exist; create it, or choose another one",
        ),
        (["--output", "{folder}"], "{folder} is a folder; give the name of a file"),
        (["--output", "."], ". is a folder; give the name of a file"),
    ],
)
def test_translate_misuse(
    options: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"alpha\n")))
    options = [option.format(folder=tmp_path) for option in options]
    assert refused("translate", run, "--to", "az", *options) == message.format(folder=tmp_path)


def test_translate_with_a_run_that_diverged(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "diverged": "training diverged at update 15 (why)"}\n')
    monkeypatch.setattr(sys, "stdin", Input(b"alpha\n"))
    assert main(["translate", str(run), "--to", "az"]) == 0
    said = f"cats: {run}: training diverged at update 15 (why); this is the model of best.pt\n"
    assert capfd.readouterr().err == said


def test_translate_keeps_blank_lines_and_takes_options(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(b"alpha\r\n", b"\n", b"echo"))
    assert main(["translate", str(run), "--to", "be", "--beam", "1", "--length-penalty", "0"]) == 0
    lines = capfd.readouterr().out.split("\n")
    assert len(lines) == 4 and lines[1] == "" and lines[3] == ""


def test_translate_bad_languages_and_bad_text(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    message = f"{run} does not translate to 'aze' (did you mean az?); known: az, be"
    assert refused("translate", run, "--to", "aze") == message
    assert (
        refused("translate", run, "--to", "az", "--beam", "0")
        == "--beam: decode.beam must be at least 1 and at most 1,000, not 0"
    )
    monkeypatch.setattr(sys, "stdin", Input(b"alpha\nal\xffpha\necho\n"))
    assert main(["translate", str(run), "--to", "az"]) == 2
    out, err = capfd.readouterr()
    assert out.count("\n") == 1  # what came before the bad line is translated
    assert err == "cats: standard input, line 2, byte 3: not UTF-8; convert it, for example with iconv\n"


def test_several_runs_translate_together(run: Path, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two copies of a run translate as the run; a run with other weights changes the scores."""
    source, other = trained / "toy" / "test.en-az.en", trained / "run"

    def scores(*runs: Path) -> list[str]:
        arguments = ["translate", *map(str, runs), "--to", "az", "--input", str(source), "--nbest", "1"]
        assert main(arguments) == 0
        return capfd.readouterr().out.splitlines()

    alone = scores(run)
    assert scores(run, other) == alone
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    state["model"]["embedding.weight"] *= 1.5
    checkpoint.save(run / "checkpoints" / "best.pt", state)
    assert scores(run, other) != alone


def test_runs_with_other_vocabularies_or_tags_cannot_translate_together() -> None:
    first, same, tags, other = (
        Tokenizer.train(["alpha", "bravo"], [language], 30, Tags(source))
        for language, source in (("az", "prepend"), ("az", "prepend"), ("az", "none"), ("be", "prepend"))
    )
    check_vocabularies(["A", "B"], [first, same])
    with pytest.raises(UserError, match="C has other tags than A: models that translate together need the same"):
        check_vocabularies(["A", "C"], [first, tags])
    with pytest.raises(UserError, match="D has another vocabulary than A: "):
        check_vocabularies(["A", "B", "D"], [first, same, other])


def test_the_example_can_be_pasted() -> None:
    tokenizer = SimpleNamespace(languages=["az"], needs_source=False)
    example = translate.example(Path("a run/b"), ["az"], tokenizer)  # type: ignore[arg-type]
    assert example == "cats translate 'a run/b' --to az"
