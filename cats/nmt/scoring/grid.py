"""The grid of runs that `cats compare` trains: each method with each seed on each set of languages.

Runs are ordinary run directories. Each is trained by `cats train` in a process of its own. If a comparison is stopped,
the same command continues it: finished runs are kept, and an interrupted one is resumed from its last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cats.nmt.config.checks import is_utf8
from cats.nmt.config.schema import FIELDS, Config
from cats.nmt.config.toml import apply_overrides, read_config, to_toml
from cats.nmt.cores import threads_per_process
from cats.nmt.errors import UserError, unknown
from cats.nmt.files import atomic_write
from cats.nmt.training.progress import tell

if TYPE_CHECKING:
    from cats.nmt.training.run import RunDirectory

_CONSTANT_TEMPERATURE = ["sampling.temperature_end=0", "sampling.ratios=[]", "sampling.unimax_epochs=0"]
# Settings of each method. T=1, T=5 and T=inf are the usual baselines: the mean loss over all tokens, with batches drawn
# at this temperature. The weightings (tokens, uniform, cats) all use the sampler of the configuration. tokens is again
# the mean loss over all tokens, so it is one more temperature.
METHODS: dict[str, list[str]] = {
    **{
        f"T={t}": ["method.name=static", "method.weights=tokens", f"sampling.temperature={t}", *_CONSTANT_TEMPERATURE]
        for t in ("1", "5", "inf")
    },
    "tokens": ["method.name=static", "method.weights=tokens"],
    "uniform": ["method.name=static", "method.weights=uniform"],
    "cats": ["method.name=cats"],
}
# Languages, sizes and number of updates of each set. At T=1 the updates are 40 epochs of the small sets, and 3 epochs
# of wmt, which has one language with far more text than the others. opus100 also needs a larger vocabulary and larger
# batches, and has three groups: the settings of preset opus100-cldr.
SETS: dict[str, list[str]] = {
    "ted": ["data.languages=related", "data.sizes=ted", "train.steps=2700"],
    "diverse": ["data.languages=diverse", "data.sizes=ted", "train.steps=2700"],
    "wmt": ["data.languages=wmt", "data.sizes=wmt", "train.steps=1300"],
    "opus100": [
        *("data.languages=opus100", "data.sizes=opus100", "tokenizer.vocab_size=4000", "sampling.batch_tokens=3000"),
        *("train.steps=1500", "evaluate.lores_below=200", "evaluate.hires_from=1800"),
    ],
}


@dataclass(frozen=True)
class Run:
    """One run of the grid."""

    set: str
    method: str
    seed: int
    path: Path
    config: Config

    @property
    def directory(self) -> RunDirectory:
        # Imported here because it imports torch, which would make `cats compare --help` slow.
        from cats.nmt.training.run import RunDirectory

        return RunDirectory(self.path)

    @property
    def started(self) -> bool:
        """Whether the run can be resumed."""
        return self.directory.config_file.exists() and self.directory.checkpoint("last").exists()

    @property
    def finished(self) -> bool:
        """Whether the run is trained and scored."""
        return self.directory.scores_file().exists()


@dataclass(frozen=True)
class _Process:
    """A process that trains a run.

    Attributes:
        began: time.monotonic() at its start, seconds.
        errors: what it writes to standard error.
    """

    run: Run
    process: subprocess.Popen[bytes]
    began: float
    errors: IO[bytes]


def plan(
    out: Path,
    base: Config,
    *,
    sets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    variants: Sequence[str] = (),
    data: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Run]:
    """All runs of a comparison. All settings are checked here, before anything is trained.

    Args:
        out: folder of the run directories.
        base: the settings that all runs start from.
        sets: names in SETS.
        methods: names in METHODS.
        seeds: values of train.seed.
        jobs: number of runs at a time, which share the cores; see ``threads_per_process``.
        variants: more methods, each the method cats with other settings: "NAME:KEY=VALUE,KEY=VALUE".
        data: folder of a corpus to use instead of the sets.
        overrides: settings for all runs, "KEY=VALUE".

    Raises:
        UserError: a name is unknown or given twice, or a setting is invalid.
    """
    settings_of = {**METHODS, **_variants(variants)}
    chosen = [*methods, *(name for name in settings_of if name not in METHODS)]
    _check_names("method", chosen, settings_of)
    _check_names("set", sets, SETS)
    for option, given in (("methods", chosen), ("sets", sets), ("seeds", seeds)):
        if len(set(given)) < len(given):
            raise UserError(f"--{option} {' '.join(map(str, given))}: one is given twice")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    if not is_utf8(str(out)):
        raise UserError(f"{str(out)!r} is not valid UTF-8; choose another --out")
    threads = threads_per_process(jobs)
    corpora = (
        {Path(data).resolve().name: [f"data.path={data}"]}
        if data
        else {name: ["data.path=", *SETS[name]] for name in sets}
    )
    return [
        Run(
            name,
            method,
            seed,
            out / name / f"{method}-seed{seed}",
            apply_overrides(
                base, [*settings, f"train.threads={threads}", f"train.seed={seed}", *overrides, *settings_of[method]]
            ),
        )
        for name, settings in corpora.items()
        for seed in seeds  # the outer loop, so that a comparison that is stopped has all methods for its first seeds
        for method in chosen
    ]


def check_resumable(run: Run) -> None:
    """Removes the directory of a run that was stopped before its first checkpoint, so that it can start again.

    Raises:
        UserError: the directory has a run with other settings.
    """
    if not run.path.exists():
        return
    config = run.directory.config_file
    if config.exists():
        there, planned = _relevant_settings(read_config(config)), _relevant_settings(run.config)
        if other := [name for name, value in planned.items() if there[name] != value]:
            raise UserError(
                f"{run.path} has a run with other settings ({', '.join(other)}); give another --out, or remove it"
            )
    if not run.finished and not run.started:
        shutil.rmtree(run.path)


def execute(runs: Sequence[Run], jobs: int) -> None:
    """Trains and scores runs, `jobs` of them at a time, each in a process of its own.

    Raises:
        UserError: some runs failed; the others are finished.
        KeyboardInterrupt: after Ctrl-C, when all processes have saved their checkpoints and ended.
    """
    working: list[_Process] = []
    try:
        _execute(list(runs), working, jobs)
    finally:  # no process must outlive this one, whatever ends it
        for each in working:
            each.process.terminate()
        for each in working:
            each.process.wait()


def _execute(waiting: list[Run], working: list[_Process], jobs: int) -> None:
    """Starts the waiting runs and waits for them; `working` always holds the processes that have not ended."""
    count, done = len(waiting), 0
    failed: list[str] = []
    interrupted = False
    while waiting or working:
        try:
            while waiting and len(working) < jobs and not interrupted:
                working.append(start(waiting.pop(0)))
            time.sleep(0.2)
        except KeyboardInterrupt:  # the processes get it too; each of them saves its checkpoint and ends
            interrupted = True
            waiting.clear()
        for each in [each for each in working if each.process.poll() is not None]:
            working.remove(each)
            done += 1
            if error := _error(each):
                if not interrupted:
                    failed.append(f"{each.run.path}: {error}")
                    tell(f"[{done}/{count}] failed: {failed[-1]}")
            else:
                tell(f"[{done}/{count}] {each.run.path}: {time.monotonic() - each.began:.0f} s")
    if interrupted:
        tell("cats: stopped; the same command continues from here")
        raise KeyboardInterrupt
    if failed:
        raise UserError(f"{len(failed)} of {count} runs failed; the first: {failed[0]}")


def start(run: Run) -> _Process:
    """Starts the process that trains and scores a run, from its last checkpoint if there is one."""
    if run.started:
        where = ["--resume", str(run.path)]
    else:
        configuration = run.path.parent / f"{run.path.name}.toml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(configuration, to_toml(run.config))
        where = ["--config", str(configuration), "--out", str(run.path)]
    threads = run.config.train.threads
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-m", "cats", "train", "--quiet", *where]
    # A file instead of a pipe: nobody reads the output before the end, and a full pipe would stop the process.
    errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by _error
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
    return _Process(run, process, time.monotonic(), errors)


def _error(ended: _Process) -> str:
    """The last line that a failed process wrote to standard error; "" if it did not fail."""
    ended.errors.seek(0)
    text = ended.errors.read().decode(errors="replace").strip()
    ended.errors.close()
    if ended.process.returncode == 0:
        return ""
    return text.splitlines()[-1].removeprefix("cats: ") if text else f"exit {ended.process.returncode}"


def _relevant_settings(config: Config) -> dict[str, object]:
    """The settings that make a run another run, by their names.

    Settings that the method does not use are left out. A run of static weights stays valid when the defaults of the
    method cats change. The number of threads is left out, too: it depends on --jobs and on the machine.
    """
    unused = {"train.threads"}
    if config.method.name == "cats":
        unused.add("method.weights")
    else:
        used = {"method.name", "method.options", "method.weights"}
        unused |= {f"method.{key}" for key in vars(config.method)} - used
    values = {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in FIELDS}
    return {name: value for name, value in values.items() if name not in unused}


def _variants(variants: Sequence[str]) -> dict[str, list[str]]:
    """The settings of each variant of the method cats, by its name."""
    found: dict[str, list[str]] = {}
    for variant in variants:
        name, _, settings = variant.partition(":")
        if not name or not settings or name in METHODS or name in found or name != Path(name).name:
            raise UserError(f"--variant {variant}: write NAME:KEY=VALUE,.. with a plain name that no other method has")
        found[name] = [*METHODS["cats"], *settings.split(",")]
    return found


def _check_names(what: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
