"""What a run is worth: translations, their scores against the raw references, NLL, and the lookup baseline.

BLEU, chrF, chrF++ and spBLEU are corpus scores by sacreBLEU. Where test lines have strata (see
``cats.nmt.data.corpus``), the headline numbers are those of the headline stratum and the others stand under
"strata"; NLL is over all test lines.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cats.nmt.data.corpus import Corpus, Split, Text
from cats.nmt.data.groups import groups
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import atomic_write
from cats.nmt.model import decode, loss
from cats.nmt.model.transformer import Transformer
from cats.nmt.scoring import nearest_neighbour, tables
from cats.nmt.scoring.off_target import Identifier, identifier
from cats.nmt.training.metrics import read_metrics
from cats.nmt.training.run import RunDirectory, set_threads

# sacreBLEU's tokenizers for languages that 13a does not segment; the second serves where the first is not installed.
TOKENIZERS = {
    "zh": ("zh",),
    "ja": ("ja-mecab", "char"),
    "ko": ("ko-mecab", "char"),
    **dict.fromkeys(("th", "my", "km", "lo"), ("char",)),
}
# Their three-letter codes (ISO 639-3, and 639-2's older ones).
CODES = {
    **{"zho": "zh", "cmn": "zh", "chi": "zh", "yue": "zh", "jpn": "ja", "kor": "ko"},
    **{"tha": "th", "mya": "my", "bur": "my", "khm": "km", "lao": "lo"},
}
SCORES = ("bleu", "bleu_13a", "chrf", "chrfpp", "spbleu")  # what sacreBLEU gives
SPLITS = ("train", "valid", "test")
LOOKUP_PAIRS = 200_000  # of longer training text the baseline is left out: it would take hours


@dataclass(frozen=True)
class Score:
    """Corpus BLEU, chrF, chrF++ and spBLEU, 0 to 100, and sacreBLEU's signatures of those that could be had.

    bleu_13a: with the tokenizer 13a whatever the language, as the tables of Zhang et al. (2020) for OPUS-100 have it.
    """

    bleu: float
    bleu_13a: float
    chrf: float
    chrfpp: float
    spbleu: float | None
    signatures: dict[str, str]


@cache
def bleu_tokenizer(language: str) -> str:
    """The name of sacreBLEU's tokenizer for a language code such as az, zh_CN, kor or zho_Hans, of those installed."""
    from sacrebleu.metrics import BLEU

    names = _tokenizers(language)
    for name in names[:-1]:
        try:
            BLEU(tokenize=name)
        except (ImportError, RuntimeError):  # sacreBLEU raises the latter where MeCab is missing
            continue
        return name
    return names[-1]


def _tokenizers(language: str) -> tuple[str, ...]:
    """Those for BLEU into a language, the best first."""
    code = language.replace("-", "_").partition("_")[0].lower()
    return TOKENIZERS.get(CODES.get(code, code), ("13a",))


def spbleu_model() -> Path:
    """Where sacreBLEU keeps spBLEU's sentencepiece model, which it would download where it is missing."""
    from sacrebleu.tokenizers import tokenizer_spm

    return Path(tokenizer_spm.SACREBLEU_DIR, "models", Path(tokenizer_spm.SPM_MODELS["flores200"]["url"]).name)


def metrics(language: str) -> dict[str, Any]:
    """sacreBLEU's metrics by name; without spBLEU where its model is not on the disk."""
    from sacrebleu.metrics import BLEU, CHRF

    found = {"bleu": BLEU(tokenize=bleu_tokenizer(language), force=True), "chrf": CHRF(), "chrfpp": CHRF(word_order=2)}
    if bleu_tokenizer(language) != "13a":
        found["bleu_13a"] = BLEU(tokenize="13a", force=True)
    if spbleu_model().is_file():
        found["spbleu"] = BLEU(tokenize="flores200", force=True)
    return found


def score(hypotheses: list[str], references: list[str], language: str) -> Score:
    """Corpus scores of detokenised lines against raw reference lines; both need at least one line."""
    values: dict[str, Any] = {"spbleu": None, "signatures": {}}
    for name, metric in metrics(language).items():
        values[name] = metric.corpus_score(hypotheses, [references]).score
        values["signatures"][name] = str(metric.get_signature())
    values.setdefault("bleu_13a", values["bleu"])
    return Score(**values)


def line_nll(
    model: Transformer,
    tokenizer: Tokenizer,
    split: Split,
    source: str,
    target: str,
    *,
    batch_tokens: int,
    max_length: int = 1024,
) -> np.ndarray:
    """`line_nll` of a split in the languages `source` and `target`; of long lines, their first pieces."""
    sources = tokenizer.encode_source(split.source, source, target)
    targets = tokenizer.encode_target(split.target, target)
    for row in (*sources, *targets):
        del row[max_length + 1 : -1]
    return loss.line_nll(model, sources, targets, start=tokenizer.start(target), batch_tokens=batch_tokens)


