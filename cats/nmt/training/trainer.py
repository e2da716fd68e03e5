"""The training run: corpus in, run directory out. Trainer.update is Algorithm 1 of the paper from the user's side.

Everything random is a pure function of (seed, step, rank), so a run resumed from a checkpoint continues bit for bit on
a CPU (with as many threads and processes); on a GPU as far as torch's kernels there give the same bits twice.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cats
from cats.nmt.config.schema import Config
from cats.nmt.data.batch import Batch
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.encode import EncodingSettings, encode_tasks
from cats.nmt.data.groups import groups
from cats.nmt.data.prepare import training_tokens
from cats.nmt.data.sampler import Mixture, Sampler, split_batch
from cats.nmt.data.tokenizer import Tags
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import link, remove_strays
from cats.nmt.model.loss import line_nll, token_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import checkpoint, processes, warmstart
from cats.nmt.training.metrics import Metrics
from cats.nmt.training.progress import Progress
from cats.nmt.training.run import RunDirectory, build_model, default_device, load_corpus, set_threads
from cats.nmt.training.schedule import learning_rate

FORWARDED = 5.0  # seconds in which torchrun passes on a signal that every process may have got already
LENGTH_MULTIPLE = 8  # train.compile: what the lengths of rows are padded to


def mixture(config: Config, tasks: list[str]) -> Mixture:
    """How much of each task the configuration draws.

    Raises:
        UserError: another number of ratios than of tasks, or an unknown task to pre-train on.
    """
    pretrain = config.train.pretrain
    for name in pretrain:
        if name not in tasks:
            known = ", ".join(tasks)
            raise UserError(f"train.pretrain: unknown task {name}{nearest(name, tasks)}; known: {known}")
    sampling = config.sampling
    if sampling.ratios and len(sampling.ratios) != len(tasks):
        raise UserError(
            f"sampling.ratios has {len(sampling.ratios)} numbers, the corpus {len(tasks)} tasks ({', '.join(tasks)})"
        )
    return Mixture(
        sampling.temperature,
        sampling.temperature_end,
        sampling.ratios,
        sampling.unimax_epochs,
        config.train.steps,
        pretrain,
        config.train.pretrain_steps if pretrain else 0,
    )


def check_tags(tags: Tags, targets: set[str]) -> None:
    """Refuses tags that do not say which of several languages to translate into."""
    if len(targets) > 1 and not (tags.target or (tags.source != "none" and tags.of == "target")):
        raise UserError(
            "nothing tells the model which language to translate into; set tokenizer.source_tag to prepend and "
            "tokenizer.tag_of to target, or tokenizer.target_tag to true"
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What train.precision means for a forward pass in training; validation and translation are in float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def check_compiler(device: torch.device) -> None:
    """Compiles a trifle, so that what is missing is said before anything is trained."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # no C++ compiler, no Triton, a Python that is too new: each raises its own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.compile does not work here: {reason}; leave out train.compile") from error


