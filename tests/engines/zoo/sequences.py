"""Sequences: attention, recurrence, packed tokens, and layouts with the sequence first."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer

from .net import LAST, LENGTH, WIDTH, Net, Sequences, squares

HEADS = 2
MODEL = 4  # the width of the attention, a multiple of HEADS


class Attention(Sequences):
    """nn.MultiheadAttention between the sequence and itself, with padding."""

    def __init__(self, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(WIDTH, MODEL), nn.Linear(MODEL, 2)
        self.attention = nn.MultiheadAttention(MODEL, HEADS, batch_first=batch_first, **options)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[1::2, -1] = True
        x = self.before(x)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x = x if self.batch_first else x.transpose(0, 1)
        return self.after(x)


class CrossAttention(Sequences):
    """Queries from the examples, keys and values of another width from a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(MODEL, HEADS, kdim=WIDTH, vdim=3, batch_first=True, add_bias_kv=True)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        b = len(ids)
        return torch.randn(b, 2, MODEL), torch.randn(b, LENGTH, WIDTH), torch.randn(b, LENGTH, 3)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention(query, key, value)[0]


class OwnAttention(Sequences):
    """One packed projection for queries, keys and values, a learnt bias of relative positions, and torch's SDPA."""

    def __init__(self, causal: bool = False, relative: bool = False) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * MODEL), nn.Linear(MODEL, 2)
        self.bias = nn.Parameter(torch.randn(2 * LENGTH - 1, HEADS)) if relative else None
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mask = None
        if self.bias is not None:
            place = torch.arange(LENGTH)
            mask = self.bias[place[:, None] - place + LENGTH - 1].permute(2, 0, 1)
        x = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal)
        return self.out(x.transpose(1, 2).flatten(2))


class EncoderLayer(Sequences):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, MODEL)
        self.layer = nn.TransformerEncoderLayer(MODEL, HEADS, 6, dropout=0.2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x))


class DecoderLayer(Sequences):
    """The sequence first, and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(MODEL, HEADS, 6, dropout=0.1)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return torch.randn(LENGTH, len(ids), MODEL), torch.randn(4, len(ids), MODEL)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=x.dtype)
        return self.layer(x, memory, tgt_mask=mask).transpose(0, 1)


class Recurrent(Sequences):
    """nn.RNN, nn.LSTM and nn.GRU: the loss sees all outputs and the last state."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.rnn, self.batch_first = kind(WIDTH, 3, batch_first=batch_first, **options), batch_first

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = self.rnn(x if self.batch_first else x.transpose(0, 1))
        outputs = outputs if self.batch_first else outputs.transpose(0, 1)
        state = state[0] if isinstance(state, tuple) else state
        return torch.cat([outputs.flatten(1), state.transpose(0, 1).flatten(1)], dim=1)


class PackedRecurrent(Sequences):
    """An LSTM over a packed sequence: in every time step there are fewer rows, and they are sorted by length."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([1 + (2 * i) % LENGTH for i in range(len(x))])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class Cells(Sequences):
    """An RNN written as a loop over the time steps."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.out = kind(WIDTH, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class SequenceFirst(Net):
    """Layers that get (T, B, d). ``square``: T = B, so that sizes alone cannot tell rows from positions. ``flat``: the
    layers get T B rows, in the order of the positions.
    """

    def __init__(self, square: bool, flat: bool) -> None:
        super().__init__()
        self.a, self.b, self.square, self.flat = nn.Linear(WIDTH, 4), nn.Linear(4, 2), square, flat
        self.norm, self.shift = nn.LayerNorm(4), nn.Parameter(torch.randn(4))

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return (torch.randn(len(ids) if self.square else LENGTH, len(ids), WIDTH),)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1) if self.flat else x
        rows = self.b(self.norm(self.a(rows).tanh()) + self.shift)
        return rows.view(*x.shape[:2], 2).transpose(0, 1)


