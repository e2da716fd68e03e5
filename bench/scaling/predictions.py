"""The cost of training on many GPUs, as the model predicts it. None of these numbers was measured."""

from __future__ import annotations

from bench.common.tables import table

from .model import ALWAYS_OUTER, FSDP2, REPLICAS, Hardware, Job, Link, Step, amortised, seconds, step_of

# NVIDIA's data sheets of the H100 SXM and the DGX H100: 989 teraflop/s in bfloat16 (1,979 with sparsity), 3.35 TB/s and
# 80 GB of memory, 900 GB/s of NVLink in both directions together, 8 GPUs and 8 adapters of 400 Gbit/s in a node.
# Assumed: training reaches 40 % of the peak and 80 % of the bandwidths; a message takes 3 µs in a node and 5 µs between
# nodes; the host needs 5 ms to launch a forward and backward pass, whatever the number of tokens.
H100 = Hardware(
    operations=0.4 * 989e12,
    memory_rate=0.8 * 3.35e12,
    call=5e-3,
    near=Link(3e-6, 0.8 * 450e9),
    far=Link(5e-6, 0.8 * 50e9),
    node=8,
    memory=80e9,
    asynchronous=True,
    trees=True,
)
PROCESSES = (8, 64, 1024)
TASKS = 100
TOKENS = 8192  # of one GPU in a step
# Parameters, layers, width, inner width, vocabulary: the preset opus100, and a model of the size of NLLB-200.
MODELS = {"110M": (110e6, 12, 512, 2048, 64_000), "3.3B": (3.3e9, 48, 2048, 8192, 256_000)}
ADAM_BYTES = 16  # per parameter: the parameter, its gradient and two moments, in fp32
REFUSED = ("forward_mode", "one_pass")  # by cats, with FSDP2; the model says what they would cost
WAYS = {"replicas": tuple(REPLICAS), "FSDP2": tuple(FSDP2)}


def job(model: str, processes: int) -> Job:
    parameters, layers, width, inner, vocabulary = MODELS[model]
    widths = layers * (7 * width + inner) + vocabulary  # 5 widths in an encoder layer, 9 in a decoder layer
    return Job(parameters, TOKENS, TASKS, processes, wire=2, groups=layers, widths=widths)


def memory(step: Step, of: Job, *, sharded: bool) -> float:
    """Bytes of one GPU for parameters, gradients, optimizer and what the method adds; activations are left out."""
    shards = of.processes if sharded else 1
    return ADAM_BYTES * of.parameters / shards + step.memory


def markdown() -> str:
    """All tables of `python -m bench.scaling --predict`."""
    lines = []
    for model in MODELS:
        for way, names in WAYS.items():
            rows = [row(model, name, sharded=way == "FSDP2") for name in names]
            head = [f"{model}, {way}", "memory, GB", *(f"{n:,} GPUs" for n in PROCESSES)]
            lines += [*table(head, rows), ""]
    return "\n".join(lines[:-1]) + "\n"


def row(model: str, name: str, *, sharded: bool) -> list[str]:
    """The cells of a method: the plain step in ms; outer step / mean step of all others, as multiples of it."""
    label = f"{name} (not in cats)" if sharded and name in REFUSED else name
    cells = [label, f"{step_of(name, job(model, PROCESSES[0]), sharded=sharded).memory / 1e9:,.1f}"]
    for processes in PROCESSES:
        of = job(model, processes)
        step = step_of(name, of, sharded=sharded)
        taken, plain = seconds(step, of, H100), seconds(step_of("plain", of, sharded=sharded), of, H100)
        if name == "plain":
            cells.append(f"{1e3 * taken:.1f} ms")
        elif memory(step, of, sharded=sharded) > H100.memory:
            cells.append("no memory")
        elif name in ALWAYS_OUTER:
            cells.append(f"{taken / plain:.1f}")
        else:
            cells.append(f"{taken / plain:.2f} / {amortised(taken, plain) / plain:.2f}")
    return cells
