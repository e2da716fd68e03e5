"""The baselines of the trainer, as a script for their own Python environment.

It must not import this project. It reads requests as lines of JSON from standard input, and writes answers as lines of
JSON to standard output.

All models except Marian compute the same function with the same weights: pre-norm, one embedding matrix, dropout on the
embeddings and on the outputs of sub-layers. Where a baseline has more dropout (attention weights, inside the
feed-forward layer), it is removed, which is less work for the baseline.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Answer = dict[str, Any]  # becomes one JSON object
Weights = dict[str, Tensor]  # the state_dict of cats.nmt.model.transformer.Transformer


@dataclass(frozen=True)
class Job:
    """Sizes and settings of our model, training and search. text: the path of the training text as ids, or None."""

    vocab_size: int
    first_piece: int
    pad_id: int
    bos_id: int
    eos_id: int
    d_model: int
    heads: int
    ffn: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    smoothing: float
    lr: float
    betas: tuple[float, float]
    clip: float
    batch_tokens: int
    threads: int
    beam: int
    length: int
    text: str | None


class Baseline:
    """A training loop, a translator, or both. A batch is [source, target_in, target_out], each (rows, length) ids."""

    def __init__(self, job: Job, batches: list[list[Tensor]], sources: list[Tensor], weights: Weights) -> None:
        """batches: to train on. sources: (rows, length) ids to translate. weights: of our model."""
        self.job, self.batches, self.sources = job, batches, sources

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def prepare(self, batch: list[Tensor]) -> Any:
        """The batch as the library needs it. This is not timed."""
        return batch

    def nll(self, batch: Any) -> float:
        """Negative log likelihood of the batch in nats, summed over tokens, without dropout and smoothing."""
        raise NotImplementedError

    def update(self, batch: Any) -> None:
        """One training step."""
        raise NotImplementedError

    def search(self, source: Tensor) -> list[list[int]]:
        """Translations of a batch, of job.length tokens each."""
        raise NotImplementedError

    def check(self, updates: int) -> Answer:
        """The NLL of the first batch per token, before and after some updates without dropout, as "nll"."""
        self.dropout(0.0)
        before = self.nll(self.prepare(self.batches[0]))
        for batch in self.batches[:updates]:
            self.update(self.prepare(batch))
        after = self.nll(self.prepare(self.batches[0]))
        self.dropout(self.job.dropout)
        tokens = self.tokens(self.batches[0])
        return {"nll": [before / tokens, after / tokens]}

    def train(self, first: int, count: int) -> Answer:
        """Updates on the batches from `first`. The answer has their "seconds" and "tokens"."""
        chosen = self.batches[first : first + count]
        ready = [self.prepare(batch) for batch in chosen]
        start = time.perf_counter()
        for batch in ready:
            self.update(batch)
        return {"seconds": time.perf_counter() - start, "tokens": sum(map(self.tokens, chosen))}

    def translate(self) -> Answer:
        """Translates all sources. The answer has the "seconds" and the "lines"."""
        self.model.eval()
        start = time.perf_counter()
        found = [self.search(source) for source in self.sources]
        return {"seconds": time.perf_counter() - start, "lines": [line for batch in found for line in batch]}

    def tokens(self, batch: list[Tensor]) -> int:
        return int((batch[2] != self.job.pad_id).sum())

    def dropout(self, share: float) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = share


class Loop(Baseline):
    """A plain training loop around torch.nn.Transformer."""

    def __init__(self, job: Job, batches: list[list[Tensor]], sources: list[Tensor], weights: Weights) -> None:
        super().__init__(job, batches, sources, weights)
        self.model = PlainTransformer(job, weights)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), job.lr, betas=job.betas, eps=1e-9, weight_decay=0.0, fused=True
        )

    def loss(self, batch: list[Tensor], smoothing: float) -> Tensor:
        source, target_in, target_out = batch
        logits = self.model(source, target_in).flatten(0, 1)
        pad_id = self.job.pad_id
        return F.cross_entropy(
            logits, target_out.flatten(), ignore_index=pad_id, label_smoothing=smoothing, reduction="sum"
        )

    def nll(self, batch: list[Tensor]) -> float:
        self.model.eval()
        with torch.no_grad():
            return float(self.loss(batch, 0.0))

    def update(self, batch: list[Tensor]) -> None:
        self.model.train()
        loss = self.loss(batch, self.job.smoothing) / (batch[2] != self.job.pad_id).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


class PlainTransformer(nn.Module):
    """torch.nn.Transformer with tied embeddings and sinusoidal positions, and with our weights."""

    def __init__(self, job: Job, weights: Weights) -> None:
        super().__init__()
        self.pad_id, width = job.pad_id, job.d_model
        self.embedding = nn.Embedding(job.vocab_size, width, padding_idx=self.pad_id)
        self.dropout = nn.Dropout(job.dropout)
        self.transformer = nn.Transformer(
            width,
            job.heads,
            job.encoder_layers,
            job.decoder_layers,
            job.ffn,
            job.dropout,
            batch_first=True,
            norm_first=True,
        )
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angle = torch.arange(512)[:, None] * rate
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], -1).flatten(1), persistent=False)
        self.load_state_dict(dict(self.renamed(job, weights)))
        for layer in [*self.transformer.encoder.layers, *self.transformer.decoder.layers]:
            layer.dropout = nn.Identity()
            layer.self_attn.dropout = 0.0
        for layer in self.transformer.decoder.layers:
            layer.multihead_attn.dropout = 0.0

    @staticmethod
    def renamed(job: Job, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        yield "embedding.weight", weights["embedding.weight"]
        norms = {"encoder": ("attention", "ffn"), "decoder": ("attention", "cross", "ffn")}
        names = {"attention": "self_attn", "cross": "multihead_attn"}
        for side, parts in norms.items():
            for kind in ("weight", "bias"):
                yield f"transformer.{side}.norm.{kind}", weights[f"{side}_norm.{kind}"]
                for i in range(getattr(job, f"{side}_layers")):
                    ours, theirs = f"{side}.{i}", f"transformer.{side}.layers.{i}"
                    for n, part in enumerate(parts, 1):
                        yield f"{theirs}.norm{n}.{kind}", weights[f"{ours}.{part}_norm.{kind}"]
                    for part in parts[:-1]:
                        joined = [weights[f"{ours}.{part}.{name}.{kind}"] for name in ("query", "key_value")]
                        yield f"{theirs}.{names[part]}.in_proj_{kind}", torch.cat(joined)
                        yield f"{theirs}.{names[part]}.out_proj.{kind}", weights[f"{ours}.{part}.out.{kind}"]
                    yield f"{theirs}.linear1.{kind}", weights[f"{ours}.ffn.0.{kind}"]
                    yield f"{theirs}.linear2.{kind}", weights[f"{ours}.ffn.2.{kind}"]

    def embed(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + self.positions[: ids.shape[1]])

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        padding = source == self.pad_id
        hidden = self.transformer(
            self.embed(source),
            self.embed(target_in),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(target_in.shape[1]),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return F.linear(hidden, self.embedding.weight)


class JoeyNMT(Baseline):
    """JoeyNMT's model, loss, optimizer, batches and search.

    In JoeyNMT the id of unknown is 0 and that of padding is 1. Here they are 1 and 0, so `swap` exchanges them.
    """

    def __init__(self, job: Job, batches: list[list[Tensor]], sources: list[Tensor], weights: Weights) -> None:
        from joeynmt.builders import build_gradient_clipper, build_optimizer

        super().__init__(job, batches, sources, weights)
        self.model = self.build(weights)
        self.model.loss_function = ("crossentropy", job.smoothing)
        settings = {"optimizer": "adamw", "learning_rate": job.lr, "adam_betas": job.betas}
        self.optimizer = build_optimizer(settings, self.model.parameters())
        self.clip = build_gradient_clipper({"clip_grad_val": None, "clip_grad_norm": job.clip})
        self.stream = self.own_batches() if job.text else None

    def vocabulary(self) -> Any:
        from types import SimpleNamespace

        from joeynmt.vocabulary import Vocabulary

        specials = ("unk", "pad", "bos", "eos")
        settings = {f"{name}_token": f"<{name}>" for name in specials} | {f"{n}_id": i for i, n in enumerate(specials)}
        ids = [str(i) for i in range(self.job.vocab_size)]
        tags = ids[len(specials) : self.job.first_piece]
        settings |= {"sep_token": None, "sep_id": None, "lang_tags": tags}
        return Vocabulary(ids[self.job.first_piece :], SimpleNamespace(**settings))

    def build(self, weights: Weights) -> Any:
        from joeynmt.model import build_model

        job = self.job
        side = {
            "type": "transformer",
            "num_heads": job.heads,
            "embeddings": {"embedding_dim": job.d_model, "scale": True, "dropout": job.dropout},
            "hidden_size": job.d_model,
            "ff_size": job.ffn,
            "dropout": job.dropout,
            "layer_norm": "pre",
        }
        vocabulary = self.vocabulary()
        settings = {
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": {**side, "num_layers": job.encoder_layers},
            "decoder": {**side, "num_layers": job.decoder_layers},
        }
        model = build_model(settings, vocabulary, vocabulary)
        found = model.load_state_dict(dict(self.renamed(weights)), strict=False)
        if found.unexpected_keys or any(not key.endswith(".pe.pe") for key in found.missing_keys):
            raise RuntimeError(f"JoeyNMT's parameters have other names: {found}")
        for module in model.modules():
            if hasattr(module, "pwff_layer"):
                module.pwff_layer[2] = nn.Identity()
            if hasattr(module, "k_layer"):
                module.dropout = nn.Identity()
        return model

    def renamed(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        embedding = weights["embedding.weight"]
        embedding = torch.cat([embedding[[1, 0]], embedding[2:]])
        for name in ("src_embed.lut", "trg_embed.lut", "decoder.output_layer"):
            yield f"{name}.weight", embedding
        attentions = {
            "encoder": {"attention": ("src_src_att", "layer_norm")},
            "decoder": {"attention": ("trg_trg_att", "x_layer_norm"), "cross": ("src_trg_att", "dec_layer_norm")},
        }
        for side, parts in attentions.items():
            for kind in ("weight", "bias"):
                yield f"{side}.layer_norm.{kind}", weights[f"{side}_norm.{kind}"]
                for i in range(getattr(self.job, f"{side}_layers")):
                    ours, theirs = f"{side}.{i}", f"{side}.layers.{i}"
                    for part, (attention, norm) in parts.items():
                        key, value = weights[f"{ours}.{part}.key_value.{kind}"].chunk(2)
                        found = {
                            "q_layer": weights[f"{ours}.{part}.query.{kind}"],
                            "k_layer": key,
                            "v_layer": value,
                            "output_layer": weights[f"{ours}.{part}.out.{kind}"],
                        }
                        for name, tensor in found.items():
                            yield f"{theirs}.{attention}.{name}.{kind}", tensor
                        yield f"{theirs}.{norm}.{kind}", weights[f"{ours}.{part}_norm.{kind}"]
                    yield f"{theirs}.feed_forward.layer_norm.{kind}", weights[f"{ours}.ffn_norm.{kind}"]
                    yield f"{theirs}.feed_forward.pwff_layer.0.{kind}", weights[f"{ours}.ffn.0.{kind}"]
                    yield f"{theirs}.feed_forward.pwff_layer.3.{kind}", weights[f"{ours}.ffn.2.{kind}"]

    def prepare(self, batch: list[Tensor]) -> Any:
        source, target_in, target_out = map(swap, batch)
        return self.batch(source, torch.cat([target_in[:, :1], target_out], dim=1))

    @staticmethod
    def batch(source: Tensor, target: Tensor | None) -> Any:
        from joeynmt.batch import Batch

        return Batch(
            src=source,
            src_length=(source != 1).sum(1),
            src_prompt_mask=None,
            trg=target,
            trg_prompt_mask=None,
            indices=torch.arange(len(source)),
            device=torch.device("cpu"),
            pad_index=1,
            eos_index=3,
        )

    def nll(self, batch: Any) -> float:
        self.model.eval()
        self.model.loss_function = ("crossentropy", 0.0)
        with torch.no_grad():
            loss = float(self.model(return_type="loss", **vars(batch))[0])
        self.model.loss_function = ("crossentropy", self.job.smoothing)
        return loss

    def update(self, batch: Any) -> None:
        """The body of TrainManager's loop, for one process."""
        self.model.train()
        batch.sort_by_src_length()
        loss, _, _, correct = self.model(return_type="loss", **vars(batch))
        loss = batch.normalize(loss, "tokens")
        loss.backward()
        loss.item(), correct.item()
        self.clip(parameters=self.model.parameters())
        self.optimizer.step()
        self.model.zero_grad()

    def own_batches(self) -> Iterator[Any]:
        """JoeyNMT's batches of the same text, without end. The text is ids already, so no tokenizer runs."""
        from joeynmt.datasets import build_dataset
        from joeynmt.tokenizers import BasicTokenizer

        encode, sides = self.vocabulary().sentences_to_ids, ("source", "target")
        data = build_dataset(
            "plain",
            path=str(Path(self.job.text)),
            src_lang="source",
            trg_lang="target",
            split="train",
            tokenizer={side: BasicTokenizer(level="word") for side in sides},
            sequence_encoder=dict.fromkeys(sides, encode),
            has_prompt=dict.fromkeys(sides, False),
        )

        def batches(size: int) -> Any:
            return data.make_iter(size, "token", seed=1, shuffle=True, pad_index=1, eos_index=3)

        # JoeyNMT's batch size counts padding. Measure which size gives as many tokens as our batches have.
        counts = [batch.ntokens for batch in batches(self.job.batch_tokens)]
        size = round(self.job.batch_tokens**2 / (sum(counts) / len(counts)))
        loader = batches(size)
        for epoch in itertools.count(1):
            loader.batch_sampler.set_seed(epoch)
            yield from loader

    def train_own(self, first: int, count: int) -> Answer:
        """The same as ``train`` on JoeyNMT's own batches. The time of making them counts."""
        assert self.stream is not None
        tokens, start = 0, time.perf_counter()
        for _ in range(count):
            batch = next(self.stream)
            self.update(batch)
            tokens += batch.ntokens
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def search(self, source: Tensor) -> list[list[int]]:
        from joeynmt.search import search

        found, _, _ = search(
            self.model,
            self.batch(swap(source), None),
            max_output_length=self.job.length,
            beam_size=self.job.beam,
            beam_alpha=1.0,
            generate_unk=False,
        )
        return found.tolist()


