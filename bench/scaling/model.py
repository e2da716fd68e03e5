"""The cost model: what a step computes, moves and sends, and how long that takes. docs/scaling.md explains it.

P parameters, T tokens of one process in a step, K tasks, R processes. A forward pass has 2PT floating-point operations
and a backward pass 4PT; attention and the embeddings are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FORWARD, BACKWARD = 2, 4  # operations per parameter and token
STORED = 4  # bytes of a parameter or gradient in memory
ADAMW = 7 * STORED  # bytes per parameter: reads p, g and two moments, writes p and the moments
INNER_STEPS = 5  # m, the default of cats.CATS
GRAM = "Gram, K reduce-scatters"


@dataclass(frozen=True)
class Link:
    """A connection between processes. latency: seconds per message. bandwidth: bytes/s in one direction."""

    latency: float
    bandwidth: float

    def half_ring(self, size: float, processes: int) -> float:
        """The seconds of a reduce-scatter or an all-gather of `size` bytes around a ring. An all-reduce is both."""
        return (processes - 1) * (self.latency + size / processes / self.bandwidth)

    def half_tree(self, size: float, processes: int) -> float:
        """The seconds of a reduction to one process, or of a broadcast, along a tree. An all-reduce can be both."""
        return math.ceil(math.log2(processes)) * self.latency + (size / self.bandwidth if processes > 1 else 0.0)


@dataclass(frozen=True)
class Traffic:
    """`count` collectives of `size` bytes each.

    halves: 1 for a reduce-scatter or an all-gather, 2 for an all-reduce. hidden: whether it can take place while the
    model computes.
    """

    size: float
    halves: int
    count: int = 1
    hidden: bool = False


@dataclass(frozen=True)
class Hardware:
    """What the processes run on.

    Attributes:
        operations: operations/s that the layers of the model reach in one process.
        memory_rate: bytes/s of one process's memory.
        call: seconds of a forward and backward pass that do not depend on the number of tokens.
        near: the connection within a node.
        far: the connection between nodes.
        node: the number of processes in a node.
        memory: bytes that one process has.
        asynchronous: whether the host runs ahead, as with a GPU: a pass takes the time of its launches or that of its
            operations, and what can be hidden is sent at the same time. Otherwise all of this adds up.
        trees: whether an all-reduce goes along a tree where that is faster, as NCCL does.
    """

    operations: float
    memory_rate: float
    call: float
    near: Link
    far: Link
    node: int
    memory: float = math.inf
    asynchronous: bool = False
    trees: bool = False

    def sending(self, traffic: Traffic, processes: int) -> float:
        """The seconds of the collectives: within nodes, and between them, where each process sends its part."""
        inside = min(processes, self.node)
        one = self._half(self.near, traffic, traffic.size, inside)
        one += self._half(self.far, traffic, traffic.size / inside, processes // inside)
        return traffic.count * traffic.halves * one

    def _half(self, link: Link, traffic: Traffic, size: float, processes: int) -> float:
        ring = link.half_ring(size, processes)
        return min(ring, link.half_tree(size, processes)) if self.trees and traffic.halves == 2 else ring


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        parameters: P.
        tokens: T, of one process in a step.
        tasks: K, present in every process.
        processes: R. If it is more than a node, a multiple of it.
        wire: bytes of a gradient or parameter when it is sent, and of an activation.
        groups: the layers that FSDP2 gathers one by one.
        widths: the sum of the output widths of all linear layers.
    """

    parameters: float
    tokens: float
    tasks: int
    processes: int
    wire: int = 4
    groups: int = 1
    widths: int = 0


@dataclass(frozen=True)
class Step:
    """The cost of one step in one process.

    Attributes:
        operations: in forward and backward passes, per parameter and token.
        passes: how many forward and backward passes there are.
        moved: bytes that gradients and optimizer move in memory.
        traffic: what is sent.
        memory: bytes beyond those of plain training.
        shadow: the operations, per parameter and token, that can hide traffic.
    """

    operations: float
    passes: int
    moved: float
    traffic: list[Traffic]
    memory: float = 0.0
    shadow: float = BACKWARD

    def sent(self, processes: int) -> float:
        """The bytes that one process sends."""
        return sum(t.size * t.halves * t.count for t in self.traffic) * (processes - 1) / processes

    @property
    def collectives(self) -> int:
        return sum(t.count for t in self.traffic)


def seconds(step: Step, job: Job, on: Hardware) -> float:
    """How long a step takes. Of what can be hidden, only what outlasts the operations that hide it counts."""
    one = job.parameters * job.tokens / on.operations  # one operation per parameter and token
    calls, moving = step.passes * on.call, step.moved / on.memory_rate
    hidden = sum(on.sending(t, job.processes) for t in step.traffic if t.hidden)
    shown = sum(on.sending(t, job.processes) for t in step.traffic if not t.hidden)
    if on.asynchronous:
        return max(step.operations * one, calls) + moving + shown + max(0.0, hidden - step.shadow * one)
    return step.operations * one + calls + moving + shown + hidden


# ---- replicas: every process has all parameters


def _reduced(job: Job, *, hidden: bool) -> Traffic:
    return Traffic(job.parameters * job.wire, 2, hidden=hidden)  # an all-reduce of ḡ


def _numbers(job: Job) -> Traffic:
    return Traffic(8 * job.tasks, 2)  # an all-reduce of K numbers, in float64


