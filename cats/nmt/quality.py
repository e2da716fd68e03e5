"""BLEU, chrF, chrF++ and spBLEU, computed by sacreBLEU with the tokenizer that fits the target language."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

# sacreBLEU's tokenizers for languages that 13a does not segment. The second is used if the first is not installed.
TOKENIZERS = {
    "zh": ("zh",),
    "ja": ("ja-mecab", "char"),
    "ko": ("ko-mecab", "char"),
    **dict.fromkeys(("th", "my", "km", "lo"), ("char",)),
}
# The three-letter codes of these languages (ISO 639-3, and older ones of ISO 639-2).
CODES = {
    **{"zho": "zh", "cmn": "zh", "chi": "zh", "yue": "zh", "jpn": "ja", "kor": "ko"},
    **{"tha": "th", "mya": "my", "bur": "my", "khm": "km", "lao": "lo"},
}


@dataclass(frozen=True)
class Quality:
    """Corpus scores of translations, 0 to 100. None: cannot be computed, such as spBLEU without its model.

    Attributes:
        bleu: BLEU with the tokenizer for the target language.
        bleu_13a: BLEU with the tokenizer 13a for every language, as in the tables of Zhang et al. (2020) on OPUS-100.
        chrf: chrF with character n-grams only.
        chrfpp: chrF++, with words and pairs of words.
        spbleu: BLEU on the sentencepiece tokens of FLORES-200.
    """

    bleu: float | None = None
    bleu_13a: float | None = None
    chrf: float | None = None
    chrfpp: float | None = None
    spbleu: float | None = None


@cache
def bleu_tokenizer(language: str) -> str:
    """Name of the best installed sacreBLEU tokenizer for a language code such as az, zh_CN, kor or zho_Hans."""
    from sacrebleu.metrics import BLEU

    names = _tokenizers(language)
    for name in names[:-1]:
        try:
            BLEU(tokenize=name)
        except (ImportError, RuntimeError):  # sacreBLEU raises RuntimeError if MeCab is missing
            continue
        return name
    return names[-1]


def missing_tokenizer(language: str) -> str | None:
    """Name of the tokenizer that BLEU into this language should use, if it is not installed."""
    best = _tokenizers(language)[0]
    return best if bleu_tokenizer(language) != best else None


def _tokenizers(language: str) -> tuple[str, ...]:
    """The tokenizers for BLEU into a language, the best one first."""
    code = language.replace("-", "_").partition("_")[0].lower()
    return TOKENIZERS.get(CODES.get(code, code), ("13a",))


def spbleu_model() -> Path:
    """Where sacreBLEU keeps spBLEU's sentencepiece model. sacreBLEU downloads the file if it is missing."""
    from sacrebleu.tokenizers import tokenizer_spm

    return Path(tokenizer_spm.SACREBLEU_DIR, "models", Path(tokenizer_spm.SPM_MODELS["flores200"]["url"]).name)


def metrics(language: str) -> dict[str, BLEU | CHRF]:
    """sacreBLEU's metrics by their names in `Quality`.

    spBLEU is left out if its model is not on the disk. bleu_13a is left out if BLEU itself uses the tokenizer 13a.
    """
    from sacrebleu.metrics import BLEU, CHRF

    found: dict[str, BLEU | CHRF] = {
        "bleu": BLEU(tokenize=bleu_tokenizer(language), force=True),
        "chrf": CHRF(),
        "chrfpp": CHRF(word_order=2),
    }
    if bleu_tokenizer(language) != "13a":
        found["bleu_13a"] = BLEU(tokenize="13a", force=True)
    if spbleu_model().is_file():
        found["spbleu"] = BLEU(tokenize="flores200", force=True)
    return found


def score(hypotheses: list[str], references: list[str], language: str) -> Quality:
    """Corpus scores of detokenised lines against raw reference lines. Both need at least one line."""
    values = {name: metric.corpus_score(hypotheses, [references]).score for name, metric in metrics(language).items()}
    return Quality(**{"bleu_13a": values["bleu"], **values})


def signatures(language: str) -> dict[str, str]:
    """sacreBLEU's signatures of `metrics`, by the same names."""
    found = {}
    for name, metric in metrics(language).items():
        metric.corpus_score(["x"], [["x"]])  # only then is the number of references, which the signature gives, known
        found[name] = str(metric.get_signature())
    return found