def task_losses(
    model: Transformer, batch: Batch, tokens: Mapping[str, int], smoothing: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """{task: (smoothed sum, nll sum)} of a batch that holds tokens[task] target tokens of each task, in that order."""
    hidden = model.hidden(batch.source, batch.target_in, batch.source_cells, batch.target_cells)  # packed, as targets
    targets = batch.target_out.flatten()[batch.target_cells]
    smoothed, nll = token_losses(model.project(hidden).float(), targets, smoothing)
    counts = list(tokens.values())
    parts = zip(tokens, smoothed.split(counts), nll.detach().split(counts), strict=True)
    return {task: (s.sum(), n.sum()) for task, s, n in parts}


def validation_nll(model: Transformer, tokens: TokenDataset, batch_tokens: int) -> dict[str, float]:
    """Unsmoothed negative log likelihood in nats per target token, by task; tasks without data are left out.

    Of several processes each looks at its part of the lines.
    """
    tasks = [task for task, shard in tokens.shards.items() if len(shard)]
    sums: list[float] = []
    for task in tasks:
        sources, targets = (side[processes.rank() :: processes.world_size()] for side in tokens.rows(task))
        start = tokens.starts[task]
        sums += line_nll(model, sources, targets, start=start, batch_tokens=batch_tokens).sum(0).tolist()
    sums = processes.all_reduce_sum(sums)
    return {task: nats / count for task, nats, count in zip(tasks, sums[::2], sums[1::2], strict=True)}


def build_optimizer(config: Config, model: nn.Module, tasks: list[str]) -> cats.MultiTask:
    """AdamW under the configured weighting."""
    base = torch.optim.AdamW(
        model.parameters(),
        lr=config.train.lr,
        betas=(config.train.betas[0], config.train.betas[1]),
        eps=config.train.eps,
        weight_decay=config.train.weight_decay,
        fused=True,
    )
    method = config.method
    if method.name == "cats":
        return cats.CATS(
            base,
            tasks,
            inner_steps=method.inner_steps,
            alpha_lr=method.alpha_lr,
            multiplier_lr=method.multiplier_lr,
            epsilon=method.epsilon,
            simplex="softmax" if method.simplex == "softmax" else "lagrangian",
            loss_term=method.loss_term,
            cross_batch=method.cross_batch,
        )
    if isinstance(method.weights, str):  # by tokens the losses carry the weights themselves: see Trainer.losses
        weights = [1.0 if method.weights == "tokens" else 1.0 / len(tasks)] * len(tasks)
    else:
        weights = list(method.weights)
    if len(weights) != len(tasks):
        raise UserError(
            f"method.weights has {len(weights)} numbers, the corpus {len(tasks)} languages ({', '.join(tasks)})"
        )
    return cats.MultiTask(base, tasks, cats.weighting.Static(weights))


@contextmanager
def interrupt_between_updates() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a question asked between two updates, where the state is whole; a second acts now.

    (SIGTERM is what a cluster sends to a job some time before it kills it.)
    """
    asked = math.inf  # when

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if time.monotonic() - asked > (FORWARDED if processes.world_size() > 1 else 0.0):
            raise KeyboardInterrupt
        asked = min(asked, time.monotonic())

    before = {}
    try:
        for which in (signal.SIGINT, signal.SIGTERM):
            before[which] = signal.signal(which, ask)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield lambda: False
        return
    try:
        yield lambda: asked < math.inf
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@dataclass
class Drawn:
    """The batch of one update: of all processes, this one's in train.accumulate parts, and the first of these made.

    It is drawn and made while the device works on the update before, so that it need not wait for that.
    """

    step: int
    whole: dict[str, np.ndarray]
    parts: list[dict[str, np.ndarray]]
    first: Batch | None


class Trainer:
    """One run: the model, its optimizer and everything a checkpoint holds."""

    def __init__(self, config: Config, out: Path, *, resume: bool, quiet: bool) -> None:
        self.config, self.out, self.quiet = config, out, quiet or not processes.is_main()
        self.directory = RunDirectory(out)
        self.device = default_device()
        if processes.world_size() > 1 and config.method.name == "cats" and config.method.cross_batch:
            raise UserError("method.cross_batch works with one process only; leave it out, or torchrun")
        encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
        with processes.main_first():
            corpus = load_corpus(config.data)
            groups(corpus.sizes, config.evaluate)  # a name that is not there is said now, not after the training
            directions = {task.name: (task.source, task.target) for task in corpus.tasks}
            if not resume and not config.train.init_from:  # the run it starts from has tags that do
                check_tags(encoding.tags, {target for _, target in directions.values()})
            known = (
                self.directory.load_tokenizer(config.tokenizer)
                if resume
                else warmstart.tokenizer(corpus, config, quiet=self.quiet)
            )
            prepared = training_tokens(corpus, encoding, tokenizer=known, quiet=self.quiet)
            tokenizer = prepared.tokenizer
        settings = [config.model, config.sampling, config.method, config.train]
        if not processes.equal_text(f"{corpus.digest()} {tokenizer.digest()} {settings}"):
            raise UserError("the processes have different text or settings; give all of them the same")
        multiple = LENGTH_MULTIPLE if config.train.compile else 1
        most = config.data.valid_pairs or None
        pairs = {task.name: list(task.valid)[:most] for task in corpus.tasks}
        validation = encode_tasks(corpus.tasks, pairs, tokenizer, encoding.length_filter)
        self.training = TokenDataset(prepared.shards, directions, tokenizer, self.device, multiple=multiple)
        self.validation = TokenDataset(validation.shards, directions, tokenizer, self.device)
        if not self.quiet:
            counts = [
                f"{task}: {count} {split} pairs left out, {reason}"
                for split, part in (("training", prepared.left_out), ("validation", validation.left_out))
                for task, reasons in part.items()
                for reason, count in reasons.items()
            ]
            for notice in [*corpus.notices, *counts]:
                print(notice, file=sys.stderr)
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, tokenizer, checkpoint_activations=config.train.checkpoint_activations)
        self.model = model.to(self.device)
        if config.train.init_from and not resume:
            warmstart.fill(self.model, tokenizer, config)
        if config.train.compile:
            check_compiler(self.device)
            self.model.compile_layers()
        self.tasks = [task.name for task in corpus.tasks]
        self.start_anew()
        self.sampler = Sampler(
            self.training.lengths(),
            mixture=mixture(config, self.tasks),
            batch_tokens=config.sampling.batch_tokens,
            seed=config.train.seed,
            tasks_per_update=config.sampling.tasks_per_update,
            padded=config.sampling.budget == "padded",
        )
        self.digest, self.vocab_size = corpus.digest(), tokenizer.vocab_size
        if config.train.patience and not any(map(len, self.validation.shards.values())):
            raise UserError("train.patience needs validation pairs, and the corpus has none")
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.waited = 0  # validations since the best one
        self.since_log: dict[str, list[float]] = {}  # task -> [nll sum, tokens] since the last line of metrics
        self.unread: list[tuple[str, Tensor, int]] = []  # (task, nll sum, tokens) that is still to be added to it
        self.logged_at = 0.0
        self.ahead: Drawn | None = None
        if not resume and processes.is_main():
            self.directory.create(config, tokenizer, self.state([]))
        processes.barrier()
        if resume:
            self.load()
        self.metrics = Metrics(out, self.step) if processes.is_main() else None
        processes.barrier()

    def save(self) -> None:
        """Writes last.pt, all it takes to go on; the one before it becomes previous.pt."""
        since_log = self.gathered()  # of all processes, so all must come here
        if processes.is_main():
            files = self.directory
            checkpoint.save(files.checkpoint("last"), self.state(since_log), older=files.checkpoint("previous"))

    def state(self, since_log: list[dict[str, list[float]]]) -> dict[str, Any]:
        """What a checkpoint holds. since_log: that of every process."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),  # empty but for fp16
            "digest": self.digest,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "waited": self.waited,
            "since_log": since_log,
            "logged_at": self.logged_at,
        }

    def save_model(self, better: bool) -> None:
        """Writes the model alone, as best.pt if it is better, and as step-N.pt where train.keep asks for that."""
        files, keep = self.directory, self.config.train.keep
        paths = [files.checkpoint("best")] if better else []
        if keep:
            paths.append(files.checkpoint(f"step-{self.step}"))
        if paths:
            state = {"model": self.model.state_dict(), "digest": self.digest, "step": self.step, "best": self.best}
            checkpoint.save(paths[0], state)
        for path in paths[1:]:
            link(paths[0], path)
        for path in files.kept_checkpoints()[:-keep] if keep else ():
            path.unlink()

    def load(self) -> None:
        """Goes on from the newest checkpoint that can be used; if it is not the newest of all, that is said."""
        if processes.is_main():
            remove_strays(self.out)
            remove_strays(self.directory.checkpoints)
        path = self.directory.checkpoint("last")
        state, problem = checkpoint.newest(path, self.directory.checkpoint("previous"))
        try:
            if state["digest"] != self.digest:
                raise UserError(f"{self.out}: the corpus is not the one this run was started on; start a new run")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
            self.waited, self.logged_at = state["waited"], state["logged_at"]
            for part in state["since_log"][
                processes.rank() :: processes.world_size()
            ]:  # there may have been more, or fewer
                for task, numbers in part.items():
                    entry = self.since_log.get(task, [0.0, 0.0])
                    self.since_log[task] = [a + b for a, b in zip(entry, numbers, strict=True)]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} does not fit {self.directory.config_file}: it is of another run or version; start a new run"
            ) from error
        if problem and processes.is_main():
            print(f"cats: {problem}; going on from the one before it, of update {self.step}", file=sys.stderr)

    def losses(self, chosen: Mapping[str, np.ndarray], normalisers: Mapping[str, float]) -> dict[str, Tensor]:
        """{task: loss} of one joint forward: the sum over the task's tokens, divided by normalisers[task]."""
        config = self.config.train
        tokens = {task: self.training.target_tokens({task: rows}) for task, rows in chosen.items()}
        ahead = self.ahead
        made = ahead.first if ahead is not None and chosen is ahead.parts[0] else None
        batch = self.training.batch(chosen) if made is None else made
        with autocast(config.precision, self.device):
            sums = task_losses(self.model, batch, tokens, config.label_smoothing)
        self.unread += [(task, nll, tokens[task]) for task, (_, nll) in sums.items()]
        return {task: loss / normalisers[task] for task, (loss, _) in sums.items()}

    def read_losses(self) -> None:
        """Adds up the losses of the last updates, which waits for the device: not after each of them."""
        if self.unread:
            values = torch.stack([nll for _, nll, _ in self.unread]).tolist()
            for (task, _, tokens), nll in zip(self.unread, values, strict=True):
                entry = self.since_log.setdefault(task, [0.0, 0.0])
                entry[0] += nll
                entry[1] += tokens
            self.unread = []

    def gathered(self) -> list[dict[str, list[float]]]:
        """since_log of every process."""
        self.read_losses()
        count, width = processes.world_size(), 2 * len(self.tasks)
        slots = [0.0] * (count * width)
        own = [x for task in self.tasks for x in self.since_log.get(task, (0.0, 0.0))]
        slots[processes.rank() * width : (processes.rank() + 1) * width] = own
        slots = processes.all_reduce_sum(slots)
        rows = [slots[i * width : (i + 1) * width] for i in range(count)]
        return [{t: [*row[2 * n : 2 * n + 2]] for n, t in enumerate(self.tasks) if row[2 * n + 1]} for row in rows]

    def start_anew(self) -> None:
        """The optimizer, the weights of the tasks and train.patience as before the first update; the model stays."""
        self.optimizer = build_optimizer(self.config, self.model, self.tasks)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.train.precision == "fp16")
        self.waited = 0

    def draw(self, step: int, whole: dict[str, np.ndarray] | None = None) -> Drawn:
        """The batch of an update, or that given; its first part is made, unless tasks are always taken one by one."""
        whole = self.sampler.batch(step) if whole is None else whole
        chosen = split_batch(whole, processes.world_size())[processes.rank()]
        parts = split_batch(chosen, self.config.train.accumulate)
        joint = self.optimizer.weighting.period != 1 and bool(parts[0])
        return Drawn(step, whole, parts, self.training.batch(parts[0]) if joint else None)

    def backward(self, drawn: Drawn) -> None:
        """The gradient of a batch: each task's loss is the mean over its tokens.

        Every process takes its part of the batch, and that goes through in train.accumulate parts. Their losses are
        sums, divided by the tokens of the whole batch, so that the parts add up to what the batch gives at once. (The
        optimizer takes the mean over the processes.)
        """
        optimizer, parts, count = self.optimizer, self.config.train.accumulate, processes.world_size()
        self.ahead, whole = drawn, drawn.whole

        def loss_of(task: str, rows: np.ndarray, tokens: float) -> Callable[[], Tensor]:
            return lambda: self.losses({task: rows}, {task: tokens})[task]

        if optimizer.needs_task_gradients and optimizer.weighting.cross_batch:
            # Two independent halves, each with its own mean; a task with one sentence has none.
            pairs: list[dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]] = [{} for _ in range(parts)]
            for task, rows in whole.items():  # of one process
                halves = rows[::2], rows[1::2]
                tokens = [self.training.target_tokens({task: half}) for half in halves]
                turns = min(parts, len(halves[1]))
                for i in range(turns):
                    first, second = (loss_of(task, half[i::turns], n) for half, n in zip(halves, tokens, strict=True))
                    pairs[i][task] = first, second
            if not pairs[0]:
                raise UserError(
                    "method.cross_batch needs two sentences of a task in a batch; raise sampling.batch_tokens"
                )
            for losses in filter(None, pairs):
                optimizer.backward(losses, scaler=self.scaler)
            return
        normalisers = {task: self.training.target_tokens({task: rows}) / count for task, rows in whole.items()}
        if self.config.method.name == "static" and self.config.method.weights == "tokens":
            normalisers = dict.fromkeys(whole, sum(normalisers.values()))
        for part in drawn.parts:
            if not part:
                if count > 1:  # the others may have one
                    optimizer.backward({}, scaler=self.scaler)
            elif optimizer.needs_task_gradients:
                each = {task: loss_of(task, rows, normalisers[task]) for task, rows in part.items()}
                optimizer.backward(each, scaler=self.scaler)
            else:  # one forward and one backward for all
                optimizer.backward(self.losses(part, normalisers), scaler=self.scaler)

    def rehearse(self) -> None:
        """The gradient of the largest batch there can be, for nothing: where memory is short, it is at once."""
        try:
            self.backward(self.draw(self.step, self.sampler.largest_batch()))
        except torch.OutOfMemoryError:
            raise self.out_of_memory("the largest batch") from None
        self.unread, self.ahead = [], None
        self.optimizer.zero_grad()

    def out_of_memory(self, where: str) -> UserError:
        return UserError(
            f"{self.out}: out of memory in {where}; lower sampling.batch_tokens, raise train.accumulate, or set "
            "train.checkpoint_activations=true or train.precision=bf16"
        )

    def update(self) -> None:
        """One step of Algorithm 1. The optimizer knows whether it is an inner one or also moves alpha."""
        config = self.config
        pretraining = self.step < config.train.pretrain_steps
        if self.step and self.step == config.train.pretrain_steps:
            self.start_anew()
        begun = 0 if pretraining else config.train.pretrain_steps
        rate = learning_rate(
            self.step - begun,
            peak=config.train.lr,
            warmup=config.train.warmup,
            steps=config.train.pretrain_steps if pretraining else config.train.steps - begun,
            schedule=config.train.schedule,
            start=config.train.warmup_start,
            d_model=config.model.d_model,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Dropout: a function of (seed, step, rank).
        torch.manual_seed((config.train.seed << 32) + processes.rank() * config.train.steps + self.step + 1)
        drawn = self.ahead
        self.backward(drawn if drawn is not None and drawn.step == self.step else self.draw(self.step))
        self.ahead = self.draw(self.step + 1) if self.step + 1 < config.train.steps else None
        if config.train.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.train.clip)
        try:
            self.scaler.step(self.optimizer)
        except cats.NonFiniteError as error:
            raise UserError(f"{self.out}: training diverged: {error}; try a lower train.lr") from None
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1

    def log(self) -> dict[str, Any]:
        """Writes one line of metrics: mean nll per language since the last line, and where alpha stands."""
        self.compare(self.step, *self.optimizer.alpha.values())
        parts = self.gathered()
        sums = {task: [sum(part[task][i] for part in parts if task in part) for i in (0, 1)] for task in self.tasks}
        tokens = {task: int(count) for task, (_, count) in sums.items() if count}
        losses = {task: sums[task][0] / sums[task][1] for task in tokens}
        statistics = self.optimizer.statistics
        record = {
            "step": self.step,
            "loss": sum(losses.values()) / len(losses),
            "losses": losses,
            "lr": self.optimizer.param_groups[0]["lr"],
            "alpha": self.optimizer.alpha,
            "multipliers": self.optimizer.multipliers,
            "dots": statistics.get("dots"),
            "sqnorms": statistics.get("sqnorms"),
            "skipped": statistics.get("skipped", 0),
            "tokens": tokens,
            "tokens_per_second": sum(tokens.values()) / max(1e-9, self.seconds - self.logged_at),
            "seconds": self.seconds,
        }
        self.write(record)
        self.since_log, self.logged_at = {}, self.seconds
        return record

    def compare(self, *numbers: float) -> None:
        """Refuses to go on where the processes no longer have the same."""
        if not processes.equal_numbers(numbers):
            raise UserError(
                f"{self.out}: the processes no longer have the same model or task weights; go on from the last "
                f"checkpoint with: cats train --resume {self.out}"
            )

    def write(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(record)

    def validate(self) -> float | None:
        """The mean nll over the languages, if there is validation text; the model with the lowest is kept."""
        if processes.world_size() > 1:
            self.compare(*torch.stack([p.detach().double().sum() for p in self.model.parameters()]).tolist())
        # At most 1 GiB of logits.
        tokens = min(4 * self.config.sampling.batch_tokens, (1 << 28) // self.vocab_size)
        nll = validation_nll(self.model, self.validation, tokens)
        mean = sum(nll.values()) / len(nll) if nll else None
        better = mean is None or mean < self.best  # without validation data the newest is the best
        # A model that is trained on some languages is not to be judged by all of them.
        self.waited = 0 if better or self.step <= self.config.train.pretrain_steps else self.waited + 1
        if mean is not None:
            self.best = min(self.best, mean)
        self.write({"step": self.step, "valid": {"nll": nll, "all": mean}, "best": better})
        if processes.is_main():
            self.save_model(better)
        return mean

    @property
    def stopped(self) -> bool:
        """Whether validations have been in vain for too long."""
        return 0 < self.config.train.patience <= self.waited

    def run(self) -> None:
        config = self.config.train
        self.model.train()
        clock = time.perf_counter() - self.seconds
        progress = Progress(self.step, config.steps, quiet=self.quiet)
        if self.device.type == "cuda":
            self.rehearse()
        with progress, interrupt_between_updates() as interrupted:
            while self.step < config.steps and not self.stopped:
                try:
                    self.update()
                except torch.OutOfMemoryError:
                    raise self.out_of_memory(f"update {self.step + 1}") from None
                self.seconds = time.perf_counter() - clock
                progress.update()
                done = self.step == config.steps
                validating = done or self.step % config.validate_every == 0
                facts = []
                if done or self.step % config.log_every == 0:
                    record = self.log()
                    facts.append(f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s")
                if validating and (nll := self.validate()) is not None:
                    facts.append(f"validation NLL {nll:.3f}")
                if facts:
                    progress.say(self.step, self.seconds, ", ".join(facts), now=validating)
                saving = validating or bool(config.save_every and self.step % config.save_every == 0)
                stop = interrupted()
                if processes.world_size() > 1:  # none stops alone
                    stop = processes.any_process(stop)
                if saving or stop:
                    if self.metrics is not None:
                        self.metrics.sync()  # a checkpoint's lines of metrics are not less safe than itself
                    self.save()
                if stop:
                    progress.bar.close()
                    processes.barrier()  # for the first, which writes: when one ends, torchrun ends the others
                    if processes.is_main():
                        print(
                            f"cats: stopped after update {self.step}; to go on: cats train --resume {self.out}",
                            file=sys.stderr,
                        )
                    raise KeyboardInterrupt
        if self.stopped and not self.quiet:
            print(f"stopped after update {self.step}: no better in {self.waited} validations", file=sys.stderr)


def train(config: Config, out: Path, *, resume: bool = False, quiet: bool = False) -> None:
    """Train as configured into the run directory ``out``: config.toml, tokenizer.model, metrics.jsonl, checkpoints/.

    Args:
        config: see ``cats.nmt.config.schema``.
        out: created, unless ``resume``. ``checkpoints/best.pt`` has the model of the lowest validation nll (mean over
            the languages); ``last.pt`` is the newest and holds all it takes to go on, ``previous.pt`` the one before.
        resume: go on from ``last.pt``; bitwise the run that was not interrupted.
        quiet: no progress, and no word about what was left out of the corpus.

    Raises:
        UserError: unusable data or settings, a full disk, a run that another process is training.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, when the update in hand is done and saved; the way to go on is printed.
    """
    set_threads(config.train.threads, config.model.d_model)
    lock = RunDirectory(out).training_lock
    if resume:
        with lock():
            Trainer(config, out, resume=True, quiet=quiet).run()
            processes.barrier()
    else:
        trainer = Trainer(config, out, resume=False, quiet=quiet)
        with lock():
            trainer.run()
            processes.barrier()
