"""The printed tables of the trainer's benchmarks."""

from __future__ import annotations

from bench.common.measure import Summary
from bench.common.results import Provenance
from bench.common.tables import table
from bench.common.targets import targets_table

from .records import EndToEndResults, PreparingResults


def end_to_end_markdown(source: Provenance, results: EndToEndResults) -> str:
    """All tables of `python -m bench.trainer.end_to_end`."""
    lines = [source.heading(results.device)]
    units = {"training": "target tokens/s (20–80 %)", "translation": "sentences/s (20–80 %)"}
    for c in results.contests:
        rows = [(r.name, _spread(r.per_second), _spread(r.times)) for r in c.contenders]
        threads = f"{c.threads} thread{'s' * (c.threads > 1)}"
        head = (f"{c.part}, {c.size}, {threads}", units[c.part], "speed of cats / speed of this")
        lines += ["", *table(head, rows)]
        if c.missing:
            lines += ["", "Not measured:", ""]
            lines += [f"- {r.contender}: {r.reason}" for r in c.missing]
    if results.pipeline:
        rows = [(str(p.batch_tokens), _spread(p.target), _spread(p.both)) for p in results.pipeline]
        head = ("target tokens a batch", "target tokens/s (20–80 %)", "source and target tokens/s")
        lines += ["", *table(head, rows)]
    if results.gpu:
        gpu_rows = [
            (
                g.preset,
                f"{g.parameters / 1e6:.0f}",
                _spread(g.per_second),
                f"{g.rate / 1e12:.3g}",
                f"{g.rate / results.bfloat16_peak:.2f}" if results.bfloat16_peak else "",
                f"{g.idle:.3f}",
            )
            for g in results.gpu
        ]
        speed = ("target tokens/s (20–80 %)", "TFLOP/s", "share of the bf16 peak")
        lines += ["", *table(("preset", "M parameters", *speed, "idle share"), gpu_rows)]
    if results.targets:
        lines += ["", *targets_table(results.targets)]
    return "\n".join(lines) + "\n"


def preparing_markdown(source: Provenance, results: PreparingResults) -> str:
    """The table of `python -m bench.trainer.preparing`."""
    rows = [(f"{s.pairs:,}", f"{s.text_mib:,.0f}", f"{s.seconds:.0f}", f"{s.peak_mib:.0f}") for s in results.sizes]
    head = ("pairs", "text, MiB", "s", "peak memory of the largest process, MiB")
    return "\n".join([source.heading("cpu"), "", *table(head, rows)]) + "\n"


def _spread(found: Summary) -> str:
    return f"{_number(found.median)} ({_number(found.low)}–{_number(found.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
