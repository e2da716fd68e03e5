"""What a run is worth: translations, their BLEU and chrF against the raw references, NLL, and the lookup baseline.

BLEU and chrF are corpus scores by sacreBLEU. Where test lines have strata (see ``cats.nmt.data``), the headline
numbers are those of the headline stratum and the others stand under "strata"; NLL is over all test lines.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cats.nmt import checkpoint as checkpoints
from cats.nmt import decode, lookup, loss
from cats.nmt.config import Config, read_config
from cats.nmt.data import Corpus, Split
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import atomic_write
from cats.nmt.model import Transformer
from cats.nmt.report import read_metrics
from cats.nmt.tokenizer import Tokenizer
from cats.nmt.train import build_model, default_device, load_corpus, load_tokenizer, set_threads

# sacreBLEU's tokenizers for languages that 13a does not segment; the second serves where the first is not installed.
TOKENIZERS = {
    "zh": ("zh",),
    "ja": ("ja-mecab", "char"),
    "ko": ("ko-mecab", "char"),
    **dict.fromkeys(("th", "my", "km", "lo"), ("char",)),
}
METRICS = ("bleu", "chrf", "nll")
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Score:
    """Corpus BLEU and chrF, 0 to 100, with sacreBLEU's signatures."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


@cache
def bleu_tokenizer(language: str) -> str:
    """The name of sacreBLEU's tokenizer for a language code such as "az" or "zh_CN", of those installed here."""
    from sacrebleu.metrics import BLEU

    names = TOKENIZERS.get(language.replace("-", "_").partition("_")[0].lower(), ("13a",))
    for name in names[:-1]:
        try:
            BLEU(tokenize=name)
        except (ImportError, RuntimeError):  # sacreBLEU raises the latter where MeCab is missing
            continue
        return name
    return names[-1]


def score(hypotheses: list[str], references: list[str], language: str) -> Score:
    """Corpus scores of detokenised lines against raw reference lines; both need at least one line."""
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(tokenize=bleu_tokenizer(language), force=True), CHRF()
    return Score(
        bleu.corpus_score(hypotheses, [references]).score,
        chrf.corpus_score(hypotheses, [references]).score,
        str(bleu.get_signature()),
        str(chrf.get_signature()),
    )


def line_nll(model: Transformer, tokenizer: Tokenizer, split: Split, language: str, *, batch_tokens: int) -> np.ndarray:
    """`cats.nmt.loss.line_nll` of the text of a split, translated into ``language``."""
    sources, targets = tokenizer.encode_source(split.source, language), tokenizer.encode_target(split.target, language)
    return loss.line_nll(model, sources, targets, start=tokenizer.start(language), batch_tokens=batch_tokens)


def load_model(run: Path, name: str = "best") -> tuple[Config, Tokenizer, Transformer, dict[str, Any]]:
    """A run's configuration, tokenizer, model in evaluation mode, and the rest of a checkpoint (best, last, ..).

    Raises:
        UserError: ``run`` is no run directory, or a file in it is missing or does not fit.
    """
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} is no run directory: it holds no config.toml")
    config = read_config(run / "config.toml")
    path = run / "checkpoints" / f"{name}.pt"
    if not path.exists():
        there = sorted(found.stem for found in path.parent.glob("*.pt"))
        if name != "best" and there:
            known = ", ".join(there)
            raise UserError(f"{run} holds no checkpoint '{name}'{nearest(name, there)}; there are {known}")
        raise UserError(f"{run} holds no trained model yet ({path.name}); go on with: cats train --resume {run}")
    state = checkpoints.load(path)
    tokenizer = load_tokenizer(run, config)
    model = build_model(config, tokenizer)
    try:
        model.load_state_dict(state.pop("model"))
    except (KeyError, RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path} does not fit {run}/config.toml: it is of another run or version") from None
    return config, tokenizer, model.to(default_device()).eval(), state


def load_run(run: Path, name: str = "best") -> tuple[Config, Corpus, Tokenizer, Transformer]:
    """A run with the corpus it was trained on; see `load_model`.

    Raises:
        UserError: also where the corpus has changed since the run was trained.
    """
    config, tokenizer, model, state = load_model(run, name)
    corpus = load_corpus(config)
    if state.get("digest") != corpus.digest():
        raise UserError(f"{config.data.path or 'the CLDR corpus'} is not what {run} was trained on; train again")
    return config, corpus, tokenizer, model


