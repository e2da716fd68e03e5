"""A pre-norm Transformer encoder-decoder (Vaswani et al., 2017; Xiong et al., 2020).

The vocabulary is joint and multilingual, so one embedding matrix can serve as source embedding, target embedding and
output projection (Press & Wolf, 2017). Attention is torch's scaled_dot_product_attention. Decoding caches the keys and
values of earlier positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cats.nmt.errors import UserError
from cats.nmt.model.clsr import Gate, Routes, Routing, routed
from cats.nmt.model.norms import make_norm

_CACHE_POSITIONS = 16  # initial capacity of the decoder's cache, in target positions


def sinusoids(length: int, width: int, start: int = 0, device: torch.device | None = None) -> Tensor:
    """(length, width) sinusoidal encodings of the positions start, start + 1, ... There is no maximum length."""
    position = torch.arange(start, start + length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1).flatten(1)


class Packing:
    """Removes the padding of a (B, L) batch and puts it back.

    Layers that work on single positions skip the padding this way. In a batch of many languages, sentences of one
    source length have different target lengths, so about a third of the cells are padding.

    Args:
        mask: (B, L) bool, True for a token.
        index: (N,) int64, the indices of the tokens in the flattened batch. None: computed from the mask, which makes
            the host wait for the GPU.
    """

    def __init__(self, mask: Tensor, index: Tensor | None = None) -> None:
        self.mask = mask
        self.index = mask.flatten().nonzero().squeeze(1) if index is None else index

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, d) -> (N, d), the N tokens row after row."""
        return x.flatten(0, 1).index_select(0, self.index)

    def of_tokens(self, x: Tensor) -> Tensor:
        """(B,) -> (N,): the entry of the row of each token."""
        return x[self.index // self.mask.shape[1]]

    def pad(self, x: Tensor) -> Tensor:
        """(N, d) -> (B, L, d), with zeros as padding."""
        cells = x.new_zeros(self.mask.numel(), x.shape[-1]).index_copy(0, self.index, x)
        return cells.view(*self.mask.shape, -1)


@dataclass(frozen=True)
class Shape:
    """The sizes and options of a layer; see ``Transformer``."""

    d_model: int
    heads: int
    ffn: int
    dropout: float
    norm: str
    attention_dropout: float
    activation_dropout: float
    gated: bool = False  # whether the sub-layers have the gates of ``cats.nmt.model.clsr``


class Attention(nn.Module):
    """Multi-head attention. The projections work on packed tokens, ``mix`` on padded rows."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.d_model
        self.heads, self.dropout = shape.heads, shape.attention_dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def split(self, key_value: Tensor) -> tuple[Tensor, Tensor]:
        """Splits a projection (B, S, 2 d) into keys and values, each (B, heads, S, d / heads)."""
        key, value = key_value.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attends with queries (B, T, d). Returns (B, T, d), before the output projection.

        mask: (B, 1, 1, S) bool, True for keys that may be seen.
        """
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
        return mixed.transpose(1, 2).flatten(2)


class FeedForward(nn.Sequential):
    def __init__(self, shape: Shape) -> None:
        activation: nn.Module = nn.ReLU()
        if shape.activation_dropout:
            activation = nn.Sequential(activation, nn.Dropout(shape.activation_dropout))
        super().__init__(nn.Linear(shape.d_model, shape.ffn), activation, nn.Linear(shape.ffn, shape.d_model))


class EncoderLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(shape.norm, shape.d_model), Attention(shape)
        self.ffn_norm, self.ffn = make_norm(shape.norm, shape.d_model), FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)
        self.attention_gate, self.ffn_gate = (Gate(shape.d_model) if shape.gated else None for _ in range(2))

    def forward(self, x: Tensor, rows: Packing, routes: Routes | None = None) -> Tensor:
        """x: (N, d), the packed tokens."""
        y = self.attention_norm(x)
        key, value = self.attention.split(rows.pad(self.attention.key_value(y)))
        mixed = rows.pack(self.attention.mix(rows.pad(self.attention.query(y)), key, value, rows.mask[:, None, None]))
        x = x + self.dropout(routed(routes, self.attention_gate, y, mixed, self.attention.out(mixed)))
        y = self.ffn_norm(x)
        out = self.ffn(y)
        return x + self.dropout(routed(routes, self.ffn_gate, y, out, out))


class DecoderLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(shape.norm, shape.d_model), Attention(shape)
        self.cross_norm, self.cross = make_norm(shape.norm, shape.d_model), Attention(shape)
        self.ffn_norm, self.ffn = make_norm(shape.norm, shape.d_model), FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)
        self.attention_gate, self.cross_gate, self.ffn_gate = (
            Gate(shape.d_model) if shape.gated else None for _ in range(3)
        )

    def forward(
        self, x: Tensor, rows: Packing, memory: Tensor, sources: Packing, routes: Routes | None = None
    ) -> Tensor:
        """x: (N, d), the packed target tokens; memory: (M, d), the packed source tokens."""
        y = self.attention_norm(x)
        # No mask is needed: the padding is on the right, which causal attention does not see.
        key, value = self.attention.split(rows.pad(self.attention.key_value(y)))
        mixed = rows.pack(self.attention.mix(rows.pad(self.attention.query(y)), key, value, causal=True))
        x = x + self.dropout(routed(routes, self.attention_gate, y, mixed, self.attention.out(mixed)))
        key, value = self.cross.split(sources.pad(self.cross.key_value(memory)))
        y = self.cross_norm(x)
        mixed = rows.pack(self.cross.mix(rows.pad(self.cross.query(y)), key, value, sources.mask[:, None, None]))
        x = x + self.dropout(routed(routes, self.cross_gate, y, mixed, self.cross.out(mixed)))
        y = self.ffn_norm(x)
        out = self.ffn(y)
        return x + self.dropout(routed(routes, self.ffn_gate, y, out, out))

    def step(
        self,
        x: Tensor,
        past: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Tensor,
        places: Packing,
        routes: Routes | None = None,
    ) -> Tensor:
        """Computes one position of all hypotheses.

        x: (rows, d), the tokens at this position. past: (positions, rows, 2 d), keys and values; those of this
        position, the last, are filled in. memory, mask, places: see ``DecoderState``.
        """
        y = self.attention_norm(x)
        past[-1] = self.attention.key_value(y)
        key, value = self.attention.split(past.transpose(0, 1))
        mixed = self.attention.mix(self.attention.query(y)[:, None], key, value)[:, 0]
        x = x + routed(routes, self.attention_gate, y, mixed, self.attention.out(mixed))
        y = self.cross_norm(x)
        mixed = places.pack(self.cross.mix(places.pad(self.cross.query(y)), *memory, mask[:, None, None]))
        x = x + routed(routes, self.cross_gate, y, mixed, self.cross.out(mixed))
        y = self.ffn_norm(x)
        out = self.ffn(y)
        return x + routed(routes, self.ffn_gate, y, out, out)


@dataclass
class DecoderState:
    """The cache of decoding, for `rows` hypotheses of n sentences.

    All hypotheses of a sentence share the keys and values of its source. The keys and values of target positions are in
    blocks with spare capacity, so that a step writes its own position without copying the others.
    """

    mask: Tensor  # (n, S) bool, True for a source token
    memory: list[tuple[Tensor, Tensor]]  # for each layer: keys and values of the source, (n, heads, S, d / heads)
    places: Packing  # (n, places per sentence): the places that hold a hypothesis; row i is the i-th of them
    past: list[Tensor]  # for each layer: keys and values of target positions, (capacity, rows, 2 d)
    length: int = 0  # positions in use
    languages: Tensor | None = None  # (n,) the language of each sentence, in a model with ``cats.nmt.model.clsr``

    def select(self, index: Tensor, places: Packing, sentences: Tensor | None = None) -> DecoderState:
        """The state whose row i is row index[i] of this one: reorders, drops and repeats hypotheses.

        places: the places of the new rows. sentences: the sentences that stay, in ascending order; None: all.
        """
        mask, memory, past, languages = self.mask, self.memory, self.past, self.languages
        if sentences is not None:
            mask, languages = mask[sentences], None if languages is None else languages[sentences]
            memory = [(key[sentences], value[sentences]) for key, value in memory]
        if sentences is not None or places.mask.shape[1] > 1:  # else there is one hypothesis per sentence, and all stay
            past = [block.new_empty(block.shape[0], len(index), block.shape[2]) for block in self.past]
            for old, new in zip(self.past, past, strict=True):
                torch.index_select(old[: self.length], 1, index, out=new[: self.length])
        return DecoderState(mask, memory, places, past, self.length, languages)

    def reserve(self) -> None:
        """Makes room for one more position. The capacity is doubled, so that all copies together take linear time."""
        if self.length == self.past[0].shape[0]:
            self.past = [torch.cat([block, torch.empty_like(block)]) for block in self.past]