def plain(job: Job) -> Step:
    """One backward pass, and an all-reduce of the gradient. The inner steps of CATS cost the same."""
    return Step(FORWARD + BACKWARD, 1, ADAMW * job.parameters, [_reduced(job, hidden=True)])


def per_task(job: Job) -> Step:
    """A forward and a backward pass per task. K gradients are kept, combined, and multiplied with the reduced ḡ.

    One process does both in the same read.
    """
    size = STORED * job.parameters
    moved = ADAMW * job.parameters + (2 if job.processes == 1 else 3) * job.tasks * size
    traffic = [_reduced(job, hidden=False), _numbers(job)]
    return Step(FORWARD + BACKWARD, job.tasks, moved, traffic, memory=job.tasks * size)


def two_pass(job: Job) -> Step:
    """A weighted backward pass for ḡ, then forward and backward once more per task: a gradient, its dot with ḡ."""
    size = STORED * job.parameters
    moved = ADAMW * job.parameters + 3 * job.tasks * size
    operations = 2 * (FORWARD + BACKWARD)
    return Step(operations, 2 * job.tasks, moved, [_reduced(job, hidden=True), _numbers(job)], memory=size)


def forward_mode(job: Job) -> Step:
    """A weighted backward pass for ḡ, then a forward pass with tangents: three products where the forward has one."""
    operations = FORWARD + BACKWARD + 3 * FORWARD
    moved = (ADAMW + STORED) * job.parameters
    traffic = [_reduced(job, hidden=True), _numbers(job)]
    return Step(operations, 2, moved, traffic, memory=STORED * job.parameters)


def one_pass(job: Job) -> Step:
    """The weighted backward pass, and one product more per layer, of its inputs with the reduced ḡ.

    Until the all-reduce has ended, the gradients at the outputs of all layers are kept.
    """
    operations = FORWARD + BACKWARD + FORWARD
    moved = (ADAMW + STORED) * job.parameters
    kept = 0 if job.processes == 1 else job.tokens * job.widths * job.wire
    return Step(operations, 1, moved, [_reduced(job, hidden=True), _numbers(job)], memory=kept)


def gram_of_reduced(job: Job) -> Step:
    """PCGrad, CAGrad and the like in their usual form: K all-reduces, and the Gram matrix of the K results."""
    size = STORED * job.parameters
    traffic = [Traffic(job.tasks * job.parameters * job.wire, 2)]
    # Written, copied to one buffer, read for the Gram matrix and for the combination.
    moved = ADAMW * job.parameters + 5 * job.tasks * size
    return Step(FORWARD + BACKWARD, job.tasks, moved, traffic, memory=job.tasks * size)


def gram_of_shards(job: Job) -> Step:
    """The same numbers in the cheapest way: reduce-scatter the K gradients, form the Gram matrix of the shards, add up
    its K² numbers, combine the shards, all-gather the result.
    """
    size = job.parameters * job.wire
    traffic = [Traffic(job.tasks * size, 1), Traffic(8 * job.tasks**2, 2), Traffic(size, 1)]
    moved = (ADAMW + (1 + 2 / job.processes) * job.tasks * STORED) * job.parameters
    return Step(FORWARD + BACKWARD, job.tasks, moved, traffic, memory=job.tasks * STORED * job.parameters)


REPLICAS: dict[str, Callable[[Job], Step]] = {
    "plain": plain,
    "per_task": per_task,
    "two_pass": two_pass,
    "forward_mode": forward_mode,
    "one_pass": one_pass,
    "Gram, K all-reduces": gram_of_reduced,
    GRAM: gram_of_shards,
}

ALWAYS_OUTER = ("Gram, K all-reduces", GRAM)  # methods without inner steps

# FSDP2: how often the parameters are gathered, and gradients reduced, as (always, per task). Each is a half ring over
# all parameters. A pass gathers them for the forward and for the backward, and reduces one gradient. forward_mode also
# gathers the parameters and ḡ, its tangents; one_pass gathers ḡ, which every layer multiplies its inputs with.
FSDP2 = {
    "plain": (3, 0),
    "per_task": (0, 3),
    "two_pass": (3, 3),
    "forward_mode": (5, 0),
    "one_pass": (4, 0),
    GRAM: (0, 3),
}


def step_of(method: str, job: Job, *, sharded: bool = False) -> Step:
    """The step of a method, with replicas or with shards."""
    return _sharded(method, job) if sharded else REPLICAS[method](job)


def _sharded(method: str, job: Job) -> Step:
    """FSDP2 shards parameters, gradients and optimizer over all processes.

    Every pass writes a whole gradient, one layer after the other, before it is reduced to the shards.
    """
    step = REPLICAS[method](job)
    always, each = FSDP2[method]
    count = (always + each * job.tasks) * job.groups
    traffic = [Traffic(job.parameters * job.wire / job.groups, 1, count, hidden=True)]
    if method != "plain":
        traffic.append(Traffic(8 * job.tasks ** (2 if method == GRAM else 1), 2))
    return Step(
        operations=step.operations,
        passes=step.passes,
        moved=step.moved / job.processes + step.passes * STORED * job.parameters,
        traffic=traffic,
        memory=step.memory / (1 if method == "one_pass" else job.processes),
        shadow=step.operations,
    )


def amortised(outer: float, inner: float, inner_steps: int = INNER_STEPS) -> float:
    """The mean cost of a step when every `inner_steps`-th is an outer one."""
    return (outer + (inner_steps - 1) * inner) / inner_steps
