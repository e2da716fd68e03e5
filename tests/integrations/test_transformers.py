"""The Trainer of transformers with several tasks, compared with a plain loop."""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import cats
from tests.distributed.common import needs_gloo
from tests.integrations.common import run_with_torchrun
from tests.optim.common import same

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from cats.integrations.transformers import ByTask, TrainerMixin  # noqa: E402

TASKS = ["az", "be", "gl", "sk"]
ROWS = 24
OPTIONS = {"inner_steps": 2, "alpha_lr": 0.3}


class Data(torch.utils.data.Dataset):
    """Rows of a task each, with 4 numbers and a label of 3, and a second label that may be ignored."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        labels = torch.randint(3, (2,), generator=draw)
        labels[1] = labels[1] if i % 3 else -100
        return {"x": torch.randn(4, generator=draw), "labels": labels, "task": TASKS[i * 7 % 11 % 4]}


class Heads(nn.Module):
    """Like the models of transformers: it returns its loss, and takes the number of items over which it is a mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.out = nn.Linear(4, 8), nn.Linear(8, 6)

    def forward(self, x, labels=None, num_items_in_batch=None, **kwargs):
        logits = self.out(torch.tanh(self.body(x))).unflatten(-1, (2, 3))
        entries = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        loss = entries.sum() / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        return {"loss": loss, "logits": logits, "entries": entries}


class ByBatches(TrainerMixin, transformers.Trainer):
    """Batches {task: batch}, with the losses that the model returns."""


class ByEntries(TrainerMixin, transformers.Trainer):
    """One batch with a loss for each label."""

    def compute_losses(self, model, inputs, num_items_in_batch=None):
        assert num_items_in_batch is None
        return entries_of(model, inputs)


def entries_of(model, inputs):
    tasks = inputs.pop("task")
    ignored = inputs["labels"] == -100
    return model(**inputs)["entries"], tasks[:, None].where(~ignored, -1)


def collate(examples):
    return {name: torch.stack([torch.as_tensor(e[name]) for e in examples]) for name in examples[0]}


def mixed(examples):
    """Instead of the names of the tasks: their indices."""
    return collate([{**e, "task": TASKS.index(e["task"])} for e in examples])


COLLATORS = {ByBatches: ByTask(collate), ByEntries: mixed}


def trainer_of(folder, kind=ByBatches, model=None, max_steps=5, **settings):
    """A Trainer that reads the rows in order, without a schedule. Its losses are logged in each step."""
    usual = {"save_strategy": "no", "max_grad_norm": 0.5, "per_device_train_batch_size": 4, "logging_steps": 1}
    # The default optimizer is the fused one, which rounds in another way.
    settings = usual | {"lr_scheduler_type": "constant", "optim": "adamw_torch", "use_cpu": True} | settings
    args = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=max_steps,
        learning_rate=0.05,
        weight_decay=0.1,
        train_sampling_strategy="sequential",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **settings,
    )
    multitask = functools.partial(cats.CATS, tasks=TASKS, **OPTIONS)
    return kind(model or Heads(), args, multitask=multitask, data_collator=COLLATORS[kind], train_dataset=Data())


