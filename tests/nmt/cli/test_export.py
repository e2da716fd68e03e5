"""`cats export`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.errors import UserError


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> NoReturn:
        raise UserError("the disk is full")

    from cats.nmt.training import export_file

    with monkeypatch.context() as patch:
        patch.setattr(export_file, "write", full)
        assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert main(["export", str(run), str(tmp_path / "out")]) == 0


def test_export(
    run: Path, trained: Path, tmp_path: Path, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    from cats.nmt.scoring import evaluate, tables
    from cats.nmt.scoring.scores import read_scores
    from cats.nmt.training.run import RunDirectory

    out = tmp_path / "model"
    assert main(["export", str(run), str(out)]) == 0
    assert (
        "README.md, config.toml, model.safetensors, tokenizer.model\nTry it: cats translate" in capfd.readouterr().out
    )
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith(
        '---\nlibrary_name: cats-optim\npipeline_tag: translation\nlanguage:\n- "az"\n- "be"\n- "en"\n'
    )
    assert "cats translate model --to az --input lines.txt" in card and str(tmp_path) not in card
    assert tables.scores_table(read_scores(run)) in card  # those of this checkpoint
    source = str(trained / "toy" / "test.en-az.en")
    assert main(["translate", str(out), "--to", "az", "--from", "en", "--input", source]) == 0
    assert capfd.readouterr() == ((run / "hyp" / "test.az.txt").read_text(encoding="utf-8"), "")
    assert RunDirectory(out).task_names() == ["az", "be"]
    assert refused("train", "--resume", out).startswith(f"{out} is an exported model, which cannot be resumed")
    shutil.rmtree(run)  # the exported model works without the run; with the corpus it can be scored too
    assert evaluate.evaluate(out).model.tasks.keys() == {"az", "be"}
    # It does not say how long it was trained: no page must call it unfinished, or say that there were no updates.
    assert main(["evaluate", str(out)]) == main(["report", str(out)]) == 0
    for name in ("report.md", "report.html"):
        page = (out / name).read_text(encoding="utf-8")
        assert "0 updates" not in page and "not finished" not in page
    capfd.readouterr()
    for command in ("evaluate", out), ("translate", out, "--to", "az"), ("export", out, tmp_path / "again"):
        message = refused(*command, "--checkpoint", "last")
        assert message == f"{out} is an exported model, which has no checkpoint 'last': its only one is best"

    transformers = tmp_path / "transformers"
    transformers.mkdir()
    (transformers / "config.json").write_text("{}", encoding="utf-8")
    message = f"{transformers} is not a run directory, but a model for the library transformers, which loads it; "
    for command, *more in ["translate", "--to", "az"], ["evaluate"], ["export", out]:
        arguments = [command, transformers, *more]
        assert refused(*arguments) == f"{message}give the run itself"
    assert refused("export", out, out) == f"{out} exists already; choose another folder"
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:1000])
    damaged = f"{out}/model.safetensors is damaged or not an exported model; export the run again"
    assert refused("translate", out, "--to", "az") == damaged
    (out / "model.safetensors").write_bytes(weights)
    text = (out / "config.toml").read_text(encoding="utf-8")
    (out / "config.toml").write_text(text.replace("ffn = 32", "ffn = 64"), encoding="utf-8")
    assert "has model.ffn = 64, but model.safetensors was trained with 32; set it back" in refused(
        "translate", out, "--to", "az"
    )


def test_export_for_transformers(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    assert main(["export", str(run), str(out), "--to", "huggingface"]) == 0
    shown = capfd.readouterr()
    assert shown.out.endswith(
        f"target.spm, tokenizer_config.json, vocab.json\nTry it: {out}/README.md has the commands\n"
    )
    assert shown.err.startswith("cats: transformers has the length penalty of decode.penalty=fairseq only")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n") and 'from_pretrained("model")' in card
    assert "## Scores\n\n| language" in card
    (out / "model.safetensors").rename(tmp_path / "kept")
    assert main(["export", str(run), str(out), "--to", "huggingface"]) == 2  # the folder is not empty
    assert "exists already" in capfd.readouterr().err