def evaluate(run: Path, *, split: str = "test", checkpoint: str = "best", quiet: bool = False) -> dict[str, Any]:
    """Translate and score a split; write ``hyp/`` and, for the test split, scores.json (else scores.<split>.json).

    Each task gets ``hyp/<split>.<task>.txt``, a translation per line, and ``hyp/<split>.<task>.nll``, "nats TAB tokens"
    per line. A score that cannot be had (no test lines; a likelihood that is not finite) is None.

    Args:
        run: a run directory that `cats.nmt.train.train` wrote.
        split: train, valid or test.
        checkpoint: best, last, average, or another in the run's checkpoints/.
        quiet: no progress bar (there is none either where standard error is not a terminal).

    Returns:
        What scores.json holds: "languages" and "groups" (macro-averages) with bleu, chrf and nll; the same per stratum
        under "strata" and for the nearest-neighbour baseline under "lookup"; "beats_lookup" per group, by chrF.

    Raises:
        UserError: unusable run or corpus, unknown split, nothing to score, a full disk.
    """
    from tqdm import tqdm

    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'{nearest(split, SPLITS)}")
    config, corpus, tokenizer, model = load_run(run, checkpoint)
    parts: dict[str, Split] = {task.name: getattr(task, split) for task in corpus.tasks}
    if not any(part.source for part in parts.values()):
        raise UserError(f"the corpus {corpus.name} has no {split} lines to evaluate on")
    set_threads(config)
    (run / "hyp").mkdir(exist_ok=True)
    ours, theirs = {}, {}
    hidden = True if quiet else None  # None: where standard error is not a terminal
    for task in tqdm(corpus.tasks, desc=f"evaluating on {split}", unit="language", disable=hidden, leave=False):
        part = parts[task.name]
        nll = line_nll(model, tokenizer, part, task.target, batch_tokens=config.decode.batch_tokens)
        lines = decode.translate(
            model,
            tokenizer,
            part.source,
            task.target,
            **dataclasses.asdict(config.decode),
        )
        stem = run / "hyp" / f"{split}.{task.name}"
        atomic_write(stem.with_name(f"{stem.name}.txt"), "".join(f"{line}\n" for line in lines))
        atomic_write(stem.with_name(f"{stem.name}.nll"), "".join(f"{n:.4f}\t{t:.0f}\n" for n, t in nll))
        ours[task.name] = Output(task.target, part, lines, nll)
        theirs[task.name] = Output(task.target, part, lookup.translate(task.train, part.source))
    result = {
        **tabulate(ours, theirs, corpus),
        "corpus": corpus.name,
        "split": split,
        "checkpoint": checkpoint,
        "method": config.method.name,
        "temperature": config.sampling.temperature if math.isfinite(config.sampling.temperature) else "inf",
        "steps": config.train.steps,
        "seed": config.train.seed,
        **_speed(run / "metrics.jsonl"),
    }
    name = "scores.json" if split == "test" else f"scores.{split}.json"
    atomic_write(run / name, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return result


@dataclass(frozen=True)
class Output:
    """What one system made of a split of one task; nll as of `line_nll`, where the system has one."""

    language: str
    split: Split
    lines: list[str]
    nll: np.ndarray | None = None

    def cell(self, stratum: str | None) -> dict[str, Any]:
        """Scores of the lines in a stratum; None stands for all lines."""
        rows = self.split.rows(stratum)
        cell: dict[str, Any] = {"bleu": None, "chrf": None, "lines": len(rows)}
        if rows:
            scored = score([self.lines[i] for i in rows], [self.split.target[i] for i in rows], self.language)
            cell.update(bleu=scored.bleu, chrf=scored.chrf)
        if self.nll is not None:
            cell["nll"] = self.mean_nll(rows)
        return cell

    def mean_nll(self, rows: list[int]) -> float | None:
        """Nats per target token over some lines."""
        nats, tokens = self.nll[rows].sum(0) if self.nll is not None and rows else (math.nan, 1.0)
        return float(nats / tokens) if math.isfinite(nats) else None


def tabulate(ours: Mapping[str, Output], theirs: Mapping[str, Output], corpus: Corpus) -> dict[str, Any]:
    """All scores of a model's output and of the lookup's, each {task: Output}; see `evaluate`."""
    strata = sorted({stratum for output in ours.values() for stratum, _ in output.split.meta or ()})
    headline = corpus.headline if corpus.headline in strata else None

    def both(stratum: str | None) -> dict[str, Any]:
        languages = {name: output.cell(stratum) for name, output in ours.items()}
        baseline = {name: output.cell(stratum) for name, output in theirs.items()}
        return {
            "languages": languages,
            "groups": averages(languages, corpus.groups),
            "lookup": {"languages": baseline, "groups": averages(baseline, corpus.groups)},
        }

    by_stratum = {stratum: both(stratum) for stratum in strata} if headline or len(strata) > 1 else {}
    result = copy.deepcopy(by_stratum[headline]) if headline else both(None)
    for name, cell in result["languages"].items():
        cell["nll"] = ours[name].mean_nll(list(range(len(ours[name].lines))))
        cell["pairs"] = corpus.sizes[name]
    result["groups"] = averages(result["languages"], corpus.groups)
    for group, cell in result["groups"].items():
        cell["languages"] = corpus.groups[group]
    model, baseline = result["groups"], result["lookup"]["groups"]
    scored = {name: score(["x"], ["x"], output.language) for name, output in ours.items()}
    return {
        **result,
        "headline": headline,
        "beats_lookup": {
            group: None if model[group]["chrf"] is None else model[group]["chrf"] > baseline[group]["chrf"]
            for group in model
        },
        "strata": by_stratum,
        "signatures": {
            "bleu": {name: s.bleu_signature for name, s in scored.items()},
            "chrf": {name: s.chrf_signature for name, s in scored.items()},
        },
    }


def averages(languages: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Macro-averages per group, over its languages with lines; None without any, or where one lacks the score."""
    result: dict[str, dict[str, Any]] = {}
    for group, names in groups.items():
        cells = [languages[name] for name in names if languages[name]["lines"]]
        result[group] = {}
        for metric in METRICS:
            if all(metric in cell for cell in cells):
                values = [cell[metric] for cell in cells]
                result[group][metric] = sum(values) / len(values) if values and None not in values else None
    return result


def _speed(metrics: Path) -> dict[str, float | None]:
    """Seconds of training and target tokens per second, from a run's metrics.jsonl."""
    seconds, tokens = 0.0, 0
    for record in read_metrics(metrics):
        if "tokens" in record:
            seconds, tokens = record["seconds"], tokens + sum(record["tokens"].values())
    return {"seconds": seconds or None, "tokens_per_second": tokens / seconds if seconds else None}