class Transformer(nn.Module):
    """Encoder-decoder over a joint vocabulary.

    Args:
        vocab_size, d_model, heads, ffn, encoder_layers, decoder_layers: sizes. heads must divide d_model.
        dropout: the dropout on the embeddings and on the output of every sub-layer.
        pad_id: the id of the padding. It is masked in attention, and its embedding stays zero.
        norm: layernorm, layernorm-plain, rmsnorm or scalenorm.
        embedding_norm: add such a norm after the embeddings and positions of each side.
        embeddings: tied (one matrix for source, target and output), decoder-tied (one for target and output, one for
            the source) or separate (three).
        attention_dropout: the dropout on the attention weights.
        activation_dropout: the dropout inside the feed-forward layers.
        checkpoint_activations: in training, keep only the input of every layer and recompute the layer in the backward
            pass (Chen et al., 2016). The gradients are the same; it needs less memory and more time.
        language_tags, language_budget: the ids of the language tags in a source, and the budget of ``clsr.Routing``; if
            there are tags, the model has language-specific paths.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        heads: int,
        ffn: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
        pad_id: int = 0,
        *,
        norm: str = "layernorm",
        embedding_norm: bool = False,
        embeddings: str = "tied",
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        checkpoint_activations: bool = False,
        language_tags: Sequence[int] = (),
        language_budget: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad_id, self.checkpoint_activations = pad_id, checkpoint_activations
        self.scale = math.sqrt(d_model)
        gated = bool(language_tags)
        shape = Shape(d_model, heads, ffn, dropout, norm, attention_dropout, activation_dropout, gated)
        self.embedding = nn.Embedding(vocab_size, d_model, padding_idx=pad_id)
        self.source_embedding = None if embeddings == "tied" else nn.Embedding(vocab_size, d_model, padding_idx=pad_id)
        self.output = nn.Linear(d_model, vocab_size, bias=False) if embeddings == "separate" else None
        self.source_norm = make_norm(norm, d_model) if embedding_norm else nn.Identity()
        self.target_norm = make_norm(norm, d_model) if embedding_norm else nn.Identity()
        self.encoder = nn.ModuleList(EncoderLayer(shape) for _ in range(encoder_layers))
        self.encoder_norm = make_norm(norm, d_model)
        self.decoder = nn.ModuleList(DecoderLayer(shape) for _ in range(decoder_layers))
        self.decoder_norm = make_norm(norm, d_model)
        self.dropout = nn.Dropout(dropout)
        self.routing = Routing(d_model, language_tags, language_budget) if gated else None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for table in (self.embedding, self.source_embedding, self.output):
            if table is not None:  # rows with a norm of about 1: inputs (times self.scale) and logits have unit scale
                nn.init.normal_(table.weight, std=d_model**-0.5)
            if isinstance(table, nn.Embedding):
                with torch.no_grad():
                    table.weight[pad_id].zero_()

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compiles every layer with torch.compile. All layers of a stack share the code.

        Only the layers are compiled, because packing is not: the number of tokens in a batch depends on the values of
        its mask, which compiled code cannot read. The layers get packed tokens, whose number is an input size.
        """
        for layer in (*self.encoder, *self.decoder):
            layer.compile(dynamic=True, backend=backend)

    def _decoder_layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.decoder)

    def _layer(self, layer: nn.Module, x: Tensor, *context: Tensor | Packing | Routes | None) -> Tensor:
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, x, *context, use_reentrant=False))
        return cast(Tensor, layer(x, *context))

    def _embed(self, ids: Tensor, table: nn.Embedding, norm: nn.Module, start: int = 0) -> Tensor:
        x = table(ids) * self.scale
        x = norm(x + sinusoids(ids.shape[1], x.shape[-1], start, ids.device).to(x.dtype))
        return cast(Tensor, self.dropout(x))

    def _embed_target(self, ids: Tensor, start: int = 0) -> Tensor:
        return self._embed(ids, self.embedding, self.target_norm, start)

    def _encode(self, source: Tensor, cells: Tensor | None = None) -> tuple[Tensor, Packing]:
        rows = Packing(source != self.pad_id, cells)
        x = rows.pack(self._embed(source, self.source_embedding or self.embedding, self.source_norm))
        routes = None
        if self.routing is not None:
            routes = self.routing.encoder_routes(rows.of_tokens(self.routing.languages(source)))
        for layer in self.encoder:
            x = self._layer(layer, x, rows, routes)
        return self.encoder_norm(x), rows

    def hidden(
        self,
        source: Tensor,
        target_in: Tensor,
        source_cells: Tensor | None = None,
        target_cells: Tensor | None = None,
    ) -> Tensor:
        """Packed decoder states (N, d) before the output projection, for the N tokens of target_in, row after row.

        source, target_in, source_cells, target_cells: see ``cats.nmt.data.batch.Batch``.
        """
        memory, sources = self._encode(source, source_cells)
        rows = Packing(target_in != self.pad_id, target_cells)
        x = rows.pack(self._embed_target(target_in))
        routes = None
        if self.routing is not None:
            routes = self.routing.decoder_routes(rows.of_tokens(self.routing.languages(source)))
        for layer in self.decoder:
            x = self._layer(layer, x, rows, memory, sources, routes)
        return self.decoder_norm(x)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., d)."""
        return F.linear(hidden, (self.output or self.embedding).weight)

    def logits(
        self,
        source: Tensor,
        target_in: Tensor,
        source_cells: Tensor | None = None,
        target_cells: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, V) of the N tokens of target_in, row after row; see ``hidden``."""
        return self.project(self.hidden(source, target_in, source_cells, target_cells))

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Logits (B, T, V), zero in the padding, of source (B, S) and target_in (B, T), both int64.

        Training and decoding do not call it: they project only the positions that they need. It is here because users
        expect that model(source, target_in) works, and as the reference that the tests compare with.
        """
        return Packing(target_in != self.pad_id).pad(self.logits(source, target_in))

    def encode(self, source: Tensor) -> tuple[Tensor, ...]:
        """What ``start`` takes: the encoder states (B, S, d) of source (B, S) int64, and its mask (B, S) bool, True for
        a token. With ``cats.nmt.model.clsr`` also the language of each row, (B,).
        """
        memory, rows = self._encode(source)
        languages = () if self.routing is None else (self.routing.languages(source),)
        return rows.pad(memory), rows.mask, *languages

    def start(self, memory: Tensor, mask: Tensor, languages: Tensor | None = None) -> DecoderState:
        """The state before the first decoding step, with one hypothesis per sentence. Its arguments: see ``encode``."""
        n, _, d = memory.shape
        projected = [layer.cross.split(layer.cross.key_value(memory)) for layer in self._decoder_layers()]
        return DecoderState(
            mask,
            [(key.contiguous(), value.contiguous()) for key, value in projected],
            Packing(mask.new_ones(n, 1)),
            [memory.new_empty(_CACHE_POSITIONS, n, 2 * d) for _ in projected],
            languages=languages,
        )

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits (rows, V) of the next token, given the last tokens (rows,) int64. Advances the state in place.

        The first tokens are the start of the decoder. The model must be in evaluation mode: there is no dropout here.
        """
        state.reserve()
        x = self._embed_target(tokens[:, None], state.length)[:, 0]
        state.length += 1
        routes = None
        if self.routing is not None and state.languages is not None:
            routes = self.routing.decoder_routes(state.places.of_tokens(state.languages))
        for layer, past, memory in zip(self._decoder_layers(), state.past, state.memory, strict=True):
            x = layer.step(x, past[: state.length], memory, state.mask, state.places, routes)
        return self.project(self.decoder_norm(x))


def check_compiler(device: torch.device) -> None:
    """Compiles a tiny function, so that a missing compiler is reported before training starts.

    Raises:
        UserError: torch.compile does not work on this machine.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # no C++ compiler, no Triton, an unsupported Python: each raises its own kind
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.compile does not work here: {reason}; leave out train.compile") from error
