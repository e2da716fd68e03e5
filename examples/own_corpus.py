"""From two text files to a table of scores: train a translation model on your own text.

Line i of one file is the translation of line i of the other. The trainer wants such a pair of files for training,
validation and test; `split_files` makes them of yours. Here the text is made: all numbers below a thousand in English
and Indonesian, "three hundred and one" and "tiga ratus satu". A tenth is left for validation and test. Two tasks share
one model: into Indonesian, and into English. `cats train --data FOLDER` does the same on the command line. This needs
`pip install ".[nmt]"`.

    python examples/own_corpus.py

Prints:

    | language  | group | pairs | BLEU | chrF |   NLL | nearest neighbour chrF |
    | --------- | ----- | ----: | ---: | ---: | ----: | ---------------------: |
    | id        | HiRes |   900 | 96.0 | 98.7 | 0.157 |                   66.5 |
    | id-en     | HiRes |   900 | 93.3 | 99.0 | 0.173 |                   67.4 |
    | **All**   |       | 1,800 | 94.7 | 98.9 | 0.165 |                   67.0 |
    | **HiRes** |       | 1,800 | 94.7 | 98.9 | 0.165 |                   67.0 |
"""

import tempfile
from pathlib import Path

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.scoring.tables import scores_table
from cats.nmt.training.trainer import train

SETTINGS = {
    "data.direction": "many-to-many",
    "tokenizer.vocab_size": 80,
    "model.d_model": 64,
    "model.ffn": 128,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "model.dropout": 0.0,
    "sampling.batch_tokens": 600,
    "train.steps": 250,
    "train.warmup": 20,
    "train.lr": 1e-2,
    "train.validate_every": 125,
    "evaluate.search": "greedy",
}
ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
INDONESIAN = "nol satu dua tiga empat lima enam tujuh delapan sembilan sepuluh sebelas"


def english(n):
    words = ENGLISH.split()
    if n >= 100:
        return f"{words[n // 100]} hundred" + (f" and {english(n % 100)}" if n % 100 else "")
    return words[n] if n < 20 else words[18 + n // 10] + (f"-{words[n % 10]}" if n % 10 else "")


def indonesian(n):
    words = INDONESIAN.split()
    if n >= 100:
        hundreds = "seratus" if n < 200 else f"{words[n // 100]} ratus"
        return hundreds + (f" {indonesian(n % 100)}" if n % 100 else "")
    if n >= 20:
        return f"{words[n // 10]} puluh" + (f" {words[n % 10]}" if n % 10 else "")
    return words[n] if n < 12 else f"{words[n - 10]} belas"


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def split_files(source, target, folder, held_out=50):
    """Writes {train,valid,test}.en and .id to the folder. The last lines are held out for validation and test."""
    folder.mkdir()
    for path in (source, target):
        lines = path.read_text(encoding="utf-8").splitlines()
        write_lines(folder / f"train{path.suffix}", lines[: -2 * held_out])
        write_lines(folder / f"valid{path.suffix}", lines[-2 * held_out : -held_out])
        write_lines(folder / f"test{path.suffix}", lines[-held_out:])


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = [389 * n % 1000 for n in range(1000)]  # all of them, in no order
        write_lines(folder / "numbers.en", map(english, numbers))
        write_lines(folder / "numbers.id", map(indonesian, numbers))

        split_files(folder / "numbers.en", folder / "numbers.id", folder / "corpus")
        config = replace_settings(Config(), {"data.path": str(folder / "corpus"), **SETTINGS})
        train(config, folder / "run", quiet=True)
        print(scores_table(evaluate(folder / "run", quiet=True)))


if __name__ == "__main__":
    main()
