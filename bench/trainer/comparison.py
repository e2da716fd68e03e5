"""Training and translation against JoeyNMT, Hugging Face and a plain loop, which run in turn on the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.common import measure
from bench.operators.baselines import Absent

Record = dict[str, Any]

OURS, LOOP, JOEY, JOEY_OWN, MARIAN = "cats", "nn.Transformer", "JoeyNMT", "JoeyNMT, own batches", "Marian"
WORKER = Path(__file__).with_name("baselines.py")
PATIENCE = 600.0  # seconds that a rival may take for an answer
GATE_UPDATES = 3
# How far a rival may be from us, as a share: its NLL with the same weights, and how much updates lower it. Others have
# another epsilon in LayerNorm and Adam, and spread the smoothing's mass over one token more or less.
NLL_TOLERANCE, DROP_TOLERANCE = 1e-5, 0.01
# Of JoeyNMT's translations so many must be ours: we choose among hypotheses with the end of the sentence, it without.
SAME = 0.9
BEAM, LENGTH = 4, 24
SENTENCES, SENTENCE_BATCH = 64, 32


@dataclass(frozen=True)
class Size:
    """A model, its batches, and how many updates are one turn of a contender."""

    name: str
    settings: tuple[str, ...]
    threads: int
    updates: int


def sizes(cores: int) -> list[Size]:
    """The demo's model on one thread, as it is trained, and one of 6.2 million parameters on all cores."""
    small = (
        "tokenizer.vocab_size=4000",
        "model.d_model=256",
        "model.heads=4",
        "model.ffn=1024",
        "model.encoder_layers=3",
        "model.decoder_layers=3",
        "sampling.batch_tokens=1000",
    )
    return [Size("demo", (), 1, 15), Size("small", small, cores, 2)]


def configuration(size: Size, corpus: Path | None) -> Any:
    """Plain mean over the tokens, a constant learning rate, pairs drawn by size: what all contenders can do."""
    from cats.nmt.config.schema import Config
    from cats.nmt.config.toml import apply_overrides

    settings = [
        *size.settings,
        "method.name=static",
        "method.weights=tokens",
        "sampling.temperature=1",
        "train.lr=3e-4",
        "train.warmup=0",
        "train.schedule=constant",
        f"train.threads={size.threads}",
    ]
    return apply_overrides(Config(), [*settings, *([f"data.path={corpus}"] if corpus else [])])


class Ours:
    """The trainer, and what rivals are told of it. Its updates include making their batches."""

    def __init__(self, size: Size, prepared: Path, folder: Path) -> None:
        from cats.nmt.training.run import RunDirectory, set_threads
        from cats.nmt.training.trainer import Trainer

        self.size, self.config = size, configuration(size, prepared)
        set_threads(self.config.train.threads, self.config.model.d_model)
        self.trainer = Trainer(self.config, folder, resume=False, quiet=True)
        self.tokenizer = RunDirectory(folder).load_tokenizer(self.config.tokenizer)
        self.trainer.model.train()

    def batches(self, count: int) -> list[list[Tensor]]:
        """(source, target_in, target_out) of the first updates."""
        found = [self.trainer.training.batch(self.trainer.sampler.batch(step)) for step in range(count)]
        return [[batch.source, batch.target_in, batch.target_out] for batch in found]

    def gate(self, batch: list[Tensor]) -> list[float]:
        """NLL of the batch per token, before and after some updates without dropout."""
        dropouts = [module for module in self.trainer.model.modules() if isinstance(module, nn.Dropout)]
        for module in dropouts:
            module.p = 0.0
        found = [self.nll(batch)]
        for _ in range(GATE_UPDATES):
            self.trainer.update()
        found.append(self.nll(batch))
        for module in dropouts:
            module.p = self.config.model.dropout
        return found

    def nll(self, batch: list[Tensor]) -> float:
        source, target_in, target_out = batch
        real = target_out != self.tokenizer.pad_id
        with torch.no_grad():
            logits = self.trainer.model(source, target_in)[real]
        return float(nn.functional.cross_entropy(logits, target_out[real]))

    def train(self, count: int) -> float:
        """Seconds of so many updates."""
        start = time.perf_counter()
        for _ in range(count):
            self.trainer.update()
        return time.perf_counter() - start

    def job(self, text: Path | None) -> Record:
        """What a rival must know."""
        config, tokenizer = self.config, self.tokenizer
        model = config.model
        return {
            "vocab_size": tokenizer.vocab_size,
            "first_piece": tokenizer.first_piece,
            "pad_id": tokenizer.pad_id,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "d_model": model.d_model,
            "heads": model.heads,
            "ffn": model.ffn,
            "encoder_layers": model.encoder_layers,
            "decoder_layers": model.decoder_layers,
            "dropout": model.dropout,
            "smoothing": config.train.label_smoothing,
            "lr": config.train.lr,
            "betas": config.train.betas,
            "clip": config.train.clip,
            "batch_tokens": config.sampling.batch_tokens,
            "threads": self.size.threads,
            "beam": BEAM,
            "length": LENGTH,
            "text": text and str(text),
        }

    def write_ids(self, path: Path) -> None:
        """The training text as ids, for a rival's own batches: <path>.source and <path>.target, without ends."""
        training = self.trainer.training
        with path.with_suffix(".source").open("w") as source, path.with_suffix(".target").open("w") as target:
            for task in training.shards:
                for file, rows in zip((source, target), training.rows(task), strict=True):
                    file.writelines(" ".join(map(str, row[:-1])) + "\n" for row in rows)


