"""The runs of `cats pareto`."""

from __future__ import annotations

import pytest

from cats.nmt.config.schema import Config
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.errors import UserError
from cats.nmt.scoring.grid import runs as grid
from cats.nmt.scoring.pareto.plan import all_runs
from tests.nmt.scoring.comparisons import LINES
from tests.nmt.scoring.pareto.made import on_a_front, planned, planned_front


@pytest.fixture
def words(corpus, tmp_path):
    """Options for a corpus with xa (12 training pairs, HiRes) and xb (3, LoRes)."""
    return ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "2"]


def configs(*words: str) -> dict[tuple[str, float | None], Config]:
    """The settings of each point with the first seed."""
    (front,) = planned(*words)
    return {(point.method, point.ratio): point.runs[0].config for point in front.points}


def test_a_method_is_trained_over_the_ratios_unless_it_has_a_mixture_of_its_own(words):
    over_ratios = ["restart", "pretrain", "cats", "cats-staged", "famo"]
    alone = ["T=5", "staged", "staged-cats", "temperature-schedule", "unimax", "bandit"]
    variants = ["--variant=long:pretrain,train.pretrain_steps=9", "--variant=mixed:cats,sampling.temperature=2"]
    found = configs(*words, "--ratios", "0.7", "0.2", "--methods", *over_ratios, *alone, *variants)
    names = ["static", "restart", "pretrain-finetune", "cats", "cats-staged", "famo"]
    assert list(found) == [
        *((name, ratio) for name in names for ratio in (0.2, 0.7)),
        *((name, None) for name in alone),
        ("long", 0.2),
        ("long", 0.7),
        ("mixed", None),
    ]
    for (_, ratio), config in found.items():
        assert config.sampling.ratios == {None: (), 0.2: (0.8, 0.2), 0.7: (0.3, 0.7)}[ratio]  # xa, then xb
        assert config.evaluate.search == "none" and config.evaluate.lores == ("xb",)
    assert found["T=5", None].sampling.temperature == 5 and found["mixed", None].sampling.temperature == 2
    assert found["pretrain-finetune", 0.2].train.pretrain == ("hires",) == found["long", 0.7].train.pretrain
    assert found["long", 0.2].train.pretrain_steps == 9
    assert found["cats-staged", 0.2].sampling.first_temperature == 1


@pytest.mark.parametrize("mixture", ["sampling.ratios=1,2", "sampling.unimax_epochs=2", "sampling.temperature_end=5"])
def test_ratios_replace_the_mixture_that_all_methods_start_from(words, mixture):
    found = configs(*words, "--ratios", "0.2", "--methods", "cats", "unimax", "T=5", "--set", mixture)
    for (method, ratio), config in found.items():
        sampling = config.sampling
        assert sampling.ratios == ((0.8, 0.2) if ratio else ()) and not sampling.temperature_end
        assert bool(sampling.unimax_epochs) == (method == "unimax")


def test_constant_weights_are_those_of_the_run_at_the_same_ratio(words):
    (front,) = planned(*words, "--ratios", "0.2", "0.7", "--methods", "cats", "cats-fixed")
    for point in front.points:
        for run in point.runs:
            fixed = point.method == "cats-fixed"
            assert (run.source and (run.source.path.parent, run.source.seed)) == (
                (run.path.parent, run.seed) if fixed else None
            )


def test_static_ratios_have_one_phase_whatever_the_other_methods_have(words):
    restarted = ["--set", "train.restart=true", "--set", "train.pretrain_steps=9", "--set", "method.weights=uniform"]
    found = configs(*words, "--ratios", "0.5", "--methods", "static", "cats", *restarted)
    static, cats = found["static", 0.5], found["cats", 0.5]
    assert (static.train.restart, static.train.pretrain_steps, static.method.weights) == (False, 0, "tokens")
    assert cats.train.restart and static.sampling.ratios == cats.sampling.ratios


def test_a_group_shares_its_ratio_by_temperature(words, tmp_path):
    options = ["--ratios", "0.2", "--methods", "static", "--set", "sampling.temperature=1", "--between"]
    one = configs(*words, *options, "lores", "hires")["static", 0.2]
    assert (one.sampling.ratios, one.evaluate.lores, one.evaluate.hires) == ((0.8, 0.2), ("xb",), ("xa",))
    assert one.data.tasks == ()  # all are trained
    sizes = {"xa": 1, "xb": 6, "xc": 3, "xd": 5, "xe": 2}
    few = Split(LINES[:1], LINES[:1])
    tasks = [Task(name, "en", name, Split(LINES[:n], LINES[:n]), few, few) for name, n in sizes.items()]
    write_corpus(Corpus("more", tasks), tmp_path / "more")
    several = configs(*words, *options, "xa,xe", "xb,xc", "--data", str(tmp_path / "more"))["static", 0.2]
    assert set(several.data.tasks) == {"xa", "xb", "xc", "xe"}  # xd is left out
    assert several.evaluate.lores == ("xa", "xe") and several.evaluate.hires == ("xb", "xc")
    assert several.sampling.ratios == pytest.approx([0.2 / 3, 0.8 * 6 / 9, 0.8 * 3 / 9, 0.2 * 2 / 3], abs=1e-6)


