"""The table of all methods. `cats methods` prints it.

To add one, add a line to `CATALOGUE` and its name to ``METHODS`` of ``cats.nmt.config.schema``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NUMBERS, GRAM, GRADIENTS = "weights from K numbers", "weights from the Gram matrix", "from the gradients themselves"
SAMPLER, RECIPE, DISTILLATION = "sampler", "recipe", "self-distillation"
FAMILIES = (NUMBERS, GRAM, GRADIENTS, SAMPLER, RECIPE, DISTILLATION)

ONE_PASS = "1 backward pass"
PER_TASK = "1 backward pass per task, K gradients in memory"


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: the value of `method.name`. X:NAME stands for any name after the colon.
        family: one of FAMILIES. Samplers and recipes choose the batches; the loss is the plain mean over their tokens.
            So it is with self-distillation, but the loss of a token is another one.
        what: what it does, in one line.
        paper: where it comes from.
        needs: what it needs besides the losses of the tasks.
        cost: of an update, compared with one backward pass.
        made_by: the class or function that `method.options` are passed to, such as "cats.weighting.RLW". Empty if the
            method has settings of its own. It is a string, so that the table can be read without importing
            the methods.
        relative: whether its weights say how a task counts relative to `method.prior`, so that equal weights are the
            plain mean over the batch's tokens. If not, they balance the tasks by the sizes of their gradients, which
            would undo or invert the prior: the gradients are those of the tasks' mean losses.
        sums: whether the weights sum to the number of tasks instead of 1 if they are equal.
        note: what to know before its results are read. `cats methods NAME` shows it.
        space: {setting: values} that the trials of `cats compare` choose from, besides the learning rate.
    """

    name: str
    family: str
    what: str
    paper: str
    needs: str = "nothing more"
    cost: str = ONE_PASS
    made_by: str = ""
    relative: bool = True
    sums: bool = False
    note: str = ""
    space: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_weighting(self) -> bool:
        """Whether it weights the tasks' gradients. The others choose the batches."""
        return self.family in (NUMBERS, GRAM, GRADIENTS)

    @property
    def has_plain_weights(self) -> bool:
        """Whether the weights are those of `method.weights`, which never change."""
        return not self.is_weighting or self.name == "static"

    def maker(self) -> Any:
        """What `made_by` names."""
        module, _, name = self.made_by.rpartition(".")
        return getattr(importlib.import_module(module), name)


