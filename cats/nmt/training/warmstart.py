"""Starts a run from the best model of another one, or from an exported model: takes over tokenizer and parameters.

The setting is `train.init_from`. The tokenizer is extended for new languages and characters. Text that the old one
could encode is encoded as before.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import nn

from cats.nmt.config import schema
from cats.nmt.config.schema import Config
from cats.nmt.data import pieces
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.prepared import TOKENIZER, is_prepared
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.data.vocabulary import tagged_languages, train_language_tokenizers, vocabulary_text
from cats.nmt.errors import UserError, command
from cats.nmt.training.origin import DEFINING
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trained_model import with_tied


def initial_tokenizer(corpus: Corpus, config: Config, *, quiet: bool = False) -> Tokenizer | None:
    """The tokenizer of the run `train.init_from`, with tags for the new languages. None if that setting is empty.

    A joint tokenizer gets up to `tokenizer.extend` new pieces, each with a character that the old pieces lack. With
    `tokenizer.per_language`, each new language gets a tokenizer of its own.

    Raises:
        UserError: there is no such run, its model has another shape, or `tokenizer.extend` is too small for all new
            characters of the text.
    """
    if not config.train.init_from:
        return None
    old = _old_tokenizer(RunDirectory(Path(config.train.init_from)), config)
    known = set(old.languages)
    new = [language for language in tagged_languages(corpus, config.tokenizer) if language not in known]
    if new and config.model.clsr:
        raise UserError(
            f"{config.train.init_from} has no matrices (model.clsr) for {', '.join(new)}; leave these languages out, "
            "or start a new run"
        )
    if config.data.path and is_prepared(Path(config.data.path)):
        return _prepared_with(Path(config.data.path), old, config.train.init_from)
    if config.tokenizer.per_language:
        models, languages = old.models, [*old.languages, *new]
        added = train_language_tokenizers(corpus, config.tokenizer, models.keys(), languages)
        return Tokenizer.union({**models, **added}, languages, old.tags) if added or new else old
    text = _new_pieces(old, corpus, config.tokenizer, config.train.init_from, quiet)
    if not new and not text:
        return old
    tags = [pieces.piece(f"<2{language}>", 0.0, pieces.CONTROL) for language in new]
    return Tokenizer(pieces.insert(old.serialized(), old.first_piece, tags, text), old.tags)


def copy_parameters(model: nn.Module, tokenizer: Tokenizer, config: Config, *, quiet: bool) -> None:
    """Copies the parameters of the run `train.init_from` into the model.

    The embedding of a new piece becomes the mean of the old embeddings (Hewitt, 2021, Initializing new word embeddings
    for pretrained language models). Its logit is then the mean of the old logits, so it is never the largest, and
    greedy translations into the old languages stay the same. With random embeddings, some of them would change.

    Args:
        quiet: no notice of changed settings of that run.

    Raises:
        UserError: the run has no best checkpoint yet, or it does not match.
    """
    run = RunDirectory(Path(config.train.init_from))
    old = _old_tokenizer(run, config)
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces())}
    rows = torch.tensor([ids[piece] for piece in old.pieces()])
    parameters, origin, _ = run.read_model()
    path = run.weights_file if run.is_exported else run.checkpoint("best")
    run.check_files(run.read_config(), old, origin, path, quiet=quiet)
    parameters = with_tied(parameters, model)
    try:
        with torch.no_grad():
            for name, parameter in model.state_dict().items():
                value = parameters.pop(name).to(parameter.device)
                if parameter.shape != value.shape and len(parameter) == tokenizer.vocab_size:
                    mean = value[old.pad_id + 1 :].mean(0)
                    value = mean.expand_as(parameter).index_copy(0, rows.to(parameter.device), value)
                if parameter.shape != value.shape:
                    raise ValueError(name)
                parameter.copy_(value)
        if parameters:
            raise ValueError("more parameters than the model has")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise run.mismatch(path) from error


def _old_tokenizer(run: RunDirectory, config: Config) -> Tokenizer:
    """The tokenizer of the old run, which must have the configured model and tags."""
    there = run.read_config("train.init_from: ")
    for name in DEFINING:
        section, key = name.split(".")
        theirs, ours = (getattr(getattr(c, section), key) for c in (there, config))
        if theirs != ours:
            raise UserError(
                f"{run.path} has {name} = {theirs}, not {ours}; set {name} as there, or start from another run"
            )
    return run.load_tokenizer(config.tokenizer)


def _prepared_with(folder: Path, old: Tokenizer, run: str) -> Tokenizer:
    """The tokenizer of a prepared folder. It must have all pieces of `old`, the tokenizer of `run`."""
    found = Tokenizer.load(folder / TOKENIZER, old.tags)
    if not old.pieces().keys() <= found.pieces().keys():
        raise UserError(
            f"{folder}: prepared without the pieces of {run}; use {command('data', 'prepare', '--init-from', run)}"
        )
    return found


def _new_pieces(old: Tokenizer, corpus: Corpus, settings: schema.Tokenizer, run: str, quiet: bool) -> list[bytes]:
    """Up to `tokenizer.extend` pieces with characters that the old tokenizer lacks: each such character, then longer
    pieces by their scores.
    """
    known = old.pieces()
    text = vocabulary_text(corpus, settings.temperature, settings.most_pairs)
    unknown = {c for c in set().union(*text) if c not in known and not c.isspace()}
    if unknown and not settings.extend and not quiet:
        shown = "".join(sorted(unknown)[:20])
        print(
            f"{len(unknown)} characters are unknown to the tokenizer that training starts from ({shown}); "
            "tokenizer.extend makes pieces of them",
            file=sys.stderr,
        )
    lines = [line for line in text if not unknown.isdisjoint(line)] if settings.extend else []
    if not lines:
        return []
    room = len(set().union(*lines)) + settings.extend + 8  # 8: specials and spaces, which are not taken over
    trained = Tokenizer.train(lines, [], room, coverage=settings.character_coverage)
    scores = dict(itertools.islice(trained.pieces().items(), trained.first_piece, None))
    new = [piece for piece in scores if not unknown.isdisjoint(piece)]
    characters = [piece for piece in new if len(piece) == 1]
    if len(characters) > settings.extend:
        raise UserError(
            f"tokenizer.extend={settings.extend} is too small: the text has {len(characters)} characters that the "
            f"tokenizer of {run} lacks"
        )
    longer = sorted((piece for piece in new if len(piece) > 1), key=lambda piece: -scores[piece])
    chosen = [*characters, *longer[: settings.extend - len(characters)]]
    return [pieces.piece(piece, scores[piece], pieces.NORMAL) for piece in chosen]