def test_ratios_are_in_the_order_of_the_names_of_the_tasks(tmp_path):
    """The built-in corpus has its tasks in another order."""
    pytest.importorskip("babel")
    options = ["--sets", "ted", "--out", str(tmp_path), "--between", "sk", "cs", "--ratios", "0.2"]
    assert configs(*options, "--methods", "static")["static", 0.2].sampling.ratios == (0.8, 0.2)  # cs, then sk


def test_every_ratio_and_method_has_the_same_number_of_trials(words):
    (front,) = planned(*words, "--ratios", "0.2", "0.8", "--lr", "1e-3", "3e-3", "--trials", "3")
    for point in front.points:
        for run in point.runs:
            assert [trial.run.config.train.lr for trial in run.trials[:2]] == [1e-3, 3e-3]
            assert {trial.run.config.sampling.ratios for trial in run.trials} == {run.config.sampling.ratios}
            assert len(run.trials) == 3
    runs = all_runs([front])
    assert [run.seed for run in runs] == [1] * 8 + [2] * 8  # a front that is stopped has all points first
    assert len({run.path for run in grid.everything(runs)}) == len(grid.everything(runs)) == 16 + 8 * 3
    grid.check_all(runs)


def test_scores_of_test_text_need_translations(words):
    assert configs(*words, "--metric", "chrf")["static", 0.5].evaluate.search == "beam"
    with pytest.raises(UserError, match=r"leaves no bleu to draw; set greedy or beam, or --metric nll"):
        planned(*words, "--metric", "bleu", "--set", "evaluate.search=none")


def test_methods_that_are_validated_on_other_lines_have_no_front_of_their_validation_nll(words):
    variants = ["--variant=short:T=1,model.max_length=20", "--variant=clean:T=1,data.max_ratio=2"]
    for method, options in (("target-projection", ["--methods", "target-projection"]), ("short", variants)):
        with pytest.raises(UserError, match=rf"^method {method} is validated on other lines .*--metric bleu or chrf$"):
            planned(*words, *options)
        assert planned(*words, *options, "--metric", "chrf")
    assert planned(*words, variants[1])


def test_runs_with_translations_also_have_the_validation_nll(corpus, tmp_path):
    on_a_front(corpus, tmp_path, "--metric", "bleu")
    for run in all_runs([planned_front(corpus, tmp_path)]):
        grid.check_resumable(run)
        assert run.finished and run.directory.read_config().evaluate.search == "beam"


def test_runs_without_translations_are_resumed_to_be_translated(corpus, tmp_path):
    on_a_front(corpus, tmp_path)
    for run in all_runs([planned_front(corpus, tmp_path, "--metric", "bleu")]):
        run.directory.checkpoints.mkdir()
        run.directory.checkpoint("last").touch()
        grid.check_resumable(run)
        assert run.started and not run.finished and run.directory.read_config().evaluate.search == "beam"
    other = planned_front(corpus, tmp_path, "--metric", "bleu", "--set", "evaluate.search=greedy")
    with pytest.raises(UserError, match=r"other settings \(evaluate\.search = .beam., now .greedy.\)"):
        grid.check_resumable(other.points[0].runs[0])


def test_a_finished_run_without_its_last_checkpoint_is_not_removed_to_be_translated(corpus, tmp_path):
    on_a_front(corpus, tmp_path)
    run = planned_front(corpus, tmp_path, "--metric", "bleu").points[0].runs[0]
    with pytest.raises(UserError, match=r"other settings \(evaluate\.search = .none., now .beam.\)"):
        grid.check_resumable(run)
    assert run.directory.scores_file("valid").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratios", "0"], r"--ratios 0: must be above 0 and below 1"),
        (["--ratios", "0.5", "1.5"], r"--ratios 1\.5: must be above 0 and below 1"),
        (["--ratios", "0.5", "0.5"], r"--ratios 0\.5 0\.5: one is given twice"),
        (["--ratios", "0.5", "0.50000001"], r"--ratios 0\.5 0\.5: one is given twice"),
        (["--ratios", "nan"], r"--ratios nan: must be"),
        (["--methods", "catz"], r"unknown method catz"),
        (["--methods", "cats", "cats"], r"--methods .*: one is given twice"),
        (["--methods", "cats-fixed"], r"cats-fixed needs cats among --methods"),
        (["--between", "xa", "xc"], r"--between: unknown task xc.*lores"),
        (["--between", "xa", "xa"], r"--between xa xa: a task is named twice"),
        (["--between", "xa", "hires"], r"--between xa hires: a task is named twice"),
        (["--between", "midres", "xa"], r"--between: unknown task midres"),
        (["--between", "xa", "xb", "--between", "xa", "xb"], r"--between xa-xb xa-xb: one is given twice"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(words, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        planned(*words, *more)
    assert not (tmp_path / "out").exists()
