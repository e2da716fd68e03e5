"""cats.nmt.scoring.quality: scores and signatures by sacreBLEU, and the tokenizer for each language."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt import quality
from cats.nmt.data.tokenizer import Tokenizer

HYPOTHESES = ["Monday, 3 hours ago", "in 12 kilometres", "the Czech koruna", "5 min and 20 s, then 1 h"]
REFERENCES = ["Tuesday, 3 hours ago", "in 12 kilometres", "Czech koruna", "5 min and 20 s, then 2 h"]


def test_golden_scores_with_signatures() -> None:
    score = quality.score(HYPOTHESES, REFERENCES, "en")
    # Also computed by hand from the definitions.
    assert (round(score.bleu, 2), round(score.chrf, 2)) == (71.79, 87.07)
    version = re.compile(r"version:[\d.]+$")
    assert {metric: version.sub("*", signature) for metric, signature in quality.signatures("en").items()} == {
        "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|*",
        "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|*",
        "chrfpp": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|*",
    }
    assert score.chrfpp == pytest.approx(chrfpp_by_hand(HYPOTHESES, REFERENCES))


def chrfpp_by_hand(hypotheses: list[str], references: list[str]) -> float:
    """From the definition (Popović, 2017): F2 of the mean precision and recall of 6 character and 2 word orders."""

    def units(line: str) -> list[Counter[Any]]:
        characters, words = line.replace(" ", ""), re.findall(r"\w+|[^\w\s]", line)
        text = [(characters, n) for n in range(1, 7)] + [(tuple(words), n) for n in (1, 2)]
        return [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t, n in text]

    totals = np.zeros((8, 3))
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for row, (a, b) in enumerate(zip(units(hypothesis), units(reference), strict=True)):
            totals[row] += (a.total(), b.total(), (a & b).total())
    precision, recall = (totals[:, 2] / totals[:, 0]).mean(), (totals[:, 2] / totals[:, 1]).mean()
    return float(100 * 5 * precision * recall / (4 * precision + recall))


def test_spbleu_only_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sacrebleu.tokenizers import tokenizer_spm

    def download(*_arguments: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(tokenizer_spm, "download_file", download)
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    missing = quality.score(HYPOTHESES, REFERENCES, "en")
    assert missing.spbleu is None and "spbleu" not in quality.signatures("en")
    quality.spbleu_model().parent.mkdir()
    Tokenizer.train(REFERENCES, [], 60).save(quality.spbleu_model())
    found = quality.score(HYPOTHESES, REFERENCES, "en")
    assert found.spbleu is not None and found.bleu == missing.bleu and 0 < found.spbleu != found.bleu
    assert "tok:flores200" in quality.signatures("en")["spbleu"]


def test_equal_text_scores_100_and_unrelated_text_nearly_nothing() -> None:
    score = quality.score(REFERENCES, REFERENCES, "en")
    assert math.isclose(score.bleu, 100) and math.isclose(score.chrf, 100)
    # BLEU's exponential smoothing keeps it above zero on four short lines.
    score = quality.score(["x"] * 4, REFERENCES, "en")
    assert score.bleu < 1 and score.chrf == 0


def test_chinese_is_segmented() -> None:
    line, other = ["这是一个很好的例子。"], ["这是一个很坏的例子。"]
    zh = quality.score(line, other, "zh")
    # The tokenizer 13a finds one or two words in a line, and no matches.
    assert "tok:zh" in quality.signatures("zh")["bleu"] and zh.bleu > 30
    assert quality.score(line, other, "en").bleu < zh.bleu
    assert zh.bleu_13a == quality.score(line, other, "en").bleu == quality.score(line, other, "en").bleu_13a
    assert "tok:13a" in quality.signatures("zh")["bleu_13a"] and "bleu_13a" not in quality.signatures("en")


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [("az", "13a"), ("zh", "zh"), ("zh_CN", "zh"), ("ZH-Hant", "zh"), ("th", "char"), ("zhx", "13a")]
    + [(code, "zh") for code in ("zho", "cmn", "zho_Hans", "chi", "zh-TW", "yue_Hant")]
    + [(code, "char") for code in ("tha", "mya", "khm", "lao", "th_TH", "my_MM")]
    + [(code, quality.bleu_tokenizer("ja")) for code in ("jpn", "ja_XX", "jpn_Jpan")]
    + [(code, quality.bleu_tokenizer("ko")) for code in ("kor", "ko_KR", "kor_Hang")],
)
def test_tokenizer_by_language(language: str, tokenizer: str) -> None:
    assert quality.bleu_tokenizer(language) == tokenizer


@pytest.mark.parametrize(("language", "best"), [("ja", "ja-mecab"), ("ko", "ko-mecab")])
def test_characters_if_mecab_is_missing(language: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu.metrics

    quality.bleu_tokenizer.cache_clear()
    monkeypatch.setattr(sacrebleu.metrics, "BLEU", lambda tokenize: None)
    assert quality.bleu_tokenizer(language) == best

    def absent(tokenize: str) -> None:
        raise RuntimeError("no MeCab")

    quality.bleu_tokenizer.cache_clear()
    monkeypatch.setattr(sacrebleu.metrics, "BLEU", absent)
    assert quality.bleu_tokenizer(language) == "char"
    quality.bleu_tokenizer.cache_clear()
