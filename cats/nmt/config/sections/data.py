"""The corpus and its tasks: section data."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import COUNT, FINITE, SEED, setting


@dataclass(frozen=True)
class Data:
    """The corpus and its tasks."""

    path: str = setting(
        "",
        "folder of parallel text (layouts: cats data inspect --help) or a prepared folder; empty: the built-in corpus",
    )
    languages: str = setting(
        "related",
        "built-in corpus: target languages (related and diverse: those of TED-8; wmt: WMT-10; opus100: 92 of OPUS-100)",
        choices=("related", "diverse", "wmt", "opus100"),
    )
    sizes: str = setting(
        "ted",
        "built-in corpus: pairs per language (ted: ratios up to 10 to 1; wmt: one very large; noisy: as ted, with "
        "wrong translations in two languages; opus100: as OPUS-100)",
        choices=("ted", "wmt", "noisy", "opus100"),
    )
    source: str = setting(
        "en", "the language that all tasks have in common; en also stands for eng, en_XX and eng_Latn"
    )
    direction: str = setting(
        "one-to-many",
        "from data.source, into data.source, or all pairs of the corpus in both directions",
        choices=("one-to-many", "many-to-one", "many-to-many"),
    )
    tasks: tuple[str, ...] = setting(
        (),
        "names of the tasks to train on, such as az,be; empty: all; en-en: language modelling of English (T5's span "
        "corruption) on the corpus's lines",
    )
    valid_pairs: int = setting(
        0, "use only this many validation pairs of each task, the first ones; 0: all", need=COUNT
    )
    max_ratio: float = setting(
        0.0,
        "leave out training pairs with one side more than this many times as long as the other, in pieces; 0: keep all",
        need=FINITE,
    )
    seed: int = setting(1, "built-in corpus: seed of the generator", need=SEED)