def swap(ids: Tensor) -> Tensor:
    """The ids with 0 and 1 exchanged."""
    return torch.where(ids < 2, 1 - ids, ids)


class Marian(Baseline):
    """Hugging Face's generate on a Marian model of the same size with random weights of its own.

    Marian is post-norm, so it is not the same function. It generates the same number of tokens.
    """

    def __init__(self, job: Job, batches: list[list[Tensor]], sources: list[Tensor], weights: Weights) -> None:
        from transformers import MarianConfig, MarianMTModel

        super().__init__(job, batches, sources, weights)
        both = {
            f"{side}_{name}": getattr(job, key)
            for side in ("encoder", "decoder")
            for name, key in (("layers", f"{side}_layers"), ("attention_heads", "heads"), ("ffn_dim", "ffn"))
        }
        torch.manual_seed(1)
        self.model = MarianMTModel(
            MarianConfig(
                vocab_size=job.vocab_size,
                d_model=job.d_model,
                activation_function="relu",
                scale_embedding=True,
                max_position_embeddings=512,
                pad_token_id=job.pad_id,
                bos_token_id=job.bos_id,
                eos_token_id=job.eos_id,
                decoder_start_token_id=job.bos_id,
                forced_eos_token_id=None,
                **both,
            )
        )

    @torch.inference_mode()
    def search(self, source: Tensor) -> list[list[int]]:
        found = self.model.generate(
            source,
            attention_mask=(source != self.job.pad_id).long(),
            num_beams=self.job.beam,
            min_new_tokens=self.job.length,
            max_new_tokens=self.job.length,
            do_sample=False,
        )
        return found[:, 1:].tolist()


BASELINES = {"nn.Transformer": Loop, "JoeyNMT": JoeyNMT, "Marian": Marian}


def main() -> None:
    """Answers requests until the input ends.

    The first request names the baseline. Each later one names a method and gives its arguments.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print: this must not mix with the answers
    baseline: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if baseline is None:
                job = Job(**request["job"])
                torch.set_num_threads(job.threads)
                tensors = torch.load(request["tensors"], weights_only=True)
                kind = BASELINES[request["baseline"]]
                baseline = kind(job, tensors["batches"], tensors["sources"], tensors["weights"])
                answer: Answer = {"version": version(request["baseline"]), "torch": torch.__version__}
            else:
                answer = getattr(baseline, request["method"])(**request["arguments"])
        except Exception as error:
            text = str(error).splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def version(baseline: str) -> str:
    from importlib import metadata

    return metadata.version({"JoeyNMT": "joeynmt", "Marian": "transformers"}.get(baseline, "torch"))


if __name__ == "__main__":
    main()
