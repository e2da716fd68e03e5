"""The training loop. `Trainer.update` is one iteration of Algorithm 1 of the CATS paper.

Every update moves the model. An outer step also updates alpha (every `method.inner_steps`-th update); all others are
inner steps.

All randomness is a pure function of (seed, step, rank). So a resumed run continues bit for bit on a CPU, with the same
numbers of threads and processes. On a GPU it does so only if torch's kernels are deterministic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

import cats
from cats.nmt.config.schema import Config
from cats.nmt.errors import Stopped, UserError, command
from cats.nmt.model.clsr import MOST_NOISE
from cats.nmt.screen import tell
from cats.nmt.training import processes, sharding
from cats.nmt.training.batches import PrefetchedBatch
from cats.nmt.training.device import set_threads
from cats.nmt.training.landscape import Landscape, add_record
from cats.nmt.training.losses import Losses, TokenLosses, add_gradients
from cats.nmt.training.memory import out_of_memory, peak_memory
from cats.nmt.training.metrics import LossRecord
from cats.nmt.training.optimizer import gradient_scales
from cats.nmt.training.progress import Progress
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.schedule import rate_of_update
from cats.nmt.training.signals import deferred_interrupts
from cats.nmt.training.trained_model import build_model
from cats.nmt.training.training_state import TrainingState
from cats.nmt.training.validation import is_better, validation_nll, validation_scores

SHOWN = {"nll": "NLL {:.3f}", "bleu": "BLEU {:.1f}", "chrf": "chrF {:.1f}"}  # how progress shows the means


def train(config: Config, out: Path, *, resume: bool = False, quiet: bool = False) -> None:
    """Trains as configured and writes the run directory ``out``.

    Args:
        config: see ``cats.nmt.config.schema``.
        out: created, unless ``resume``. See ``cats.nmt.training.run`` for its files. ``checkpoints/best.pt`` has the
            best model by `train.best_metric`. ``last.pt`` is the newest checkpoint and has
            everything that is needed to resume; ``previous.pt`` is the one before.
        resume: continue from ``last.pt``. On a CPU the result is bit for bit that of a run without interruption.
        quiet: print no progress and no notices about the corpus.

    Raises:
        UserError: unusable data or settings, a full disk, or another process is training this run.
        Stopped: on Ctrl-C or SIGTERM, after the current update is finished and saved. The command that
            resumes the run is printed.
    """
    set_threads(config.train.threads, config.model.d_model)
    lock = RunDirectory(out).training_lock
    if resume:
        with lock():
            _train_to_the_end(Trainer(config, out, resume=True, quiet=quiet))
    else:
        trainer = Trainer(config, out, resume=False, quiet=quiet)
        with lock():
            _train_to_the_end(trainer)


def _train_to_the_end(trainer: Trainer) -> None:
    with trainer:
        trainer.run()
        processes.barrier()


class Trainer(TrainingState):
    """Trains a run to its end: `run` is the loop, and `update` one iteration of it."""

    # ---- the loop

    def run(self) -> None:
        """Trains to the last update, or until `train.patience` stops it."""
        config = self.config.train
        self.model.train()
        clock, cpu_clock = self.clocks()
        if not self.quiet:
            tell(self.beginning())
        progress = Progress(self.step, config.steps, quiet=self.quiet)
        if self.device.type == "cuda":
            self.probe_largest_batch()
        with progress, deferred_interrupts() as interrupted:
            while not self.finished:
                with self.out_of_memory_advice(f"update {self.step + 1}"):
                    self.update()
                self.seconds, self.cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu_clock
                progress.update()
                done = self.step == config.steps
                validating = done or self.step % config.validate_every == 0
                facts = self.measure(progress, lambda every: self.step == config.steps or self.step % every == 0)
                if self.landscape is not None:
                    clock, cpu_clock = self.clocks()  # the time of the training does not include measuring it
                if validating and (means := self.validate()):
                    facts.append(f"validation {', '.join(SHOWN[name].format(mean) for name, mean in means.items())}")
                if self.stopped_early and not done:  # by this validation, so this is the last update
                    facts += self.measure(progress, lambda every: self.step % every != 0)
                if facts:
                    progress.say(self.step, self.seconds, ", ".join(facts), now=validating)
                saving = validating or bool(config.save_every and self.step % config.save_every == 0)
                stop = processes.any_process(interrupted())  # all stop together
                if saving or stop:
                    self.save()
                if stop:
                    progress.bar.close()
                    self.interrupt()
        if self.stopped_early and not self.quiet:
            tell(f"stopped after update {self.step}: no improvement in {self.bad_validations} validations")

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.step >= self.config.train.steps or self.stopped_early

    def beginning(self) -> str:
        """One line about what is trained now."""
        steps = self.config.train.steps
        if self.finished:
            what = f"all {self.step:,} updates are done" if self.step >= steps else f"stopped early at {self.step:,}"
            setting = "train.steps" if self.step >= steps else "train.patience"
            further = f"to train further, raise {setting} in {self.directory.config_file}"
            return f"{self.out}: {what}, so nothing is trained; {further}"
        pairs = sum(map(len, self.training.shards.values()))
        size = sum(parameter.numel() for parameter in self.model.parameters())
        after = f", after the {self.step:,} that are done" if self.step else ""
        return (
            f"{self.out}: {len(self.tasks)} task{'s' * (len(self.tasks) > 1)}, {pairs:,} training pairs; "
            f"a model with {size:,} parameters; {steps - self.step:,} updates{after}"
        )

    def measure(self, progress: Progress, due: Callable[[int], bool]) -> list[str]:
        """Measures the loss landscape and writes the losses, each if it is due; returns what to tell of it.

        Args:
            due: whether something is due of which this is the number of updates between two times.
        """
        facts = []
        if self.landscape is not None and due(self.config.train.analyse_every):
            progress.bar.set_postfix_str("measuring the loss landscape")
            facts.append(self.analyse(self.landscape))
        if due(self.config.train.log_every):
            record = self.log()
            facts.append(f"loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s")
        return facts

    def clocks(self) -> tuple[float, float]:
        """When the training would have started, on the two clocks, if it had gone on without a break."""
        return time.perf_counter() - self.seconds, time.process_time() - self.cpu_seconds

    def update(self) -> None:
        """One iteration of Algorithm 1: an inner or an outer step."""
        self.begin_update()
        self.add_gradients(self.optimizer, self.batches.take(self.step))
        if self.step + 1 < self.config.train.steps:
            self.batches.prefetch(self.step + 1)  # while the GPU still works on this one
        if self.config.train.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        try:
            self.scaler.step(self.optimizer)  # moves the model; an outer step moves alpha and the multipliers
        except cats.NonFiniteError as error:
            self.step += 1
            raise self.diverged(str(error)) from None
        self.scaler.update()
        self.average.update()
        self.optimizer.zero_grad()
        self.step += 1
        if self.adaptive is not None:
            self.adaptive.after_update(self.step, self.loss_log.take_update())

    def add_gradients(self, optimizer: cats.MultiTask, batch: PrefetchedBatch) -> None:
        """Adds the tasks' gradients of a batch, combined with the weights alpha, to those of the parameters."""
        try:
            add_gradients(optimizer, self.losses_of(batch, optimizer), self.scaler)
        except cats.weighting.TooFewTasksError as error:
            raise UserError(
                f"{self.out}: update {self.step + 1}: method.name = {self.config.method.name}: {error}; use another "
                "method, or raise sampling.batch_tokens, so that updates have more tasks"
            ) from error

    def diverged(self, reason: str) -> UserError:
        """Writes to the metrics that the training diverged after this update, and returns the error to raise."""
        first_skipped = self.step - max(0, self.optimizer.statistics["nonfinite_in_a_row"] - 1)
        what = f"training diverged at update {first_skipped} ({reason})"
        self.write({"step": self.step, "diverged": what})
        before = "; best.pt has the best model before that" if math.isfinite(self.best) else ""
        return UserError(f"{self.out}: {what}: lower train.lr and start a new run{before}")

    def last_losses_are_finite(self) -> bool:
        """Whether all losses of the last update are finite, in all processes."""
        finite = all(map(math.isfinite, self.optimizer.statistics["losses"].values()))
        return not processes.any_process(not finite)

    def losses_of(self, batch: PrefetchedBatch, optimizer: cats.MultiTask) -> list[Losses | TokenLosses]:
        """The losses for every part of a batch (`train.accumulate`); their gradients add up.

        All tasks go through the model together, unless outer steps take them apart.
        """
        method, normalizers = self.config.method, self.losses.normalizers(batch.indices)
        if isinstance(optimizer, cats.CATS) and method.follows_tokens:
            optimizer.prior = normalizers  # with these weights, the loss is the plain mean over the batch's tokens
        apart = self.takes_tasks_apart and optimizer.needs_task_gradients
        if apart and optimizer.weighting.cross_batch:
            return [*self.losses.two_halves(batch.indices, self.config.train.accumulate, batch.step)]
        # The other processes may have sentences where this one has none. Sharded, all have the same tasks.
        several = processes.world_size() > 1 and not self.sharded
        parts = [part for part in batch.parts if part.indices or several]
        scales = gradient_scales(method, optimizer.weighting, normalizers, self.tasks)
        loss_of = self.losses.separate if apart else self.losses.joint
        losses: list[Losses | TokenLosses] = [loss_of(part, normalizers, scales) for part in parts]
        if self.trusted is not None:
            losses.append(self.trusted.of_update(self.step, batch.indices))
        return losses

    def begin_update(self) -> None:
        """Sets what the update's number determines: phase, learning rate, noise of the gates, seed of the dropout."""
        train = self.config.train
        if self.step and self.step == train.pretrain_steps and train.restart_parts != "learning-rate":
            self.reset_optimizer()
        if self.model.routing is not None:
            self.model.routing.noise = MOST_NOISE * self.step / train.steps
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of_update(self.step, train, self.config.model.d_model)
        torch.manual_seed((train.seed << 32) + processes.rank() * train.steps + self.step + 1)

    def probe_largest_batch(self) -> None:
        """Runs the largest possible batch, so that running out of memory shows before training starts.

        It is an outer step, of an optimizer of its own: the one of the run learns nothing from it.
        """
        optimizer = self.new_optimizer()
        optimizer.weighting.period = min(1, optimizer.weighting.period)
        optimizer.weighting.direction = "gradient"  # others do not exist in an optimizer's first step
        with self.out_of_memory_advice("the largest batch"):
            self.add_gradients(optimizer, self.batches.largest(self.step))
        self.loss_log.drop_unread()
        self.optimizer.zero_grad()

    @contextmanager
    def out_of_memory_advice(self, where: str) -> Iterator[None]:
        """Turns torch's out-of-memory error into one that names the settings to change."""
        try:
            yield
        except torch.OutOfMemoryError:
            method, tasks = self.config.method, self.config.sampling.tasks_per_update or len(self.tasks)
            engine = instead = ""
            weighting = self.optimizer.weighting
            if weighting.period and not weighting.losses_only:
                expected = "per_task" if self.takes_tasks_apart else "one_pass"
                # What auto has chosen may be another engine, because it refused the best one.
                engine = self.optimizer.statistics.get("engine", expected) if method.engine == "auto" else method.engine
                instead = "two_pass" if method.engine == "auto" or self.sharded else "auto"
                if self.needs_per_task:
                    instead = ""
            raise out_of_memory(self.out, where, engine, instead, tasks) from None

    @property
    def stopped_early(self) -> bool:
        """Whether `train.patience` stops the training."""
        return 0 < self.config.train.patience <= self.bad_validations

    def interrupt(self) -> NoReturn:
        """Ends the training after Ctrl-C or SIGTERM, when all is saved.

        Raises:
            Stopped: always.
        """
        processes.barrier()  # the main process is still writing; when one process ends, torchrun ends the others
        if processes.is_main():
            tell(f"cats: stopped after update {self.step}; to resume: {command('train', '--resume', self.out)}")
        raise Stopped

    # ---- logging and validation

    def log(self) -> LossRecord:
        """Writes a line of metrics and returns it."""
        self.check_replicas(list(self.optimizer.alpha.values()))
        sums = self.loss_log.totals()
        tokens = {task: int(count) for task, (_, count, _) in sums.items()}
        losses = {task: nll / count for task, (nll, count, _) in sums.items()}
        statistics, optimizer = self.optimizer.statistics, self.optimizer
        prior = optimizer.prior if isinstance(optimizer, cats.CATS) and self.config.method.follows_tokens else {}
        record = LossRecord(
            step=self.step,
            loss=sum(losses.values()) / len(losses),
            losses=losses,
            lr=self.optimizer.param_groups[0]["lr"],
            alpha=self.optimizer.alpha,
            prior=prior,
            multipliers=self.optimizer.multipliers,
            dots=statistics.get("dots"),
            sqnorms=statistics.get("sqnorms"),
            skipped=statistics.get("skipped", 0),
            tokens=tokens,
            examples={task: None if math.isnan(pairs) else int(pairs) for task, (_, _, pairs) in sums.items()},
            tokens_per_second=sum(tokens.values()) / max(1e-9, self.seconds - self.logged_at),
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            engine=statistics["engine"],
            peak_memory=peak_memory(self.device),
        )
        self.write(vars(record))
        self.loss_log.clear()
        self.logged_at = self.seconds
        return record

    def validate(self) -> dict[str, float]:
        """{name: mean over the tasks} of the validation nll and, if they are due, of BLEU and chrF.

        Saves the model if it is the best by `train.best_metric`. A validation without that number decides nothing.
        Without validation pairs the result is empty, and the newest model counts as the best.

        Raises:
            UserError: the nll is not finite, or, without validation pairs, the last loss is not finite.
        """
        if processes.world_size() > 1 and not self.sharded:
            self.check_replicas(torch.stack([p.detach().double().sum() for p in self.model.parameters()]).tolist())
        batch_tokens = min(4 * self.config.sampling.batch_tokens, (1 << 28) // self.vocab_size)  # <= 1 GiB of logits
        with self.average.in_model():
            nll = validation_nll(self.model, self.validation, batch_tokens, in_step=self.sharded)
            if self.distillation is not None:
                self.distillation.after_validation(self.step, nll, self.model)
        means = {"nll": sum(nll.values()) / len(nll)} if nll else {}
        record: dict[str, Any] = {"step": self.step, "valid": {"nll": nll, "all": means.get("nll")}, "best": False}
        if bad := [task for task, value in nll.items() if not math.isfinite(value)]:
            self.write(record)
            raise self.diverged(f"the validation NLL of {', '.join(bad)} is not finite")
        usable = bool(nll) or self.last_losses_are_finite()
        if not usable and self.step == self.config.train.steps:
            raise self.diverged("the loss of the last update is not finite")
        if self.scores_are_due:
            record["scores"] = self.scores()
            means |= {name: sum(scores.values()) / len(scores) for name, scores in record["scores"].items()}
            record["valid"] |= {name: means[name] for name in record["scores"]}
        metric = self.config.train.best_metric
        better = is_better(metric, means[metric], self.best) if metric in means else usable and not nll
        if better and nll:
            self.best = means[metric]
        if metric in means or not nll:
            # While only some tasks are trained, the mean over all of them is no reason to stop.
            pretraining = self.step <= self.config.train.pretrain_steps
            self.bad_validations = 0 if better or pretraining else self.bad_validations + 1
        record["best"] = better
        self.write(record)
        if self.adaptive is not None:
            self.adaptive.after_validation(self.step, nll)
        self.save_model(better)
        return means

    @property
    def scores_are_due(self) -> bool:
        """Whether `train.validate_bleu` asks for the scores of this validation."""
        train = self.config.train
        last = self.step == train.steps
        return train.validate_bleu > 0 and (last or self.step // train.validate_every % train.validate_bleu == 0)

    def scores(self) -> dict[str, dict[str, float]]:
        """See ``validation_scores``. With sharded parameters, the main process makes a copy of the whole model."""
        config, model = self.config, self.model
        with self.average.in_model():
            if self.sharded:
                state = sharding.whole(model.state_dict())
                if processes.is_main():
                    model = build_model(config.model, self.tokenizer)
                    model.load_state_dict(state)
                    model.to(self.device)
            return validation_scores(
                model, self.tokenizer, self.validation_text, config.train.validate_lines, config.decode
            )

    def analyse(self, landscape: Landscape) -> str:
        """Adds the loss landscape at this update to landscape.jsonl. The training goes on as without it.

        Every process measures all of it, so that none waits long for another one.

        Returns:
            What progress shows.
        """
        try:
            with self.average.in_model():
                record = landscape.measure(self.model, self.step)
        except (cats.NonFiniteError, torch.OutOfMemoryError) as error:  # no reason to stop the training
            return f"landscape not measured ({str(error).partition('. ')[0]})"
        if processes.is_main():
            add_record(self.directory, record)
        tops = record.eigenvalues.values()
        return f"top eigenvalues {min(tops):.3g} to {max(tops):.3g}"

    def check_replicas(self, numbers: list[float]) -> None:
        """Raises if these numbers, of the model or the task weights, are not the same in all processes."""
        if not processes.equal_numbers(numbers):
            raise UserError(
                f"{self.out}: the processes no longer have the same model or task weights; resume from the last "
                f"checkpoint with: {command('train', '--resume', self.out)}"
            )
