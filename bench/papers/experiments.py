"""What is trained for the figures: each experiment is one `cats compare` or `cats pareto` at two scales.

Figures share experiments, so each is trained once. Both commands continue where they were stopped.

tiny: the built-in corpus and the model of preset tiny. A run takes one to two minutes of a core (`opus100` eight,
`wide` five), and two run at a time.
paper: the sizes and schedules of the papers, on text that the user has: {data} is the folder of --data. In it are
ted-related, ted-diverse, wmt10, opus100, zh-fr, ro-fr, hi-fr and mc4, each in a layout that `cats data inspect` reads;
docs/papers.md says which text is meant.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """One command, without its --out.

    command: compare or pareto. both, tiny, paper: its options, at both scales and at one of them.
    corpus: the options of `cats data cldr` that write the corpus {corpus} of the tiny scale first; "": it needs none.
    """

    name: str
    command: str
    both: str
    tiny: str
    paper: str
    corpus: str = ""

    def options(self, scale: str) -> str:
        """All options at a scale."""
        return f"{self.both} {self.tiny if scale == 'tiny' else self.paper}"


# A quick ranking is enough at the tiny scale: greedy search on 60 lines of each language.
_TINY = "--jobs 2 --set evaluate.search=greedy --set evaluate.lines=60"
_SEEDS = "--seeds 11 12 13"
_WATCHED = "--set train.validate_every=150 --set train.validate_bleu=1 --set train.validate_lines=30 --set train.keep=9"
_PAPER = "--jobs 1"
# CATS as this repository has it by default, and with the Lagrangian of the paper (Eq. 4 and Algorithm 1).
_CATS = "cats --controls none --variant eq4:method.simplex=lagrangian"
# Order Matters: the best of these learning rates for each point; 300,000 updates, and 50,000 after the reset.
_ORDER = "--preset order-matters-3 --lr 2.5e-4 5e-4 2.5e-3 5e-3 7.5e-3 --jobs 1 --set train.steps=350000"
_LATE = (
    "--variant pretrain-300k:pretrain-finetune,train.pretrain_steps=300000 "
    "--variant restart-300k:restart,train.pretrain_steps=300000 --methods static"
)
_RATIOS = "--ratios 0.1 0.3 0.5 0.7 0.9"
_TINY_FRONT = f"--ratios 0.1 0.3 0.6 0.9 {_TINY}"
_LINES = "[az-az,be-be,gl-gl,en-en]"
# The small languages of the tiny scale, and of mC4. The part of the paper that names its languages was not available.
_LOW_LINES, _LOW_MC4 = "az-az,be-be,gl-gl", "gu-gu,sw-sw"

EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment(
            "related",
            "compare",
            f"--methods T=1 T=5 T=inf gradnorm multidds {_CATS} {_SEEDS}",
            f"--sets ted:train.steps=1350 {_TINY} {_WATCHED}",
            f"--data {{data}}/ted-related --preset ted {_PAPER} --set train.validate_bleu=1 --set train.keep=9",
        ),
        Experiment(
            "diverse",
            "compare",
            f"--methods T=1 T=5 T=inf gradnorm multidds {_CATS}",
            f"--sets diverse:train.steps=1350 {_TINY} --seeds 11 12",
            f"--data {{data}}/ted-diverse --preset ted {_PAPER} {_SEEDS}",
        ),
        Experiment(
            "wmt",
            "compare",
            f"--methods T=1 T=5 {_CATS} {_SEEDS}",
            f"--sets wmt {_TINY}",
            f"--data {{data}}/wmt10 --preset base {_PAPER}",
        ),
        Experiment(
            "opus100",
            "compare",
            f"--methods T=1 T=5 {_CATS} --variant clsr:T=5,model.clsr=0.3",
            f"--sets opus100:train.steps=1000 {_TINY} --set evaluate.lines=20 --seeds 11",
            f"--data {{data}}/opus100 --preset opus100 {_PAPER} {_SEEDS}",
        ),
        Experiment(
            "many-to-one",
            "compare",
            f"--methods T=1 {_CATS} --variant plain:T=1,model.norm=layernorm-plain --set data.direction=many-to-one",
            f"--data {{corpus}} --set train.steps=1350 {_TINY} --seeds 11 12",
            f"--data {{data}}/ted-diverse --preset ted {_PAPER} {_SEEDS}",
            corpus="--languages diverse --sizes ted",
        ),
        Experiment(
            "wide",  # Figure 7, with the runs of `related` as the smaller model
            "compare",
            f"--methods T=1 T=5 {_CATS}",
            f"--sets ted:train.steps=1350 {_TINY} --set model.d_model=192 --set model.ffn=384 --seeds 11 12",
            f"--data {{data}}/ted-related --preset wide-300m {_PAPER} {_SEEDS}",
        ),
        Experiment(
            "large-batches",  # Figure 8, with the runs of `related`: four times the batch, a quarter of the updates
            "compare",
            f"--methods T=1 T=5 {_CATS}",
            f"--sets ted:train.steps=340 {_TINY} --set sampling.batch_tokens=3200 --set train.warmup=40 --seeds 11 12",
            f"--data {{data}}/ted-related --preset ted {_PAPER} --set sampling.batch_tokens=131000 {_SEEDS}",
        ),
        Experiment(
            "both-high",
            "pareto",
            "--seeds 11 12",
            f"--sets ted:train.steps=700 --between pt ru --methods restart pretrain {_TINY_FRONT}",
            f"--data {{data}}/zh-fr --between zh fr {_LATE} {_ORDER} {_RATIOS}",
        ),
        Experiment(
            "low-ro",
            "pareto",
            "--seeds 11 12",
            "--sets wmt:train.steps=700 --between ro de "
            f"--methods restart pretrain cats temperature-schedule {_TINY_FRONT}",
            f"--data {{data}}/ro-fr --between ro fr {_LATE} cats temperature-schedule {_ORDER} {_RATIOS}",
        ),
        Experiment(
            "low-hi",
            "pareto",
            "--seeds 11 12",
            f"--sets wmt:train.steps=700 --between hi de --methods restart pretrain {_TINY_FRONT}",
            f"--data {{data}}/hi-fr --between hi fr {_LATE} {_ORDER} {_RATIOS}",
        ),
        Experiment(
            "low-hi-bleu",
            "pareto",
            "--ratios 0.1 0.5 0.9 --seeds 11 --metric bleu",
            f"--sets wmt:train.steps=700 --between hi de --methods restart pretrain {_TINY}",
            f"--data {{data}}/hi-fr --between hi fr {_LATE} {_ORDER}",
        ),
        Experiment(
            "low-ro-rate",  # Figures 10 to 19: as low-ro, with one other learning rate for all points
            "pareto",
            "--seeds 11",
            "--sets wmt:train.steps=700 --between ro de --methods restart pretrain "
            f"--set train.lr=1.5e-3 {_TINY_FRONT}",
            f"--data {{data}}/ro-fr --between ro fr {_LATE} --preset order-matters-3 --set train.lr=5e-4 "
            f"--set train.steps=350000 {_RATIOS} {_PAPER}",
        ),
        Experiment(
            "forgetting",
            "compare",
            "--controls none --seeds 11 12",
            f"--methods T=1 pretrain-finetune lowres-finetune {_TINY} --set train.validate_every=50 "
            "--sets wmt:train.steps=700,data.tasks=[hi,de]",
            f"--methods T=1 --data {{data}}/hi-fr {_ORDER} "
            "--variant pretrain-finetune-300k:pretrain-finetune,train.pretrain_steps=300000 "
            "--variant lowres-finetune-300k:lowres-finetune,train.pretrain_steps=300000",
        ),
        Experiment(
            "lengths",
            "compare",
            "--methods T=1 --controls none --seeds 11 12",
            f"--sets wmt:train.steps=700,data.tasks=[hi,de] {_TINY} "
            "--variant pre70:pretrain-finetune,train.pretrain_steps=70 "
            "--variant pre245:pretrain-finetune,train.pretrain_steps=245 "
            "--variant pre455:pretrain-finetune,train.pretrain_steps=455 "
            "--variant pre630:pretrain-finetune,train.pretrain_steps=630",
            f"--data {{data}}/hi-fr {_ORDER} "
            "--variant pre100k:pretrain-finetune,train.pretrain_steps=100000 "
            "--variant pre200k:pretrain-finetune,train.pretrain_steps=200000 "
            "--variant pre300k:pretrain-finetune,train.pretrain_steps=300000",
        ),
        Experiment(
            "lines",
            "pareto",
            "--methods restart pretrain T=1 T=3.33 --seeds 11 12",
            f"--sets ted:train.steps=700,data.tasks={_LINES} --between {_LOW_LINES} en-en {_TINY_FRONT}",
            f"--data {{data}}/mc4 --between {_LOW_MC4} en-en --preset base --jobs 1 {_RATIOS}",
        ),
        Experiment(
            "lines-lengths",
            "pareto",
            "--ratios 0.5 --methods restart --seeds 11 12",
            f"--sets ted:train.steps=700,data.tasks={_LINES} --between {_LOW_LINES} en-en {_TINY} "
            "--variant pre70:pretrain-finetune,train.pretrain_steps=70 "
            "--variant pre245:pretrain-finetune,train.pretrain_steps=245 "
            "--variant pre630:pretrain-finetune,train.pretrain_steps=630",
            f"--data {{data}}/mc4 --between {_LOW_MC4} en-en --preset base --jobs 1 "
            "--variant pre30k:pretrain-finetune,train.pretrain_steps=30000 "
            "--variant pre90k:pretrain-finetune,train.pretrain_steps=90000",
        ),
    )
}
