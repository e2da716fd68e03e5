"""`cats export`: write a trained model to a folder of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cats.extras import install
from cats.nmt.cli import translate
from cats.nmt.cli.options import add_checkpoint
from cats.nmt.cli.parser import Parser
from cats.nmt.screen import doing

SUMMARY = "write a trained model to a folder of its own: safetensors, tokenizer, settings"
HELP = """\
Write the model of a run to a folder of its own: model.safetensors, tokenizer.model, config.toml, and a model card,
README.md: languages, training text, scores, limits and settings. With --to huggingface, the folder is for the library
transformers instead, and its README.md says how to translate with it.

examples:
  cats export runs/NAME my-model
  echo "Monday, 3 hours ago" | cats translate my-model --to az
  cats export runs/NAME my-model --to huggingface
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as printed by cats train")
    parser.add_argument("dir", metavar="DIR", help="new or empty folder to write to")
    parser.add_argument(
        "--to",
        choices=("cats", "huggingface"),
        default="cats",
        help="the program that shall load the folder (default: cats)",
    )
    add_checkpoint(parser)


def run(args: argparse.Namespace) -> None:
    doing(f"loading {args.run}")
    from cats.nmt.scoring import model_card
    from cats.nmt.scoring.scores import read_scores
    from cats.nmt.training import export, huggingface
    from cats.nmt.training.run import RunDirectory

    directory, out = RunDirectory(Path(args.run)), Path(args.dir)
    trained = directory.load_model(args.checkpoint)
    tasks = directory.task_names(trained.origin)
    scored = directory.scores_file(checkpoint=args.checkpoint)
    scores = read_scores(directory.path, scored.name) if scored.exists() else None
    if args.to == "huggingface":
        use = huggingface.usage(out, trained, tasks)
        card = model_card.text(out.resolve().name, trained, tasks, scores, library="transformers", use=use)
        huggingface.write(out, trained, tasks, card)
        for sentence in huggingface.approximations(trained.config):
            print(f"cats: {sentence}", file=sys.stderr)
    else:
        command = translate.example(Path(out.resolve().name), tasks, trained.tokenizer)
        use = f"```bash\n{install('nmt')}\n{command} --input lines.txt\n```"
        card = model_card.text(out.resolve().name, trained, tasks, scores, library="cats-optim", use=use)
        export.write(out, trained, tasks, card)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if args.to == "huggingface":
        print(f"Try it: {out}/README.md has the commands")
    else:
        print(f"Try it: {translate.example(out, tasks, trained.tokenizer)}")
