"""The training loop and the base optimizer: section train."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import (
    BETAS,
    COUNT,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_COUNT,
    SEED,
    THREADS,
    between,
    setting,
)


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
