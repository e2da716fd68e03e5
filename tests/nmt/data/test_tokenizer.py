import unicodedata
from pathlib import Path

import pytest

from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError

LANGUAGES = ["az", "hi", "ko", "ru", "zh-Hans"]
TEXT = [
    "the 12 cats of 2024 sat on 3 mats",
    "the bat sat on a mat, the cats sat on a mat in 2024",
    "Ёж и йод: 15 страниц книги, 3 книги и ещё 1",
    "१५ किताबें और २०२४ में १२ किताबें",
    "١٢ كتابا و ٢٠٢٤ كتاب",
    "고양이 12 마리와 고양이 3 마리",
    "10\u202f% of a\u00a0line\u2028with\todd spaces",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT * 3, LANGUAGES, 400)


def test_ids_are_laid_out_as_documented(tokenizer):
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.languages == LANGUAGES
    assert [tokenizer.tag(language) for language in LANGUAGES] == [4, 5, 6, 7, 8]
    assert tokenizer.first_piece == 9


def test_source_has_tag_and_eos_target_has_eos(tokenizer):
    (source,), (target,) = (
        tokenizer.encode_source(["the cats"], "en", "ru"),
        tokenizer.encode_target(["the cats"], "ru"),
    )
    assert source[0] == tokenizer.tag("ru")
    assert source[1:] == target
    assert target[-1] == tokenizer.eos_id
    assert min(target[:-1]) >= tokenizer.first_piece
    assert tokenizer.encode_source([""], "en", "az") == [[4, 3]]
    assert tokenizer.encode_target([""], "ru") == [[3]]
    assert tokenizer.encode_source([], "en", "az") == tokenizer.encode_target([], "ru") == []


@pytest.mark.parametrize(("size", "coverage"), [(20, 0.9999), (10**12, 1.0)])
def test_errors_of_sentencepiece_are_one_line(size: int, coverage: float) -> None:
    text = ["".join(chr(0x4E00 + i) for i in range(900))] * 3
    with pytest.raises(UserError, match=f"sentencepiece cannot train tokenizer.vocab_size={size} pieces on this text"):
        Tokenizer.train(text, ["zh"], size, coverage=coverage)


def test_a_very_long_line_is_trained_on_in_parts() -> None:
    words = ["ba", "be", "bi", "bo", "bu"]
    line = " ".join(words * 20_000)
    tokenizer = Tokenizer.train([line, "Ёж" * 3000], ["ru"], 60)
    (ids,) = tokenizer.encode_target([f"{line} Ёж"], "ru")
    assert tokenizer.unk_id not in ids and tokenizer.decode([ids]) == [f"{line} Ёж"]


def test_tags_are_where_they_were_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "model")
    (plain,) = tokenizer.encode_target(["the cats"], "ru")
    tag = tokenizer.tag("ru")
    for tags, source, start in (
        (Tags("prepend"), [tag, *plain], tokenizer.bos_id),
        (Tags("replace-eos"), [*plain[:-1], tag], tokenizer.bos_id),
        (Tags("none", target=True), plain, tag),
        (Tags("prepend", target=True), [tag, *plain], tag),
    ):
        loaded = Tokenizer.load(tmp_path / "model", tags)
        assert loaded.encode_source(["the cats"], "en", "ru") == [source]
        assert loaded.encode_target(["the cats"], "ru") == [plain]
        assert loaded.start("ru") == start


@pytest.mark.parametrize("line", TEXT)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_text_comes_back_as_it_was(line, form):
    line = unicodedata.normalize(form, line)
    tokenizer = Tokenizer.train([line], LANGUAGES, 400)
    assert tokenizer.decode(tokenizer.encode_target([line], "ru")) == [line]


def test_only_runs_of_spaces_are_changed(tokenizer):
    assert tokenizer.decode(tokenizer.encode_target(["  the   cats "], "ru")) == ["the cats"]
    assert tokenizer.decode(tokenizer.encode_target(["a\u00a0line\u2028with\todd"], "ru")) == [
        "a\u00a0line\u2028with\todd"
    ]


@pytest.mark.parametrize("digits", ["2024", "२०२४", "٢٠٢٤"])
def test_every_digit_is_a_piece(tokenizer, digits):
    (ids,) = tokenizer.encode_target([f"{digits[:2]} {digits}"], "ru")
    pieces = tokenizer.encode_target([*digits], "ru")
    one = {digit: piece[-2] for digit, piece in zip(digits, pieces, strict=True)}
    assert [i for i in ids if i in one.values()] == [one[digit] for digit in digits[:2] + digits]


