"""Settings as TOML: strict reading, overrides, and what is written."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib

import pytest

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import FIELDS, TYPES, Config, Train
from cats.nmt.config.toml import apply_overrides, describe, read_config, read_settings, to_toml
from cats.nmt.errors import UserError


def written(tmp_path, text: str):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_round_trip_of_the_defaults(tmp_path):
    assert read_config(written(tmp_path, to_toml(Config()))) == Config()


def test_toml_round_trip_of_awkward_values(tmp_path):
    awkward = replace_settings(
        Config(),
        {
            "data.path": '/new "corpora" C:\\n\n\t\x7f/é漢',
            "sampling.temperature": math.inf,
            "method.weights": [1, 0.5, 1e-7],
            "train.lr": 1e-05,
            "train.betas": [0.9, 0.999],
            "method.loss_term": True,
            "train.seed": 2**32 - 1,
        },
    )
    text = to_toml(awkward)
    assert read_config(written(tmp_path, text)) == awkward
    assert awkward.method.weights == (1.0, 0.5, 1e-7)
    assert "temperature = inf\n" in text and "loss_term = true\n" in text


def test_toml_is_complete_and_documented():
    text = to_toml(Config())
    tables = tomllib.loads(text)
    assert {f"{section}.{key}" for section, table in tables.items() for key in table} == set(FIELDS)
    lines = text.splitlines()
    for name in FIELDS:
        key = name.partition(".")[2]
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        assert lines[at - 1].startswith("# ") and len(lines[at - 1]) > 8, name
        assert name in describe()
    assert "inverse-sqrt | cosine | constant | noam" in text


def test_left_out_settings_keep_their_defaults(tmp_path):
    config = read_config(written(tmp_path, "[train]\nsteps = 7\nlr = 1\n"))
    assert config == dataclasses.replace(Config(), train=Train(steps=7, lr=1.0))
    assert isinstance(config.train.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[trian]\nsteps = 1",
            r"config\.toml: unknown section \[trian\] \(did you mean train\?\)",
        ),
        (
            "[train]\nstep = 1",
            r"config\.toml: unknown setting 'train\.step' \(did you mean train\.steps\?\)",
        ),
        (
            "steps = 1",
            r"'steps' is outside of all sections \(did you mean train\.steps\?\)",
        ),
        ("train = 1", r"'train' is a section"),
        ("[train]\nsteps = 1.5", r"train\.steps needs a whole number, not '1\.5'"),
        ("[train]\nsteps = true", r"train\.steps needs a whole number, not 'true'"),
        ("[train]\nlr = true", r"train\.lr needs a number, not 'true'"),
        ("[train]\nlr = nan", r"train\.lr needs a number"),
        ("[train]\nlr = inf", r"train\.lr must be finite and above 0"),
        ("[train]\nsteps = 0", r"train\.steps must be at least 1 and at most 1,000,000,000, not 0"),
        ("[train]\nseed = -1", r"train\.seed must be between"),
        ("[train]\nbetas = [0.9]", r"train\.betas must be two numbers"),
        ("[train]\nbetas = [0.9, 1.0]", r"train\.betas must be two numbers"),
        ("[train]\nbetas = 0.9", r"train\.betas needs a list of numbers, not '0\.9'"),
        (
            "[train]\nschedule = 'cosin'",
            r"must be one of inverse-sqrt, cosine, constant, noam, .*\(did you mean cosine\?\)",
        ),
        (
            "[sampling]\ntemperature = 0",
            r"sampling\.temperature must be above 0 \(inf is allowed\), not 0",
        ),
        ("[model]\ndropout = 1.0", r"model\.dropout must be at least 0 and below 1"),
        (
            "[model]\nd_model = 130",
            r"model\.d_model = 130 is not a multiple of model\.heads = 4",
        ),
        ("[model]\nd_model = 63\nheads = 3", r"model\.d_model must be even, at least 2 and at most 65,536, not 63"),
        ("[method]\nname = 'Static'", r"\(did you mean static\?\)"),
        (
            "[method]\nweights = 'token'",
            r"method\.weights must be 'tokens', 'uniform' or a list",
        ),
        ("[method]\nweights = []", r"method\.weights must be"),
        ("[method]\nweights = [1, -1]", r"method\.weights must be"),
        (
            "[method]\nweights = [1, 'a']",
            r"method\.weights needs a string or a list of numbers",
        ),
        ("[method]\nloss_term = 1", r"method\.loss_term needs true or false, not '1'"),
        ("[data]\npath = 3", r"data\.path needs a string, not '3'"),
        ("[train]\nsteps = =", r"config\.toml: not valid TOML: .*line 2"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as info:
        read_config(written(tmp_path, text))
    assert "\n" not in str(info.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the configuration .*absent\.toml: No such file"):
        read_config(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"[data]\npath = '\xe9'")
    with pytest.raises(UserError, match=r"latin\.toml: not UTF-8 \(byte 15\)"):
        read_config(tmp_path / "latin.toml")


def test_overrides():
    config = apply_overrides(
        Config(),
        [
            "train.lr=1e-3",
            "train.steps = 10",
            "sampling.temperature=inf",
            "data.path=/a b/c=d",
            "data.source='de'",
            "method.loss_term=True",
            "method.weights=[1, 2]",
            "train.betas=[0.8, 0.9]",
            "train.steps=11",
        ],
    )
    assert (config.train.lr, config.train.steps, config.sampling.temperature) == (
        1e-3,
        11,
        math.inf,
    )
    assert (config.data.path, config.data.source, config.method.loss_term) == (
        "/a b/c=d",
        "de",
        True,
    )
    assert (config.method.weights, config.train.betas) == ((1.0, 2.0), (0.8, 0.9))
    assert apply_overrides(config, ["method.weights=uniform"]).method.weights == "uniform"
    assert Config().train.lr != 1e-3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("az,be", ("az", "be")),
        ("az", ("az",)),
        ("", ()),
        ("[]", ()),
        ("[az, be]", ("az", "be")),
        ('["az", "be"]', ("az", "be")),
        ("'az','be'", ("az", "be")),
        ("[az,'b,e']", ("az", "b,e")),
        ("[o'clock,d'or]", ("o'clock", "d'or")),
        ("a=[1,2],b=3", ("a=[1,2]", "b=3")),
        ("[a=[1,2],b=3]", ("a=[1,2]", "b=3")),
        ("a='x,y',b=3", ("a='x,y'", "b=3")),
        ("a[,b", ("a[", "b")),
    ],
)
def test_a_list_of_names_needs_no_quotes_and_no_brackets(text, names):
    assert apply_overrides(Config(), [f"data.tasks={text}"]).data.tasks == names


def test_a_list_of_numbers_needs_no_brackets():
    config = apply_overrides(Config(), ["sampling.ratios=0.3, 0.7", "train.betas=0.8,0.9"])
    assert (config.sampling.ratios, config.train.betas) == ((0.3, 0.7), (0.8, 0.9))
    assert apply_overrides(config, ["sampling.ratios="]).sampling.ratios == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"'train\.lr' is not an override: write section\.key=value"),
        ("train.rl=1", r"unknown setting 'train\.rl' \(did you mean train\.lr\?\)"),
        ("lr=1", r"unknown setting 'lr' \(did you mean train\.lr\?\)"),
        (
            "batch_tokens=1",
            r"did you mean sampling\.batch_tokens or decode\.batch_tokens\?",
        ),
        ("train.lr=fast", r"^train\.lr needs a number, not 'fast'"),
        ("train.lr=", r"train\.lr needs a number, not ''"),
        ("train.steps=1e3", r"train\.steps needs a whole number, not '1e3'"),
        ("method.loss_term=yes", r"method\.loss_term needs true or false, not 'yes'"),
        (
            "method.weights=[1,",
            r"method\.weights must be 'tokens', 'uniform' or a list",
        ),
        ("train.betas=0.8;0.9", r"train\.betas"),
        ("data.tasks=[az,be", r"data\.tasks needs a list"),
        ("data.tasks=[1,2]", r"data\.tasks needs a list"),
        ("method.token_weights=[1,0]", r"method\.token_weights must be finite numbers above 0"),
        ("method.engine=two-pass", r"method\.engine must be one of auto, .*did you mean two_pass\?"),
        ("method.rows=0", r"method\.rows must be above 0 and at most 1"),
        ("data.path=a\udcffb", r"data\.path = .* is not valid UTF-8"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        apply_overrides(Config(), [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.token_weights=[1,2]", "method.weights=uniform"],
            r"method\.token_weights needs method\.weights = tokens; leave one of them out",
        ),
        (
            ["method.cross_batch=true", "method.engine=one_pass"],
            "cross_batch needs method.engine = per_task .or auto.,",
        ),
        (["method.rows=0.5", "method.engine=per_task"], "rows below 1 needs method.engine = one_pass .* = per_task"),
        (["train.distributed=fsdp", "train.compile=true"], "train.distributed = fsdp needs train.compile = false"),
        (["train.distributed=hybrid", "method.engine=one_pass"], "hybrid needs method.engine = auto, per_task or two_"),
        (["method.direction=update", "method.cross_batch=true"], "direction = update needs .*cross_batch = false"),
        (["method.direction=update", "method.simplex=softmax"], "direction = update needs method.simplex = proximal"),
        (["method.rows=0.5", "method.cross_batch=true"], "rows below 1 needs method.engine = one_pass .*cross_batch"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        apply_overrides(Config(), overrides)


def test_a_relative_folder_is_kept_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert apply_overrides(Config(), ["data.path=../corpus"]).data.path == str(tmp_path.parent / "corpus")
    assert read_config(written(tmp_path, "[data]\npath = ''")).data.path == ""


def test_ranges_that_span_settings_see_all_changes_at_once():
    config = apply_overrides(Config(), ["model.heads=3", "model.d_model=96"])
    assert (config.model.heads, config.model.d_model) == (3, 96)


@pytest.mark.parametrize(
    "text",
    [
        "# " + "." * 110 + "\n[data]\npath = '/c'",
        '[data]\npath = "/c"  # ' + "." * 110,
        '[data]\npath = "/c"\n[train]\ninit_from = "' + 'a\\".' * 110 + '"',
        "[data]\npath = '/c'\n[train]\ninit_from = '" + 'a".' * 110 + "'",
        '[data]\npath = "/c"\n[train]\ninit_from = """' + 'a"".' * 110 + '"""""',
        "[data]\npath = '/c'\n[train]\ninit_from = '''" + "a''.#" * 110 + "'''''",
    ],
)
def test_dots_in_comments_and_strings_are_no_keys(tmp_path, text):
    assert read_config(written(tmp_path, text)).data.path == "/c"


@pytest.mark.parametrize(
    "before",
    ["", "a = '#' # '\n", 'a = """"""""\n', "a = '''#\n''''\n", 'a = "\\""\n', "a = '\\'\n"],
)
def test_dots_in_keys_are_counted_after_comments_and_strings(tmp_path, before):
    with pytest.raises(UserError, match="nested too deeply"):
        read_config(written(tmp_path, before + '"x"' + ".a" * 101 + " = 1"))


def test_a_configuration_from_a_pipe(tmp_path):
    """--config <(..) and --config /dev/stdin. What is too long is not read to its end."""
    reader, writer = os.pipe()
    os.write(writer, b"[train]\nsteps = 7\n")
    os.close(writer)
    assert read_settings(None, f"/dev/fd/{reader}").train.steps == 7
    os.close(reader)
    with pytest.raises(UserError, match="/dev/zero: more than 1,048,576 bytes"):
        read_settings(None, "/dev/zero")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_settings(None, tmp_path)


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nsteps = " + "[" * 100_000, "config.toml: lists or tables are nested too deeply"),
        ("[a" + ".a" * 100_000 + "]\n", "config.toml: "),
        (f"[train]\nsteps = {HUGE}", "config.toml: not valid TOML: "),
        (f"[train]\nsteps = 0x{HUGE}", "train.steps must be at least 1 and at most 1,000,000,000, not a value that is"),
        (f"[train]\nlr = 0x{HUGE}", "train.lr needs a number, not 'a value that is too long to be shown'"),
        (f"[train]\ninit_from = [0x{HUGE}]", "train.init_from needs a string, not 'a value that is too long"),
        ("#" * (1 << 20) + "\n", "config.toml: more than 1,048,576 bytes are too many for a config"),
        ('[data]\npath = "a\\u0000b"', "data.path contains a NUL character"),
        ('[data]\ntasks = ["a\\u0000b"]', "data.tasks contains a NUL character"),
        ("[decode]\nbeam = 1001", "decode.beam must be at least 1 and at most 1,000, not 1001"),
        ("[decode]\nmax_ratio = 1e30", "decode.max_ratio must be at least 0 and at most 1,000, not 1e+30"),
        ("[train]\nthreads = 1025", "train.threads must be at least 0 and at most 1,024, not 1025"),
        ("[train]\nsteps = 1979-05-27", "train.steps needs a whole number, not 'datetime.date(1979, 5, 27)'"),
    ],
)
def test_deep_huge_and_absurd_values_are_refused(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        read_config(written(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "override",
    [
        "train.betas=" + "[" * 100_000,
        f"train.steps={HUGE}",
        f"train.lr={HUGE}",
        f"train.betas=[0x{HUGE}, 1]",
        "train.lr=1e999",
    ],
)
def test_absurd_overrides_are_refused(override):
    with pytest.raises(UserError) as error:
        apply_overrides(Config(), [override])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_every_number_has_bounds():
    """No whole number beyond any useful one is accepted."""
    for name, kind in TYPES.items():
        if kind is int:
            with pytest.raises(UserError, match=rf"{re.escape(name)} must be"):
                replace_settings(Config(), {name: 10**13})


def test_a_word_may_have_a_list_in_brackets() -> None:
    config = apply_overrides(Config(), ["method.name=adaptive", "method.options=baselines=[1.5, 2.0],power=2"])
    assert config.method.options == ("baselines=[1.5, 2.0]", "power=2")
