"""Compares training and translation with JoeyNMT, Hugging Face and a plain loop, in turns on the same machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common import measure
from bench.common.measure import Unavailable

from .baseline_process import Process, processes
from .cats_trainer import BEAM, CHECK_UPDATES, LENGTH, CatsTrainer, Size
from .records import Baseline, Contender, Missing, TrainingComparison, TranslationComparison

OURS, LOOP, JOEY, JOEY_OWN, MARIAN = "cats", "nn.Transformer", "JoeyNMT", "JoeyNMT, own batches", "Marian"
# The largest relative difference between a baseline and cats: of the NLL with the same weights, and of the decrease of
# the NLL in the same updates. Baselines have another epsilon in LayerNorm and Adam, and label smoothing that includes
# one token more or less.
NLL_TOLERANCE, DROP_TOLERANCE = 1e-5, 0.01
# The least share of JoeyNMT's translations that must equal ours. Some differ, because only our search counts the
# probability of eos when it chooses between the final hypotheses.
SAME = 0.9
SENTENCES, SENTENCE_BATCH = 64, 32

Turn = Callable[[int], float]  # runs round r of a contender; returns its rate


def interleave(turns: Mapping[str, Turn], rounds: int, missing: list[Missing]) -> dict[str, list[float]]:
    """Rates of every contender in rounds 1, 2, ... Round 0 is a warm-up. The order rotates from round to round.

    A contender that fails has no rates, and is appended to `missing`.
    """
    found: dict[str, list[float]] = {name: [] for name in turns}
    for r in range(rounds + 1):
        names = list(found)
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            try:
                found[name].append(turns[name](r))
            except Unavailable as reason:
                del found[name]
                missing.append(Missing(name, str(reason)))
    return {name: rates[1:] for name, rates in found.items()}


def compared(rates: Mapping[str, Sequence[float]]) -> list[Contender]:
    """Rates of all contenders, and how many times as fast cats was in the same rounds."""
    return [
        Contender(
            name=name,
            per_second=measure.summary(found),
            times=measure.summary([a / b for a, b in zip(rates[OURS], found, strict=True)]),
        )
        for name, found in rates.items()
    ]


def check_nll(found: Sequence[float], ours: Sequence[float]) -> None:
    """Compares a baseline's NLL per token of a batch with ours: with the same weights, and after the same updates.

    Raises:
        Unavailable: the baseline does not compute the same.
    """
    if not abs(found[0] - ours[0]) <= NLL_TOLERANCE * ours[0]:
        raise Unavailable(f"not the same model: its NLL is {found[0]:.6g}, ours is {ours[0]:.6g}")
    drop, wanted = found[0] - found[1], ours[0] - ours[1]
    if not abs(drop - wanted) <= DROP_TOLERANCE * wanted:
        raise Unavailable(f"not the same updates: they lower the NLL by {drop:.4g}, ours by {wanted:.4g}")


def check_lines(found: list[list[int]], ours: list[list[int]], same: float) -> float:
    """The share of translations that are equal to ours.

    Raises:
        Unavailable: the share is below `same`, or a translation does not have LENGTH tokens.
    """
    if len(found) != len(ours) or any(len(line) != LENGTH for line in found):
        raise Unavailable(f"its translations do not have {LENGTH} tokens each")
    share = sum(a == b for a, b in zip(found, ours, strict=True)) / len(ours)
    if share < same:
        raise Unavailable(f"not the same search: {share:.0%} of its translations are equal to ours")
    return share


def training(size: Size, prepared: Path, python: Path, folder: Path, rounds: int) -> TrainingComparison:
    """Measures target tokens per second of whole updates.

    python: the interpreter of the baselines' environment. folder: for temporary files.
    """
    ours = CatsTrainer(size, prepared, folder / "training")
    first = [CHECK_UPDATES + r * size.updates for r in range(rounds + 2)]  # the first update of each round
    batches = ours.batches(first[-1])
    torch.save({"batches": batches, "sources": [], "weights": ours.trainer.model.state_dict()}, folder / "training.pt")
    ours.write_ids(folder / "text")
    nll = ours.check(batches[0])

    def our_turn(r: int) -> float:
        tokens = sum(int((target != ours.tokenizer.pad_id).sum()) for _, _, target in batches[first[r] : first[r + 1]])
        return tokens / ours.train(size.updates)

    def turn(process: Process, method: str) -> Turn:
        def run(r: int) -> float:
            found = process.call(method, first=first[r], count=size.updates)
            return float(found["tokens"] / found["seconds"])

        return run

    turns: dict[str, Turn] = {OURS: our_turn}
    facts: dict[str, Baseline] = {}
    missing: list[Missing] = []
    with processes() as start:
        for name, interpreter in ((LOOP, Path(sys.executable)), (JOEY, python)):
            try:
                job, log = ours.job(folder / "text"), folder / f"{name}.log"
                process = start(interpreter, name, job, folder / "training.pt", log)
                answer = process.call("check", updates=CHECK_UPDATES)
                check_nll(answer["nll"], nll)
            except Unavailable as reason:
                missing.append(Missing(name, str(reason)))
                continue
            facts[name] = Baseline(**process.facts, nll=answer["nll"])
            turns[name] = turn(process, "train")
            if name == JOEY:
                turns[JOEY_OWN] = turn(process, "train_own")
        rates = interleave(turns, rounds, missing)
    return TrainingComparison(
        size=size.name,
        settings=list(size.settings),
        threads=size.threads,
        parameters=sum(p.numel() for p in ours.trainer.model.parameters()),
        vocab_size=ours.tokenizer.vocab_size,
        batch_tokens=ours.config.sampling.batch_tokens,
        updates=size.updates,
        nll=nll,
        facts=facts,
        contenders=compared(rates),
        missing=missing,
    )


def endless(model: Any, eos_id: int) -> None:
    """Changes an untrained model so that its hypotheses never end.

    A LayerNorm's output is its bias plus values that sum to zero (its weights are 1). The embedding of eos is set to a
    constant vector, so its logit depends on the bias only, and the bias makes it very low.
    """
    with torch.no_grad():
        model.decoder_norm.bias.fill_(1.0)
        model.embedding.weight[eos_id].fill_(-30.0 / model.embedding.embedding_dim)


def translation(size: Size, prepared: Path, python: Path, folder: Path, rounds: int) -> TranslationComparison:
    """Measures sentences per second of beam search with random weights. All hypotheses have LENGTH tokens.

    python: the interpreter of the baselines' environment. folder: for temporary files.
    """
    from cats.nmt.data.batch import pad
    from cats.nmt.model.search import beam_search

    ours = CatsTrainer(size, prepared, folder / "translation")
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
                torch.full((len(source),), LENGTH + 1),  # one step more than the baselines, for eos
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
    facts: dict[str, Baseline] = {}
    missing: list[Missing] = []
    with processes() as start:
        for name, same in ((JOEY, SAME), (MARIAN, 0.0)):
            try:
                process = start(python, name, ours.job(None), folder / "translation.pt", folder / f"{name}.log")
                share = check_lines(process.call("translate")["lines"], lines, same)
            except Unavailable as reason:
                missing.append(Missing(name, str(reason)))
                continue
            facts[name] = Baseline(**process.facts, same=share)
            turns[name] = turn(process)
        rates = interleave(turns, rounds, missing)
    return TranslationComparison(
        size=size.name,
        settings=list(size.settings),
        threads=size.threads,
        sentences=SENTENCES,
        batch=SENTENCE_BATCH,
        beam=BEAM,
        length=LENGTH,
        facts=facts,
        contenders=compared(rates),
        missing=missing,
    )