@pytest.mark.parametrize("text", ["<2ru> the", "the <2ru>", "<2ru>", "x<2zh-Hans>", "<s> </s> <unk> <pad>", "</s>"])
def test_text_never_becomes_a_tag_or_special(text):
    # Also if the training text contains them. By default, sentencepiece removes them from it.
    tokenizer = Tokenizer.train([*TEXT, text, f"{text} {text}"], LANGUAGES, 400)
    (ids,) = tokenizer.encode_target([text], "ru")
    assert min(ids[:-1]) >= tokenizer.first_piece
    assert tokenizer.decode([ids]) == [text]


def test_tag_in_text_unseen_in_training(tokenizer):
    (ids,) = tokenizer.encode_target(["<2ru> <s>"], "ru")
    assert all(i == tokenizer.unk_id or i >= tokenizer.first_piece for i in ids[:-1])


@pytest.mark.parametrize("text", ["日本語", "q\0q", "\u2585", "\x01", "🙂 the", "\u2581"])
def test_unknown_characters_are_no_error(tokenizer, text):
    (ids,) = tokenizer.encode_target([text], "ru")
    assert ids[-1] == tokenizer.eos_id
    assert all(i == tokenizer.unk_id or i >= tokenizer.first_piece for i in ids[:-1])


def test_line_with_reserved_character_still_counts():
    tokenizer = Tokenizer.train(["the cats", "\u2585 Ёж"], ["ru"], 400)
    assert tokenizer.unk_id not in tokenizer.encode_target(["Ёж"], "ru")[0]


def test_long_lines_count():
    tokenizer = Tokenizer.train(["the cats", "мышь " * 5000], ["ru"], 400)  # 45 kB; sentencepiece's own limit is 4 kB
    assert tokenizer.unk_id not in tokenizer.encode_target(["мышь"], "ru")[0]


def test_decode_stops_at_eos_and_drops_specials(tokenizer):
    the, cats = (ids[:-1] for ids in tokenizer.encode_target(["the", "cats"], "ru"))
    row = [
        tokenizer.bos_id,
        *the,
        tokenizer.tag("az"),
        *cats,
        tokenizer.unk_id,
        tokenizer.eos_id,
        *the,
        tokenizer.pad_id,
    ]
    assert tokenizer.decode([row, [tokenizer.eos_id, *the], [], cats]) == ["the cats", "", "", "cats"]
    assert tokenizer.decode([]) == []


def test_training_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        Tokenizer.train(TEXT * 5, LANGUAGES, 120).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.languages == tokenizer.languages
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode_source(TEXT, "en", "ko") == tokenizer.encode_source(TEXT, "en", "ko")


@pytest.mark.parametrize("lines", [["a"], ["a b"], ["12"], ["", "a", ""], ["a" * 50]])
def test_tiny_text_is_enough(lines):
    tokenizer = Tokenizer.train(lines, ["ru"], 8000)
    assert tokenizer.vocab_size < 100
    assert tokenizer.decode(tokenizer.encode_target(lines, "ru")) == lines


def test_vocabulary_is_no_larger_than_asked(tokenizer):
    lines = [f"{a}{b}{c} {c}{b}{a}" for a in "abcdefg" for b in "hijklm" for c in "nopqr"]
    assert Tokenizer.train(lines, ["ru"], 60).vocab_size == 60


def test_smallest_vocabulary_holds_every_character():
    # 4 specials, 1 tag, the space, a b c
    tokenizer = Tokenizer.train(["ab c", "ca b"], ["ru"], 9)
    assert tokenizer.vocab_size == 9
    with pytest.raises(UserError, match="vocab_size=8 is too small: 3 characters and 1 languages need at least 9"):
        Tokenizer.train(["ab c", "ca b"], ["ru"], 8)


def test_no_text():
    for lines in ([], ["", "  "]):
        with pytest.raises(UserError, match="no text to train the tokenizer on"):
            Tokenizer.train(lines, ["ru"], 100)


def test_unknown_language(tokenizer):
    with pytest.raises(UserError, match=r"unknown language xx; known: az, hi, ko, ru, zh-Hans"):
        tokenizer.tag("xx")
    with pytest.raises(UserError, match=r"unknown language RU \(did you mean ru\?\)"):
        tokenizer.encode_source(["the"], "en", "RU")


def test_files_that_are_no_tokenizers(tmp_path):
    with pytest.raises(UserError, match=r"none\.model: the tokenizer cannot be read \(No such file"):
        Tokenizer.load(tmp_path / "none.model")
    for content in (b"", b"not a model", b"\x00" * 100):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.model"):
            Tokenizer.load(tmp_path / "bad.model")


def test_other_sentencepiece_models_are_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_prefix=str(tmp_path / "other"), vocab_size=100, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"other\.model: its first pieces must be <pad> <unk> <s> </s>, found <unk> <s>"
    ):
        Tokenizer.load(tmp_path / "other.model")