CATALOGUE = (
    Method(
        "cats",
        NUMBERS,
        "weights that make the squared norm of the combined gradient small, near a prior; settings: method.*",
        "Li & Gong, NeurIPS 2021, arXiv 2104.07639",
        "inner products of the gradients, every method.inner_steps updates",
        f"{ONE_PASS} and some matrix products in outer steps",
        space={"method.strength": ("0.25", "0.5", "1"), "method.alpha_lr": ("0.05", "0.1", "0.3")},
    ),
    Method("static", NUMBERS, "fixed weights: method.weights", "the weighted sum of the losses"),
    Method(
        "rlw",
        NUMBERS,
        "random weights in every update: the control that every adaptive weighting has to beat",
        "Lin et al., TMLR 2022, arXiv 2111.10603",
        made_by="cats.weighting.RLW",
    ),
    Method(
        "gradnorm",
        NUMBERS,
        "tasks that learn slowly get gradients of a larger norm",
        "Chen et al., ICML 2018, arXiv 1711.02257",
        "the norm of each task's gradient, of all parameters",
        PER_TASK,
        made_by="cats.weighting.GradNorm",
        space={"method.options": ("power=0.5", "lr=0.1", "power=0.5,lr=0.1")},
        relative=False,
    ),
    Method(
        "group-dro",
        NUMBERS,
        "weight moves to the tasks with the largest losses, by exponentiated gradient ascent",
        "Sagawa et al., ICLR 2020, arXiv 1911.08731",
        made_by="cats.weighting.GroupDRO",
        space={"method.options": ("step_size=0.003", "step_size=0.03", "step_size=0.1")},
    ),
    Method(
        "cvar-dro",
        NUMBERS,
        "the mean loss of the worst tasks, which make up a given share of the data",
        "Oren et al., EMNLP 2019, arXiv 1909.02060",
        made_by="cats.weighting.CVaRDRO",
        space={"method.options": ("tail=0.25", "tail=0.75", "floor=0.3")},
    ),
    Method(
        "chi-square-dro",
        NUMBERS,
        "the worst mixture of the tasks within a chi-square ball around the tasks' shares, by primal-dual steps",
        "Zhou et al., EMNLP 2021, arXiv 2109.04020",
        made_by="cats.weighting.ChiSquareDRO",
        space={"method.options": ("rho=0.05", "rho=0.3", "step_size=0.01")},
    ),
    Method(
        "uncertainty",
        NUMBERS,
        "each loss is divided by a learnt variance",
        "Kendall et al., CVPR 2018, arXiv 1705.07115",
        made_by="cats.weighting.Uncertainty",
        space={"method.options": ("lr=0.001", "lr=0.003", "lr=0.03")},
    ),
    Method(
        "dwa",
        NUMBERS,
        "weight to the tasks whose losses fall slowly",
        "Liu et al., CVPR 2019, arXiv 1803.10704",
        made_by="cats.weighting.DWA",
        space={"method.options": ("temperature=1", "temperature=4", "window=50")},
    ),
    Method(
        "famo",
        NUMBERS,
        "the logarithms of all losses shall fall at the same rate",
        "Liu et al., NeurIPS 2023, arXiv 2306.03792",
        "the losses of the batch once more after the update",
        f"{ONE_PASS}, 1 more forward pass",
        made_by="cats.weighting.FAMO",
        space={"method.options": ("lr=0.005", "lr=0.1", "decay=0.001")},
    ),
    Method(
        "mgda",
        GRAM,
        "the shortest convex combination of the gradients, which descends on all losses at once",
        "Sener & Koltun, NeurIPS 2018, arXiv 1810.04650",
        "the inner products of all tasks' gradients",
        PER_TASK,
        made_by="cats.weighting.MGDA",
        space={"method.options": ("normalisation=l2", "normalisation=loss", "normalisation=loss+")},
        relative=False,
    ),
    Method(
        "pcgrad",
        GRAM,
        "the part of a gradient that conflicts with another one is removed",
        "Yu et al., NeurIPS 2020, arXiv 2001.06782",
        "the inner products of all tasks' gradients",
        PER_TASK,
        made_by="cats.weighting.PCGrad",
        sums=True,
    ),
    Method(
        "gradvac",
        GRAM,
        "gradients that are less similar than usual are turned towards each other",
        "Wang et al., ICLR 2021, arXiv 2010.05874",
        "the inner products of all tasks' gradients; per layer with method.options=groups=layer",
        PER_TASK,
        made_by="cats.weighting.GradVac",
        space={"method.options": ("beta=0.001", "beta=0.1", "groups=layer")},
        sums=True,
    ),
    Method(
        "torchjd:NAME",
        GRAM,
        "a rule of TorchJD: UPGrad, CAGrad, AlignedMTL, IMTLG, NashMTL, FairGrad, DualProj, ...",
        "Quinton & Rey, arXiv 2406.16232, and the papers of the rules",
        "the inner products of all tasks' gradients, and pip install '.[torchjd]'",
        PER_TASK,
        made_by="cats.weighting.torchjd",
    ),
    Method(
        "graddrop",
        GRADIENTS,
        "of the gradients of each parameter, those of one sign, chosen at random",
        "Chen et al., NeurIPS 2020, arXiv 2010.06808",
        "the gradients of all tasks",
        PER_TASK,
        made_by="cats.weighting.GradDrop",
        sums=True,
        space={"method.options": ("leak=0.25", "leak=0.5")},
    ),
    Method(
        "target-projection",
        GRADIENTS,
        "what conflicts with the gradient of a task's trusted pairs is removed from the task's gradient",
        "Yang et al., EMNLP 2021, arXiv 2109.04778",
        "validation pairs of all tasks, of which four fifths are trusted",
        "2 backward passes per task, 2 N gradients in memory",
        made_by="cats.nmt.methods.target_projection.TargetProjection",
        space={"method.options": ("groups=layer", "groups=parameter")},
        sums=True,
    ),
    Method(
        "temperature",
        RECIPE,
        "a task is drawn with probability ~ pairs^(1/T): sampling.temperature",
        "Arivazhagan et al. 2019, arXiv 1907.05019",
    ),
    Method(
        "temperature-schedule",
        RECIPE,
        "T changes from sampling.temperature (1) to sampling.temperature_end (5), linearly in 1/T",
        "Wang, Zhai & Hassan, EMNLP 2020, arXiv 2010.02523 (there linear in T)",
        space={"sampling.temperature_end": ("2", "3", "inf")},
    ),
    Method("ratios", RECIPE, "the shares of the sentences are given: sampling.ratios", "any tuned mixture"),
    Method(
        "unimax",
        RECIPE,
        "uniform in tokens, with at most sampling.unimax_epochs (100) passes over each task",
        "Chung et al., ICLR 2023, arXiv 2304.09151",
        space={"sampling.unimax_epochs": ("20", "50", "200")},
    ),
    Method(
        "pretrain-finetune",
        RECIPE,
        "HiRes tasks for 35 % of the updates (train.pretrain), then all tasks after a warm restart",
        "Choi et al., NeurIPS 2023, arXiv 2312.06134",
    ),
    Method(
        "restart",
        RECIPE,
        "optimizer and learning rate start again after 35 % of the updates (train.pretrain_steps)",
        "the control of Choi et al., NeurIPS 2023, arXiv 2312.06134",
    ),
    Method(
        "lowres-finetune",
        RECIPE,
        "HiRes tasks for 35 % of the updates, then LoRes tasks alone (train.finetune): shows what is forgotten",
        "transfer without joint training: Zoph et al., EMNLP 2016, arXiv 1604.02201",
        note="best.pt is the best by the mean over all tasks (train.best_metric), also over those of the first phase: "
        "it may be from before they are forgotten. To see what is forgotten, read the NLL of each task in "
        "metrics.jsonl (valid), or score the last model: cats evaluate RUN --checkpoint last.",
    ),
    Method(
        "staged",
        RECIPE,
        "T=1 for 35 % of the updates, then T=3 after a warm restart",
        "the order of Choi et al., NeurIPS 2023, arXiv 2312.06134, with temperatures in place of tasks",
    ),
    Method(
        "staged-cats",
        RECIPE,
        "method cats in this order, with T=4 in the second phase and method.strength=1",
        "Li & Gong, NeurIPS 2021, arXiv 2104.07639, in the order of Choi et al.",
        "inner products of the gradients, every method.inner_steps updates",
        f"{ONE_PASS} and some matrix products in outer steps",
        note="The run is one of method cats. docs/results.md compares it with all baselines.",
    ),
    Method(
        "adaptive",
        SAMPLER,
        "tasks below the validation loss of their baselines are drawn more often",
        "Jean, Firat & Johnson 2019, arXiv 1909.06434",
        "a finished run, or its validation losses: reference or baselines",
        made_by="cats.nmt.methods.adaptive.Adaptive",
    ),
    Method(
        "bandit",
        SAMPLER,
        "EXP3.S: tasks whose training loss falls fastest are drawn more often",
        "Graves et al., ICML 2017, arXiv 1704.03003; Kreutzer et al. 2021, arXiv 2110.06997",
        made_by="cats.nmt.methods.bandit.Bandit",
        space={"method.options": ("rate=0.03", "rate=0.3", "exploration=0.2")},
    ),
    Method(
        "chi-square-ibr",
        SAMPLER,
        "the worst mixture in a chi-square ball, renewed every period (iterated best response)",
        "Zhou et al., EMNLP 2021, arXiv 2109.04020",
        made_by="cats.nmt.methods.chi_square_ibr.ChiSquareIBR",
        space={"method.options": ("rho=0.02", "rho=0.1", "period=50")},
    ),
    Method(
        "doremi",
        SAMPLER,
        "the mean mixture of a proxy run, which draws what is worse than a reference run",
        "Xie et al., NeurIPS 2023, arXiv 2305.10429",
        "two earlier runs: reference, then ratios_from",
        f"{ONE_PASS}; three runs",
        made_by="cats.nmt.methods.doremi.DoReMi",
    ),
    Method(
        "double-power-law",
        SAMPLER,
        "constant ratios that a law fitted to a sweep of runs predicts to be best",
        "Chen et al., NeurIPS 2023, arXiv 2304.03216",
        "a sweep: finished runs with different ratios, or a file of their ratios and losses",
        f"{ONE_PASS}; the runs of the sweep",
        made_by="cats.nmt.methods.double_power_law.DoublePowerLaw",
    ),
    Method(
        "mirror",
        SAMPLER,
        "mirror ascent on the losses between T=1 and T=3, a form of group DRO; a control",
        "Sagawa et al., ICLR 2020, arXiv 1911.08731, with a box",
        made_by="cats.nmt.methods.mirror.Mirror",
        space={"method.options": ("rate=0.02", "rate=0.1", "temperature=5")},
    ),
    Method(
        "multidds",
        SAMPLER,
        "tasks whose gradient agrees with the validation gradient one step ahead are drawn more often",
        "Wang, Tsvetkov & Neubig, ACL 2020, arXiv 2004.06748",
        "validation pairs of all tasks",
        f"{ONE_PASS}, and 2 N every period updates",
        made_by="cats.nmt.methods.multidds.MultiDDS",
        space={"method.options": ("rate=0.0003", "rate=0.003", "period=50")},
    ),
    Method(
        "multidds-s",
        SAMPLER,
        "the same with all gradients at one point",
        "Wang, Tsvetkov & Neubig, ACL 2020, arXiv 2004.06748",
        "validation pairs of all tasks",
        f"{ONE_PASS}, and 2 N every period updates",
        made_by="cats.nmt.methods.multidds.MultiDDSS",
        space={"method.options": ("rate=0.0003", "rate=0.003", "period=50")},
    ),
    Method(
        "lssd",
        DISTILLATION,
        "a task that gets worse in validation learns from the best model that it has had",
        "Huang et al., EMNLP 2022, arXiv 2205.01620",
        "validation pairs of all tasks",
        f"{ONE_PASS} and, for the tasks that got worse, a forward pass of the teacher; up to N models in main memory",
        made_by="cats.nmt.methods.lssd.LSSD",
        space={"method.options": ("weight=0.3", "weight=0.7", "wait=2")},
    ),
)

# Rules of TorchJD that are not as `torchjd:NAME` says, see ``Method.relative`` and ``Method.sums``.
_BALANCING = {"AlignedMTL", "FairGrad", "IMTLG", "MGDA", "NashMTL", "PCD"}
_SUMS = {"GradVac", "PCGrad", "Sum"}


def find(name: str) -> Method:
    """The method that a value of `method.name` means, which the configuration has checked."""
    prefix, colon, rule = name.partition(":")
    method = next(method for method in CATALOGUE if method.name == (f"{prefix}:NAME" if colon else name))
    rule = rule.removesuffix("Weighting")
    if rule in _BALANCING | _SUMS:
        return replace(method, relative=rule not in _BALANCING, sums=rule in _SUMS)
    return method
