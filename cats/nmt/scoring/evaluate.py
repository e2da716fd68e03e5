"""Evaluation of a run: translates a split, scores the translations, and writes both to the run directory.

BLEU, chrF, chrF++ and spBLEU are corpus scores by sacreBLEU against the raw references. Test lines may have strata (see
``cats.nmt.data.corpus``). If there is a headline stratum, the main scores are computed on it, and the other strata are
reported separately. NLL is computed on all test lines.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cats.nmt import quality
from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config, Decode
from cats.nmt.data.corpus import SPLITS, Corpus, Split, StreamedSplit, Task
from cats.nmt.data.groups import task_groups
from cats.nmt.data.monolingual import VALIDATION_SEED, CorruptedLines
from cats.nmt.data.shards import pack
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError, command, nearest
from cats.nmt.files import atomic_write, make_folder, one_line
from cats.nmt.model import decode, loss
from cats.nmt.model.ensemble import Ensemble
from cats.nmt.model.transformer import Transformer
from cats.nmt.scoring import hypotheses, nearest_neighbour, tables
from cats.nmt.scoring.members import write_members
from cats.nmt.scoring.off_target import Identifier, train_identifier
from cats.nmt.scoring.scores import RunFacts, Scores, write_scores
from cats.nmt.scoring.summarise import Output, summarise
from cats.nmt.screen import doing
from cats.nmt.training.device import set_threads
from cats.nmt.training.load_ensemble import load_together, together
from cats.nmt.training.metrics import read_metrics
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trained_model import TrainedModel


class NothingToScoreError(UserError):
    """The corpus has no lines of the split."""


def evaluate(
    run: Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data: str | None = None,
    quiet: bool = False,
    others: Sequence[Path] = (),
    out: Path | None = None,
) -> Scores:
    """Translates and scores a split; writes scores.json, scores.csv and ``hyp/``.

    Each task gets files ``hyp/<split>.<task>.<suffix>`` with a line for each test line:

    * ``txt``: the translations;
    * ``src`` and ``ref``: the raw text, for scorers such as COMET. A carriage return becomes a space, because many
      programs take it for the end of a line;
    * ``nll``: "nats TAB tokens";
    * ``stratum``, if the test lines have strata: the stratum, which tells which lines a score covers;
    * ``nearest``, if it is computed: the translations of the nearest-neighbour baseline.

    With them, sacreBLEU's command line gives the same scores. For another split than the test split the scores go to
    scores.<split>.json. For another checkpoint than the best one they go to scores.<checkpoint>.json, and the lines to
    ``hyp-<checkpoint>/``.

    `evaluate.*` says which lines are translated. The files in ``hyp/`` have only these; NLL is computed on all lines.

    Args:
        run: a run directory that `cats.nmt.training.trainer.train` wrote.
        split: train, valid or test.
        checkpoint: best, last, average, or another one of the run's checkpoints/.
        data: the folder of the run's corpus, if it was moved.
        quiet: no progress bar and no notices. Without a terminal there is never a progress bar.
        others: runs whose models translate together with that of `run`: the next token has the mean of their
            probabilities. The settings are those of `run`.
        out: the folder for all that is written, made if it is missing. None: `run` itself, not allowed with `others`.

    Returns:
        What scores.json holds. A score is None if it cannot be computed: no test lines, a likelihood that is not
        finite, or spBLEU without its model.

    Raises:
        UserError: the run or its corpus is unusable, the split is unknown, the disk is full, or another run has another
            vocabulary or was trained on another corpus.
        NothingToScoreError: the corpus has no lines of the split.
        ValueError: `others` without `out`.
    """
    if others and out is None:
        raise ValueError("the scores of several runs belong to none of them: give out")
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'{nearest(split, SPLITS)}")
    directory = RunDirectory(run)
    models = load_together([run, *others], checkpoint, quiet=quiet)
    trained, model = models[0], together(models)
    config = trained.config if data is None else replace_settings(trained.config, {"data.path": data})
    doing(f"reading {config.data.path or 'the built-in corpus'}", quiet=quiet)
    corpus = directory.load_corpus(config, trained.origin, quiet=quiet)
    for path, other in zip(others, models[1:], strict=True):
        if not corpus.has_digest(other.origin.digest):
            difference = other.origin.corpus_difference(corpus)
            raise UserError(f"{path} was trained on another corpus than {run} ({difference}); score it alone")
    members = task_groups(corpus.sizes, config.evaluate)
    every = [_with_first_valid_pairs(task, config.data.valid_pairs) for task in [*corpus.tasks, *corpus.zero_shot]]
    tasks = [task for task in every if _lines(task, split) is not None]
    # Language modelling has no test text.
    tasks = [task for task in tasks if task.source != task.target or _lines(task, split)]
    # A language may have been added to the corpus after the training.
    unknown = [task.name for task in tasks if not trained.tokenizer.translates(task.source, task.target)]
    tasks = [task for task in tasks if task.name not in unknown]
    zero_shot = {task.name for task in corpus.zero_shot}
    if not any(_lines(task, split) for task in tasks if task.name not in zero_shot):
        advice = ""
        if split == "test" and any(_lines(task, "valid") for task in tasks):
            where = [] if out is None else ["--out", str(out)]
            again = command("evaluate", run, *others, *where, "--split", "valid")
            advice = f"; to score its validation lines: {again}"
        raise NothingToScoreError(f"the corpus {corpus.name} has no {split} lines to evaluate on{advice}")
    if not quiet:
        _print_notices(tasks, unknown)
        for path in (run, *others):
            if diverged := RunDirectory(path).divergence():
                print(f"cats: {path}: {diverged}; scored is the model of {checkpoint}.pt", file=sys.stderr)
    set_threads(config.train.threads, config.model.d_model)
    rows = {
        task.name: hypotheses.translated_rows(lines, corpus.headline, config.evaluate)
        if task.source != task.target  # language modelling is not translated
        else []
        for task in tasks
        if (lines := _lines(task, split)) is not None
    }
    written = RunDirectory(run if out is None else out)
    make_folder(written.path)
    if others:
        write_members(written.path, [run, *others])  # before the scores, so that what was begun can be done again
    if any(rows.values()):
        written.hypotheses(checkpoint).mkdir(exist_ok=True)
    known = train_identifier(corpus)
    ours, theirs = _translate(tasks, rows, split, trained, model, known, written, checkpoint, quiet)
    facts = _facts(directory, config, corpus, split, checkpoint)
    if others:
        methods = " + ".join(each.config.method.name for each in models)
        facts = replace(facts, method=methods, seconds=None, tokens_per_second=None, peak_memory=None, cpu_seconds=None)
    scores = summarise(
        {name: output for name, output in ours.items() if name not in zero_shot},
        theirs,
        corpus,
        members,
        zero_shot={name: output for name, output in ours.items() if name in zero_shot},
        run=facts,
    )
    scores = replace(scores, files=hypotheses.digests(written.path, split, checkpoint))
    write_scores(written.scores_file(split, checkpoint), scores)
    atomic_write(written.scores_file(split, checkpoint, "csv"), tables.scores_csv(scores))
    return scores


def line_nll(
    model: Transformer | Ensemble,
    tokenizer: Tokenizer,
    split: Split,
    source: str,
    target: str,
    settings: Decode,
    task: str = "",
) -> np.ndarray:
    """NLL of each line of a split, see ``cats.nmt.model.loss.line_nll``.

    A side of more than `decode.max_length` pieces is cut to so many, and a message says how many lines are. If source
    and target are the same language, it is that of the lost spans of language modelling, which are the same as in
    validation if that leaves no line out.

    Args:
        source: the source language.
        target: the target language.
        task: its name in the message; "": that of the target language.

    Returns:
        (lines, 2) float64: nats and number of target tokens.
    """
    sources = tokenizer.encode_source(split.source, source, target)
    targets = tokenizer.encode_target(split.target, target)
    before, after = tokenizer.frame(source, target)
    most = settings.max_length
    long = decode.cut(targets, 0, 1, most)  # the end of the sentence is after the pieces
    if source != target:  # otherwise the sources are made of the targets
        long |= decode.cut(sources, len(before), len(after), most)
    if long:
        what = f"only the first {most:,} pieces of a side are scored (decode.max_length)"
        print(f"cats: {task or target}: {len(long):,} of {len(targets):,} lines are too long: {what}", file=sys.stderr)
    if source == target:
        lines = pack([part for row in targets for part in ([], row[:-1])], tokenizer.vocab_size)
        pairs = CorruptedLines.of(lines, tokenizer.sentinels, VALIDATION_SEED)
        sources = [[*before, *pairs.side(2 * i), *after] for i in range(len(pairs))]
        targets = [[*pairs.side(2 * i + 1), tokenizer.eos_id] for i in range(len(pairs))]
    return loss.line_nll(model, sources, targets, start=tokenizer.start(target), batch_tokens=settings.batch_tokens)


def _with_first_valid_pairs(task: Task, most: int) -> Task:
    """The task with the validation pairs that `data.valid_pairs` asks for, as in training. 0: all of them."""
    lines, count = task.valid, most or len(task.valid)
    meta = None if lines.meta is None else lines.meta[:count]
    return replace(task, valid=Split(lines.source[:count], lines.target[:count], meta))


def _lines(task: Task, split: str) -> Split | None:
    """The lines of a task to translate. None: training text that is too large to be held in memory."""
    lines: Split | StreamedSplit = getattr(task, split)
    return None if isinstance(lines, StreamedSplit) else lines


def _print_notices(tasks: Sequence[Task], unknown: Sequence[str]) -> None:
    """Prints which tasks are not scored, and for which BLEU uses a fallback tokenizer.

    The fallback is used because the right tokenizer is not installed.
    """
    if unknown:
        print(f"{', '.join(unknown)}: not scored, the model has no tag or pieces for them", file=sys.stderr)
    for task in tasks:
        if missing := quality.missing_tokenizer(task.target):
            print(
                f"{task.name}: BLEU counts characters as words because {missing} is not installed; "
                f"install it with: pip install 'sacrebleu[{missing.partition('-')[0]}]'",
                file=sys.stderr,
            )


def _translate(
    tasks: Sequence[Task],
    rows: Mapping[str, list[int]],
    split: str,
    trained: TrainedModel,
    model: Transformer | Ensemble,
    known: Identifier,
    written: RunDirectory,
    checkpoint: str,
    quiet: bool,
) -> tuple[dict[str, Output], dict[str, Output]]:
    """Translates each task with the model, writes the lines, and translates with the baseline.

    Args:
        rows: the indices of the lines of each task to translate.
        trained: what is used beside the model.
        written: where the lines are written.

    Returns:
        The outputs of the model, and of the nearest-neighbour baseline for the tasks that it can be computed for.
    """
    from tqdm import tqdm

    settings, tokenizer = trained.config.decode, trained.tokenizer
    search = replace(settings, beam=1) if trained.config.evaluate.search == "greedy" else settings
    ours, theirs = {}, {}
    hidden = True if quiet else None  # None: hidden unless standard error is a terminal
    for task in tqdm(tasks, desc=f"evaluating on {split}", unit="language", disable=hidden, leave=False):
        lines, chosen = _lines(task, split), rows[task.name]
        assert lines is not None
        nll = line_nll(model, tokenizer, lines, task.source, task.target, settings, task.name)
        sources = [lines.source[i] for i in chosen]
        limit = trained.origin.length_limit(task.name)
        found = decode.translate(
            model, tokenizer, sources, task.source, task.target, search, limit=limit, task=task.name
        )
        # The scores are computed on what is written, so that they can be computed again.
        shown = Split([*map(one_line, lines.source)], [*map(one_line, lines.target)], lines.meta)
        columns = {
            "txt": found,
            "src": [shown.source[i] for i in chosen],
            "ref": [shown.target[i] for i in chosen],
            "nll": [f"{nats:.4f}\t{tokens:.0f}" for nats, tokens in nll[chosen]],
        }
        ours[task.name] = Output(task.target, shown, found, nll, known, chosen)
        if lines.meta is not None:
            columns["stratum"] = [one_line(lines.meta[i][0]) for i in chosen]
        searched = trained.config.evaluate.baseline and isinstance(task.train, Split)
        if searched and chosen and 0 < len(task.train) <= nearest_neighbour.MOST_NEIGHBOURS:
            columns["nearest"] = [*map(one_line, nearest_neighbour.translate(task.train, sources))]
            theirs[task.name] = Output(task.target, shown, columns["nearest"], rows=chosen)
        for suffix, column in columns.items():
            if chosen:
                path = written.hypotheses_file(task.name, suffix, split, checkpoint)
                atomic_write(path, "".join(f"{line}\n" for line in column))
    return ours, theirs


def _facts(directory: RunDirectory, config: Config, corpus: Corpus, split: str, checkpoint: str) -> RunFacts:
    """What was scored; steps, time, speed and memory of the training are read from metrics.jsonl."""
    steps, seconds, tokens, memory, cpu_seconds = 0, 0.0, 0, 0, None
    for record in read_metrics(directory.metrics_file):
        steps = record["step"]
        if "tokens" in record:
            seconds, tokens = record["seconds"], tokens + sum(record["tokens"].values())
            memory = max(memory, record.get("peak_memory") or 0)
            cpu_seconds = record.get("cpu_seconds")
    return RunFacts(
        corpus=corpus.name,
        split=split,
        checkpoint=checkpoint,
        method=config.method.name,
        temperature=config.sampling.temperature,
        seed=config.train.seed,
        steps=steps,
        seconds=seconds or None,
        tokens_per_second=tokens / seconds if seconds else None,
        peak_memory=memory or None,
        cpu_seconds=cpu_seconds,
    )
