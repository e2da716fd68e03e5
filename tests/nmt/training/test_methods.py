"""Every weighting and every recipe trains, and a run that was interrupted is resumed bit for bit.

The samplers are in test_adaptive_sampling.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import UserError
from cats.nmt.methods.catalogue import CATALOGUE, GRADIENTS, GRAM, SAMPLER, find
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, final_state, metrics, settings, write_short_corpus

# What some methods need to be told, or to move within 20 updates.
MORE: dict[str, list[str]] = {
    "cats": ["method.inner_steps=2"],
    "dwa": ["method.options=window=3"],
    "group-dro": ["method.options=step_size=0.1"],
    "chi-square-dro": ["method.options=step_size=0.1"],
    "gradvac": ["method.options=beta=0.3,groups=layer"],
    "ratios": ["sampling.ratios=[1,2]"],
    "unimax": ["sampling.unimax_epochs=1"],
}
FEW = ["train.steps=20", "train.validate_every=20", "train.save_every=11", "train.warmup=2", "sampling.batch_tokens=60"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("methods") / "toy")


NAMES = [method.name for method in CATALOGUE if method.family != SAMPLER]

ENGINES = {"cats": "one_pass", "staged-cats": "one_pass"}


@pytest.mark.parametrize("name", [name.replace("NAME", "GradVac") for name in NAMES])
def test_every_method_resumes_bit_for_bit(small: Path, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    if name.startswith("torchjd"):
        pytest.importorskip("torchjd")
    config = settings(small, *FEW, "model.dropout=0.1", f"method.name={name}", *MORE.get(name, []))
    train(config, tmp_path / "whole", quiet=True)
    update = Trainer.update
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", lambda trainer: update(trainer) if trainer.step < 13 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "parts", quiet=True)
    train(config, tmp_path / "parts", resume=True, quiet=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    last = metrics(tmp_path / "whole")[-2]
    per_task = name == "gradnorm" or find(name).family in (GRAM, GRADIENTS)
    assert last["skipped"] == 0 and last["engine"] == ENGINES.get(name, "per_task" if per_task else "")


def test_rules_of_torchjd_that_do_not_exist(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchjd")
    for name, message in ("UPGard", "did you mean 'UPGrad'"), ("ConFIG", "ConFIG of TorchJD needs the Jacobian"):
        with pytest.raises(UserError, match=f"method.name = torchjd:{name}: .*{message}"):
            train(settings(small, f"method.name=torchjd:{name}"), tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["method.name=static", "method.options=rate=1"], r"method\.options: static has none"),
        (
            ["method.name=mgda", "method.options=normalisation=l3"],
            "normalisation of mgda must be none or l2 or",
        ),
        (["method.name=group-dro", "method.options=step_size=-1"], r"method\.name = group-dro: GroupDRO: step_size"),
        (["method.name=rlw", "method.options=reduction=sum"], "unknown option reduction; known: seed"),
        (["method.name=torchjd:UPgrad"], "TorchJD has no 'UPgrad': did you mean 'UPGrad'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_the_corpus_is_read(tmp_path: Path, more: list[str], message: str) -> None:
    if "torchjd" in more[0]:
        pytest.importorskip("torchjd")
    with pytest.raises(UserError, match=message) as error:
        train(settings(tmp_path / "absent", *more), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_options_of_torchjd_that_do_not_fit_the_number_of_tasks(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchjd")
    given = ["method.name=torchjd:Constant", "method.options=weights=[1,2,3]"]
    with pytest.raises(UserError, match=r"Constant: .* has 3 weights or preferences, but .* 2 tasks") as error:
        train(settings(small, *given), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_rules_of_torchjd_are_tried_with_no_more_tasks_than_there_are(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchjd")
    given = ["method.name=torchjd:Constant", "method.options=weights=[1,2]", "sampling.tasks_per_update=5"]
    train(settings(small, *given, *FEW, "train.steps=1"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("engine", ["one_pass", "two_pass", "forward_mode"])
def test_engines_that_cannot_compute_the_gram_matrix_are_refused(small: Path, tmp_path: Path, engine: str) -> None:
    with pytest.raises(UserError, match=rf"method\.name = pcgrad: engine='{engine}' does not compute what"):
        train(settings(small, "method.name=pcgrad", f"method.engine={engine}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_method(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The state of another method is refused. Options may change, and are named."""
    config = settings(small, *FEW, "method.name=group-dro", "train.steps=2")
    train(config, tmp_path / "run", quiet=True)
    capsys.readouterr()
    for name in ("rlw", "pcgrad", "bandit"):
        with pytest.raises(UserError, match=r"last\.pt does not match .*; start a new run"):
            train(apply_overrides(config, [f"method.name={name}"]), tmp_path / "run", resume=True)
        assert f'method.name = "{name}" (was "group-dro")' in capsys.readouterr().err
    changed = apply_overrides(config, ["method.options=step_size=0.5", "train.steps=3"])
    train(changed, tmp_path / "run", resume=True)
    assert 'method.options = ["step_size=0.5"] (was [])' in capsys.readouterr().err
    assert final_state(tmp_path / "run")["step"] == 3
