"""What the tests of this benchmark share."""

from __future__ import annotations

from bench.common.measure import Summary
from bench.engines.contenders import ONE_PASS
from bench.engines.records import Measured, OuterStep, WholeTraining
from bench.engines.workload import Size
from cats.nmt.config.schema import Model

SMALL = Size("tiny", Model(d_model=16, heads=2, ffn=32, encoder_layers=1, decoder_layers=1), 40, 12, (3, 6))


def once(value: float) -> Summary:
    return Summary(value, value, value, 1)


def outer_step(model: str, tasks: int, contenders: dict[tuple[str, str], tuple[float, int]], m5: float) -> OuterStep:
    """A result. contenders: {(name, kind): (time, bytes)}; plain training has 1.0 and 100 bytes."""
    measured = [Measured(name, kind, once(t), once(t), 1e-7, peak) for (name, kind), (t, peak) in contenders.items()]
    return OuterStep(model, tasks, once(1.0), 100, measured, [WholeTraining(5, ONE_PASS, once(m5), 110)], [])