def plain_loop(kind, accumulate=1, clip=0.5, bf16=False, rows=4, steps=5):
    """The same training without the Trainer."""
    model, data = Heads(), Data()
    decay = [p for name, p in model.named_parameters() if "bias" not in name]
    rest = [p for name, p in model.named_parameters() if "bias" in name]
    base = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.05)
    optimizer = cats.CATS(base, TASKS, **OPTIONS)
    batches = [[data[j] for j in range(i, min(i + rows, ROWS))] for i in range(0, ROWS, rows)]
    collator, history, place = COLLATORS[kind], [], 0

    def items(batch):
        return (batch["labels"] != -100).sum().item()

    def run(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(**batch)
        return {name: value.float() for name, value in out.items()}

    for _ in range(steps):
        some = list(map(collator, batches[place : place + accumulate]))
        place = (place + len(some)) % len(batches)
        for k, batch in enumerate(some):
            last = k == len(some) - 1
            if kind is ByBatches:
                counts = {t: sum(items(b[t]) for b in some if t in b) for t in TASKS}
                losses = {
                    t: functools.partial(lambda b, share: run(b)["loss"] * share, b, items(b) / counts[t])
                    for t, b in batch.items()
                }
                optimizer.backward(losses, last=last)
            else:
                entries, tasks = entries_of(lambda **inputs: run(inputs), batch)
                optimizer.backward(entries / len(some) if len(some) > 1 else entries, tasks=tasks, last=last)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        history.append((optimizer.alpha, optimizer.statistics["losses"]))
    return model, optimizer, history


def check_same(trainer, model, optimizer):
    assert all(map(torch.equal, trainer.model.parameters(), model.parameters()))
    found, expected = trainer.multitask_optimizer.state_dict(), optimizer.state_dict()
    assert same(found["state"], expected["state"]) and same(found["multitask"], expected["multitask"])


@pytest.mark.parametrize("kind", [ByBatches, ByEntries])
@pytest.mark.parametrize(
    ("accumulate", "clip", "bf16"), [(1, 0.5, False), (4, 0.0, False), (4, 0.5, True)], ids=["clip", "calls", "bf16"]
)
def test_the_trainer_is_the_plain_loop_bit_for_bit(kind, accumulate, clip, bf16, tmp_path):
    trainer = trainer_of(tmp_path, kind, gradient_accumulation_steps=accumulate, max_grad_norm=clip, bf16=bf16)
    trainer.train()
    model, optimizer, history = plain_loop(kind, accumulate=accumulate, clip=clip, bf16=bf16)
    check_same(trainer, model, optimizer)
    assert trainer.multitask_optimizer.statistics["engine"] == ("one_pass" if kind is ByEntries else "per_task")
    logged = [line for line in trainer.state.log_history if "loss" in line]
    for line, (alpha, losses) in zip(logged, history, strict=True):
        assert {t: line[f"alpha_{t}"] for t in TASKS} == alpha
        assert {t: line[f"loss_{t}"] for t in TASKS if f"loss_{t}" in line} == losses
        assert line["loss"] == pytest.approx(sum(losses.values()), rel=1e-6)  # float32


def test_logs_are_means_since_the_last_log(tmp_path):
    trainer = trainer_of(tmp_path, ByEntries, logging_steps=3, max_steps=6, per_device_train_batch_size=2)
    trainer.log({"loss": 1.0})  # before training, there are no tasks to write about
    trainer.train()
    *_, history = plain_loop(ByEntries, rows=2, steps=6)
    logged = [line for line in trainer.state.log_history if "loss" in line]
    for line, some in zip(logged, (history[:3], history[3:]), strict=True):
        of_task = {t: [losses[t] for _, losses in some if t in losses] for t in TASKS}
        means = {t: sum(losses) / len(losses) for t, losses in of_task.items() if losses}
        assert {t: line[f"loss_{t}"] for t in TASKS if f"loss_{t}" in line} == pytest.approx(means)
        # float32
        assert line["loss"] == pytest.approx(sum(sum(losses.values()) for _, losses in some) / 3, rel=1e-6)
    assert any(len(losses) < len(TASKS) for _, losses in history)


class ByCallables(ByEntries):
    """A callable that returns a loss for each label."""

    def compute_losses(self, model, inputs, num_items_in_batch=None):
        tasks = inputs.pop("task")
        return lambda: model(**inputs)["entries"], tasks[:, None].where(inputs["labels"] != -100, -1)


COLLATORS[ByCallables] = mixed


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_losses_of_entries_may_be_a_callable(compiled, tmp_path):
    """A compiled model needs it: its backward pass runs once only."""
    more = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
    trainer = trainer_of(tmp_path, ByCallables, gradient_accumulation_steps=2, max_steps=2, **more)
    trainer.train()
    model, optimizer, history = plain_loop(ByEntries, accumulate=2, steps=2)
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert logged[-1]["loss"] == pytest.approx(sum(history[-1][1].values()), rel=1e-6)  # float32
    torch.testing.assert_close(dict(trainer.model.state_dict()), dict(model.state_dict()))  # other order of sums
    assert trainer.multitask_optimizer.alpha == pytest.approx(optimizer.alpha, rel=1e-5)


def test_the_schedule_waits_for_steps_that_a_scaler_skips(tmp_path):
    class Large(ByEntries):
        def compute_losses(self, *args, **kwargs):
            entries, tasks = super().compute_losses(*args, **kwargs)
            return 64 * entries, tasks

    COLLATORS[Large] = mixed
    trainer = trainer_of(tmp_path, Large, lr_scheduler_type="linear", max_grad_norm=0.0)
    # On the CPU, where the Trainer itself does not allow fp16.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-20)
    trainer.train()
    skipped = trainer.multitask_optimizer.statistics["skipped"]
    assert 0 < skipped < 5
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.05 * skipped / 5)


