"""The model card of an exported model. That of a run with scores is tested with `cats export`."""

from __future__ import annotations

from typing import cast

import pytest

pytest.importorskip("sentencepiece")

from torch import nn

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.model.transformer import Transformer
from cats.nmt.scoring import model_card
from cats.nmt.scoring.scores import Scores
from cats.nmt.training.origin import Origin
from cats.nmt.training.trained_model import TrainedModel
from tests.nmt.scoring.samples import baseline, scores


def card(*settings: str, tasks: tuple[str, ...] = ("no", "de"), scores: Scores | None = None) -> str:
    """The card of a model. Of its parameters only the number matters."""
    config = apply_overrides(Config(), settings)
    tokenizer = Tokenizer.train(["a bat", "the cat"], ["no", "de"], 30)
    model = cast(Transformer, nn.Linear(1000, 2))
    trained = TrainedModel(config, tokenizer, model, Origin("d", {"no": [1200, 20, 30], "de": [150, 20, 30]}))
    return model_card.text("demo", trained, tasks, scores, library="cats-optim", use="do this\n")


def test_the_card_of_the_built_in_corpus_names_its_licence() -> None:
    head, _, body = card("train.steps=30", "data.sizes=noisy").removeprefix("---\n").partition("---\n")
    # In YAML, no without quotes is false.
    assert 'language:\n- "de"\n- "en"\n- "no"\n' in head and "license_name: unicode-3.0" in head
    assert "A Transformer with 2,002 parameters" in body
    assert "It translates from en into no, de." in body
    assert "## Use\n\ndo this\n\n" in body
    assert "`data.sizes=noisy`" in body and "[Unicode License v3]" in body and "wrong, on purpose" in body
    assert "1,200" in body and "not evaluated" in body and "not free text" in body
    assert '```toml\ndata.sizes = "noisy"\ntrain.steps = 30\n```' in body


def test_the_card_of_own_text_asks_for_its_origin_and_hides_its_place() -> None:
    text = card("data.path=/home/me/secret/talks", tasks=("no", "no-no"))
    assert "folder `talks`" in text and "under which licence" in text and "secret" not in text
    assert "license" not in text.partition("---\n")[2].partition("---\n")[0]
    assert "It translates from en into no." in text  # no-no is language modelling


def test_the_card_says_that_a_model_is_not_trained() -> None:
    below = scores(lookup={"languages": {}, "groups": dict.fromkeys(("all", "lores", "hires"), baseline(70.0))})
    text = card(scores=below)
    assert "the model is not trained." in text and "its translations are of no use" in text and "fluent" not in text
    assert "fluent mistakes" in card(scores=scores()) and "the model is not trained." in card(scores=scores())