def evaluate(run: Path, *, split: str = "test", checkpoint: str = "best", quiet: bool = False) -> dict[str, Any]:
    """Translate and score a split; write scores.json, scores.csv and ``hyp/``.

    Each task gets, line by line, ``hyp/<split>.<task>.txt`` (translations), ``.src`` and ``.ref`` (raw text, for
    scorers such as COMET) and ``.nll`` ("nats TAB tokens"). Another split writes scores.<split>.json, another
    checkpoint scores.<checkpoint>.json and ``hyp-<checkpoint>/``. A score that cannot be had (no test lines; a
    likelihood that is not finite; spBLEU without its model) is None.

    Args:
        run: a run directory that `cats.nmt.training.trainer.train` wrote.
        split: train, valid or test.
        checkpoint: best, last, average, or another in the run's checkpoints/.
        quiet: no progress bar (there is none either where standard error is not a terminal).

    Returns:
        What scores.json holds: "languages" and "groups" (macro-averages) with tables.METRICS; the same per stratum
        under "strata", for the nearest-neighbour baseline under "lookup", and for directions without training text,
        which have no part in the averages, under "zero_shot"; "beats_lookup" per group, by chrF.

    Raises:
        UserError: unusable run or corpus, unknown split, nothing to score, a full disk.
    """
    from tqdm import tqdm

    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'{nearest(split, SPLITS)}")
    directory = RunDirectory(run)
    trained = directory.load_model(checkpoint)
    config, tokenizer, model = trained.config, trained.tokenizer, trained.model
    corpus = directory.load_corpus(trained)
    members = groups(corpus.sizes, config.evaluate)
    tested = [task for task in [*corpus.tasks, *corpus.zero_shot] if not isinstance(getattr(task, split), Text)]
    zero_shot = {task.name for task in corpus.zero_shot}
    # A language may have come after the training, and training text too long to be held is not translated.
    unknown = [task.name for task in tested if not tokenizer.translates(task.source, task.target)]
    tested = [task for task in tested if task.name not in unknown]
    parts: dict[str, Split] = {task.name: getattr(task, split) for task in tested}
    if not any(part.source for name, part in parts.items() if name not in zero_shot):
        raise UserError(f"the corpus {corpus.name} has no {split} lines to evaluate on")
    if not quiet:
        if unknown:
            print(f"{', '.join(unknown)}: not scored, the model has no tag or pieces for them", file=sys.stderr)
        for task in tested:
            best = _tokenizers(task.target)[0]
            if bleu_tokenizer(task.target) != best:
                extra = best.partition("-")[0]
                print(
                    f"{task.name}: BLEU counts characters as words, for want of {best}; "
                    f"install it with: pip install 'sacrebleu[{extra}]'",
                    file=sys.stderr,
                )
    set_threads(config.train.threads, config.model.d_model)
    known = identifier(corpus)
    directory.hypotheses(checkpoint).mkdir(exist_ok=True)
    ours, theirs = {}, {}
    hidden = True if quiet else None  # None: where standard error is not a terminal
    for task in tqdm(tested, desc=f"evaluating on {split}", unit="language", disable=hidden, leave=False):
        part = parts[task.name]
        nll = line_nll(
            model,
            tokenizer,
            part,
            task.source,
            task.target,
            batch_tokens=config.decode.batch_tokens,
            max_length=config.decode.max_length,
        )
        search = dataclasses.asdict(config.decode)
        lines = decode.translate(model, tokenizer, part.source, task.source, task.target, **search)
        columns = {
            "txt": lines,
            "src": part.source,
            "ref": part.target,
            "nll": [f"{nats:.4f}\t{tokens:.0f}" for nats, tokens in nll],
        }
        for suffix, column in columns.items():
            path = directory.hypotheses_file(task.name, suffix, split, checkpoint)
            atomic_write(path, "".join(f"{line}\n" for line in column))
        ours[task.name] = Output(task.target, part, lines, nll, known)
        if isinstance(task.train, Split) and 0 < len(task.train) <= LOOKUP_PAIRS:
            theirs[task.name] = Output(task.target, part, nearest_neighbour.translate(task.train, part.source))
    result = {
        **tabulate({name: output for name, output in ours.items() if name not in zero_shot}, theirs, corpus, members),
        "zero_shot": {name: output.cell(None) for name, output in ours.items() if name in zero_shot},
        "corpus": corpus.name,
        "split": split,
        "checkpoint": checkpoint,
        "method": config.method.name,
        "temperature": config.sampling.temperature if math.isfinite(config.sampling.temperature) else "inf",
        "seed": config.train.seed,
        **_speed(directory.metrics_file),
    }
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(directory.scores_file(split, checkpoint), text)
    atomic_write(directory.scores_file(split, checkpoint, "csv"), tables.scores_csv(result))
    return result


