"""What a run consists of: its data, model, optimizer, batches and losses, and what of them is in a checkpoint.

`Trainer` in ``cats.nmt.training.trainer`` trains with it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, Self

import torch

import cats
from cats.nmt.config.schema import Config
from cats.nmt.data.groups import task_groups
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.methods import options
from cats.nmt.methods.catalogue import GRADIENTS, GRAM, find
from cats.nmt.model.transformer import Transformer, check_compiler
from cats.nmt.screen import doing
from cats.nmt.training import processes, sharding, warmstart
from cats.nmt.training.adaptive_sampling import adaptive_sampling
from cats.nmt.training.average import ParameterAverage
from cats.nmt.training.batches import Prefetcher, build_sampler
from cats.nmt.training.boards import WeightsAndBiases, import_wandb
from cats.nmt.training.device import default_device
from cats.nmt.training.landscape import Landscape, LandscapeSettings, drop_records_after
from cats.nmt.training.loss_log import LossLog, Sums
from cats.nmt.training.losses import TaskLosses
from cats.nmt.training.memory import check_memory
from cats.nmt.training.metrics import Metrics
from cats.nmt.training.optimizer import build_optimizer, check_backend, token_weights
from cats.nmt.training.origin import Origin, settings_of
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.self_distillation import self_distillation
from cats.nmt.training.trained_model import build_model
from cats.nmt.training.training_data import load_training_data
from cats.nmt.training.trusted import TrustedLosses, split_validation, validation_text
from cats.nmt.training.validation import WORST


class TrainingState:
    """A run after `step` updates. It begins in a new run directory, or as a checkpoint has it.

    Args:
        config, out, resume, quiet: see ``cats.nmt.training.trainer.train``.
    """

    def __init__(self, config: Config, out: Path, *, resume: bool, quiet: bool) -> None:
        self.config, self.out, self.quiet = config, out, quiet or not processes.is_main()
        self.directory, self.device = RunDirectory(out), default_device()
        if processes.world_size() > 1 and config.method.name == "cats" and config.method.cross_batch:
            raise UserError(
                "method.cross_batch splits the batch into halves, which needs a process that has all of it; leave out "
                "method.cross_batch or torchrun"
            )
        check_backend(self.device)
        if config.train.wandb and processes.is_main():
            import_wandb()  # an error now, before the directory is made
        options.check(config.method.name, config.method.options)
        saved, problem = self.directory.newest_checkpoint() if resume else ({}, "")
        started_with = self.directory.check_resumed(config, saved, quiet=self.quiet) if resume else None
        data = load_training_data(config, self.directory, self.device, started_with=started_with, quiet=self.quiet)
        self.tasks, self.training = data.tasks, data.training
        self.origin, self.vocab_size = data.origin, data.tokenizer.vocab_size
        if started_with is not None:  # a run keeps its digest: cats average compares those of its checkpoints
            self.origin = dataclasses.replace(data.origin, digest=started_with.digest)
        self.tokenizer = data.tokenizer
        self.validation, trusted = split_validation(config, data.validation)
        self.validation_text = validation_text(config, data.validation_text)
        has_validation = any(map(len, self.validation.shards.values()))
        translated = bool(self.validation_text)
        needs = {"patience": has_validation, "analyse_every": has_validation, "validate_bleu": translated}
        for name, there in needs.items():
            if getattr(config.train, name) and not there:
                raise UserError(f"train.{name} needs validation pairs, and {data.why_without}")
        self.landscape: Landscape | None = None
        if config.train.analyse_every:
            settings = LandscapeSettings(label_smoothing=config.train.label_smoothing)
            self.landscape = Landscape(data.validation, settings)
        if config.evaluate.search == "none" and not has_validation:
            raise UserError(f"evaluate.search = none scores the validation pairs only, and {data.why_without}")

        check_memory(config, self.vocab_size, self.device)
        self.sharded = sharding.is_sharded(config.train)
        self.model = self._new_model(data.tokenizer, warm=bool(config.train.init_from) and not resume)
        self.step, self.seconds, self.logged_at = 0, 0.0, 0.0  # updates; seconds of training, now and at the last log
        self.cpu_seconds = 0.0 if self.device.type == "cpu" else math.nan
        self.best = WORST[config.train.best_metric]  # the best validation so far
        groups = task_groups({task: self.origin.corpus[task][0] for task in self.origin.tasks}, config.evaluate)
        self.sampler = build_sampler(config.sampling, config.train, groups, self.training)
        self.reset_optimizer()

        self.adaptive = adaptive_sampling(config, self.sampler, self.model, data, self.write, new=not resume)
        self.loss_log = LossLog(self.tasks, keep_updates=self.adaptive is not None)
        self.distillation = self_distillation(config, data, self.device)
        self.losses = TaskLosses(
            self.model,
            self.training,
            self.loss_log,
            precision=config.train.precision,
            smoothing=config.train.label_smoothing,
            token_weights=token_weights(config.method, self.tasks),
            mixed=self.distillation.mixed if self.distillation is not None else None,
        )
        self.trusted = TrustedLosses(config, self.model, trusted) if trusted is not None else None
        self.batches = Prefetcher(
            self.training,
            self.sampler,
            accumulate=config.train.accumulate,
            build_first=not self.takes_tasks_apart or self.optimizer.weighting.period != 1,
            everywhere=self.sharded,
        )
        if not resume:
            state = self.state([])
            if processes.is_main():
                self.directory.create(config, data.tokenizer, state)
        processes.barrier()
        if resume:
            self.load(saved, problem)
            if processes.is_main():
                self.directory.record_corpus(config.data.path)
        self.metrics: Metrics | None = None
        if processes.is_main():
            boards = []
            if config.train.wandb:
                about = (out, self.directory.wandb_file, settings_of(config))
                boards.append(WeightsAndBiases(config.train.wandb, *about, quiet=self.quiet))
            self.metrics = Metrics(self.directory.metrics_file, self.directory.tensorboard, self.step, boards)
        processes.barrier()

    def _new_model(self, tokenizer: Tokenizer, *, warm: bool) -> Transformer:
        """The model at the start of a run, on its device. warm: with the parameters of `train.init_from`."""
        config = self.config
        torch.manual_seed(config.train.seed)
        recompute = config.train.checkpoint_activations
        model = build_model(config.model, tokenizer, checkpoint_activations=recompute)
        if warm:
            warmstart.copy_parameters(model, tokenizer, config, quiet=self.quiet)
        if self.sharded:
            sharding.shard(model, config.train, self.device)
        else:
            model.to(self.device)
        if config.train.compile:
            doing("compiling the layers: the first updates take minutes", quiet=self.quiet)
            check_compiler(self.device)
            model.compile_layers()
        return model

    def reset_optimizer(self) -> None:
        """Makes a fresh optimizer, with fresh task weights, and restarts the patience. The model stays.

        The average of the parameters starts again: the phase before has another mixture or another learning rate.
        """
        self.optimizer = self.new_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.train.precision == "fp16")
        self.bad_validations = 0  # validations since the best one
        self.average = ParameterAverage(self.model, self.config.train.ema)

    def new_optimizer(self) -> cats.MultiTask:
        """A fresh optimizer for the phase of the present update."""
        config, train = self.config, self.config.train
        second = self.step >= train.pretrain_steps and train.restart_parts != "learning-rate"
        shares = self.sampler.token_shares(train.pretrain_steps if second else 0)
        return build_optimizer(config.method, train, self.model, shares, config.sampling.tasks_per_update)

    @property
    def takes_tasks_apart(self) -> bool:
        """Whether outer steps have a forward pass for every task, because the engine has a backward pass for each."""
        weighting, engine = self.optimizer.weighting, self.config.method.engine
        if not weighting.period or weighting.losses_only:
            return False
        if self.model.routing is not None:  # the budget depends on the tokens of all tasks in a pass
            return True
        return self.needs_per_task or weighting.needs_sqnorms or engine in ("per_task", "two_pass") or self.sharded

    @property
    def needs_per_task(self) -> bool:
        """Whether only the engine per_task computes what the method needs."""
        weighting, family = self.optimizer.weighting, find(self.config.method.name).family
        return family in (GRAM, GRADIENTS) or weighting.cross_batch

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, in the main process."""
        if self.metrics is not None:
            self.metrics.write(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Ends what gets the numbers of the run, and says whether an error ends the training."""
        if self.metrics is not None:
            self.metrics.close(failed=error is not None)

    # ---- checkpoints

    def state(self, since_log: list[Sums]) -> dict[str, Any]:
        """What a checkpoint holds. With sharded parameters, all processes must call this.

        Args:
            since_log: the loss sums of every process, as ``LossLog.per_process`` gives them.
        """
        return {
            "model": sharding.whole(self.model.state_dict()),
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),  # empty, except with fp16
            **({"sampling": self.adaptive.state_dict()} if self.adaptive is not None else {}),
            **({"teachers": self.distillation.state_dict()} if self.distillation is not None else {}),
            "average": self.average.state(),  # empty, except with train.ema
            **self.origin.to_state(),
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "best": self.best,
            "waited": self.bad_validations,  # an older name, so that old checkpoints can be read
            "since_log": since_log,
            "logged_at": self.logged_at,
        }

    def save(self) -> None:
        """Writes last.pt. All processes must call this."""
        if self.metrics is not None:
            self.metrics.sync()  # the lines of metrics must be on the disk before the checkpoint that needs them
        state = self.state(self.loss_log.per_process())
        if processes.is_main():
            self.directory.save_checkpoint(state)

    def save_model(self, better: bool) -> None:
        """Writes the model alone: as best.pt if it is better, and as step-N.pt if `train.keep` asks for it.

        With `train.ema` it has the average of the parameters. All processes must call this.
        """
        with self.average.in_model():
            state = {
                "model": sharding.whole(self.model.state_dict()),
                **self.origin.to_state(),
                "step": self.step,
                "best": self.best,
            }
            if processes.is_main():
                self.directory.save_model(state, best=better, keep=self.config.train.keep)

    def load(self, state: dict[str, Any], problem: str) -> None:
        """Continues from a checkpoint.

        Args:
            problem: why it is not the last one, if it is not. It is printed.
        """
        if processes.is_main():
            self.directory.remove_temporary_files()
        try:
            for name, kind in {"step": int, "waited": int, "seconds": float, "best": float, "logged_at": float}.items():
                if type(state[name]) is not kind:
                    raise TypeError(f"{name} has another type")
            self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
            self.cpu_seconds = float(state.get("cpu_seconds", math.nan))
            self.optimizer = self.new_optimizer()
            model, optimizer = state["model"], state["optimizer"]
            if self.sharded:
                model = sharding.model_shards(model, self.model)
                optimizer = sharding.optimizer_shards(optimizer, self.optimizer)
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)
            self.scaler.load_state_dict(state["scaler"])
            if self.adaptive is not None:
                self.adaptive.load_state_dict(state["sampling"])
            if self.distillation is not None:
                self.distillation.load_state_dict(state["teachers"])
            self.average.load(state.get("average", {}))  # older checkpoints have none
            self.bad_validations, self.logged_at = state["waited"], state["logged_at"]
            if Origin.of_state(state).settings.get("train.best_metric", "nll") != self.config.train.best_metric:
                self.best, self.bad_validations = WORST[self.config.train.best_metric], 0  # of another metric
            # The run may have had more processes, or fewer, than now.
            self.loss_log.restore(state["since_log"][processes.rank() :: processes.world_size()])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self.directory.mismatch(self.directory.checkpoint("last"), "; start a new run") from error
        if processes.is_main():
            drop_records_after(self.directory, self.step)
        if problem and processes.is_main():
            print(f"cats: {problem}; resuming from the one before it, of update {self.step}", file=sys.stderr)
