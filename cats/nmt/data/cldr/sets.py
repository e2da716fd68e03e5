"""The sets of languages of the built-in corpus, and the number of training pairs of each language."""

from __future__ import annotations

# The languages of OPUS-100 and their training pairs there (Zhang et al., ACL 2020; the counts are those of the data set
# card at huggingface.co/datasets/Helsinki-NLP/opus-100). Seven of its 99 languages are missing here. CLDR has no data
# for Limburgish (li) and Serbo-Croatian (sh), and next to none for Kinyarwanda (rw) and Walloon (wa). Aragonese (an),
# Dzongkha (dz) and Mongolian (mn) have fewer than 7,000 pairs there and no test text, and would have 13 pairs or fewer.
# fmt: off
_MILLION = (
    "ar", "bg", "bn", "bs", "ca", "cs", "da", "de", "el", "es", "et", "eu", "fa", "fi", "fr", "he", "hr", "hu",
    "id", "is", "it", "ja", "ko", "lt", "lv", "mk", "ms", "mt", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl",
    "sq", "sr", "sv", "th", "tr", "uk", "vi", "zh",
)
OPUS100_PAIRS = {
    **dict.fromkeys(_MILLION, 1_000_000),
    "si": 979_109, "ml": 822_746, "ur": 753_913, "mg": 590_771, "hi": 534_319, "gl": 515_344, "nn": 486_055,
    "xh": 439_671, "ne": 406_381, "ka": 377_306, "eo": 337_106, "gu": 318_306, "ga": 289_524, "cy": 289_521,
    "af": 275_512, "az": 262_089, "ta": 227_014, "tg": 193_882, "uz": 173_157, "br": 153_447, "ku": 144_844,
    "nb": 142_906, "as": 138_479, "km": 111_483, "pa": 107_296, "tt": 100_843, "ha": 97_983, "am": 89_027,
    "kk": 79_927, "ps": 79_127, "ug": 72_170, "be": 67_312, "te": 64_352, "fy": 54_342, "zu": 38_616, "se": 35_907,
    "oc": 35_791, "ky": 27_215, "mr": 27_007, "my": 24_594, "ig": 18_415, "gd": 16_316, "yi": 15_010, "kn": 14_537,
    "or": 14_273, "tk": 13_110, "yo": 10_375, "hy": 7_059,
}
# fmt: on
OPUS100_SCALE = 500  # one pair here for so many there

LANGUAGES = {
    "related": ("az", "be", "gl", "sk", "tr", "ru", "pt", "cs"),
    "diverse": ("bs", "mr", "hi", "mk", "el", "bg", "fr", "ko"),
    "wmt": ("kk", "vi", "tr", "ja", "nl", "it", "ar", "ro", "hi", "de"),
    "opus100": tuple(OPUS100_PAIRS),
}
# Training pairs of each language, in the order of LANGUAGES. "ted": from 10 to 1, ranked as in the TED talks corpus.
# "wmt": the proportions of the WMT corpus with one very large language; there, the numbers are millions:
# 0.1 0.1 0.2 0.2 0.2 0.3 0.3 0.6 0.8 27.8. "opus100": the proportions of OPUS-100, where a million is the most.
# "noisy": as "ted".
SIZES = {
    "ted": {
        "related": (150, 120, 200, 500, 1000, 1200, 1000, 700),
        "diverse": (120, 150, 200, 500, 700, 1000, 1000, 1200),
        "wmt": (120, 120, 200, 200, 200, 300, 460, 1000, 1200, 1200),
    },
    "wmt": {
        "related": (100, 100, 200, 200, 300, 600, 800, 27800),
        "diverse": (100, 100, 200, 200, 300, 600, 800, 27800),
        "wmt": (100, 100, 200, 200, 200, 300, 300, 600, 800, 27800),
    },
    "opus100": {"opus100": tuple(pairs // OPUS100_SCALE for pairs in OPUS100_PAIRS.values())},
}
SIZES["noisy"] = SIZES["ted"]
# "noisy": the languages of which half of the training targets are shuffled. Each set has two, both HiRes, so that much
# of the batch is noise. Where the set has a closely related LoRes language (az, gl; mk; nl, it), its relative is noisy.
NOISY = {"related": ("tr", "pt"), "diverse": ("bg", "fr"), "wmt": ("ro", "de")}
# The names that phrases are made of are those that all languages of these sets have. They do not depend on the set, and
# a language of another set uses those that it has.
LEXICON_SETS = ("related", "diverse", "wmt")
