"""The settings of a run: their types, defaults, help lines and allowed values.

The help lines are printed by ``cats train --help`` and written to the ``config.toml`` of every run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Condition:
    """What a value must satisfy, in addition to its type, and the words for it in an error message."""

    text: str
    test: Callable[[Any], bool]


def between(least: int, most: int) -> Condition:
    """A number within bounds. The upper one is far above useful values: beyond it, memory or time would run out."""
    return Condition(f"at least {least} and at most {most:,}", lambda value: least <= value <= most)


POSITIVE_COUNT = between(1, 10**9)
COUNT = between(0, 10**9)
PAIRS = between(0, 10**12)
WIDTH = Condition("even, at least 2 and at most 65,536", lambda value: 2 <= value <= 65_536 and value % 2 == 0)
LAYERS = between(1, 200)
TOKENS = between(1, 10**7)  # in one batch
THREADS = between(0, 1024)
LENGTH = between(1, 10**9)  # of a line, in tokens; a very large one is how to say "no limit"
FINITE = Condition("finite and at least 0", lambda value: 0 <= value < math.inf)
POSITIVE = Condition("finite and above 0", lambda value: 0 < value < math.inf)
POSITIVE_OR_INF = Condition("above 0 (inf is allowed)", lambda value: value > 0)
NOT_NEGATIVE = Condition("at least 0 (inf is allowed)", lambda value: value >= 0)
RATIOS = Condition("finite numbers above 0", lambda value: all(0 < ratio < math.inf for ratio in value))
FRACTION = Condition("at least 0 and below 1", lambda value: 0 <= value < 1)
SHARE = Condition("above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = Condition("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)
RATE = Condition(
    "'auto', or a finite number of at least 0",
    lambda v: v == "auto" if isinstance(v, str) else 0 <= v < math.inf,
)
FLOOR = Condition(
    "'auto', or a number of at least 0 and below 1",
    lambda v: v == "auto" if isinstance(v, str) else 0 <= v < 1,
)
BETAS = Condition(
    "two numbers, each at least 0 and below 1",
    lambda v: len(v) == 2 and all(0 <= b < 1 for b in v),
)
WEIGHTS = Condition(
    "'tokens', 'uniform' or a list with one finite number of at least 0 per task, not all of them 0",
    lambda v: v in ("tokens", "uniform") if isinstance(v, str) else any(v) and all(0 <= w < math.inf for w in v),
)


# The names of the methods; ``cats.nmt.methods.catalogue`` describes them. X:NAME stands for X: and any name.
METHODS = (
    "cats",
    "static",
    "rlw",
    "gradnorm",
    "group-dro",
    "cvar-dro",
    "chi-square-dro",
    "uncertainty",
    "dwa",
    "famo",
    "mgda",
    "pcgrad",
    "gradvac",
    "torchjd:NAME",
    "graddrop",
    "target-projection",
    "temperature",
    "temperature-schedule",
    "ratios",
    "unimax",
    "pretrain-finetune",
    "restart",
    "lowres-finetune",
    "staged",
    "staged-cats",
    "adaptive",
    "bandit",
    "chi-square-ibr",
    "doremi",
    "double-power-law",
    "mirror",
    "multidds",
    "multidds-s",
    "lssd",
)


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    need: Condition | None = None,
) -> Any:
    """A dataclass field with its help line and the values that it may have."""
    metadata = {"help": help, "choices": choices, "need": need}
    return field(default=default, metadata=metadata)


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


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer and the language tags."""

    vocab_size: int = setting(2000, "largest number of pieces of the sentencepiece model", need=between(1, 10**6))
    per_language: bool = setting(
        False, "train one model of vocab_size pieces per language, and use their union as the vocabulary (MultiDDS)"
    )
    temperature: float = setting(
        5.0,
        "joint model: a language's share of the text it is trained on is proportional to pairs^(1/T)",
        need=POSITIVE_OR_INF,
    )
    most_pairs: int = setting(
        500_000,
        "approximate number of pairs that the tokenizer is trained on, if the corpus is larger",
        need=POSITIVE_COUNT,
    )
    character_coverage: float = setting(
        1.0, "share of the text's characters that get pieces; below 1, the rarest characters become unknown", need=SHARE
    )
    extend: int = setting(
        0,
        "with train.init_from: largest number of new pieces, for characters that the tokenizer of that run lacks",
        need=COUNT,
    )
    source_tag: str = setting(
        "prepend",
        "language tag in the source: before the pieces, in place of the end of sentence, or none",
        choices=("prepend", "replace-eos", "none"),
    )
    tag_of: str = setting(
        "target",
        "which language the source is tagged with; for source, also set target_tag",
        choices=("target", "source"),
    )
    target_tag: bool = setting(False, "start the decoder with the tag of the target language instead of <s>")


