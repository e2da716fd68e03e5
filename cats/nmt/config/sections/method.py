"""How the tasks are weighted or drawn: section method, and the names of all methods."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import FINITE, FLOOR, POSITIVE_COUNT, RATE, RATIOS, SHARE, WEIGHTS, setting

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
