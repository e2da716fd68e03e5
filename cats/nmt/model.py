"""Pre-LN Transformer encoder-decoder (Vaswani et al., 2017; Xiong et al., 2020), small enough to read in one sitting.

One embedding matrix serves source, target and output projection (Press & Wolf, 2017): the vocabulary is joint and
multilingual. Attention is torch's scaled_dot_product_attention. Decoding keeps keys and values of earlier positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Padded token ids of some sentence pairs.

    source: (B, S) int64, such as ``[tag, pieces.., eos]``; target_in: (B, T) int64, ``[start, pieces..]``;
    target_out: (B, T) int64, ``[pieces.., eos]``; tokens: number of real (not padding) cells of target_out.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor
    tokens: int


def pad(rows: list[list[int]], pad_id: int, device: torch.device | str | None = None) -> Tensor:
    """(B, longest) int64 from B lists of ids."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.int64, device=device)


def collate(
    sources: list[list[int]],
    targets: list[list[int]],
    starts: Sequence[int],
    pad_id: int = 0,
    device: torch.device | str | None = None,
) -> Batch:
    """The batch of encoded pairs. ``targets`` end in eos; shifted right behind ``starts`` they are the decoder's input.

    starts: for every pair, what the decoder begins with (``Tokenizer.start``).
    """
    return Batch(
        pad(sources, pad_id, device),
        pad([[start, *row[:-1]] for start, row in zip(starts, targets, strict=True)], pad_id, device),
        pad(targets, pad_id, device),
        sum(map(len, targets)),
    )


def sinusoids(length: int, width: int, start: int = 0, device: torch.device | None = None) -> Tensor:
    """(length, width) fixed position encodings of positions start, start + 1, ..: no longest sentence to configure."""
    position = torch.arange(start, start + length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1).flatten(1)


class Packing:
    """The real cells of a (B, L) batch, row after row: what works on single positions need not see the padding.

    With many languages in a batch not both source and target lengths can be alike: a third of its cells are padding.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.index = mask.flatten().nonzero().squeeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, d) -> (N, d), N real cells."""
        return x.flatten(0, 1).index_select(0, self.index)

    def pad(self, x: Tensor) -> Tensor:
        """(N, d) -> (B, L, d), zero in the padding."""
        cells = x.new_zeros(self.mask.numel(), x.shape[-1]).index_copy(0, self.index, x)
        return cells.view(*self.mask.shape, -1)


class Attention(nn.Module):
    """Multi-head attention in three parts, so that projections run on packed and mixing on padded rows."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def split(self, key_value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, heads, S, d / heads), of a projection (B, S, 2 d)."""
        key, value = key_value.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """(B, T, d), before the output projection, of queries (B, T, d); mask (B, 1, 1, S): which keys to see."""
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return mixed.transpose(1, 2).flatten(2)