class LayoutChanges(SequenceFirst):
    """Rows in the order of the examples, and in the order of the positions in the last batch."""

    def __init__(self) -> None:
        super().__init__(square=False, flat=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == LAST:
            return super().forward(x)
        rows = x.transpose(0, 1).reshape(-1, WIDTH)
        return self.b(self.norm(self.a(rows).tanh()) + self.shift).view(x.shape[1], -1)


class SquareSequence(Net):
    """The batch first, and T = B."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 4), nn.Linear(4, 2)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        return (torch.randn(len(ids), len(ids), WIDTH),)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class SquarePositions(SquareSequence):
    """Embeddings of positions, which go through a layer of their own, when there are as many positions as examples."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.project = nn.Parameter(torch.randn(12, 3)), nn.Linear(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.project(self.positions[: x.shape[1]]))


class Packed(Net):
    """Tokens of sentences of uneven lengths without padding, and a loss for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.out = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(4, 2)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        lengths = torch.arange(len(ids)) % LENGTH + 1
        return torch.randint(0, 11, (int(lengths.sum()),)), lengths

    def loss_ids(self, ids: Tensor, *inputs: Any) -> Tensor:
        return ids.repeat_interleave(inputs[1])

    def losses(self, ids: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        return squares(self.out(self.layer(self.embedding(tokens)).tanh()))


class PooledPacked(Packed):
    """As packed, but one loss for each sentence: the tokens are summed."""

    def loss_ids(self, ids: Tensor, *inputs: Any) -> Tensor:
        return ids

    def losses(self, ids: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        rows = self.layer(self.embedding(tokens)).tanh()
        sentence = torch.arange(len(ids)).repeat_interleave(lengths)
        return squares(self.out(rows.new_zeros(len(ids), 4).index_add(0, sentence, rows)))


class Translator(Net):
    """The trainer's model: packed source and target tokens of different numbers, and a loss for each target token."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.model = Transformer(13, MODEL, HEADS, 6, 1, 1, dropout=0.1, **options)

    def inputs(self, ids: Tensor) -> tuple[Any, ...]:
        source, target = torch.randint(1, 13, (len(ids), 4)), torch.randint(1, 13, (len(ids), LENGTH + 1))
        source[::2, 2:] = 0
        target[1::3, 2:] = 0
        return source, target

    def loss_ids(self, ids: Tensor, *inputs: Any) -> Tensor:
        kept = inputs[1][:, 1:] != 0
        return ids[:, None].expand(kept.shape)[kept]

    def losses(self, ids: Tensor, source: Tensor, target: Tensor) -> Tensor:
        following, target = target[:, 1:], target[:, :-1].clone()
        target[following == 0] = 0
        logits = self.model.project(self.model.hidden(source, target))
        return token_losses(logits, following[following != 0], 0.1)[0]


class Fourier(Sequences):
    """Tokens are mixed by a Fourier transform without parameters, along the sequence and the width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.fft.fft2(self.a(x)).real.tanh())


class LearntQueries(Sequences):
    """Learnt queries go through a layer before they attend to the examples: all examples share these rows. With as many
    queries as examples (``square``), sizes alone would take each for the row of one example.
    """

    def __init__(self, square: bool) -> None:
        super().__init__()
        self.queries, self.project, self.square = nn.Parameter(torch.randn(12, WIDTH)), nn.Linear(WIDTH, WIDTH), square

    def forward(self, x: Tensor) -> Tensor:
        queries = self.project(self.queries[: len(x) if self.square else 4])
        return torch.softmax(queries @ x.mT, dim=-1) @ x


SEQUENCES = {
    "attention": lambda: Attention(batch_first=True),
    "attention, sequence first": lambda: Attention(batch_first=False),
    "attention, dropout": lambda: Attention(batch_first=True, dropout=0.3),
    "attention, extra keys": lambda: Attention(batch_first=True, add_bias_kv=True, add_zero_attn=True),
    "cross-attention": CrossAttention,
    "own attention": OwnAttention,
    "own attention, causal": lambda: OwnAttention(causal=True),
    "own attention, relative positions": lambda: OwnAttention(relative=True),
    "encoder layer": EncoderLayer,
    "encoder layer, norm first": lambda: EncoderLayer(norm_first=True, activation="gelu"),
    "decoder layer": DecoderLayer,
    "RNN": lambda: Recurrent(nn.RNN, batch_first=False),
    "RNN, batch first": lambda: Recurrent(nn.RNN, batch_first=True),
    "LSTM": lambda: Recurrent(nn.LSTM, batch_first=False),
    "LSTM, batch first, two directions": lambda: Recurrent(nn.LSTM, batch_first=True, bidirectional=True),
    "LSTM, projected": lambda: Recurrent(nn.LSTM, batch_first=True, proj_size=2),
    "GRU": lambda: Recurrent(nn.GRU, batch_first=False, num_layers=2),
    "GRU, batch first": lambda: Recurrent(nn.GRU, batch_first=True, bias=False),
    "LSTM, packed": PackedRecurrent,
    "RNN cells": lambda: Cells(nn.RNNCell),
    "LSTM cells": lambda: Cells(nn.LSTMCell),
    "GRU cells": lambda: Cells(nn.GRUCell),
    "sequence first": lambda: SequenceFirst(square=False, flat=False),
    "sequence first, T = B": lambda: SequenceFirst(square=True, flat=False),
    "sequence first, flat": lambda: SequenceFirst(square=False, flat=True),
    "sequence first, flat, T = B": lambda: SequenceFirst(square=True, flat=True),
    "layout that changes": LayoutChanges,
    "T = B": SquareSequence,
    "positions, T = B": SquarePositions,
    "packed tokens": Packed,
    "packed tokens, summed": PooledPacked,
    "translator": Translator,
    "translator, separate embeddings": lambda: Translator(norm="rmsnorm", embeddings="separate", embedding_norm=True),
    "translator, checkpointed": lambda: Translator(norm="scalenorm", checkpoint_activations=True),
    "Fourier": Fourier,
    "learnt queries": lambda: LearntQueries(square=False),
    "learnt queries, as many as examples": lambda: LearntQueries(square=True),
}