@dataclass(frozen=True)
class Model:
    """The Transformer."""

    d_model: int = setting(96, "width of the Transformer", need=WIDTH)
    heads: int = setting(4, "attention heads; must divide d_model", need=between(1, 65_536))
    ffn: int = setting(192, "width of the feed-forward layers", need=between(1, 10**6))
    encoder_layers: int = setting(2, "encoder layers", need=LAYERS)
    decoder_layers: int = setting(2, "decoder layers", need=LAYERS)
    dropout: float = setting(0.1, "dropout after the embeddings and after every sub-layer", need=FRACTION)
    attention_dropout: float = setting(0.0, "dropout on the attention weights", need=FRACTION)
    activation_dropout: float = setting(0.0, "dropout within the feed-forward layers", need=FRACTION)
    norm: str = setting(
        "layernorm",
        "norm before every sub-layer; layernorm-plain has no gain and bias, scalenorm has a single gain",
        choices=("layernorm", "layernorm-plain", "rmsnorm", "scalenorm"),
    )
    embedding_norm: bool = setting(False, "the same norm also after the embeddings")
    embeddings: str = setting(
        "tied",
        "embedding matrices: tied (source = target = output), decoder-tied (target = output) or separate (three)",
        choices=("tied", "decoder-tied", "separate"),
    )
    clsr: float = setting(
        0.0,
        "budget of language-specific routing (CLSR: Zhang et al. 2021), the share of outputs that each language makes "
        "with matrices of its own, such as 0.3; 0: off",
        need=FRACTION,
    )
    max_length: int = setting(
        256,
        "longest side of a training pair in tokens, tag and end included; longer pairs are left out and counted",
        need=LENGTH,
    )


@dataclass(frozen=True)
class Sampling:
    """How the sentences of an update are drawn."""

    temperature: float = setting(
        3.0,
        "a task is drawn with probability ~ pairs^(1/T): 1 = proportional to size, inf = uniform",
        need=POSITIVE_OR_INF,
    )
    temperature_end: float = setting(
        0.0,
        "temperature at the last update; 1/T changes linearly until then; 0: constant temperature",
        need=NOT_NEGATIVE,
    )
    first_temperature: float = setting(
        0.0,
        "temperature before the reset of train.restart (T=1 there and T=3 later: staged training); 0: the same",
        need=NOT_NEGATIVE,
    )
    ratios: tuple[float, ...] = setting(
        (),
        "instead of a temperature: the tasks' shares of the sentences, one number per task in the order of their names",
        need=RATIOS,
    )
    unimax_epochs: float = setting(
        0.0,
        "instead of a temperature: UniMax, uniform in tokens, with at most this many passes over each task; 0: off",
        need=FINITE,
    )
    tasks_per_update: int = setting(0, "number of tasks in an update, drawn by their probabilities; 0: all", need=COUNT)
    batch_tokens: int = setting(800, "tokens per update, over all tasks", need=TOKENS)
    budget: str = setting(
        "target",
        "what batch_tokens counts: target tokens, or padded (sentences times the longest side)",
        choices=("target", "padded"),
    )


