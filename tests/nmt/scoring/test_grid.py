"""cats.nmt.scoring.grid: the plan of a comparison, and resuming."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.config import recipes
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, read_preset, to_toml
from cats.nmt.errors import UserError
from cats.nmt.scoring.grid import methods
from cats.nmt.scoring.grid import runs as grid
from cats.nmt.scoring.grid.methods import Methods
from tests.nmt.scoring.comparisons import LINES, finish, planned


def test_the_plan_compares_like_with_like(tmp_path):
    runs = planned("--out", str(tmp_path), "--seeds", "1", "2", "--set", "train.lr=1e-3")
    assert len(runs) == 2 * 7 * 2
    assert len({run.path for run in runs}) == len(runs)
    for run in runs:
        assert run.config.train.lr == 1e-3
        assert run.config.train.seed == run.seed
    ted = {run.method: run.config for run in runs if run.set == "ted" and run.seed == 1}
    assert ted["cats"].sampling == ted["uniform"].sampling == ted["tokens"].sampling  # weightings use the same sampler
    assert ted["T=5"].sampling.temperature == 5
    del ted["staged"]  # the others differ in nothing else
    assert len({(c.model, c.train, c.tokenizer, c.data, c.sampling.batch_tokens) for c in ted.values()}) == 1


def test_the_set_opus100_has_the_settings_of_its_preset(tmp_path):
    words = ["--out", str(tmp_path), "--sets", "opus100", "--methods", "T=5", "cats", "--seeds", "1"]
    scored = ["evaluate.strata=headline", "evaluate.baseline=false"]
    preset = apply_overrides(read_preset("opus100-cldr"), [*Methods().settings("T=5", steps=1500), *scored])
    static, cats = (run.config for run in planned(*words))
    assert dataclasses.replace(static, train=preset.train) == preset and static.train.steps == preset.train.steps
    assert cats.data == preset.data and cats.evaluate == preset.evaluate


def test_a_set_may_have_settings_of_its_own(tmp_path):
    words = ["--sets", "ted:train.steps=900,train.betas=[0.9,0.99]", "wmt", "--methods", "T=3r", "--seeds", "1"]
    ted, wmt = (run.config.train for run in planned("--out", str(tmp_path), *words))
    assert (ted.steps, ted.betas, ted.pretrain_steps) == (900, (0.9, 0.99), 315)
    assert (wmt.steps, wmt.betas, wmt.pretrain_steps) == (1300, (0.9, 0.98), 455)


def test_the_runs_share_the_cores_of_this_process(tmp_path, monkeypatch):
    def threads(jobs: int) -> int:
        words = ["--out", str(tmp_path), "--methods", "T=1", "--seeds", "1", "--sets", "ted", "--jobs", str(jobs)]
        return planned(*words)[0].config.train.threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2, 3, 5, 8, 13}, raising=False)
    assert [threads(jobs) for jobs in (1, 2, 4, 7)] == [6, 3, 1, 1]
    monkeypatch.delattr("os.sched_getaffinity")
    assert threads(2) == 32
    for given in ("5", " 5 ", "5,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads(1) == threads(7) == 5
    for given in ("0", "-2", "many", "2.5", "\u0662", ",3"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        with pytest.raises(UserError, match=r"OMP_NUM_THREADS=.*: must be a whole number of at least 1"):
            threads(1)


def test_all_start_from_a_preset_and_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nsteps = 9\nlr = 7e-4\n")
    words = [
        "--out",
        str(tmp_path),
        "--preset",
        "ted",
        "--config",
        str(tmp_path / "mine.toml"),
        "--set",
        "train.lr=1e-4",
    ]
    for run in planned(*words, "--data", str(tmp_path)):
        assert (run.config.model.norm, run.config.train.steps, run.config.train.lr) == ("scalenorm", 9, 1e-4)


def configs(*words: str) -> dict[str, Config]:
    """The settings of each method, of a plan with one set and one seed."""
    return {run.method: run.config for run in planned("--sets", "ted", "--seeds", "1", *words)}


def test_a_variant_is_a_method_with_other_settings(tmp_path):
    variants = {
        "slow": "method.alpha_lr=0.01,method.inner_steps=3",
        "late": "T=2r,train.pretrain_steps=9",
        "skewed": "staged,sampling.ratios=[1,2,3,4,5,6,7,8],data.tasks=az,be,train.clip=2",
        "later": "late,train.pretrain_steps=11",
    }
    words = [f"--variant={name}:{text}" for name, text in variants.items()]
    found = configs("--out", str(tmp_path), "--methods", "T=1", *words)
    assert (found["slow"].method.name, found["slow"].method.alpha_lr, found["slow"].method.inner_steps) == (
        "cats",
        0.01,
        3,
    )
    assert (found["late"].sampling.temperature, found["late"].train.restart, found["late"].train.pretrain_steps) == (
        2,
        True,
        9,
    )
    assert (found["skewed"].sampling.ratios, found["skewed"].data.tasks) == (tuple(range(1, 9)), ("az", "be"))
    assert (found["skewed"].train.clip, found["skewed"].sampling.first_temperature) == (2, 1)
    assert (found["later"].sampling.temperature, found["later"].train.pretrain_steps) == (2, 11)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("train.pretrain=[de,it],train.lr=0.01", ["train.pretrain=[de,it]", "train.lr=0.01"]),
        ('train.pretrain=["de","it"],train.lr=0.01', ['train.pretrain=["de","it"]', "train.lr=0.01"]),
        ("train.pretrain=de,it,train.lr=0.01", ["train.pretrain=de,it", "train.lr=0.01"]),
        ("train.betas=[0.9,0.99],train.lr=0.01", ["train.betas=[0.9,0.99]", "train.lr=0.01"]),
        ("method.options=a=[1,2],b=3,train.lr=1", ["method.options=a=[1,2],b=3", "train.lr=1"]),
        ("data.path='/a,train.lr=1/b',train.lr=2", ["data.path='/a,train.lr=1/b'", "train.lr=2"]),
        ("method.options=[reference='x,train.lr=1'],train.lr=2", ["method.options=[reference='x,train.lr=1']"]),
        ("data.path=/o'clock,train.lr=2", ["data.path=/o'clock", "train.lr=2"]),
        ("data.path=/a[1,train.lr=2", ["data.path=/a[1", "train.lr=2"]),
    ],
)
def test_settings_are_split_at_the_commas_outside_of_their_values(text, settings):
    base, found = methods.split_settings(f"cats-r,{text}")
    assert base == "cats-r" and found[: len(settings)] == settings
    assert methods.split_settings(text)[0] == ""
    apply_overrides(Config(), [each for each in found if "pretrain" not in each])


def test_a_variant_may_list_tasks(tmp_path):
    for text in ("[ru,pt]", "ru,pt", '["ru","pt"]'):
        found = configs("--out", str(tmp_path), f"--variant=mine:cats,train.pretrain={text},train.pretrain_steps=9")
        assert (found["mine"].train.pretrain, found["mine"].train.pretrain_steps) == (("ru", "pt"), 9)


def test_suffixes_are_the_same_method_with_a_restart_at_the_same_update(tmp_path):
    words = ["--set=train.steps=1350", "--set=sampling.temperature_end=2", "--methods"]
    found = configs(
        "--out", str(tmp_path), *words, "T=3", "T=3r", "T=infr", "staged", "cats", "cats-r", "cats-staged", "tokens-r"
    )
    restarted = {name for name, config in found.items() if config.train.restart}
    assert restarted == {"T=3r", "T=infr", "staged", "cats-r", "cats-staged", "tokens-r"}
    assert {found[name].train.pretrain_steps for name in restarted} == {472}
    assert found["T=infr"].sampling.temperature == math.inf
    assert {name for name, config in found.items() if config.sampling.first_temperature} == {"staged", "cats-staged"}
    assert found["tokens-r"].sampling == found["cats"].sampling and found["tokens-r"].method.name == "static"
    assert found["T=3"].sampling.temperature_end == 0 and found["cats-r"].method == found["cats"].method


def test_all_methods_restart_at_the_same_update_if_the_base_is_staged_cats(tmp_path):
    file = tmp_path / "base.toml"
    file.write_text('[method]\nname = "staged-cats"\n', encoding="utf-8")
    names = ["cats", "tokens", "rlw", "T=1r", "staged-cats", "pretrain"]
    found = configs("--out", str(tmp_path), "--config", str(file), "--controls", "none", "--methods", *names)
    assert {config.train.pretrain_steps for config in found.values()} == {945}  # 35 % of 2700


def test_the_restart_of_a_variant_is_at_35_percent_of_its_own_updates(tmp_path):
    variants = ["short:cats,train.steps=900", "shorter:short-r,train.steps=400", "late:T=1r,train.steps=1200"]
    words = ["--methods", "T=1", "--controls", "fixed", "restart", *(f"--variant={variant}" for variant in variants)]
    found = configs("--out", str(tmp_path), *words)
    steps = {name: (config.train.pretrain_steps, config.train.steps) for name, config in found.items()}
    assert steps["T=1r"] == (945, 2700) and steps["short"] == (0, 900) and steps["short-r"] == (315, 900)
    assert steps["shorter"] == steps["shorter-fixed"] == (140, 400) and steps["late"] == (420, 1200)


def test_staged_is_the_recipe_of_cats_train(monkeypatch):
    """Its runs differ only in the name of their method: finished ones have static there."""
    staged = apply_overrides(Config(), ["method.name=staged"])
    named = dataclasses.replace(staged, method=dataclasses.replace(staged.method, name="static"))
    assert apply_overrides(Config(), Methods().settings("staged", Config().train.steps)) == named
    monkeypatch.setitem(recipes._CHANGES["staged"], "sampling.temperature", 7.0)
    assert "sampling.temperature=7.0" in Methods().settings("staged", 100)


def test_a_name_with_a_colon_may_have_a_suffix(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", ("cats", "static", "other:NAME"))
    assert Methods().settings("other:One", 100) == ["method.name=other:One"]
    restarted = ["method.name=other:One", "train.restart=true", "train.pretrain_steps=35"]
    assert Methods(["mine:other:One,train.clip=2"]).settings("mine", 100) == ["method.name=other:One", "train.clip=2"]
    assert Methods().settings("other:One-r", 100) == restarted


def test_controls_are_added_unless_they_are_left_out(tmp_path):
    words = ["--out", str(tmp_path), "--methods", "T=2", "cats", "staged", "--variant", "mine:cats-r,method.strength=1"]
    temperatures = ["T=1", "T=1r", "T=5", "T=5r", "T=inf", "T=infr", "T=2", "T=2r"]
    ours = ["cats", "cats-fixed", "cats-r", "cats-r-fixed", "staged", "mine", "mine-fixed"]
    with_all = list(configs(*words, "--controls", "temperatures", "fixed", "restart"))
    assert with_all == [*temperatures, *ours]
    assert list(configs(*words, "--controls", "none")) == ["T=2", "cats", "staged", "mine"]
    # The weights of cats with a restart are those of its own run, so that cats-fixed is not restarted by itself.
    named = ["--out", str(tmp_path), "--methods", "cats-fixed", "cats", "--controls", "restart"]
    assert list(configs(*named)) == ["cats-fixed", "cats", "cats-r"]
    assert list(configs(*words, "--controls", "fixed")) == ["T=2", "cats", "cats-fixed", "staged", "mine", "mine-fixed"]


def test_constant_weights_are_trained_in_the_order_of_the_recipe_that_they_come_from(tmp_path):
    words = ["--out", str(tmp_path), "--controls", "fixed", "--methods", "staged-cats"]
    cats, fixed = configs(*words).values()
    assert (cats.method.name, fixed.method.name) == ("cats", "static")
    assert (fixed.sampling, fixed.train) == (cats.sampling, cats.train) and fixed.sampling.first_temperature == 1


def test_constant_weights_may_be_named_before_the_method_that_they_come_from(tmp_path):
    words = ["--out", str(tmp_path), "--controls", "none", "--methods", "mine-fixed", "T=2"]
    runs = planned(*words, "--variant", "mine:cats-r,method.strength=1", "--seeds", "4", "5")
    assert [(run.method, run.seed) for run in runs[:3]] == [("mine-fixed", 4), ("T=2", 4), ("mine", 4)]
    assert [run.needs for run in runs if run.method == "mine-fixed"] == [[run] for run in runs if run.method == "mine"]


def test_trials_are_planned_for_every_method_with_a_seed_of_their_own(tmp_path):
    words = ["--lr", "1e-3", "3e-3", "--trials", "4", "--controls", "fixed", "restart"]
    runs = planned("--out", str(tmp_path), "--sets", "ted", "--seeds", "4", "5", "--methods", "T=1", "cats", *words)
    for run in runs:
        assert [trial.run.config.train.lr for trial in run.trials][:2] == [1e-3, 3e-3]
        assert len({(trial.run.path, trial.settings) for trial in run.trials}) == 4
        assert {(trial.run.config.train.seed, trial.run.config.evaluate.search) for trial in run.trials} == {
            (0, "none")
        }
    own = {run.method: [each.settings[1:] for each in run.trials] for run in runs}
    assert own["T=1"] == [()] * 4 and all(own["cats"][2:]) and own["cats-fixed"] == own["cats"] == own["cats-r"]
    assert len(grid.everything(runs)) == 2 * 6 + 4 * 4  # a method and its -fixed share the trials
    fixed = planned("--out", str(tmp_path), *words, "--methods", "T=1", "--variant", "mine:method.strength=1")
    assert not any("method.strength" in setting for run in fixed for each in run.trials for setting in each.settings)


def test_settings_of_a_file_are_not_searched_unless_the_method_replaces_them(tmp_path):
    file = tmp_path / "base.toml"
    file.write_text("[method]\nstrength = 0.7\n[sampling]\nunimax_epochs = 9.0\n", encoding="utf-8")
    words = ["--out", str(tmp_path), "--sets", "ted", "--seeds", "1", "--trials", "9", "--methods", "cats", "unimax"]
    searched = {
        run.method: {setting.split("=")[0] for trial in run.trials for setting in trial.settings}
        for run in planned(*words, "--config", str(file))
    }
    assert searched["cats"] == {"train.lr", "method.alpha_lr"}
    assert searched["unimax"] == {"train.lr", "sampling.unimax_epochs"}


@pytest.mark.parametrize("name", ["unimax", "temperature-schedule"])
def test_trials_of_a_base_with_a_mixture(tmp_path, name):
    file = tmp_path / "base.toml"
    file.write_text(f'[method]\nname = "{name}"\n', encoding="utf-8")
    words = ["--out", str(tmp_path), "--sets", "ted", "--seeds", "1", "--trials", "9", "--methods", "T=1", "cats", name]
    runs = {run.method: run for run in planned(*words, "--config", str(file))}
    assert runs[name].config.method.name == name and len(runs[name].trials) == 9


def weights_of(run, lines):
    """What the control of a finished run of cats with these (alpha, prior, tokens) for every ten updates sets."""
    records = [
        {"step": 10 * n, "seconds": 1.0}
        | {name: dict(zip("ab", each, strict=True)) for name, each in numbers.items() if each}
        for n, numbers in enumerate((dict(zip(("alpha", "prior", "tokens"), line, strict=True)) for line in lines), 1)
    ]
    run.path.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(record)}\n" for record in [*records, {"step": 40, "valid": {"nll": {}, "all": None}}])
    run.directory.metrics_file.write_text(text, encoding="utf-8")
    found = grid.constant_weights(run)
    return found["method.weights"], found["method.token_weights"]


def test_constant_weights_are_relative_to_the_tokens_of_each_batch(tmp_path):
    def cats(*words):
        (run,) = planned("--out", str(tmp_path), "--sets", "ted", "--seeds", "1", "--methods", "cats", *words)
        return run

    # Factors of 1.5 and 0.75 in the first phase, of 0.5 and 1.5 in the second.
    first = [((0.5, 0.5), (1 / 3, 2 / 3), (900, 100))] * 2
    second = [((0.25, 0.75), (0.5, 0.5), (900, 100)), ((0.125, 1.125), (0.25, 0.75), (100, 900))]
    assert weights_of(cats(), second) == ("tokens", [0.5, 1.5])
    restart = ["--set", "train.restart=true", "--set"]
    both = first + second
    assert weights_of(cats(*restart, "train.pretrain_steps=20"), both) == ("tokens", [0.5, 1.5])
    # The third line has updates of both phases.
    later = weights_of(cats(*restart, "train.pretrain_steps=21"), [*first, ((0.9, 0.1), (0.5, 0.5), (1, 1)), second[1]])
    assert later == ("tokens", [0.5, 1.5])
    # alpha goes on at a reset of the learning rate only. Alone, the second phase has factors of its own.
    whole = cats(*restart, "train.pretrain_steps=20", "--set", "train.restart_parts=learning-rate")
    assert weights_of(whole, both) == weights_of(cats(), both) != ("tokens", [0.5, 1.5])
    # Without tokens in the second phase, or at all; without the shares of the batch, as in older metrics.
    alone = [((0.6, 0.4), (0.5, 0.5), (1, 1)), ((0.0, 1.0), (0.0, 1.0), (0, 9))]
    assert weights_of(cats(*restart, "train.pretrain_steps=10"), alone) == ("tokens", [pytest.approx(1.2), 1.0])
    assert weights_of(cats(), alone[1:]) == ("tokens", [1.0, 1.0])
    assert weights_of(cats(), [((0.5, 0.5), None, (30, 10)), ((0.5, 0.5), None, (10, 10))]) == ("tokens", [0.8, 4 / 3])
    # With a prior that does not follow the tokens, the mean losses are weighted.
    uniform = cats("--set", "method.prior=uniform")
    assert weights_of(uniform, [*second[:1], ((0.75, 0.25), None, (1, 9))]) == ([0.5, 0.5], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "catz"], r"unknown method catz.*cats"),
        (["--sets", "tad"], r"unknown set tad.*ted"),
        (["--sets", "ted:"], r"--sets ted:: write NAME, or NAME:KEY=VALUE"),
        (["--sets", "ted:half"], r"--sets ted:half: write NAME, or NAME:KEY=VALUE"),
        (["--data", "corpus", "--sets", "wmt"], r"argument --sets: not allowed with argument --data"),
        (["--jobs", "0"], r"--jobs must be at least 1"),
        (["--variant", "cats:method.alpha_lr=1"], r"NAME:BASE,KEY=VALUE"),
        (["--variant", "new"], r"NAME:BASE,KEY=VALUE"),
        (["--methods", "T1"], r"unknown method T1 \(did you mean T=1\?\)$"),
        (["--methods", "t=2.5r"], r"unknown method t=2\.5r \(did you mean T=2\.5r\?\)$"),
        (["--variant", "new:T=1x,train.clip=2"], r"unknown method T=1x"),
        (["--methods", "cats-s"], r"unknown method cats-s"),
        (["--methods", "T=1-fixed", "T=1"], r"T=1-fixed needs T=1 among --methods, with method\.name = cats"),
        (["--methods", "cats-fixed"], r"cats-fixed needs cats among --methods"),
        (["--methods", "cats", "cats-fixed-r"], r"based on cats-fixed.* base it on cats, and add -fixed to its name"),
        (["--methods", "cats", "--variant", "a:cats-fixed,train.clip=2"], r"no method can be based on cats-fixed"),
        (["--variant", "a:a-r,train.clip=2"], r"--variant a: it is based on itself"),
        (["--variant", "a:b", "--variant", "b:a"], r"--variant a: it is based on itself"),
        (["--variant", "a-r:cats", "--variant", "a:T=1"], r"--variant a-r: a is a variant, too"),
        (["--variant", "a:T=1,train.seed=7"], r"a:T=1,train\.seed=7: train\.seed must be the same for all methods"),
        (["--variant", "a:T=1,evaluate.search=none"], r"evaluate\.search must be the same for all methods"),
        (["--variant", "a:T=1,data.languages=wmt"], r"data\.languages must be the same for all methods"),
        (["--controls", "none", "fixed"], r"--controls none fixed: none leaves out all controls; give it alone"),
        (["--controls", "restarts"], r"unknown control restarts .*restart"),
        (["--set", "evaluate.search=none"], r"nothing to compare"),
        (["--lr", "1e-3", "--trials", "2", "--tuning-seed", "1"], r"--tuning-seed 1 is one of --seeds"),
        (["--lr", "1e-3", "--variant", "slow:T=1,train.lr=1e-4"], r"method slow has a train\.lr of its own.* --lr"),
        (["--lr", "1e-3", "--set", "train.lr=1e-4"], r"train\.lr of --set or --sets would be replaced by --lr"),
        (["--lr", "1e-3", "--sets", "ted:train.lr=1e-4"], r"train\.lr of --set or --sets would be replaced by --lr"),
        (["--set", "train.seed=7"], r"train\.seed of --set or --sets would be replaced by --seeds"),
        (["--set", "train.lrr=1"], r"train\.lr"),
        (["--seeds", "1", "1"], r"--seeds .*twice"),
        (["--methods", "T=1", "T=5", "T=1"], r"--methods T=1 T=5 T=1: one is given twice"),
        (["--sets", "ted", "ted"], r"--sets .*twice"),
        (["--variant", "../x:method.alpha_lr=1"], r"a plain name"),
        (["--variant", "a\nb:method.alpha_lr=1"], r"a plain name"),
        (["--variant", "a:method.alpha_lr=1", "--variant", "a:method.alpha_lr=2"], r"NAME:BASE,KEY=VALUE"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        planned("--out", str(tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'.*a\\udcff' is not valid UTF-8; choose another --out"):
        planned("--out", f"{tmp_path}/a\udcff")


def test_a_run_with_other_settings_is_not_mistaken_for_this_one(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "T=1", "--seeds", "1"]
    (run,) = planned(*words)
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    grid.check_resumable(run)
    (other,) = planned(*words, "--set", "train.steps=7")
    with pytest.raises(UserError, match=r"other settings \(train.steps = \d+, now 7\); give"):
        grid.check_resumable(other)


def test_settings_that_follow_from_others_are_not_named(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "staged", "--seeds", "1"]
    (run,) = planned(*words)
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    (other,) = planned(*words, "--set", "train.steps=70")
    with pytest.raises(UserError, match=r"other settings \(train.steps = \d+, now 70\); give"):
        grid.check_resumable(other)
    (other,) = planned(*words, "--set", "train.steps=70", "--variant", "staged2:staged,train.pretrain_steps=9")[1:]
    other = dataclasses.replace(other, path=run.path)
    with pytest.raises(UserError, match=r"train.steps = \d+, now 70; train.pretrain_steps = \d+, now 9\); give"):
        grid.check_resumable(other)


def test_a_static_run_made_with_other_defaults_of_cats_is_finished(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods"]
    (run,) = planned(*words, "T=1")
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    config = run.path / "config.toml"
    # Another machine has other threads, and older versions had other settings of the method cats.
    other = apply_overrides(run.config, ["method.alpha_lr=0.3", "method.inner_steps=7", "train.threads=5"])
    text = "".join(line for line in to_toml(other).splitlines(True) if not line.startswith("epsilon"))
    config.write_text(text, encoding="utf-8")
    for each in planned(*words, "T=1", "cats"):
        grid.check_resumable(each)
    assert config.read_text(encoding="utf-8") == text

    config.write_text(to_toml(apply_overrides(run.config, ["method.weights=uniform"])), encoding="utf-8")
    with pytest.raises(UserError, match=r"other settings \(method\.weights = .uniform., now"):
        grid.check_resumable(run)


def test_the_weights_of_static_do_not_make_another_run_of_cats(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods", "cats"]
    (run,) = planned(*words)
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    grid.check_resumable(planned(*words, "--set", "method.weights=uniform")[0])
    with pytest.raises(UserError, match=r"other settings \(method\.alpha_lr = .*, now 0\.3\)"):
        grid.check_resumable(planned(*words, "--set", "method.alpha_lr=0.3")[0])


def test_a_run_killed_before_its_first_checkpoint_starts_again(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "T=1", "--seeds", "1"]
    (run,) = planned(*words)
    run.path.mkdir(parents=True)
    (run.path / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    grid.check_resumable(run)
    assert not run.path.exists()


def test_the_folder_of_a_run_that_a_process_trains_is_not_removed(corpus, tmp_path):
    (run,) = planned("--data", str(corpus), "--out", str(tmp_path), "--methods", "T=1", "--seeds", "1")
    run.path.mkdir(parents=True)
    with run.directory.training_lock(), pytest.raises(UserError, match="another process is training this run"):
        grid.check_resumable(run)
    assert run.path.exists()


def test_a_run_without_its_last_checkpoint_is_resumed_from_the_one_before(corpus, tmp_path):
    (run,) = planned("--data", str(corpus), "--out", str(tmp_path), "--methods", "T=1", "--seeds", "1")
    run.directory.checkpoints.mkdir(parents=True)
    run.directory.config_file.write_text(to_toml(run.config), encoding="utf-8")
    run.directory.checkpoint("previous").touch()
    grid.check_resumable(run)
    assert run.started and run.path.exists()


def test_methods_that_no_run_could_be_trained_with_are_refused_first(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "--methods", "T=1"]
    with pytest.raises(UserError, match=r"bandit.*unknown option rat .*rate"):
        grid.check_all(planned(*words, "--variant", 'fast:bandit,method.options=["rat=1"]'))
    with pytest.raises(UserError, match=r"methods torchjd:A and torchjd-A would both be .*torchjd-A-seed1; rename one"):
        grid.check_all(planned(*words, "torchjd:A", "--variant", "torchjd-A:T=2"))


def test_a_temperature_has_no_restart_although_the_other_methods_have_one(tmp_path):
    order = [
        "train.restart=true",
        "train.pretrain_steps=9",
        "train.restart_parts=optimizer",
        "sampling.first_temperature=2",
    ]
    found = configs(
        "--out", str(tmp_path), *(f"--set={each}" for each in order), "--methods", "T=1", "T=1r", "uniform", "staged"
    )
    assert (found["T=1"].train.restart, found["T=1"].sampling.first_temperature) == (False, 0)
    assert (found["T=1r"].train.restart, found["T=1r"].sampling.first_temperature) == (True, 0)
    assert found["T=1r"].train.restart_parts == "optimizer" and found["uniform"].train.pretrain_steps == 9
    assert found["staged"].train.restart_parts == "optimizer"
