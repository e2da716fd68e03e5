"""cats.nmt.scoring.grid: the plan of a comparison, resuming, and the processes."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.config.toml import apply_overrides, read_config, read_preset, to_toml
from cats.nmt.errors import UserError
from cats.nmt.scoring import grid
from tests.nmt.scoring.comparisons import LINES, finish, planned


def test_the_plan_compares_like_with_like(tmp_path):
    runs = planned("--out", str(tmp_path), "--seeds", "1", "2", "--set", "train.lr=1e-3")
    assert len(runs) == 2 * 6 * 2
    assert len({run.path for run in runs}) == len(runs)
    for run in runs:
        assert run.config.train.lr == 1e-3
        assert run.config.train.seed == run.seed
    ted = {run.method: run.config for run in runs if run.set == "ted" and run.seed == 1}
    assert ted["cats"].sampling == ted["uniform"].sampling == ted["tokens"].sampling  # weightings use the same sampler
    assert ted["T=5"].sampling.temperature == 5
    assert len({(c.model, c.train, c.tokenizer, c.data, c.sampling.batch_tokens) for c in ted.values()}) == 1


def test_the_set_opus100_has_the_settings_of_its_preset(tmp_path):
    words = ["--out", str(tmp_path), "--sets", "opus100", "--methods", "T=5", "cats", "--seeds", "1"]
    preset = apply_overrides(read_preset("opus100-cldr"), ["method.name=static", *grid.METHODS["T=5"]])
    static, cats = (run.config for run in planned(*words))
    assert dataclasses.replace(static, train=preset.train) == preset and static.train.steps == preset.train.steps
    assert cats.data == preset.data and cats.evaluate == preset.evaluate


def test_the_runs_share_the_cores_of_this_process(tmp_path, monkeypatch):
    def threads(jobs: int) -> int:
        words = ["--out", str(tmp_path), "--methods", "T=1", "--seeds", "1", "--sets", "ted", "--jobs", str(jobs)]
        return planned(*words)[0].config.train.threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2, 3, 5, 8, 13}, raising=False)
    assert [threads(jobs) for jobs in (1, 2, 4, 7)] == [6, 3, 1, 1]
    monkeypatch.delattr("os.sched_getaffinity")
    assert threads(2) == 32
    for given in ("5", " 5 ", "5,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads(1) == threads(7) == 5
    for given in ("0", "-2", "many", "2.5", "\u0662", ",3"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        with pytest.raises(UserError, match=r"OMP_NUM_THREADS=.*: must be a whole number of at least 1"):
            threads(1)


def test_all_start_from_a_preset_and_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nsteps = 9\nlr = 7e-4\n")
    words = [
        "--out",
        str(tmp_path),
        "--preset",
        "ted",
        "--config",
        str(tmp_path / "mine.toml"),
        "--set",
        "train.lr=1e-4",
    ]
    for run in planned(*words, "--data", str(tmp_path)):
        assert (run.config.model.norm, run.config.train.steps, run.config.train.lr) == ("scalenorm", 9, 1e-4)


def test_a_variant_is_cats_with_other_settings(tmp_path):
    words = ["--out", str(tmp_path), "--methods", "T=1", "--variant", "slow:method.alpha_lr=0.01,method.inner_steps=3"]
    slow = next(run for run in planned(*words) if run.method == "slow")
    assert (slow.config.method.name, slow.config.method.alpha_lr, slow.config.method.inner_steps) == ("cats", 0.01, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "catz"], r"unknown method catz.*cats"),
        (["--sets", "tad"], r"unknown set tad.*ted"),
        (["--jobs", "0"], r"--jobs must be at least 1"),
        (["--variant", "cats:method.alpha_lr=1"], r"NAME:KEY=VALUE"),
        (["--variant", "new"], r"NAME:KEY=VALUE"),
        (["--set", "train.lrr=1"], r"train\.lr"),
        (["--seeds", "1", "1"], r"--seeds .*twice"),
        (["--methods", "T=1", "T=5", "T=1"], r"--methods T=1 T=5 T=1: one is given twice"),
        (["--sets", "ted", "ted"], r"--sets .*twice"),
        (["--variant", "../x:method.alpha_lr=1"], r"a plain name"),
        (["--variant", "a:method.alpha_lr=1", "--variant", "a:method.alpha_lr=2"], r"NAME:KEY=VALUE"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        planned("--out", str(tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'.*a\\udcff' is not valid UTF-8; choose another --out"):
        planned("--out", f"{tmp_path}/a\udcff")


def test_a_run_with_other_settings_is_not_mistaken_for_this_one(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "T=1", "--seeds", "1"]
    (run,) = planned(*words)
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    grid.check_resumable(run)
    (other,) = planned(*words, "--set", "train.steps=7")
    with pytest.raises(UserError, match="other settings"):
        grid.check_resumable(other)


def test_a_static_run_made_with_other_defaults_of_cats_is_finished(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods"]
    (run,) = planned(*words, "T=1")
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    config = run.path / "config.toml"
    # Another machine has other threads, and older versions had other settings of the method cats.
    other = apply_overrides(run.config, ["method.alpha_lr=0.3", "method.inner_steps=7", "train.threads=5"])
    text = "".join(line for line in to_toml(other).splitlines(True) if not line.startswith("epsilon"))
    config.write_text(text, encoding="utf-8")
    for each in planned(*words, "T=1", "cats"):
        grid.check_resumable(each)
    assert config.read_text(encoding="utf-8") == text

    config.write_text(to_toml(apply_overrides(run.config, ["method.weights=uniform"])), encoding="utf-8")
    with pytest.raises(UserError, match=r"other settings \(method\.weights\)"):
        grid.check_resumable(run)


def test_the_weights_of_static_do_not_make_another_run_of_cats(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods", "cats"]
    (run,) = planned(*words)
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    grid.check_resumable(planned(*words, "--set", "method.weights=uniform")[0])
    with pytest.raises(UserError, match=r"other settings \(method\.alpha_lr\)"):
        grid.check_resumable(planned(*words, "--set", "method.alpha_lr=0.3")[0])


def test_a_run_killed_before_its_first_checkpoint_starts_again(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "T=1", "--seeds", "1"]
    (run,) = planned(*words)
    run.path.mkdir(parents=True)
    (run.path / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    grid.check_resumable(run)
    assert not run.path.exists()


def test_runs_are_trained_in_processes_and_failures_are_named(corpus, tmp_path):
    small = ["d_model=16", "heads=2", "ffn=16", "encoder_layers=1", "decoder_layers=1"]
    quick = ["train.steps=4", "train.warmup=2", "tokenizer.vocab_size=60", "sampling.batch_tokens=40", "decode.beam=1"]
    sets = [f"--set=model.{x}" for x in small] + [f"--set={x}" for x in quick]
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods", "T=1", *sets]
    (run,) = planned(*words)
    grid.execute([run], jobs=1)
    assert run.finished
    assert read_config(run.path / "config.toml") == run.config

    (corpus / "test.en-xa.en").write_bytes(b"\xff\n" * 6)
    (second,) = planned(*[*words[:4], "--seeds", "2", *words[6:]])
    with pytest.raises(UserError, match=r"1 of 1 runs failed; .*T=1-seed2.*UTF-8"):
        grid.execute([second], jobs=1)


def program(path: Path, text: str) -> str:
    """A shell script to start runs with instead of Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_run_may_write_more_errors_than_a_pipe_holds(corpus, tmp_path, monkeypatch):
    (run,) = planned("--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "--methods", "T=1")
    text = "yes 'a warning' | head -c 1000000 >&2; echo the end >&2; exit 3"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    with pytest.raises(UserError, match=r"1 of 1 runs failed; the first: .*T=1-seed1: the end"):
        grid.execute([run], jobs=1)


def test_no_run_outlives_the_comparison(corpus, tmp_path, monkeypatch):
    words = ["--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "2", "--methods", "T=1"]
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", "exec sleep 60"))
    start, started = grid.start, []

    def second_fails(*arguments):
        if started:
            raise UserError("the disk is full")
        started.append(start(*arguments))
        return started[0]

    monkeypatch.setattr(grid, "start", second_fails)
    with pytest.raises(UserError, match="the disk is full"):
        grid.execute(planned(*words), jobs=2)
    assert started[0].process.returncode is not None
