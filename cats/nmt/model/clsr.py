"""Conditional language-specific routing (CLSR): gates choose, token by token, between shared and language's own paths.

Zhang et al., "Share or Not? Learning to Schedule Language-Specific Capacity for Multilingual Translation", ICLR 2021,
section 3, and the code at github.com/bzhangGo/zero (branch iclr2021_clsr). With z the input of a sub-layer and f(z) its
output before the last projection:

    output = g(z) f(z) W_lang + (1 - g(z)) f(z) W_shared
    g(z) = sigmoid(G(z) + noise N(0, 1)) in training, 1 if G(z) >= 0 else 0 later;  G(z) = relu(z W_1 + b_1) w_2 + b_2
    the loss of a batch gets |mean of all gates - budget|

All sub-layers of the encoder share one W_lang per language, and so do those of the decoder. The noise grows linearly
during the training, from 0 to 5 in the code: the gates can only keep what they say by moving away from 1/2.

What is different here. The language is that of the tag in the source, which also tells the model what to translate
into. W_shared is the output projection that a sub-layer has anyway; after a feed-forward layer, where the paper adds
one, it is the identity, which the layer's own last matrix makes as general. So a model whose gates are 0 is exactly the
Transformer without CLSR.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST_NOISE = 5.0  # at the end of the training; cct_alpha_value in the code of the paper


class Gate(nn.Module):
    """G of a sub-layer. Its hidden layer has a quarter of the width: the paper has 128 with a width of 512."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, max(1, width // 4)), nn.Linear(max(1, width // 4), 1)

    def forward(self, z: Tensor) -> Tensor:
        """(N, d) -> (N, 1)."""
        out: Tensor = self.out(torch.relu(self.hidden(z)))
        return out


class Routing(nn.Module):
    """The language-specific matrices of a Transformer, and what all its gates share.

    Args:
        width: that of the model.
        tags: the ids of the languages' tags in a source.
        budget: the share of language-specific outputs that training aims at, from 0 to 1.

    Attributes:
        noise: the factor of the noise of the gates in training.
        gates: the gates of the forward passes in training mode since the last call of ``budget_loss``.
    """

    def __init__(self, width: int, tags: Sequence[int], budget: float) -> None:
        super().__init__()
        self.tags, self.budget, self.noise = list(tags), budget, 0.0
        self.gates: list[Tensor] = []
        # One matrix per language, so that a language that is not in a batch gets no gradient.
        self.encoder = nn.ParameterList(nn.Parameter(torch.empty(width, width)) for _ in tags)
        self.decoder = nn.ParameterList(nn.Parameter(torch.empty(width, width)) for _ in tags)

    def languages(self, source: Tensor) -> Tensor:
        """(B,) int64: the language of every row of source (B, S), as an index into the tags; -1 if it has no tag."""
        found = torch.full_like(source[:, 0], -1)
        for i, tag in enumerate(self.tags):
            found = torch.where((source == tag).any(1), i, found)
        return found

    def encoder_routes(self, languages: Tensor) -> Routes:
        """languages: (N,), of the packed source tokens."""
        return Routes(self, self.encoder, languages)

    def decoder_routes(self, languages: Tensor) -> Routes:
        """languages: (N,), of the packed target tokens."""
        return Routes(self, self.decoder, languages)

    def budget_loss(self) -> Tensor:
        """|mean gate - budget| over all tokens and sub-layers since the last call."""
        gates, self.gates = torch.cat(self.gates), []
        mean = gates.mean(dtype=torch.promote_types(gates.dtype, torch.float32))  # not in half precision
        return (mean - self.budget).abs()


class Routes:
    """The ways of the tokens of one forward pass through the encoder or the decoder.

    Args:
        matrices: W_lang of each language.
        languages: (N,) int64, the language of every token.

    Raises:
        ValueError: a source has no language tag.
    """

    def __init__(self, routing: Routing, matrices: nn.ParameterList, languages: Tensor) -> None:
        self.routing, self.matrices = routing, matrices
        self.order = languages.argsort(stable=True)  # the tokens of a language go through its matrix together
        self.back = torch.empty_like(self.order)
        self.back[self.order] = torch.arange(len(languages), device=languages.device)
        without, *self.counts = (languages + 1).bincount(minlength=len(matrices) + 1).tolist()
        if without:
            raise ValueError("CLSR needs the tag of a known language in every source")

    def mixed(self, gate: nn.Module, z: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """g(z) own W_lang + (1 - g(z)) shared, all (N, d)."""
        logits, training = gate(z), gate.training
        if training:
            g = torch.sigmoid(logits + self.routing.noise * torch.randn_like(logits))
            self.routing.gates.append(g)
        else:
            g = (logits >= 0).to(logits.dtype)
        parts = own[self.order].split(self.counts)
        special = torch.cat([part @ w for part, w in zip(parts, self.matrices, strict=True) if len(part)])
        return g * special[self.back] + (1 - g) * shared


def routed(routes: Routes | None, gate: nn.Module | None, z: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """What a sub-layer returns: see ``Routes.mixed``; `shared` in a model without CLSR."""
    return shared if routes is None or gate is None else routes.mixed(gate, z, own, shared)