class Process:
    """A rival in a process of its own, which answers calls of its methods."""

    def __init__(self, python: Path, rival: str, job: Record, tensors: Path, log: Path) -> None:
        """
        Raises:
            Absent: there is no such interpreter, or it lacks what the rival needs.
        """
        if not python.exists():
            raise Absent(f"no {python}; bench/README.md says how to install the rivals")
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-I", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.facts = self._request({"rival": rival, "job": job, "tensors": str(tensors)})

    def call(self, method: str, **arguments: Any) -> Record:
        """
        Raises:
            Absent: it failed, ended, or took too long; it runs no more.
        """
        return self._request({"method": method, "arguments": arguments})

    def _request(self, request: Record) -> Record:
        assert self.process.stdin is not None and self.process.stdout is not None
        started = time.perf_counter()
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer: Record = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.close()
            if time.perf_counter() - started >= PATIENCE:
                raise Absent(f"no answer for {PATIENCE:g} seconds") from None
            said = self.log.read_text(errors="replace").splitlines()
            raise Absent(f"it ended: {said[-1] if said else 'without a word'}") from None
        finally:
            timer.cancel()
        if "error" in answer:
            self.close()
            raise Absent(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def processes() -> Iterator[Callable[..., Process]]:
    """Starts rivals, and ends those it started."""
    started: list[Process] = []

    def start(*arguments: Any) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.close()


Turn = Callable[[int], float]  # what a contender does in round r; returns its rate


def interleave(turns: Mapping[str, Turn], rounds: int, missing: list[Record]) -> dict[str, list[float]]:
    """The rates of every contender in rounds 1, 2, ..; round 0 warms up. The order rotates from round to round.

    Who fails has no rates, and stands in `missing`.
    """
    found: dict[str, list[float]] = {name: [] for name in turns}
    for r in range(rounds + 1):
        names = list(found)
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            try:
                found[name].append(turns[name](r))
            except Absent as reason:
                del found[name]
                missing.append({"contender": name, "reason": str(reason)})
    return {name: rates[1:] for name, rates in found.items()}


def compared(rates: Mapping[str, Sequence[float]]) -> list[Record]:
    """Rates of all contenders, and how many times as fast we were in the same rounds."""
    return [
        {
            "name": name,
            "per_second": vars(measure.summary(found, "wall")),
            "times": vars(measure.summary([a / b for a, b in zip(rates[OURS], found, strict=True)], "wall")),
        }
        for name, found in rates.items()
    ]


def check_nll(found: Sequence[float], ours: Sequence[float]) -> None:
    """found, ours: NLL per token of a batch, with the same weights and after the same updates.

    Raises:
        Absent: a rival computes something else than we do.
    """
    if not abs(found[0] - ours[0]) <= NLL_TOLERANCE * ours[0]:
        raise Absent(f"not the same model: an NLL of {found[0]:.6g} where ours is {ours[0]:.6g}")
    drop, wanted = found[0] - found[1], ours[0] - ours[1]
    if not abs(drop - wanted) <= DROP_TOLERANCE * wanted:
        raise Absent(f"not the same updates: they lower the NLL by {drop:.4g}, ours by {wanted:.4g}")


def check_lines(found: list[list[int]], ours: list[list[int]], same: float) -> float:
    """The share of translations that are ours.

    Raises:
        Absent: it is below `same`, or a translation is not of LENGTH tokens.
    """
    if len(found) != len(ours) or any(len(line) != LENGTH for line in found):
        raise Absent(f"its translations are not of {LENGTH} tokens each")
    share = sum(a == b for a, b in zip(found, ours, strict=True)) / len(ours)
    if share < same:
        raise Absent(f"not the same search: {share:.0%} of its translations are ours")
    return share


def training(size: Size, prepared: Path, rivals: Path, folder: Path, rounds: int) -> Record:
    """Target tokens per second of whole updates. rivals: their Python; folder: for files that nobody needs later."""
    ours = Ours(size, prepared, folder / "training")
    first = [GATE_UPDATES + r * size.updates for r in range(rounds + 2)]  # update of each round
    batches = ours.batches(first[-1])
    torch.save({"batches": batches, "sources": [], "weights": ours.trainer.model.state_dict()}, folder / "training.pt")
    ours.write_ids(folder / "text")
    nll = ours.gate(batches[0])

    def our_turn(r: int) -> float:
        tokens = sum(int((target != ours.tokenizer.pad_id).sum()) for _, _, target in batches[first[r] : first[r + 1]])
        return tokens / ours.train(size.updates)

    def turn(process: Process, method: str) -> Turn:
        def run(r: int) -> float:
            found = process.call(method, first=first[r], count=size.updates)
            return float(found["tokens"] / found["seconds"])

        return run

    turns: dict[str, Turn] = {OURS: our_turn}
    facts, missing = {}, []
    with processes() as start:
        for name, python in ((LOOP, Path(sys.executable)), (JOEY, rivals)):
            try:
                process = start(python, name, ours.job(folder / "text"), folder / "training.pt", folder / f"{name}.log")
                answer = process.call("gate", updates=GATE_UPDATES)
                check_nll(answer["nll"], nll)
            except Absent as reason:
                missing.append({"contender": name, "reason": str(reason)})
                continue
            facts[name] = {**process.facts, **answer}
            turns[name] = turn(process, "train")
            if name == JOEY:
                turns[JOEY_OWN] = turn(process, "train_own")
        rates = interleave(turns, rounds, missing)
    return {
        "part": "training",
        "size": size.name,
        "settings": size.settings,
        "threads": size.threads,
        "parameters": sum(p.numel() for p in ours.trainer.model.parameters()),
        "vocab_size": ours.tokenizer.vocab_size,
        "batch_tokens": ours.config.sampling.batch_tokens,
        "updates": size.updates,
        "nll": nll,
        "facts": facts,
        "contenders": compared(rates),
        "missing": missing,
    }


def endless(model: Any, eos_id: int) -> None:
    """Makes a fresh model one whose hypotheses never end by themselves.

    What a LayerNorm adds to its bias sums to nothing, so that the logit of a constant vector depends on the bias alone.
    """
    with torch.no_grad():
        model.decoder_norm.bias.fill_(1.0)
        model.embedding.weight[eos_id].fill_(-30.0 / model.embedding.embedding_dim)


def translation(size: Size, prepared: Path, rivals: Path, folder: Path, rounds: int) -> Record:
    """Sentences per second of beam search on a model with random weights, all hypotheses of LENGTH tokens."""
    from cats.nmt.data.batch import pad
    from cats.nmt.model.search import beam_search

    ours = Ours(size, prepared, folder / "translation")
    tokenizer, training = ours.tokenizer, ours.trainer.training
    model = ours.trainer.model.eval()
    endless(model, tokenizer.eos_id)
    rows = [row for task in training.shards for row in training.rows(task)[0]]
    chosen = sorted(rows[:: len(rows) // SENTENCES][:SENTENCES], key=len, reverse=True)
    sources = [pad(chosen[i : i + SENTENCE_BATCH], tokenizer.pad_id) for i in range(0, SENTENCES, SENTENCE_BATCH)]
    torch.save({"batches": [], "sources": sources, "weights": model.state_dict()}, folder / "translation.pt")

    def translate() -> tuple[list[list[int]], float]:
        lines = []
        start = time.perf_counter()
        for source in sources:
            found = beam_search(
                model,
                source,
                torch.full((len(source),), LENGTH + 1),  # with the end of the sentence, one step more than others take
                start=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                forbidden=[i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id],
                beam=BEAM,
                length_penalty=1.0,
            )
            lines += [ids for ((ids, _),) in found]
        return lines, time.perf_counter() - start

    def turn(process: Process) -> Turn:
        return lambda r: SENTENCES / process.call("translate")["seconds"]

    turns: dict[str, Turn] = {OURS: lambda r: SENTENCES / translate()[1]}
    lines = translate()[0]
    check_lines(lines, lines, 1.0)
    facts, missing = {}, []
    with processes() as start:
        for name, same in ((JOEY, SAME), (MARIAN, 0.0)):
            try:
                process = start(rivals, name, ours.job(None), folder / "translation.pt", folder / f"{name}.log")
                share = check_lines(process.call("translate")["lines"], lines, same)
            except Absent as reason:
                missing.append({"contender": name, "reason": str(reason)})
                continue
            facts[name] = {**process.facts, "same": share}
            turns[name] = turn(process)
        rates = interleave(turns, rounds, missing)
    return {
        "part": "translation",
        "size": size.name,
        "settings": size.settings,
        "threads": size.threads,
        "sentences": SENTENCES,
        "batch": SENTENCE_BATCH,
        "beam": BEAM,
        "length": LENGTH,
        "facts": facts,
        "contenders": compared(rates),
        "missing": missing,
    }
