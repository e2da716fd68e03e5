"""cats.nmt.scoring.grid.execute: the processes of a comparison, mostly with a program in place of `cats train`."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.config.toml import read_config
from cats.nmt.errors import Stopped, UserError
from cats.nmt.scoring.grid import execute
from cats.nmt.scoring.grid.runs import check_all
from cats.nmt.scoring.grid.trials import validation_nll
from cats.nmt.scoring.scores import read_scores
from tests.nmt.scoring.comparisons import planned
from tests.nmt.scoring.samples import cell, content

# It leaves what `cats train` leaves in a run directory, as far as the grid reads it. The validation NLL of a trial is
# that of its learning rate; a rate without a file diverges. A run that is named in fail/ fails.
FAKE = """\
#!/bin/sh
config="$6" out="$8" name=$(basename "$8")
echo "$name" >> {folder}/log
if [ -e "{folder}/fail/$name" ]; then echo "cats: $name is broken" >&2; exit 2; fi
mkdir -p "$out" && cp "$config" "$out/config.toml" && cp {folder}/metrics.jsonl "$out"
case "$name" in
*-trial*)
    lr=$(sed -n 's/^lr = //p' "$config")
    cp "{folder}/valid-$lr.json" "$out/scores.valid.json" 2>/dev/null && exit 0
    echo '{{"step": 9, "diverged": "training diverged"}}' > "$out/metrics.jsonl"
    exit 2 ;;
esac
cp {folder}/scores.json "$out"
"""


class Fake:
    """The program in place of `cats train`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "program"
        (folder / "fail").mkdir()
        self.program.write_text(FAKE.format(folder=folder))
        self.program.chmod(0o755)
        (folder / "scores.json").write_text(json.dumps(content()))
        alphas = [{"xa": 0.5, "xb": 0.5}, {"xa": 0.75, "xb": 0.25}]
        prior = {"xa": 0.5, "xb": 0.5}
        lines = [json.dumps({"step": n, "alpha": alpha, "prior": prior}) for n, alpha in enumerate(alphas, start=1)]
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        for rate, nll in (("0.001", 2.0), ("0.003", 1.5)):
            groups = {g: cell(1.0, nll, languages=["ru"]) for g in ("all", "lores", "hires")}
            (folder / f"valid-{rate}.json").write_text(json.dumps(content(groups=groups)))

    def fail(self, name: str) -> Path:
        (self.folder / "fail" / name).touch()
        return self.folder / "fail" / name

    @property
    def started(self) -> list[str]:
        """The runs that were started, in this order."""
        log = self.folder / "log"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    (tmp_path / "fake").mkdir()
    program = Fake(tmp_path / "fake")
    monkeypatch.setattr(sys, "executable", str(program.program))
    monkeypatch.setattr(execute, "WAIT", 0.01)
    return program


@pytest.fixture
def words(corpus: Path, tmp_path: Path) -> list[str]:
    return ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "2", "--methods", "T=1", "cats"]


