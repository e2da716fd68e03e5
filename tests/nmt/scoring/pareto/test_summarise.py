"""The fronts of finished runs, and their tables."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest

from cats.nmt.errors import UserError
from cats.nmt.scoring.pareto.results import LostPoint
from cats.nmt.scoring.pareto.summarise import summarise
from cats.nmt.scoring.pareto.tables import fronts_csv, fronts_tables
from cats.nmt.scoring.plots.front import fronts_figure
from tests.nmt.scoring.pareto.made import finish_all, on_a_front, planned


@pytest.fixture
def fronts(corpus, tmp_path):
    return on_a_front(corpus, tmp_path / "out")


def test_fronts_of_the_validation_nll(fronts):
    found = summarise(fronts, "nll")
    (front,) = found.fronts
    assert (front.set, front.low.name, front.high.name, found.seeds) == ("toy", "xb", "xa", [1, 2])
    assert list(front.methods) == ["static", "restart", "pretrain-finetune", "T=3"]
    static = front.methods["static"].points
    assert [point.ratio for point in static] == [0.2, 0.5, 0.8]
    assert static[0].low == pytest.approx([1.44521, 1.44321], abs=1e-5)  # of the best checkpoint, not of the last
    assert static[0].mean == pytest.approx((1 + 0.2 * 0.2**-0.5 - 0.003, 1 + 0.1 * 0.8**-0.5 + 0.0015))
    assert static[0].margin is None and front.methods["static"].beyond is None
    # The worst scores are those of T=3 with its 0.05 more, or of static ratios; a tenth of the range further away.
    means = [point.mean for each in front.methods.values() for point in each.points]
    for axis in (0, 1):
        values = [mean[axis] for mean in means]
        assert front.reference[axis] == pytest.approx(max(values) + (max(values) - min(values)) / 10)
    assert front.curve[0] == pytest.approx(static[0].mean) and front.curve[8] == pytest.approx(static[1].mean)


def test_a_method_that_is_better_everywhere_is_beyond_the_front(fronts):
    (front,) = summarise(fronts, "nll").fronts
    better, same, worse = (front.methods[name] for name in ("pretrain-finetune", "restart", "T=3"))
    assert better.beyond and not same.beyond and not worse.beyond
    assert [point.margin.value for point in better.points] == pytest.approx([0.1] * 3, abs=1e-6)
    assert all(point.margin.low > 0.05 and not point.dominated_by for point in better.points)
    assert abs(same.points[1].margin.value) < 0.005 and same.points[1].ratio == 0.5
    assert worse.points[0].margin.high < 0 and worse.points[0].ratio is None
    assert {"static 0.5", "pretrain-finetune 0.5"} <= set(worse.points[0].dominated_by)
    assert better.gain.value > 0 and better.gain.low > 0 and worse.gain is None  # a single point has no front
    assert [point.outside for point in better.points] == [False, False, True] or better.points[0].outside


def test_hypervolumes_are_compared_over_the_same_ratios_only(fronts):
    for point in fronts[0].points:
        if (point.method, point.ratio) == ("static", 0.8):
            for run in point.runs:
                shutil.rmtree(run.path)
    (front,) = summarise(fronts, "nll").fronts
    assert front.methods["restart"].gain is None and len(front.methods["restart"].points) == 3


def test_with_one_seed_nothing_is_said_about_others(fronts):
    for point in fronts[0].points:
        shutil.rmtree(point.runs[1].path)
    (front,) = (found := summarise(fronts, "nll")).fronts
    better = front.methods["pretrain-finetune"]
    assert better.beyond is None and better.points[0].margin.low is None and better.points[0].missing == [2]
    assert "| pretrain-finetune | n/a " in fronts_tables(found)


def test_a_front_without_a_score_is_named(corpus, tmp_path):
    options = ["--data", str(corpus), "--methods", "cats", "--ratios", "0.3", "0.6", "--seeds", "1", "--between"]
    one = planned(*options, "xb", "xa", "--out", str(tmp_path / "one"))
    two = planned(*options, "xa", "xb", "--out", str(tmp_path / "two"))
    finish_all(one, lambda method, ratio, seed: (1.0, 2.0))
    finish_all(two, lambda method, ratio, seed: None)
    found = summarise([*one, *two], "nll")
    assert [front.title for front in found.drawn] == [f"{corpus.name}: xb and xa"]
    assert [front.title for front in found.fronts] == [f"{corpus.name}: xb and xa", f"{corpus.name}: xa and xb"]
    text = fronts_tables(found).partition(f"## {corpus.name}: xa and xb")[2]
    assert "No run has a score:" in text and "- cats, ratio 0.6 (diverged: seed 1)" in text
    assert len(fronts_figure(found).axes) == 1


def test_a_diverged_run_is_left_out_and_named(corpus, tmp_path):
    fronts = planned("--data", str(corpus), "--out", str(tmp_path), "--ratios", "0.3", "0.6", "--methods", "cats")
    finish_all(
        fronts, lambda method, ratio, seed: None if method == "cats" or (ratio, seed) == (0.3, 2) else (1.0, 2.0)
    )
    found = summarise(fronts, "nll")
    (front,) = found.fronts
    assert front.not_run == ["cats"] and front.methods["static"].points[0].diverged == [2]
    text = fronts_tables(found)
    assert "Failed, diverged or not run: cats." in text and "static (diverged: seed 2)" in text
    assert front.lost == [LostPoint("cats", ratio, [], [1, 2, 3]) for ratio in (0.3, 0.6)]
    assert "| cats (diverged: seed 1, 2, 3) |   0.3 " in text
    for point in fronts[0].points:
        for run in point.runs:
            shutil.rmtree(run.path)
    with pytest.raises(UserError, match=r"no run of .* is finished and has a score"):
        summarise(fronts, "nll")


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_higher_scores_of_test_text_are_better(corpus, tmp_path, metric):
    options = ["--data", str(corpus), "--out", str(tmp_path), "--between", "xb", "xa", "--metric", metric]
    fronts = planned(*options, "--ratios", "0.3", "0.6", "--methods", "restart")
    scale = 2 if metric == "bleu" else 1  # the made-up BLEU is half of chrF

    def score(method, ratio, seed):
        more = 5 if method == "restart" else 0
        return scale * (100 * ratio + more + seed / 10), scale * (90 - 100 * ratio + more + seed / 10)

    finish_all(fronts, score)
    (front,) = summarise(fronts, metric).fronts
    restart = front.methods["restart"]
    assert restart.beyond and [point.margin.value for point in restart.points] == pytest.approx([5.0, 5.0])
    assert front.methods["static"].points[0].mean == pytest.approx((30.2, 60.2))
    assert front.methods["static"].points[0].dominated_by == ["restart 0.3"]
    assert front.reference == pytest.approx((30.2 - 3.5, 30.2 - 3.5))


def test_the_tables_say_what_the_fronts_have(fronts):
    found = summarise(fronts, "nll")
    text = fronts_tables(found)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    methods = {row[0]: row[1:] for row in rows[2:6]}
    assert [methods[name][0] for name in methods] == ["", "not shown", "yes", "not shown"]
    assert methods["pretrain-finetune"][1] == "+0.100 (+0.100 to +0.100)" and methods["T=3"][5] == "0 of 1"
    points = [row for row in rows[8:] if row[0] == "static"]
    outside = [point for point in found.fronts[0].methods["pretrain-finetune"].points if point.outside]
    assert outside and text.count("†") == len(outside) + 1 + sum(
        point.outside for point in found.fronts[0].methods["restart"].points
    )
    assert [row[1] for row in points] == ["0.2", "0.5", "0.8"] and points[0][2] == "1.444 ± 0.001"
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    table = list(csv.DictReader(io.StringIO(fronts_csv(found))))
    assert len(table) == 3 * 3 * 2 + 2
    assert table[0] == {
        **{"set": "toy", "low_side": "xb", "high_side": "xa", "method": "static", "ratio": "0.2", "seed": "1"},
        **{"metric": "nll", "low": table[0]["low"], "high": table[0]["high"]},
    }
    assert float(table[0]["low"]) == found.fronts[0].methods["static"].points[0].low[0]
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["fronts"][0]["methods"]["T=3"]["points"][0]["ratio"] is None
