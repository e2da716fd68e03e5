"""What a corpus is: sizes, groups, digests, and what is refused."""

import hashlib
import re

import pytest

from cats.nmt.data.corpus import Corpus, Split, Task

EMPTY = Split([], [])


def sized(**sizes: int) -> Corpus:
    return Corpus("c", [Task(n, "en", n, Split(["x"] * k, ["y"] * k), EMPTY, EMPTY) for n, k in sizes.items()])


def test_groups_are_by_size():
    corpus = sized(gl=10, az=1, ru=60, be=29)  # mean 25
    assert corpus.sizes == {"gl": 10, "az": 1, "ru": 60, "be": 29}
    assert corpus.groups == {"all": ["gl", "az", "ru", "be"], "lores": ["gl", "az"], "hires": ["ru", "be"]}


def test_a_language_of_just_the_mean_size_is_hires():
    assert sized(a=1, b=2, c=3).groups == {"all": ["a", "b", "c"], "lores": ["a"], "hires": ["b", "c"]}
    assert sized(a=5, b=5).groups == {"all": ["a", "b"], "lores": [], "hires": ["a", "b"]}


def test_headline():
    def with_meta(meta):
        return Corpus("c", [Task("az", "en", "az", Split(["a"], ["b"]), EMPTY, Split(["a"], ["b"], meta))])

    assert with_meta([("new-pair", "3")]).headline == "new-pair"
    assert with_meta([("m", "3")]).headline is None
    assert with_meta(None).headline is None


def test_inconsistent_corpora_are_refused():
    with pytest.raises(ValueError, match=r"equally long, got \[2, 1\]"):
        Split(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"equally long, got \[1, 1, 0\]"):
        Split(["a"], ["c"], [])
    task = Task("az", "en", "az", EMPTY, EMPTY, EMPTY)
    with pytest.raises(ValueError, match="different names"):
        Corpus("c", [task, task])
    with pytest.raises(ValueError, match="different names"):
        Corpus("c", [])


def test_digest_is_of_the_content():
    def corpus(name="c", reverse=False, az="b", meta="m", notices=()):
        tasks = [
            Task("az", "en", "az", Split(["a"], ["b"]), EMPTY, Split(["a", "a"], [az, "c"], [("m", "1"), (meta, "2")])),
            Task("be", "en", "be", Split(["a"], ["b"]), Split(["v"], ["w"]), EMPTY),
        ]
        return Corpus(name, tasks[::-1] if reverse else tasks, list(notices))

    digest = corpus().digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert corpus(name="d", reverse=True, notices=["n"]).digest() == digest
    assert len({digest, corpus(az="x").digest(), corpus(meta="x").digest()}) == 3
    # Moving a boundary between fields or splits is another corpus.
    assert sized(ab=1).digest() != sized(a=1).digest()
    one = Corpus("c", [Task("az", "en", "az", Split(["a"], ["b"]), EMPTY, EMPTY)])
    other = Corpus("c", [Task("az", "en", "az", EMPTY, Split(["a"], ["b"]), EMPTY)])
    assert one.digest() != other.digest()


def test_digest_does_not_change_between_versions():
    corpus = Corpus("c", [Task("az", "en", "az", Split(["a\u2028"], ["ə"], [("m", "1")]), EMPTY, EMPTY)])
    text, empty = (hashlib.sha256(pairs).hexdigest().encode() for pairs in (rb'["a\u2028", "\u0259"], ', b""))
    train = b'["az", "en", "az", "train", "' + text + b'", null]'
    rest = b"".join(b'["az", "en", "az", "' + name + b'", "' + empty + b'", null]' for name in (b"valid", b"test"))
    assert corpus.digest() == hashlib.sha256(train + rest).hexdigest()
    # Runs of version 0.2 recorded another one.
    train = rb'["az", "en", "az", "train", ["a\u2028"], ["\u0259"], [["m", "1"]]]'
    rest = b'["az", "en", "az", "valid", [], [], null]["az", "en", "az", "test", [], [], null]'
    older = hashlib.sha256(train + rest).hexdigest()
    assert corpus.has_digest(older) and corpus.has_digest(corpus.digest()) and not corpus.has_digest("")