def test_settings_are_chosen_first_and_weights_are_taken_from_the_run_of_the_same_seed(
    fake: Fake, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planned(*words, "--controls", "fixed", "--lr", "0.001", "0.003", "0.009")
    assert execute.execute(runs, jobs=2) == {}
    tuning = [f"{method}-trial{number}" for method in ("T=1", "cats") for number in (1, 2, 3)]
    assert sorted(fake.started[:6]) == tuning and len(fake.started) == 6 + 2 * 3
    for run in runs:
        assert run.finished
        config = read_config(run.path / "config.toml")
        assert (config.train.lr, config.train.seed) == (0.003, run.seed)  # 0.009 diverged, and 0.001 is worse
        if run.method == "cats-fixed":
            assert (config.method.name, config.method.token_weights) == ("static", (1.25, 0.75))
            assert fake.started.index(run.path.name) > fake.started.index(f"cats-seed{run.seed}")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 12 and said[-1].startswith("[12/12] ") and said[-1].endswith("; 0 s left")
    assert sum("-trial3: diverged, " in line for line in said) == 2
    assert execute.execute(planned(*words, "--controls", "fixed", "--lr", "0.001", "0.003", "0.009"), jobs=2) == {}
    assert len(fake.started) == 12  # all are finished, the diverged trials included


def test_runs_with_settings_that_a_later_trial_has_beaten_are_no_results(
    fake: Fake, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planned(*words, "--lr", "0.001", "0.003")
    assert execute.execute(runs, jobs=2) == {}
    groups = {group: cell(1.0, 1.0, languages=["ru"]) for group in ("all", "lores", "hires")}
    (fake.folder / "valid-0.005.json").write_text(json.dumps(content(groups=groups)))
    assert main(["compare", *words, "--controls", "none", "--lr", "0.001", "0.003", "0.005"]) == 2
    assert f"{runs[0].path} has a run with other settings (train.lr = 0.003, now 0.005);" in capsys.readouterr().err


def test_a_failed_run_is_stepped_over_and_tried_again(fake: Fake, words: list[str]) -> None:
    runs = planned(*words, "--controls", "fixed")
    paths = {run.path.name: run.path for run in runs}
    marks = [fake.fail("T=1-seed1"), fake.fail("cats-seed2")]
    failed = execute.execute(runs, jobs=1)
    assert failed == {
        paths["T=1-seed1"]: "T=1-seed1 is broken",
        paths["cats-seed2"]: "cats-seed2 is broken",
        paths["cats-fixed-seed2"]: f"not started, because {paths['cats-seed2']} failed",
    }
    assert sum(run.finished for run in runs) == 3
    for mark in marks:
        mark.unlink()
    assert execute.execute(runs, jobs=1) == {} and all(run.finished for run in runs)
    assert len(fake.started) == 5 + 3


def test_a_method_with_fewer_trials_than_the_others_is_not_trained(fake: Fake, words: list[str]) -> None:
    runs = planned(*words, "--lr", "0.001", "0.003")
    fake.fail("cats-trial1")
    failed = execute.execute(runs, jobs=1)
    assert [path.name for path in failed] == ["cats-trial1", "cats-seed1", "cats-seed2"]
    assert [run.path.name for run in runs if run.finished] == ["T=1-seed1", "T=1-seed2"]


def test_if_all_trials_diverge_the_method_fails(fake: Fake, words: list[str]) -> None:
    runs = planned(*words, "--lr", "0.01", "0.02")
    for _ in range(2):
        check_all(runs)  # it is no reason to stop the others
        failed = execute.execute(runs, jobs=1)
        assert len(failed) == 4 and all("all trials diverged" in error for error in failed.values())


def test_after_an_interruption_the_rest_is_trained(
    fake: Fake, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, calls = planned(*words), []

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        if len(fake.started) == 2 and sum(run.finished for run in runs) == 2 and not calls.count(-1):
            calls.append(-1)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(execute.time, "sleep", sleep)
        with pytest.raises(Stopped):
            execute.execute(runs, jobs=1)
    assert 2 <= sum(run.finished for run in runs) < 4
    assert capsys.readouterr().err.count("cats: stopped; the same command continues from here") == 1
    assert execute.execute(runs, jobs=1) == {}
    assert len(fake.started) == len({*fake.started}) == 4


def test_runs_are_trained_in_processes_and_failures_are_named(corpus, tmp_path):
    small = ["d_model=16", "heads=2", "ffn=16", "encoder_layers=1", "decoder_layers=1"]
    quick = ["train.steps=4", "train.warmup=2", "tokenizer.vocab_size=60", "sampling.batch_tokens=40", "decode.beam=1"]
    sets = [f"--set=model.{x}" for x in small] + [f"--set={x}" for x in quick]
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods", "T=1", *sets]
    (run,) = planned(*words)
    execute.execute([run], jobs=1)
    assert run.finished
    assert read_config(run.path / "config.toml") == run.config
    tuned = planned(*words, "--lr", "1e-3", "1e-2")[0]
    trial = tuned.trials[1].run
    assert execute.execute([trial], jobs=1) == {} and trial.finished
    assert not (trial.path / "scores.json").exists() and not (trial.path / "hyp").exists()
    assert math.isfinite(validation_nll(read_scores(trial.path, "scores.valid.json")))

    (corpus / "test.en-xa.en").write_bytes(b"\xff\n" * 6)
    (second,) = planned(*[*words[:4], "--seeds", "2", *words[6:]])
    ((path, error),) = execute.execute([second], jobs=1).items()
    assert path.name == "T=1-seed2" and "UTF-8" in error


def program(path: Path, text: str) -> str:
    """A shell script to start runs with instead of Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def wait_for(path: Path) -> None:
    """Waits until a program that was started has made this file, and fails if it does not."""
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not made"
        threading.Event().wait(0.01)  # some tests replace time.sleep


def test_a_run_may_write_more_errors_than_a_pipe_holds(corpus, tmp_path, monkeypatch):
    (run,) = planned("--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "--methods", "T=1")
    text = "yes 'a warning' | head -c 1000000 >&2; echo the end >&2; exit 3"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    assert execute.execute([run], jobs=1) == {run.path: "the end"}


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_comparison_stops_its_runs_and_each_saves(corpus, tmp_path, monkeypatch, request, which):
    """It is sent to this process alone, as `kill` does, and each run gets it once: a second one stops it at once."""
    # In the background and under nohup, a program starts with some of these ignored, and then they stay ignored.
    before = signal.signal(which, signal.default_int_handler if which == signal.SIGINT else signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(which, before))
    (run,) = planned("--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "--methods", "T=1")
    text = f"trap 'echo saved >> {tmp_path}/signals; sleep 0.3; exit 130' TERM; : > {tmp_path}/up; sleep 60 & wait $!"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    main, up = os.getpid(), tmp_path / "up"

    def send() -> None:
        wait_for(up)
        os.kill(main, which)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        execute.execute([run], jobs=1)
    thread.join(60)
    assert (tmp_path / "signals").read_text() == "saved\n"


def test_a_run_that_is_killed_is_reported_with_the_signal(corpus, tmp_path, monkeypatch):
    (run,) = planned("--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "--methods", "T=1")
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", "echo a warning >&2; kill -KILL $$"))
    assert execute.execute([run], jobs=1) == {run.path: "the process was ended by signal 9; was there enough memory?"}


@pytest.mark.parametrize("text", ["exec sleep 60", "trap '' TERM; : > $0.up; exec sleep 60"], ids=["", "deaf"])
def test_no_run_outlives_the_comparison(corpus, tmp_path, monkeypatch, text):
    """Not even one that does not listen to SIGTERM."""
    words = ["--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "2", "--methods", "T=1"]
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    monkeypatch.setattr(execute, "GRACE", 0.2)
    start, started = execute.start, []

    def second_fails(*arguments):
        if started:
            if "trap" in text:
                wait_for(tmp_path / "python.up")
            raise UserError("the disk is full")
        started.append(start(*arguments))
        return started[0]

    monkeypatch.setattr(execute, "start", second_fails)
    with pytest.raises(UserError, match="the disk is full"):
        execute.execute(planned(*words), jobs=2)
    by = signal.SIGKILL if "trap" in text else signal.SIGTERM
    assert started[0].process.returncode == -by
