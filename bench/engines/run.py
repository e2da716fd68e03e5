"""Checks every contender, then measures all of them in turns."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.common.measure import Unavailable, summary

from . import memory, oracle
from .contenders import AUTO, CATS, CONTENDERS, DEFAULT_PERIOD, REFERENCE, TRAININGS, Contender, Step, Training
from .records import Measured, Model, OuterStep, Refused, WholeTraining
from .workload import Size, Workload

OTHERS = 8  # the K with which contenders without a target are measured with every model
ROUNDS = 9
LEAST_ROUNDS = 3  # of contenders that have a target, and of whole training
SECONDS = 3.0  # what needs more than this for all rounds takes part in fewer


@dataclass
class Runner:
    """A contender that has passed its check.

    first: seconds of the first call. error: of v. seconds, ratios: a sample per round, of one step.
    """

    contender: Contender
    call: Step
    first: float
    error: float
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def model(size: Size) -> Model:
    """The facts about a model and its batches."""
    work = Workload(size, 1, torch.device("cpu"))
    return Model(
        name=size.name,
        parameters=sum(p.numel() for p in work.model.parameters()),
        width=size.model.d_model,
        vocab_size=size.vocab_size,
        sentences=size.sentences,
        tokens=len(work.target_ids),
        precision=size.precision,
    )


def outer_step(size: Size, tasks: int, device: torch.device) -> OuterStep:
    """Measures all contenders with one model and K."""
    print(f"{size.name}, K={tasks} ..", file=sys.stderr, flush=True)
    plain, runners, refused = ready(size, tasks, device)
    in_turns(plain, runners, device)
    clock = "core" if device.type == "cpu" else "wall"
    found = [(r.contender, r.error, summary(r.seconds, clock), summary(r.ratios, clock)) for r in runners]
    engines = {r.contender.steps: r.call.engine for r in runners if isinstance(r.call, Training)}
    seconds = summary(plain.seconds, clock)
    del plain, runners  # their models
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the processes that follow need the memory
    peaks = memory.peaks(size, tasks, [REFERENCE.name, *(c.name for c, *_ in found)], device)
    return OuterStep(
        model=size.name,
        tasks=tasks,
        plain=seconds,
        plain_bytes=peaks[REFERENCE.name],
        contenders=[Measured(c.name, c.kind, t, r, e, peaks[c.name]) for c, e, t, r in found if c.steps == 1],
        training=[WholeTraining(c.steps, engines[c.steps], r, peaks[c.name]) for c, _, _, r in found if c.steps > 1],
        refused=refused,
    )


def ready(size: Size, tasks: int, device: torch.device) -> tuple[Runner, list[Runner], list[Refused]]:
    """Plain training, the contenders whose results are right, and the others."""
    right = {}
    runners: dict[str, Runner] = {}
    refused = []
    for contender in chosen(size, tasks):
        if contender.steps > 1 and AUTO not in runners:
            refused.append(Refused(contender.name, f"{AUTO} was not measured"))
            continue
        own = contender.size(size)
        if own not in right:
            right[own] = oracle.expected(own, tasks, device)
        try:
            runners[contender.name] = checked(contender, Workload(own, tasks, device), right[own], device)
        except Unavailable as error:
            refused.append(Refused(contender.name, str(error)))
        except oracle.Wrong as error:
            refused.append(Refused(contender.name, str(error), wrong=contender.kind == CATS))
        except Exception as error:  # each library raises its own kind
            reason = str(error).strip().partition("\n")[0]
            refused.append(Refused(contender.name, f"{type(error).__name__}: {reason}"))
    return runners.pop(REFERENCE.name), list(runners.values()), refused


def chosen(size: Size, tasks: int) -> list[Contender]:
    """The contenders that are measured with this model and K."""
    found = [c for c in CONTENDERS if c.core or size.thorough or (tasks == OTHERS and not c.variant)]
    default = [c for c in TRAININGS if c.steps == DEFAULT_PERIOD and (size.thorough or tasks == OTHERS)]
    periods = list(TRAININGS) if size.thorough and tasks == OTHERS else default
    return [REFERENCE, *found, *periods]


def checked(contender: Contender, work: Workload, right: oracle.Expected, device: torch.device) -> Runner:
    """The contender, after a first step whose results were compared with the right ones.

    Raises:
        Wrong: a result is wrong.
    """
    call = contender.start(work)
    with oracle.comparable(work):
        seconds, v = timed(call, device)
        # Of several steps, the last has other parameters than those for which v is known.
        error = oracle.check(work, v, right, contender.sampled) if contender.steps == 1 else 0.0
    return Runner(contender, call, seconds, error)


def in_turns(plain: Runner, runners: Sequence[Runner], device: torch.device) -> None:
    """Takes samples in rounds. The order rotates. Each round begins and ends with plain steps."""
    quotas = [quota(runner, device) for runner in (plain, *runners)][1:]
    for n in range(ROUNDS):
        taking = [r for r, q in zip(runners, quotas, strict=True) if (n + 1) * q // ROUNDS > n * q // ROUNDS]
        if taking:
            shift = n % len(taking)
            before, _ = timed(plain.call, device)
            times = [(runner, timed(runner.call, device)[0]) for runner in taking[shift:] + taking[:shift]]
            after, _ = timed(plain.call, device)
            plain.seconds += [before, after]
            for runner, seconds in times:
                step = seconds / runner.contender.steps
                runner.seconds.append(step)
                runner.ratios.append(step / ((before + after) / 2))


def careful(contender: Contender) -> bool:
    """Whether a contender gets a warm-up and several samples: if it has a target, or is the engine auto."""
    return contender.core or contender.name == AUTO or contender.steps > 1


def quota(runner: Runner, device: torch.device) -> int:
    """In how many rounds a contender takes part."""
    contender = runner.contender
    if careful(contender):
        # A warm-up, after which one_pass has made two of its checks: those at its outer steps 1, 2, 4, 8, ..
        seconds, _ = timed(runner.call, device)
        return min(ROUNDS, max(LEAST_ROUNDS, int(SECONDS / seconds)))
    return min(ROUNDS, max(1, int(SECONDS / runner.first)))


def timed(call: Step, device: torch.device) -> tuple[float, Any]:
    """Seconds of a call and its result. On a CPU, seconds on a core, which other work on the machine changes least."""
    if device.type == "cpu":
        start = time.process_time()
        result = call()
        return time.process_time() - start, result
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, result