@dataclass(frozen=True)
class Method:
    """How the tasks are weighted or drawn. A setting whose help begins with "cats" has no effect with other names."""

    name: str = setting("cats", "how tasks are weighted or drawn; cats methods describes each", choices=METHODS)
    options: tuple[str, ...] = setting(
        (), "arguments of the method, such as rate=0.1,floor=0; cats methods NAME lists them with their defaults"
    )
    weights: str | tuple[float, ...] = setting(
        "tokens",
        "static, samplers, recipes: tokens (plain mean over the batch's tokens), uniform, or one number per task",
        need=WEIGHTS,
    )
    token_weights: tuple[float, ...] = setting(
        (),
        "with weights = tokens: how much a token of each task counts in the mean, one number per task; empty: the same",
        need=RATIOS,
    )
    inner_steps: int = setting(5, "cats: updates of the model per update of alpha", need=POSITIVE_COUNT)
    simplex: str = setting(
        "proximal",
        "cats: how alpha stays on the simplex: near a prior (proximal) or as in Eq. 4 (softmax, lagrangian)",
        choices=("proximal", "softmax", "lagrangian"),
    )
    prior: str = setting(
        "tokens",
        "what equal weights stand for: the tasks' shares of the batch's tokens, or uniform; cats: of proximal only",
        choices=("tokens", "uniform"),
    )
    strength: float = setting(0.5, "cats, proximal: how far alpha moves from the prior; 0: not at all", need=FINITE)
    floor: float | str = setting(
        "auto", "cats: smallest weight, as a share of the prior; auto: 0.1 for proximal, 0 for softmax", need=FLOOR
    )
    alpha_lr: float | str = setting(
        "auto",
        "cats: learning rate of alpha; auto: 0.1 for proximal (at most 1), 1 for softmax, 1e-3 for lagrangian",
        need=RATE,
    )
    multiplier_lr: float | str = setting(
        "auto",
        "cats: learning rate of the multipliers; auto: 1 for softmax, 1e-3 for lagrangian; proximal has none",
        need=RATE,
    )
    epsilon: float = setting(
        1e-3,
        "cats: bound on the squared gradient norm in the constraint; not used by proximal",
        need=FINITE,
    )
    loss_term: bool = setting(False, "cats: include the losses in the gradient of alpha")
    cross_batch: bool = setting(
        False,
        "cats: dot products between two halves of each task's batch, so that batch noise adds no bias",
    )
    direction: str = setting(
        "gradient",
        "cats, proximal: what a task's gradient is compared with: that of the batch, as it is or in Adam's metric; "
        "or Adam's momentum or last update",
        choices=("gradient", "preconditioned", "momentum", "update"),
    )
    engine: str = setting(
        "auto",
        "cats: how outer steps get the dot products (see cats.MultiTask); auto: in one backward pass, if possible",
        choices=("auto", "per_task", "two_pass", "one_pass", "forward_mode"),
    )
    rows: float = setting(
        1.0, "cats, one_pass: share of each task's rows that the dot products are estimated from; 1: exact", need=SHARE
    )

    @property
    def follows_tokens(self) -> bool:
        """Whether alpha is the tasks' shares of each batch's tokens times factors, which start at 1."""
        return self.name == "cats" and self.simplex == "proximal" and self.prior == "tokens"


