"""The Trainer of Hugging Face transformers with four tasks.

A small BERT, made from a configuration (nothing is downloaded), answers four questions about a sequence of tokens: does
token 10 occur in it, does token 11 occur in it, and so on. Each example belongs to one task. The mixin takes the losses
from `compute_losses`, which returns the loss of each example, and the task of each. All else is the Trainer's: the
loop, the schedule, clipping, logs (with the weights), checkpoints. It needs `pip install ".[integrations]"`.

    python examples/huggingface_trainer.py

Prints:

    steps 120, by the engine one_pass
    share of right answers on fresh data: 1.00
    logged: alpha_has 10, alpha_has 11, alpha_has 12, alpha_has 13
"""

import functools
import tempfile

import torch
import transformers
from torch.nn import functional as F

import cats
from cats.integrations.transformers import TrainerMixin

TASKS = ["has 10", "has 11", "has 12", "has 13"]


class MultiTaskTrainer(TrainerMixin, transformers.Trainer):
    def compute_losses(self, model, inputs, num_items_in_batch=None):
        logits = model(inputs["input_ids"]).logits  # (examples, tasks)
        own = logits.gather(1, inputs["task"][:, None]).squeeze(1)  # the logit of each example's own task
        return F.binary_cross_entropy_with_logits(own, inputs["labels"], reduction="none"), inputs["task"]


def make_data(examples):
    tokens = torch.randint(10, 22, (examples, 9))
    tokens[:, 0] = 1  # BERT classifies at the first token
    task = torch.randint(len(TASKS), (examples,))
    label = (tokens == 10 + task[:, None]).any(1).float()
    return [{"input_ids": t, "task": n, "labels": y} for t, n, y in zip(tokens, task, label, strict=True)]


def main(steps=120):
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=22,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=len(TASKS),
        hidden_dropout_prob=0.0,
        initializer_range=0.2,  # the usual 0.02 is for larger models
    )
    model = transformers.BertForSequenceClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = MultiTaskTrainer(
            model,
            transformers.TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=64,
                learning_rate=5e-3,
                logging_steps=20,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,  # keep "task"
            ),
            train_dataset=make_data(64 * steps),
            multitask=functools.partial(cats.CATS, tasks=TASKS),  # what to make of the Trainer's own optimizer
        )
        trainer.remove_callback(transformers.PrinterCallback)  # which prints the logs
        trainer.train()

    fresh = transformers.default_data_collator(make_data(1000))
    with torch.no_grad():
        logits = model.eval()(fresh["input_ids"].to(model.device)).logits.cpu()
    right = (logits.gather(1, fresh["task"][:, None]).squeeze(1) > 0) == (fresh["labels"] > 0)
    statistics = trainer.multitask_optimizer.statistics
    print(f"steps {statistics['step']}, by the engine {statistics['engine']}")
    print(f"share of right answers on fresh data: {right.float().mean():.2f}")
    print("logged: " + ", ".join(name for name in trainer.state.log_history[0] if name.startswith("alpha")))


if __name__ == "__main__":
    main()