@pytest.mark.slow
@needs_gloo
def test_shards_are_averaged_in_each_batch(tmp_path):
    """accelerate's no_sync() turns it off, and then the gradients of tasks would lack their mean."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = fully_shard(Heads(), mesh=dist.init_device_mesh("cpu", (1,)))
        trainer = trainer_of(tmp_path, model=model)
        trainer._multitask = functools.partial(cats.CATS, tasks=TASKS, inner_steps=1)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 2
        model.set_requires_gradient_sync(False)
        for place in (0, 4):
            trainer.training_step(model, ByTask(collate)([Data()[i] for i in range(place, place + 4)]))
        trainer.optimizer.step()
    finally:
        dist.destroy_process_group()
    assert trainer.multitask_optimizer.statistics["task_gradient_steps"] > 0


@pytest.mark.parametrize("kind", [ByBatches, ByEntries])
def test_a_resumed_run_repeats_bit_for_bit(kind, tmp_path):
    whole = trainer_of(tmp_path / "whole", kind, max_steps=5)
    whole.train()
    # Step 3 is the first one after the checkpoint. It updates no weight, step 4 does.
    trainer_of(tmp_path / "part", kind, max_steps=2, save_strategy="steps", save_steps=2).train()
    resumed = trainer_of(tmp_path / "part", kind, max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    check_same(resumed, whole.model, whole.multitask_optimizer)


def test_losses_that_are_divided_already(tmp_path):
    class Divided(ByEntries):
        loss_is_scaled_for_ga = True

        def compute_losses(self, model, inputs, num_items_in_batch=None):
            assert num_items_in_batch > 0
            entries, tasks = entries_of(model, inputs)
            return entries / 2 / torch.bincount(tasks[tasks >= 0])[tasks], tasks  # entries without a task do not count

    COLLATORS[Divided] = mixed
    one, two = (trainer_of(tmp_path, kind, gradient_accumulation_steps=2, max_steps=2) for kind in (Divided, ByEntries))
    one.train(), two.train()
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # float32: the mean is computed in another order


@pytest.mark.parametrize("kind", [ByBatches, ByEntries])
def test_a_trainer_that_cannot_say_whether_losses_are_divided(kind, tmp_path, monkeypatch):
    """Some versions of transformers, such as 5.17, do not have the attribute. It means the same as None."""
    trainers = [trainer_of(tmp_path / name, kind, gradient_accumulation_steps=2) for name in ("with", "without")]
    trainers[0].train()
    monkeypatch.delattr(transformers.Trainer, "loss_is_scaled_for_ga", raising=False)
    trainers[1].train()
    check_same(trainers[1], trainers[0].model, trainers[0].multitask_optimizer)


class Means(Heads):
    """Like BertForSequenceClassification: it takes the number of items, and returns the mean over its batch."""

    def forward(self, x, labels=None, **kwargs):
        return super().forward(x, labels)


class Named(nn.Module):
    """Its batches have no labels that the Trainer could count. It takes nothing that it does not know."""

    def __init__(self):
        super().__init__()
        self.heads = Heads()

    def forward(self, x, classes):
        entries = self.heads(x, classes)["entries"]
        return {"loss": entries.mean(), "entries": entries}


def with_one_class(examples):
    batch = collate(examples)
    return {"classes": batch.pop("labels")[:, :1].expand(-1, 2), **batch}


@pytest.mark.parametrize(("model", "collator"), [(Heads, collate), (Means, collate), (Named, with_one_class)])
def test_two_batches_of_a_step_are_one_whatever_the_model_makes_of_the_number_of_items(model, collator, tmp_path):
    """The tasks have other numbers of items in each batch, and are missing in some."""
    trainers = []
    for settings in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ):
        trainers.append(trainer_of(tmp_path, model=model(), max_steps=3, **settings))
        trainers[-1].data_collator = ByTask(collator)
        trainers[-1].train()
    one, two = ([line for line in trainer.state.log_history if "loss" in line] for trainer in trainers)
    for line, other in zip(one, two, strict=True):
        for name in ["loss", *(f"loss_{t}" for t in TASKS if f"loss_{t}" in line)]:
            assert other[name] == pytest.approx(line[name], rel=1e-5)  # float32: the order of the sums differs
    for p, q in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(p, q)


def test_a_batch_of_a_task_may_have_no_label_that_counts(tmp_path):
    class Blank(Data):
        def __getitem__(self, i):
            example = super().__getitem__(i)
            return {**example, "task": "az", "labels": torch.where(torch.tensor(i < 4), -100, example["labels"])}

    trainer = trainer_of(tmp_path, gradient_accumulation_steps=2, max_steps=1)
    trainer.train_dataset = Blank()
    trainer.train()
    with torch.no_grad():
        expected = Heads()(**collate([{k: v for k, v in Blank()[i].items() if k != "task"} for i in range(4, 8)]))
    assert trainer.multitask_optimizer.statistics["losses"] == pytest.approx({"az": expected["loss"].item()}, rel=1e-6)


def test_a_model_that_shifts_its_labels_does_not_count_the_first_one(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    trainer = trainer_of(tmp_path, model=transformers.LlamaForCausalLM(config))
    assert trainer._count_items({"labels": torch.tensor([[1, 2, -100], [3, 4, 5]])}) == 3
    assert trainer._count_items({"labels": torch.zeros(2, 3), "shift_labels": torch.zeros(2, 4)}) == 8


def test_what_the_loss_of_the_model_is_can_be_said(tmp_path):
    class Shares(ByBatches):  # of a mean over the step, by the number of items
        loss_is_scaled_for_ga = True

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]

    class MeansOfMeans(ByBatches):
        loss_is_scaled_for_ga = False

    COLLATORS[Shares] = COLLATORS[MeansOfMeans] = COLLATORS[ByBatches]
    results = []
    for kind in (ByBatches, Shares, MeansOfMeans):
        trainer = trainer_of(tmp_path, kind, gradient_accumulation_steps=3, max_steps=1)
        trainer.train()
        results.append(trainer.multitask_optimizer.statistics["losses"])
    assert results[1] == pytest.approx(results[0], rel=1e-6)  # float32
    batches = [ByTask(collate)([Data()[j] for j in range(i, i + 4)]) for i in (0, 4, 8)]
    with torch.no_grad():
        means = [(task, Heads()(**batch)["loss"] / 3) for some in batches for task, batch in some.items()]
    expected = {t: sum(value.item() for task, value in means if task == t) for t in TASKS}
    assert results[2] == pytest.approx(expected, rel=1e-6)  # float32


def test_entries_may_be_divided_by_numbers_of_the_whole_step(tmp_path):
    """As the page about transformers does it: two batches are one, for a pair too."""

    class Exact(ByEntries):
        loss_is_scaled_for_ga = True

        def get_batch_samples(self, *args):
            batches, _ = super().get_batch_samples(*args)
            tasks = [batch["task"][:, None].where(batch["labels"] != -100, -1) for batch in batches]
            return batches, torch.bincount(torch.cat(tasks).flatten() + 1, minlength=len(TASKS) + 1)[1:]

        def compute_losses(self, model, inputs, num_items_in_batch=None):
            entries, tasks = entries_of(model, inputs)
            return entries / num_items_in_batch[tasks], tasks

    COLLATORS[Exact] = mixed
    one = trainer_of(tmp_path, ByEntries, max_steps=3, per_device_train_batch_size=8)
    two = trainer_of(tmp_path, Exact, max_steps=3, gradient_accumulation_steps=2)
    one.train(), two.train()
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # float32: the mean is computed in another order


def test_labels_are_smoothed_or_it_is_said_that_they_are_not(tmp_path):
    class Classes(Heads):
        config = transformers.BertConfig()

        def forward(self, x, labels=None, **kwargs):
            return {"logits": super().forward(x, torch.zeros(len(x), 2).long())["logits"]}

    trainer = trainer_of(tmp_path, model=Classes(), max_steps=1, label_smoothing_factor=0.5)
    trainer.train()
    batch = ByTask(collate)([Data()[i] for i in range(4)])
    with torch.no_grad():
        expected = {
            t: F.cross_entropy(Heads()(**b)["logits"].flatten(0, 1), b["labels"].flatten(), label_smoothing=0.5).item()
            for t, b in batch.items()
        }
    assert trainer.multitask_optimizer.statistics["losses"] == pytest.approx(expected, rel=1e-6)  # float32
    with pytest.raises(ValueError, match="does not support label_smoothing_factor beside a compute_losses"):
        trainer_of(tmp_path, ByEntries, model=Classes(), label_smoothing_factor=0.5)


def test_a_checkpoint_of_a_plain_trainer_goes_on_with_tasks(tmp_path):
    plain = trainer_of(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    mean_of_all = transformers.Trainer(plain.model, plain.args, train_dataset=Data(), data_collator=mixed)
    mean_of_all.train()
    resumed = trainer_of(tmp_path, max_steps=3)
    with pytest.warns(UserWarning, match="the state of an optimizer without tasks"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    optimizer = resumed.multitask_optimizer
    assert optimizer.statistics["step"] == 1 and set(optimizer.alpha.values()) == {1 / 4}
    assert {state["step"].item() for state in optimizer.state.values()} == {3}


def test_evaluation_of_one_task_after_the_other(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    rows = [e for e in map(Data().__getitem__, range(ROWS)) if e["task"] == "be"]
    trainer.train()
    found = trainer.evaluate({"be": rows})["eval_be_loss"]
    batch = collate([{k: v for k, v in e.items() if k != "task"} for e in rows])
    with torch.no_grad():
        loss = trainer.model(**batch, num_items_in_batch=None)["loss"]
    assert found == pytest.approx(loss.item(), rel=1e-6)  # float32
    with pytest.raises(ValueError, match=r"has the tasks .* one task at a time"):
        trainer.evaluate(Data())


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not support torch_empty_cache_steps"):
        trainer_of(tmp_path, torch_empty_cache_steps=2)
    with pytest.raises(ValueError, match=r"optim=lomo, which steps before .* take another, such as adamw_torch"):
        trainer_of(tmp_path, optim="lomo")


def test_losses_that_cannot_be_used_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, ByEntries)
    trainer.compute_losses = lambda *args: torch.ones(4)
    with pytest.raises(TypeError, match=r"the losses of its entries .* got Tensor"):
        trainer.train()
    for mean in (torch.ones(()), lambda: torch.ones(())):
        trainer.compute_losses = lambda *args, mean=mean: (mean, torch.zeros(4).long())
        with pytest.raises(TypeError, match=r'got a single number: pass reduction="none"'):
            trainer.train()


def test_batches_that_cannot_be_used_are_refused(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.data_collator = mixed
    with pytest.raises(ValueError, match=r"a batch has \['labels', 'task', 'x'\] .* use the data collator ByTask"):
        trainer.train()
    trainer.data_collator = lambda some: ByTask(collate)([{**e, "task": TASKS.index(e["task"])} for e in some])
    with pytest.raises(
        ValueError, match=r"has the task \d, but the tasks are .* the name of their task, not its index"
    ):
        trainer.train()
    with pytest.raises(ValueError, match=r"an example has no 'task'.* remove_unused_columns=False .* field=\.\.\."):
        ByTask(collate)([{"x": torch.ones(1)}])


def test_the_field_with_the_task_may_have_another_name():
    batch = ByTask(collate, "lang")([{"x": torch.ones(1), "lang": "az"}, {"x": torch.zeros(1), "lang": "be"}])
    assert list(batch) == ["az", "be"] and list(batch["az"]) == ["x"]


def test_a_multitask_that_makes_no_optimizer_is_refused(tmp_path):
    base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    for wrong, message in {
        "CATS": "got 'CATS'",
        cats.CATS: "got <class .*CATS'>: missing a required argument: 'tasks'",
        cats.CATS(base, TASKS): r"an optimizer: pass optimizers=\(optimizer, None\)",
        functools.partial(cats.CATS): "missing a required argument: 'tasks'",
    }.items():
        with pytest.raises(TypeError, match=rf"multitask= must make the optimizer .*{message}"):
            ByBatches(Heads(), transformers.TrainingArguments(tmp_path, use_cpu=True), multitask=wrong)
    trainer = trainer_of(tmp_path)
    trainer._multitask = None
    with pytest.raises(TypeError, match="the optimizer of the Trainer is AdamW: pass multitask="):
        trainer.train()


def test_an_optimizer_of_ones_own_needs_no_multitask(tmp_path):
    model = Heads()
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS)
    args = trainer_of(tmp_path).args
    trainer = ByBatches(model, args, optimizers=(optimizer, None), data_collator=ByTask(collate), train_dataset=Data())
    trainer.train()
    assert trainer.multitask_optimizer is optimizer and optimizer.statistics["step"] == 5


def test_the_mixin_stands_before_the_trainer():
    with pytest.raises(TypeError, match=r"class Wrong\(TrainerMixin, transformers.Trainer\)"):

        class Wrong(transformers.Trainer, TrainerMixin):
            pass


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return map(Data().__getitem__, range(ROWS))


def test_a_stream_loses_no_rows(tmp_path):
    """accelerate would cut the batch of each task to as many rows as that of the first task has."""
    trainer = trainer_of(tmp_path)
    trainer.train_dataset = Stream()
    with pytest.raises(ValueError, match="would lose rows"):
        trainer.train()
    trainer = trainer_of(tmp_path, accelerator_config={"dispatch_batches": False})
    trainer.train_dataset = Stream()
    trainer.train()
    check_same(trainer, *plain_loop(ByBatches)[:2])


def train_with_others(folder):
    """Called in each process that torchrun starts."""
    trainer = trainer_of(folder, model=Means(), per_device_train_batch_size=2, gradient_accumulation_steps=2)
    with torch.no_grad():
        trainer.model.out.bias += trainer.args.process_index  # the first process gives its values to the others
    trainer.train()
    assert type(trainer.model_wrapped) is Means
    optimizer = trainer.multitask_optimizer
    numbers = {"alpha": optimizer.alpha, "losses": optimizer.statistics["losses"]}
    torch.save({"model": trainer.model.state_dict(), **numbers}, f"{folder}/{trainer.args.process_index}.pt")


@pytest.mark.slow
@needs_gloo
def test_two_processes_of_torchrun_are_one_with_the_whole_batch(tmp_path):
    run_with_torchrun("tests.integrations.test_transformers", tmp_path)
    model, optimizer, _ = plain_loop(ByBatches, accumulate=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(*results)
    torch.testing.assert_close(results[0]["model"], dict(model.state_dict()))  # float32: the order of the sums differs
    for numbers, expected in (("alpha", optimizer.alpha), ("losses", optimizer.statistics["losses"])):
        assert results[0][numbers] == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    train_with_others(sys.argv[1])
