"""How lines are translated: section decode."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import COUNT, FINITE, LENGTH, POSITIVE, POSITIVE_COUNT, SEED, SHARE, between, setting


@dataclass(frozen=True)
class Decode:
    """How lines are translated; see ``cats.nmt.model.decode.translations``."""

    beam: int = setting(4, "beam size; 1 is greedy search", need=between(1, 1000))
    penalty: str = setting(
        "google",
        "rank hypotheses by log probability / ((5 + length) / 6)^p (google) or / length^p (fairseq)",
        choices=("google", "fairseq"),
    )
    length_penalty: float = setting(1.0, "exponent p of the length penalty", need=FINITE)
    batch_tokens: int = setting(4000, "source tokens that are translated at a time", need=POSITIVE_COUNT)
    max_length: int = setting(
        1024,
        "largest number of pieces of a line; the rest is not translated and not scored, with a warning",
        need=LENGTH,
    )
    max_ratio: float = setting(
        0.0,
        "longest translation: so many times the tokens of the source, plus 10; 0: what training pairs of the task need",
        need=between(0, 1000),
    )
    sample: bool = setting(False, "draw translations at random instead of beam search")
    temperature: float = setting(1.0, "sample: divide the logits by this", need=POSITIVE)
    top_k: int = setting(0, "sample: draw only from the k most probable tokens; 0: from all", need=COUNT)
    top_p: float = setting(
        1.0, "sample: draw only from the most probable tokens that together have this probability", need=SHARE
    )
    seed: int = setting(1, "sample: random seed", need=SEED)
