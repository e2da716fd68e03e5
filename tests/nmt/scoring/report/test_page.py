"""cats.nmt.scoring.report.page: the HTML page, as a parser sees it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cats.nmt.cli import compare
from cats.nmt.errors import UserError
from cats.nmt.scoring.pareto.results import LostPoint
from cats.nmt.scoring.report import page as page_module
from cats.nmt.scoring.report.page import page
from cats.nmt.scoring.report.problems import all_problems
from cats.nmt.scoring.report.runs import read
from cats.nmt.training.landscape import TABLES, KindSimilarity, LandscapeRecord, LandscapeSettings, add_record
from cats.nmt.training.run import RunDirectory
from tests.nmt.scoring.comparisons import LINES, finished_runs
from tests.nmt.scoring.pareto.made import made_fronts
from tests.nmt.scoring.report.runs import HOSTILE, REFERENCES, TASKS, TRANSLATIONS, page_of_three, write_run
from tests.nmt.scoring.samples import baseline

VOID = {"meta", "link", "br"}


class Document(HTMLParser):
    """Reads a document strictly: every element must be closed where HTML and XML agree that it ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}  # of each kind of element
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        if tag == "p":
            assert "p" not in self.open, "a paragraph cannot hold another one"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> is not HTML"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for tag in {*self.open}:
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def document(shown: Path) -> Document:
    return Document(shown.read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_needs_nothing_else(document: Document, shown: Path) -> None:
    assert shown.read_text(encoding="utf-8").startswith('<!DOCTYPE html>\n<html lang="en">')
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    pointers = [name for _, a in document.elements for name in (a.get("aria-labelledby") or "").split()]
    pointers += [str(a["href"]).removeprefix("#") for a in document.all("a")]
    pointers += [str(a.get("xlink:href")).removeprefix("#") for a in document.all("use")]
    assert pointers and {*pointers} <= {*ids}
    assert not document.all("img") and not document.all("iframe")
    assert [a["href"] for a in document.all("link")] == ["data:,"]
    assert len(document.all("script")) == 1 and len(document.all("style")) == 1
    assert not [name for _, a in document.elements for name in a if name == "src" or name.startswith("on")]
    assert shown.stat().st_size < 300 * 1024


def test_text_of_a_corpus_stays_text(document: Document) -> None:
    """A hostile translation is shown, and is no part of the page; so is the name of a run."""
    assert HOSTILE in document.texts["p"] and any("console.error" in text for text in document.texts["ins"])
    assert document.texts["title"][0] == document.texts["h1"][0] == "<title> & more"
    assert not document.all("b") and "<b>'&\"" in document.texts["th"]
    assert "\x00" not in "".join(document.texts["body"])


def test_languages_and_directions(document: Document) -> None:
    by_language: dict[str | None, set[str | None]] = {}
    for attributes in document.all("p"):
        if "dir" in attributes:
            by_language.setdefault(attributes["lang"], set()).add(attributes["dir"])
    assert by_language == {name: {"auto"} for name in ("en", "ar", "az", "ru")}


def test_headings_and_names_for_readers_that_hear_the_page(document: Document) -> None:
    levels = [int(tag[1]) for tag, _ in document.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in document.all("svg"))
    boxes = [a for a in document.all("div") if a.get("class") == "box"]
    assert boxes and all(a["role"] == "region" and a["aria-label"] and a["tabindex"] == "0" for a in boxes)
    assert all(a["scope"] in ("col", "row") for a in document.all("th"))
    assert all(document.texts[tag] for tag in ("ins", "del"))  # not only colours mark the differences


def test_what_the_page_says(document: Document) -> None:
    assert document.texts["h2"] == [
        "Warnings",
        "What was trained",
        "Scores",
        "Pictures",
        "Translations",
        "To reproduce it",
    ]
    said = "\n".join(document.texts["body"])
    assert "3 runs of 2 methods on toy." in said and "Every group beats the nearest-neighbour baseline." in said
    settings = next(text for text in document.texts["details"] if "Settings that differ" in text)
    assert "method.name" in settings and "train.seed" in settings and "method.strength" not in settings
    code = "\n".join(document.texts["code"])
    assert "cats report 'a b'" in code and "config.toml --out" in code and "sacrebleu" in code
    assert "seed = 4" in code


def test_an_empty_translation_is_not_shown_as_the_reference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", translations={**TRANSLATIONS, "ru": ["", " ", *REFERENCES["ru"][2:]]})
    text = page(read([run]), "a", ["cats"], lines=12)
    assert text.count('<p class="soft">(empty)</p>') == 2 and "<del>раз два три</del>" not in text


def test_the_mean_over_seeds(document: Document) -> None:
    assert "Means over the seeds, ± standard deviation" in document.texts["h3"]
    assert "60.0 ± 0.0" in document.texts["td"]


def test_warnings_come_first(tmp_path: Path) -> None:
    groups = dict.fromkeys(("all", "lores", "hires"), baseline(70.0))
    run = write_run(tmp_path / "run", lookup={"languages": {}, "groups": groups})
    text = page(read([run]), "run", ["cats"], lines=0)
    assert text.index("not trained") < text.index(">What was trained</h2>")
    assert "All (chrF 60.0 against 70.0)" in text and "Translations" not in Document(text).texts["h2"]


def test_the_page_is_the_same_again(shown: Path) -> None:
    assert page_of_three(shown.parent) == shown.read_text(encoding="utf-8")


def test_an_analysed_run_has_pictures_of_its_landscape(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "checkpoints").mkdir()
    tasks, matrix = list(TASKS), np.full((3, 3), 0.5)
    record = LandscapeRecord(
        step=40,
        checkpoint="best",
        model="",
        settings=LandscapeSettings(),
        tasks=tasks,
        tokens=dict.fromkeys(tasks, 500),
        **dict.fromkeys(TABLES, dict.fromkeys(tasks, 1.0)),
        interference=matrix,
        kinds=dict.fromkeys(("all", "E.SA"), KindSimilarity(matrix, matrix)),
    )
    add_record(RunDirectory(run), record)
    text = page(read([run]), "run", ["cats"], lines=0)
    captions = "\n".join(Document(text).texts["figcaption"])
    assert "Curvature and alignment" in captions and "Similarity by kind of layer" in captions
    assert text.count('xlink:href="data:image/png;base64,') == 2  # the matrices are images inside the picture


def test_of_many_runs_the_first_seeds_are_translated(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_TRANSLATIONS", 2)
    document = Document(page_of_three(shown.parent))
    assert any(text.startswith("Not shown: 1 of the runs.") for text in document.texts["p"])
    names = {term.partition(",")[0] for term in document.texts["dt"] if ", chrF" in term}
    assert names == {"<b>'&\"", "cats-seed3"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run directory nor a folder of them"):
        read([tmp_path])
    run = write_run(tmp_path / "a" / "run")
    (run / "scores.json").unlink()
    with pytest.raises(UserError, match=f"cats evaluate {run}"):
        read([run])
    with pytest.raises(UserError, match="not scored yet; score one with: cats evaluate"):
        read([tmp_path / "a"])
    write_run(tmp_path / "a" / "other")
    (tmp_path / "a" / "compare.json").write_text('{"sets": {"x": 1}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"compare\.json is damaged or of an older version"):
        read([tmp_path / "a"])
    (tmp_path / "a" / "compare.json").unlink()
    content = read([tmp_path / "a"])
    assert [each.name for each in content.runs] == ["other"] and content.not_scored == [run]
    assert [each.name for each in read([tmp_path / "a", tmp_path / "a" / ".." / "a" / "other"]).runs] == ["other"]
    assert "not scored" in page(content, "a", ["cats"], lines=0)


def test_a_damaged_run_stops_nothing_unless_it_is_named(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "runs" / "good"), write_run(tmp_path / "runs" / "bad")
    (bad / "config.toml").write_text("[build]\nx = 1\n", encoding="utf-8")
    content = read([tmp_path / "runs"])
    assert [run.path for run in content.runs] == [good]
    (found,) = (problem for _, problem in all_problems(content) if problem.what == "not readable")
    assert found.facts.startswith(f"{bad / 'config.toml'}: ")
    with pytest.raises(UserError, match=r"bad.config\.toml"):
        read([tmp_path / "runs", bad])


def test_the_folder_of_a_comparison(corpus: Path, tmp_path: Path) -> None:
    """Its tables, its picture, and the models that it found not to be trained."""
    runs = finished_runs(corpus, tmp_path / "out")
    for run in runs:
        for task in ("xa", "xb"):
            (run.path / "hyp" / f"test.{task}.src").write_text("".join(f"{x}\n" for x in LINES), encoding="utf-8")
    compare.write(tmp_path / "out", runs)
    content = read([tmp_path / "out"])
    (found,) = content.comparisons
    assert found.name == "out" and found.tables == (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    document = Document(page(content, "out", ["cats"], lines=1))
    assert document.texts["h2"][3:5] == ["Comparison out", "Pictures"] and "Worst regret" in document.texts["h3"]
    assert document.texts["figcaption"][0].startswith("chrF of LoRes and HiRes, out")
    assert {run.method for run in content.runs} == {"T=1", "T=5", "cats"}


def test_the_folder_of_fronts(tmp_path: Path) -> None:
    """Their tables and their picture. Runs that are compared by their validation loss have no scores to show."""
    out = tmp_path / "pareto"
    run = write_run(out / "ted" / "az-hires" / "ratio-0.2" / "static-seed1")
    (run / "scores.json").unlink()
    fronts = made_fronts()
    fronts.fronts[0].methods["T=3"].points[0].diverged.append(7)
    fronts.fronts[0].lost.extend([LostPoint("restart", 0.5, [], [1, 2]), LostPoint("cats", 0.2, [1], [])])
    lost = [LostPoint("static", 0.2, [], [1]), LostPoint("static", 0.8, [1], [])]
    fronts.fronts.append(dataclasses.replace(fronts.fronts[0], set="wmt", methods={}, curve=[], lost=lost))
    (out / "front.json").write_text(json.dumps(fronts.to_json()), encoding="utf-8")
    content = read([out])
    assert not content.runs and not content.not_scored
    document = Document(page(content, "pareto", ["cats", "report", "pareto"], lines=1))
    assert document.texts["h2"] == ["Warnings", "Trade-off fronts pareto", "Pictures", "To reproduce it"]
    assert "ted: az and hires, validation NLL" in document.texts["h3"]
    assert document.texts["figcaption"][0].startswith("Trade-off fronts, pareto")
    named = [*zip(document.texts["dt"], document.texts["dd"], strict=True)]
    warned = dict(named)
    assert warned["ted/az-hires/T=3"] == "seed 7" and warned["ted/az-hires/restart"] == "ratio 0.5: seed 1, 2"
    assert warned["ted/az-hires/cats"] == "ratio 0.2: seed 1"
    assert [dd for dt, dd in named if dt == "wmt/az-hires/static"] == ["ratio 0.2: seed 1", "ratio 0.8: seed 1"]
    assert "Trade-off fronts on ted, wmt." in document.texts["p"]