class FeedForward(nn.Sequential):
    def __init__(self, d_model: int, ffn: int) -> None:
        super().__init__(nn.Linear(d_model, ffn), nn.ReLU(), nn.Linear(ffn, d_model))


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(d_model), Attention(d_model, heads)
        self.ffn_norm, self.ffn = nn.LayerNorm(d_model), FeedForward(d_model, ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rows: Packing) -> Tensor:
        """x: (N, d), the packed real tokens."""
        y = self.attention_norm(x)
        key, value = self.attention.split(rows.pad(self.attention.key_value(y)))
        mixed = self.attention.mix(rows.pad(self.attention.query(y)), key, value, rows.mask[:, None, None])
        x = x + self.dropout(self.attention.out(rows.pack(mixed)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class DecoderLayer(nn.Module):
    def __init__(self, d_model: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(d_model), Attention(d_model, heads)
        self.cross_norm, self.cross = nn.LayerNorm(d_model), Attention(d_model, heads)
        self.ffn_norm, self.ffn = nn.LayerNorm(d_model), FeedForward(d_model, ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rows: Packing, memory: Tensor, sources: Packing) -> Tensor:
        """x: (N, d), the packed target tokens; memory: (M, d), the packed source tokens."""
        y = self.attention_norm(x)
        # Padding stands to the right, and causal attention never looks there.
        key, value = self.attention.split(rows.pad(self.attention.key_value(y)))
        mixed = self.attention.mix(rows.pad(self.attention.query(y)), key, value, causal=True)
        x = x + self.dropout(self.attention.out(rows.pack(mixed)))
        key, value = self.cross.split(sources.pad(self.cross.key_value(memory)))
        query = rows.pad(self.cross.query(self.cross_norm(x)))
        mixed = self.cross.mix(query, key, value, sources.mask[:, None, None])
        x = x + self.dropout(self.cross.out(rows.pack(mixed)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    def step(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The next position alone. x: (B, 1, d); memory: keys and values of the source; past: of earlier positions.

        Returns the new x and the keys and values up to and including this position.
        """
        y = self.attention_norm(x)
        key, value = self.attention.split(self.attention.key_value(y))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        x = x + self.attention.out(self.attention.mix(self.attention.query(y), key, value))
        mixed = self.cross.mix(self.cross.query(self.cross_norm(x)), *memory, mask[:, None, None])
        x = x + self.cross.out(mixed)
        return x + self.ffn(self.ffn_norm(x)), (key, value)


@dataclass
class DecoderState:
    """What the next decoding step needs of the earlier ones; row b belongs to hypothesis b."""

    mask: Tensor
    memory: list[tuple[Tensor, Tensor]]
    past: list[tuple[Tensor, Tensor]]
    length: int = 0

    def select(self, index: Tensor) -> DecoderState:
        """The state whose row i is this one's row index[i]: reorders, drops and repeats hypotheses."""
        return DecoderState(
            self.mask[index],
            [(key[index], value[index]) for key, value in self.memory],
            [(key[index], value[index]) for key, value in self.past],
            self.length,
        )


class Transformer(nn.Module):
    """Encoder-decoder over a joint vocabulary.

    Args:
        vocab_size, d_model, heads, ffn, encoder_layers, decoder_layers: sizes; heads divides d_model.
        dropout: on the embeddings and on the output of every sub-layer.
        pad_id: the id that fills rows; it is masked in attention and its embedding stays zero.
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
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.scale = math.sqrt(d_model)
        self.embedding = nn.Embedding(vocab_size, d_model, padding_idx=pad_id)
        self.encoder = nn.ModuleList(EncoderLayer(d_model, heads, ffn, dropout) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder = nn.ModuleList(DecoderLayer(d_model, heads, ffn, dropout) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        # Tied with the output projection: rows of norm about 1 give unit-scale inputs (after self.scale) and logits.
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        with torch.no_grad():
            self.embedding.weight[pad_id].zero_()

    def _decoder_layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.decoder)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        x = self.embedding(ids) * self.scale
        return self.dropout(x + sinusoids(ids.shape[1], x.shape[-1], start, ids.device).to(x.dtype))

    def _encode(self, source: Tensor) -> tuple[Tensor, Packing]:
        rows = Packing(source != self.pad_id)
        x = rows.pack(self.embed(source))
        for layer in self.encoder:
            x = layer(x, rows)
        return self.encoder_norm(x), rows

    def hidden(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Packed decoder states (N, d) before the output projection: the N real cells of target_in, row after row."""
        memory, sources = self._encode(source)
        rows = Packing(target_in != self.pad_id)
        x = rows.pack(self.embed(target_in))
        for layer in self.decoder:
            x = layer(x, rows, memory, sources)
        return self.decoder_norm(x)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (.., V) of hidden states (.., d)."""
        return F.linear(hidden, self.embedding.weight)

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Logits (B, T, V), zero in the padding."""
        return Packing(target_in != self.pad_id).pad(self.project(self.hidden(source, target_in)))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(memory (B, S, d), mask (B, S) bool, True where a real token stands) of source (B, S) int64."""
        memory, rows = self._encode(source)
        return rows.pad(memory), rows.mask

    def start(self, memory: Tensor, mask: Tensor) -> DecoderState:
        """The state before the first decoding step."""
        return DecoderState(
            mask, [layer.cross.split(layer.cross.key_value(memory)) for layer in self._decoder_layers()], []
        )

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits (B, V) after the tokens (B,) int64 (bos first); the state is advanced in place. No dropout."""
        x = self.embed(tokens[:, None], state.length)
        past: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self._decoder_layers()):
            x, cache = layer.step(x, state.memory[i], state.mask, state.past[i] if state.past else None)
            past.append(cache)
        state.past, state.length = past, state.length + 1
        return self.project(self.decoder_norm(x[:, 0]))
