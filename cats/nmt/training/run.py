"""The run directory: the names of its files, and how to open them.

    config.toml       all settings
    tokenizer.model   the sentencepiece model
    metrics.jsonl     losses, task weights and validation scores; tensorboard/ has the same numbers
    landscape.jsonl   curvature and alignment of the tasks, from cats analyse or train.analyse_every
    checkpoints/      last.pt, previous.pt, best.pt, step-N.pt, average.pt
    scores.json       the scores of an evaluated run; scores.csv has the same numbers
    hyp/              its translations
    report.md         its report, with loss.png, alpha.png and the same pictures as SVG
    report.html       the page of cats report
    torchrun-id       the id of the torchrun job that started the run, if there was one
    wandb-id          the id of the run at Weights & Biases, with train.wandb; wandb/ has the files of its library

An exported model is a directory with config.toml, tokenizer.model, model.safetensors and README.md, its model card.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from cats.nmt.config import schema
from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import read_config, to_toml
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError, command, nearest
from cats.nmt.files import atomic_write, hard_link, locked, make_folder, read_file, remove_temporary_files
from cats.nmt.training import checkpoint, export_file, processes
from cats.nmt.training.device import default_device
from cats.nmt.training.load_corpus import load_corpus
from cats.nmt.training.metrics import divergence, read_metrics
from cats.nmt.training.origin import Origin
from cats.nmt.training.trained_model import TrainedModel, build_model, with_tied


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, or of an exported model."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def job_file(self) -> Path:
        """The id of the torchrun job that started the run."""
        return self.path / "torchrun-id"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def landscape_file(self) -> Path:
        return self.path / "landscape.jsonl"

    @property
    def wandb_file(self) -> Path:
        """The id of the run at Weights & Biases, with `train.wandb`."""
        return self.path / "wandb-id"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def weights_file(self) -> Path:
        """The parameters of an exported model."""
        return self.path / "model.safetensors"

    @property
    def card_file(self) -> Path:
        """The model card of an exported model."""
        return self.path / "README.md"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """The file of a checkpoint: "best", "last", "previous", "average" or "step-N"."""
        return self.checkpoints / f"{name}.pt"

    def kept_checkpoints(self) -> list[Path]:
        """The checkpoints step-N.pt that `train.keep` asks for, in the order of their steps."""
        found = [path for path in self.checkpoints.glob("step-*.pt") if path.stem[5:].isdecimal()]
        return sorted(found, key=lambda path: int(path.stem[5:]))

    def scores_file(self, split: str = "test", checkpoint: str = "best", suffix: str = "json") -> Path:
        """The scores of a checkpoint on a split; those of the best checkpoint on the test split are scores.json."""
        names = ["scores", *([] if split == "test" else [split]), *([] if checkpoint == "best" else [checkpoint])]
        return self.path / ".".join([*names, suffix])

    def hypotheses(self, checkpoint: str = "best") -> Path:
        """The folder of a checkpoint's translations."""
        return self.path / ("hyp" if checkpoint == "best" else f"hyp-{checkpoint}")

    def hypotheses_file(self, task: str, suffix: str, split: str = "test", checkpoint: str = "best") -> Path:
        """One file of that folder. suffix: txt, src, ref, nll, ..; see ``cats.nmt.scoring.evaluate``."""
        return self.hypotheses(checkpoint) / f"{split}.{task}.{suffix}"

    @property
    def report_file(self) -> Path:
        return self.path / "report.md"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def alpha_plot(self) -> Path:
        return self.path / "alpha.png"

    @property
    def is_started(self) -> bool:
        """Whether this is the directory of a run, or of an exported model."""
        return self.config_file.is_file()

    def is_of_job(self, config: Config) -> bool:
        """Whether the torchrun job of this process started the run, with these settings, before it was restarted.

        Users may give several jobs the same id. So the settings are compared too, if the directory has them already.
        """
        job = processes.job()
        ours = job != b"" and self.job_file.is_file() and read_file(self.job_file) == job
        return ours and (not self.is_started or self.read_config() == config)

    @property
    def is_exported(self) -> bool:
        return self.weights_file.is_file()

    def read_config(self, where: str = "") -> Config:
        """The settings of the run.

        Args:
            where: the start of the error message, such as the setting that names the run.

        Raises:
            UserError: this is not a run directory, or its config.toml is damaged.
        """
        if not self.path.exists():
            raise UserError(f"{where}{self.path}: no such folder; give a run directory, as printed by cats train")
        if not self.is_started and (self.path / "config.json").is_file():
            raise UserError(
                f"{where}{self.path} is not a run directory, but a model for the library transformers, which loads it; "
                "give the run itself"
            )
        if not self.is_started:
            raise UserError(f"{where}{self.path} is not a run directory: it has no {self.config_file.name}")
        return read_config(self.config_file)

    def mismatch(self, path: Path, advice: str = "") -> UserError:
        """The error to raise for a file whose model or optimizer is not what config.toml describes."""
        return UserError(f"{path} does not match {self.config_file}: it belongs to another run or version{advice}")

    def load_tokenizer(self, settings: schema.Tokenizer) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
            UserError: the file is missing or damaged.
        """
        return Tokenizer.load(self.tokenizer_file, Tags.from_settings(settings))

    def load_model(self, name: str = "best", *, quiet: bool = False) -> TrainedModel:
        """The model of a checkpoint. An exported model has only one, which is called best.

        Args:
            quiet: no notice of changed settings.

        Raises:
            UserError: this is not a run directory, or a file in it is missing or does not match.
        """
        config = self.read_config()
        path = self.weights_file if self.is_exported else self.checkpoint(name)
        parameters, origin, step = self.read_model(name)
        tokenizer = self.load_tokenizer(config.tokenizer)
        self.check_files(config, tokenizer, origin, path, quiet=quiet)
        model = build_model(config.model, tokenizer)
        try:
            model.load_state_dict(with_tied(parameters, model))
        except (RuntimeError, TypeError, AttributeError):
            raise self.mismatch(path) from None
        return TrainedModel(config, tokenizer, model.to(default_device()).eval(), origin, step)

    def read_model(self, name: str = "best") -> tuple[dict[str, Tensor], Origin, int | None]:
        """The parameters of a checkpoint or of an exported model, what it was trained with, and for how many updates.

        Of a run with `train.ema` it is always their average, that of last.pt included.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        if self.is_exported:
            if name != "best":
                raise UserError(
                    f"{self.path} is an exported model, which has no checkpoint '{name}': its only one is best"
                )
            return *export_file.read(self.weights_file), None
        path = self.checkpoint(name)
        if not path.exists():
            there = sorted(found.stem for found in self.checkpoints.glob("*.pt"))
            if name != "best" and there:
                known = ", ".join(there)
                raise UserError(f"{self.path} has no checkpoint '{name}'{nearest(name, there)}; there are {known}")
            if diverged := self.divergence():
                raise UserError(f"{self.path}: {diverged}: lower train.lr and start a new run")
            raise UserError(
                f"{self.path} has no trained model yet ({path.name}); resume it with: "
                f"{command('train', '--resume', self.path)}"
            )
        state = checkpoint.load(path)
        try:
            average = state.get("average") or {}  # last.pt of a run with train.ema; elsewhere it is the model
            return dict(average.get("parameters", state["model"])), Origin.of_state(state), state.get("step")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self.mismatch(path) from None

    def check_files(
        self,
        config: Config,
        tokenizer: Tokenizer,
        origin: Origin,
        path: Path,
        *,
        resuming: bool = False,
        quiet: bool = False,
    ) -> None:
        """Compares config.toml and tokenizer.model with what the model in the file `path` was trained with.

        See ``Origin.check``. With several processes, only the main one prints a notice.
        """
        files = (self.config_file, self.tokenizer_file, path)
        origin.check(config, tokenizer, *files, resuming=resuming, quiet=quiet or not processes.is_main())

    def check_resumed(self, config: Config, state: dict[str, Any], *, quiet: bool) -> Origin:
        """What a run was started with, according to its checkpoint, compared with the files of the directory.

        Args:
            quiet: no notice of changed settings.

        Raises:
            UserError: see ``check_files``; or the checkpoint belongs to another version.
        """
        path = self.checkpoint("last")
        try:
            origin = Origin.of_state(state)
        except TypeError:
            raise self.mismatch(path, "; start a new run") from None
        tokenizer = self.load_tokenizer(config.tokenizer)
        self.check_files(config, tokenizer, origin, path, resuming=True, quiet=quiet)
        return origin

    def load_corpus(self, config: Config, origin: Origin, *, quiet: bool = False) -> Corpus:
        """The corpus that a model of this run was trained on.

        Args:
            origin: what the model was trained with.
            quiet: see ``load_corpus``.

        Raises:
            UserError: the corpus is missing, or it is another one.
        """
        settings = config.data
        if settings.path and not Path(settings.path).exists():
            raise UserError(
                f"{settings.path}: no such folder; if the corpus of {self.path} was moved, give its new folder "
                "with --data"
            )
        corpus = load_corpus(settings, quiet=quiet)
        if settings.tasks and not settings.path and not corpus.has_digest(origin.digest):
            # Earlier versions trained on all tasks of the built-in corpus, whatever data.tasks said.
            corpus = load_corpus(replace(settings, tasks=()), quiet=quiet)
        if not corpus.has_digest(origin.digest):
            raise UserError(
                f"{self.path}: the corpus is not the one this run was started on ({settings.path or 'built-in'}: "
                f"{origin.corpus_difference(corpus)}); give that one with --data, or start a new run"
            )
        return corpus

    def task_names(self, origin: Origin | None = None) -> list[str]:
        """The names of the tasks that the model was trained on; empty if no file tells them.

        Args:
            origin: what the model was trained with, if it is known. Models of earlier versions do not name the tasks.
        """
        if origin is not None and origin.tasks:
            return origin.tasks
        if self.is_exported:
            return export_file.task_names(self.weights_file)
        records = read_metrics(self.metrics_file)
        return list(dict.fromkeys(name for record in records for name in record.get("alpha", {})))

    def parameter_count(self, config: Config) -> int | None:
        """How many parameters the model has. None: without a tokenizer, the size of the vocabulary is not known.

        Raises:
            UserError: the tokenizer is damaged.
        """
        if not self.tokenizer_file.is_file():
            return None
        with torch.device("meta"):  # no memory for the numbers
            model = build_model(config.model, self.load_tokenizer(config.tokenizer))
        return sum(parameter.numel() for parameter in model.parameters())

    def divergence(self) -> str:
        """How the training ended, if it diverged; see ``cats.nmt.training.metrics.divergence``."""
        return "" if self.is_exported else divergence(read_metrics(self.metrics_file))

    def record_corpus(self, path: str) -> None:
        """Sets data.path in config.toml, after the corpus was moved.

        Raises:
            UserError: config.toml cannot be read or written.
        """
        config = self.read_config()
        if config.data.path != path:
            self.write_config(replace_settings(config, {"data.path": path}))

    def write_config(self, config: Config) -> None:
        """Replaces config.toml.

        Raises:
            UserError: it cannot be written.
        """
        atomic_write(self.config_file, to_toml(config))

    def create(self, config: Config, tokenizer: Tokenizer, state: dict[str, Any]) -> None:
        """Makes the directory of a new run. If that fails, nothing is left behind.

        config.toml is written last: a directory that has one can be resumed. The id of the torchrun job is written
        first: if the processes are killed before the last file, the restarted ones make the directory again.

        Args:
            state: the checkpoint before the first update.

        Raises:
            UserError: the disk is full, or the directory cannot be written.
        """
        made = not self.path.exists()
        make_folder(self.checkpoints, exist_ok=self.is_of_job(config))
        try:
            if processes.job():
                atomic_write(self.job_file, processes.job())
            self.remove_temporary_files()
            tokenizer.save(self.tokenizer_file)
            checkpoint.save(self.checkpoint("last"), state)
            self.write_config(config)
        except BaseException:
            shutil.rmtree(self.checkpoints)
            for path in (self.tokenizer_file, self.config_file, self.job_file):
                path.unlink(missing_ok=True)
            if made:
                self.path.rmdir()
            raise

    def remove_temporary_files(self) -> None:
        """Removes what a killed process left of the files that it was writing."""
        for folder in (self.path, self.checkpoints):
            remove_temporary_files(folder)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes last.pt; the one before it becomes previous.pt.

        Raises:
            UserError: the disk is full, or the directory cannot be written.
        """
        checkpoint.save(self.checkpoint("last"), state, older=self.checkpoint("previous"))

    def newest_checkpoint(self) -> tuple[dict[str, Any], str]:
        """The state in last.pt, or in previous.pt if that one is damaged; see ``checkpoint.newest``."""
        return checkpoint.newest(self.checkpoint("last"), self.checkpoint("previous"))

    def save_model(self, state: dict[str, Any], *, best: bool, keep: int) -> None:
        """Writes a model without its optimizer.

        Args:
            state: contains the model and the number of its "step".
            best: write best.pt.
            keep: write step-N.pt too, and remove all but this many of the newest. 0: do not.

        Raises:
            UserError: the disk is full, or the directory cannot be written.
        """
        paths = [self.checkpoint("best")] if best else []
        if keep:
            paths.append(self.checkpoint(f"step-{state['step']}"))
        if paths:
            checkpoint.save(paths[0], state)
        for path in paths[1:]:
            hard_link(paths[0], path)
        for path in self.kept_checkpoints()[:-keep] if keep else ():
            path.unlink()

    def training_lock(self) -> AbstractContextManager[None]:
        """A lock that only one training of this run can hold. With several processes, only the main one asks for it.

        Raises:
            UserError: another process is training this run.
        """
        if not processes.is_main():
            return nullcontext()

        def refuse() -> NoReturn:
            raise UserError(f"{self.path}: another process is training this run; wait for its end")

        return locked(self.path, refuse)