@dataclass(frozen=True)
class Train:
    """The training loop and the base optimizer."""

    steps: int = setting(1600, "updates of the model", need=POSITIVE_COUNT)
    lr: float = setting(6e-3, "peak learning rate; noam: multiplied by (d_model * warmup)^(-1/2)", need=POSITIVE)
    warmup: int = setting(150, "updates until the learning rate reaches its peak", need=COUNT)
    warmup_start: float = setting(0.0, "learning rate at the start of the warm-up", need=FINITE)
    schedule: str = setting(
        "inverse-sqrt",
        "learning rate schedule after the warm-up; noam: inverse-sqrt with another meaning of lr",
        choices=("inverse-sqrt", "cosine", "constant", "noam"),
    )
    label_smoothing: float = setting(
        0.1, "share of the target probability that is spread over the vocabulary", need=FRACTION
    )
    betas: tuple[float, float] = setting((0.9, 0.98), "Adam's beta1 and beta2", need=BETAS)
    eps: float = setting(1e-9, "Adam's epsilon", need=POSITIVE)
    weight_decay: float = setting(0.0, "decoupled weight decay (AdamW)", need=FINITE)
    clip: float = setting(1.0, "largest gradient norm; 0 or inf: no clipping", need=NOT_NEGATIVE)
    ema: float = setting(
        0.0,
        "decay of a moving average of the parameters, which is validated and kept as the best model (0.99); 0: off",
        need=FRACTION,
    )
    seed: int = setting(1, "seed of the parameters, the batches and the dropout", need=SEED)
    accumulate: int = setting(
        1,
        "number of parts that an update's batch is split into; they are computed one after the other, to save memory",
        need=between(1, 10_000),
    )
    precision: str = setting(
        "fp32",
        "of matrix products: bf16 and fp16 (with loss scaling) use autocast; parameters and losses stay fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    checkpoint_activations: bool = setting(False, "recompute the layers in the backward pass, to save memory")
    compile: bool = setting(
        False, "compile the layers (torch.compile): takes minutes at the start, then faster on a GPU"
    )
    distributed: str = setting(
        "replicas",
        "what each process of torchrun has: all parameters, a shard (fsdp), or a shard within its machine (hybrid)",
        choices=("replicas", "fsdp", "hybrid"),
    )
    communication: str = setting(
        "fp32", "numbers in which processes exchange gradients; bf16 halves the traffic", choices=("fp32", "bf16")
    )
    wandb: str = setting("", "project of Weights & Biases that gets the numbers of metrics.jsonl, too; empty: none")
    log_every: int = setting(10, "updates between two lines of metrics.jsonl", need=POSITIVE_COUNT)
    validate_every: int = setting(300, "updates between two validations", need=POSITIVE_COUNT)
    save_every: int = setting(
        0, "updates between two checkpoints, in addition to those at validations; 0: only at validations", need=COUNT
    )
    keep: int = setting(0, "number of newest validations whose models are kept, for cats average", need=COUNT)
    validate_bleu: int = setting(
        0,
        "translate validation lines by greedy search, for BLEU and chrF, at each N-th validation and the last; 0: off",
        need=COUNT,
    )
    validate_lines: int = setting(
        100, "train.validate_bleu: lines of each task to translate, evenly spread, always the same; 0: all", need=COUNT
    )
    best_metric: str = setting(
        "nll",
        "what the best model has: the lowest validation NLL, or the highest BLEU or chrF of train.validate_bleu; means "
        "over the tasks",
        choices=("nll", "bleu", "chrf"),
    )
    analyse_every: int = setting(
        0,
        "updates between two measurements of the loss landscape on the validation text, as by cats analyse; 0: never",
        need=COUNT,
    )
    patience: int = setting(
        0, "stop after this many validations without a better train.best_metric; 0: never", need=COUNT
    )
    init_from: str = setting("", "run directory whose best model training starts from; empty: random parameters")
    pretrain: tuple[str, ...] = setting(
        (),
        "tasks, or groups of them (hires, midres, lores), that are trained alone first; after that all tasks, with "
        "optimizer, alpha and learning rate reset",
    )
    finetune: tuple[str, ...] = setting(
        (), "with train.pretrain or train.restart: the tasks, or groups, that are trained alone after the reset"
    )
    pretrain_steps: int = setting(
        0, "updates before the reset of train.pretrain or train.restart; train.steps includes them", need=COUNT
    )
    restart: bool = setting(False, "train all tasks from the start, with the same reset as train.pretrain")
    restart_parts: str = setting(
        "all",
        "what the reset renews: all, only the learning rate, or only the optimizer with alpha",
        choices=("all", "learning-rate", "optimizer"),
    )
    threads: int = setting(0, "CPU threads; 0: one if d_model is below 256, else torch's default", need=THREADS)


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


@dataclass(frozen=True)
class Evaluate:
    """Which lines are translated and scored, and the groups of tasks whose macro-averages are reported."""

    search: str = setting(
        "beam",
        "beam (of the size decode.beam), greedy, or none: no translation, only the NLL of the validation text",
        choices=("beam", "greedy", "none"),
    )
    lines: int = setting(
        0, "translate only this many lines of each task, evenly spread, the same in every run; 0: all", need=COUNT
    )
    strata: str = setting(
        "all",
        "translate all lines, or only those of the stratum that results are reported on",
        choices=("all", "headline"),
    )
    baseline: bool = setting(True, "compute the nearest-neighbour baseline, too")
    lores_below: int = setting(
        0, "tasks with fewer training pairs than this are LoRes; 0: with fewer than the mean", need=PAIRS
    )
    hires_from: int = setting(
        0,
        "tasks with at least this many pairs are HiRes, the rest MidRes; 0: all tasks that are not LoRes are HiRes",
        need=PAIRS,
    )
    lores: tuple[str, ...] = setting((), "names of the LoRes tasks; a list for any group replaces the two bounds")
    midres: tuple[str, ...] = setting((), "names of the MidRes tasks")
    hires: tuple[str, ...] = setting((), "names of the HiRes tasks")


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    model: Model = field(default_factory=Model)
    sampling: Sampling = field(default_factory=Sampling)
    method: Method = field(default_factory=Method)
    train: Train = field(default_factory=Train)
    decode: Decode = field(default_factory=Decode)
    evaluate: Evaluate = field(default_factory=Evaluate)


# {section: its class}, {"section.key": type}, {"section.key": field}
SECTIONS: dict[str, type] = get_type_hints(Config)
TYPES: dict[str, Any] = {
    f"{section}.{key}": kind for section, cls in SECTIONS.items() for key, kind in get_type_hints(cls).items()
}
FIELDS: dict[str, dataclasses.Field[Any]] = {
    f"{section}.{f.name}": f for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)
}


def value_of(config: Config, name: str) -> Any:
    """The value of the setting "section.key"."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)