@dataclass(frozen=True)
class Output:
    """What one system made of a split of one task; nll as of `line_nll`, where the system has one.

    known: what tells the languages apart, for the off-target rate.
    """

    language: str
    split: Split
    lines: list[str]
    nll: np.ndarray | None = None
    known: Identifier | None = None

    def cell(self, stratum: str | None) -> dict[str, Any]:
        """Scores of the lines in a stratum; None stands for all lines."""
        rows = self.split.rows(stratum)
        cell: dict[str, Any] = {**dict.fromkeys(SCORES), "lines": len(rows)}
        lines, references = [self.lines[i] for i in rows], [self.split.target[i] for i in rows]
        if rows:
            scored = score(lines, references, self.language)
            cell.update({name: getattr(scored, name) for name in SCORES})
        if self.nll is not None:
            cell.update(self.likelihood(rows))
        if self.known is not None:
            cell["off_target"] = self.known.off_target(lines, self.language, references)
            cell["off_target_references"] = self.known.off_target(references, self.language, references)
        return cell

    def likelihood(self, rows: list[int]) -> dict[str, float | None]:
        """Nats per target token over some lines, and the perplexity."""
        nats, tokens = self.nll[rows].sum(0) if self.nll is not None and rows else (math.nan, 1.0)
        nll = float(nats / tokens)
        # Beyond 700 nats a token the perplexity is no float.
        return {"nll": nll, "perplexity": math.exp(nll)} if nll < 700 else {"nll": None, "perplexity": None}


def tabulate(
    ours: Mapping[str, Output],
    theirs: Mapping[str, Output],
    corpus: Corpus,
    members: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """All scores of a model's output and of the lookup's, each {task: Output}; see `evaluate` and `groups`."""
    strata = sorted({stratum for output in ours.values() for stratum, _ in output.split.meta or ()})
    headline = corpus.headline if corpus.headline in strata else None
    members = {group: [name for name in names if name in ours] for group, names in (members or corpus.groups).items()}
    unknown = Output("", Split([], []), [])

    def both(stratum: str | None) -> dict[str, Any]:
        languages = {name: output.cell(stratum) for name, output in ours.items()}
        baseline = {
            name: theirs[name].cell(stratum) if name in theirs else {**unknown.cell(None), "lines": cell["lines"]}
            for name, cell in languages.items()
        }
        return {
            "languages": languages,
            "groups": averages(languages, members),
            "lookup": {"languages": baseline, "groups": averages(baseline, members)},
        }

    by_stratum = {stratum: both(stratum) for stratum in strata} if headline or len(strata) > 1 else {}
    result = copy.deepcopy(by_stratum[headline]) if headline else both(None)
    for name, cell in result["languages"].items():
        cell.update(ours[name].likelihood(list(range(len(ours[name].lines)))))
        cell["pairs"] = corpus.sizes[name]
    result["groups"] = averages(result["languages"], members)
    for group, cell in result["groups"].items():
        cell["languages"] = members[group]
    model, baseline = result["groups"], result["lookup"]["groups"]
    scored = {name: score(["x"], ["x"], output.language).signatures for name, output in ours.items()}
    return {
        **result,
        "headline": headline,
        "beats_lookup": {
            group: None
            if model[group]["chrf"] is None or baseline[group]["chrf"] is None
            else model[group]["chrf"] > baseline[group]["chrf"]
            for group in model
        },
        "strata": by_stratum,
        "signatures": {
            metric: {name: signatures[metric] for name, signatures in scored.items() if metric in signatures}
            for metric in SCORES
            if any(metric in signatures for signatures in scored.values())
        },
    }


def averages(languages: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Macro-averages per group, over its languages with lines; None without any, or where one lacks the score."""
    result: dict[str, dict[str, Any]] = {}
    for group, names in groups.items():
        cells = [languages[name] for name in names if languages[name]["lines"]]
        result[group] = {}
        for metric in tables.METRICS:
            if all(metric in cell for cell in cells):
                values = [cell[metric] for cell in cells]
                result[group][metric] = sum(values) / len(values) if values and None not in values else None
        if result[group].get("perplexity") is not None:
            result[group]["perplexity"] = math.exp(result[group]["nll"])
    return result


def _speed(metrics: Path) -> dict[str, float | None]:
    """Updates, seconds of training and target tokens per second, from a run's metrics.jsonl."""
    steps, seconds, tokens = 0, 0.0, 0
    for record in read_metrics(metrics):
        steps = record["step"]
        if "tokens" in record:
            seconds, tokens = record["seconds"], tokens + sum(record["tokens"].values())
    return {"steps": steps, "seconds": seconds or None, "tokens_per_second": tokens / seconds if seconds else None}
