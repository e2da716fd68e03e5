"""The nearest-neighbour baseline of a set: computed once, and kept beside its runs in nearest-neighbour.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cats.nmt.config.schema import Evaluate
from cats.nmt.data.corpus import Corpus, Split
from cats.nmt.files import one_line, read_checked_json, write_checked_json
from cats.nmt.quality import Quality
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.nearest_neighbour import MOST_NEIGHBOURS, translate
from cats.nmt.scoring.scores import TaskCell
from cats.nmt.scoring.summarise import Output


def nearest_neighbour(corpus: Corpus, settings: Evaluate, folder: Path) -> dict[str, TaskCell]:
    """The baseline's scores on each task with test lines.

    Args:
        settings: which lines are translated.
        folder: where the scores of the tasks are kept.
    """
    path = folder / "nearest-neighbour.json"
    key = {"corpus": corpus.digest(), "strata": settings.strata, "lines": settings.lines}
    try:
        content = read_checked_json(path)
        fits = {name: content[name] for name in key} == key
        tasks = (
            {name: TaskCell(Quality(**values), lines=1) for name, values in content["tasks"].items()} if fits else {}
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or damaged
        tasks = {}
    if not tasks:
        for task in corpus.tasks:
            rows = hypotheses.translated_rows(task.test, corpus.headline, settings)
            if isinstance(task.train, Split) and 0 < len(task.train) <= MOST_NEIGHBOURS:
                lines = [*map(one_line, translate(task.train, [task.test.source[i] for i in rows]))]
                tasks[task.name] = Output(task.target, task.test, lines, rows=rows).cell(corpus.headline)
            elif rows:
                tasks[task.name] = TaskCell(lines=len(rows))
        kept = {name: asdict(cell.quality) for name, cell in tasks.items() if cell.lines}
        write_checked_json(path, {**key, "tasks": kept})
    return tasks
