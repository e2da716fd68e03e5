"""ḡ from a backward pass of the weighted loss; then <g_n, ḡ> as the derivatives of the losses along ḡ.

A forward pass in which every parameter has ḡ as its tangent gives the derivatives of all losses along ḡ, with no
gradient of a task. It costs about as much as a plain training step, whatever the number of tasks is, and needs memory
for one gradient besides ḡ. Norms are not known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from cats.gradients import Gradient, dense, power_of_two

from .autograd import nodes, uncompiled
from .examples import Examples
from .losses import TaskLosses
from .pending import UnsupportedError
from .repeat import Repeats
from .terms import Term, terms
from .two_pass import InnerProducts
from .weighted import weighted_backward

_INSTEAD = "use engine='two_pass' or 'per_task'"

# A checkpoint of torch 2.6 saves its inputs with a function without jvp, whose output has no elements.
if _save_inputs := getattr(checkpoint, "_NoopSaveInputs", None):
    _save_inputs.jvp = staticmethod(lambda context, *tangents: torch.empty(0))


class ForwardMode:
    """The engine. Each task's first <g_n, ḡ> is compared with that of its gradient.

    A hook may change gradients, and the backward pass of a function may be something else than its derivative. Then the
    derivative of the loss along ḡ is not <g_n, ḡ>.

    Args:
        backend: the backend of :mod:`cats.ops`, or None.
        model: the module that callables use, or None. Its buffers are changed by the first evaluation only.
    """

    def __init__(self, backend: str | None = None, model: nn.Module | None = None) -> None:
        self.backend, self.model = backend, model
        self._verified: set[int] = set()  # the tasks that were compared

    def backward(
        self,
        losses: TaskLosses | Examples,
        weights: Sequence[float],
        params: Sequence[Tensor],
        shared: int,
        *,
        scale: Tensor | None = None,
        before_last_pass: Callable[[], None] | None = None,
    ) -> tuple[list[Tensor], Tangents]:
        """Adds the gradient of Σ w_n L_n to ``p.grad``. Returns the values, as ``losses.tasks``, and the dots to come.

        Each callable is evaluated again for its tangent, with the same dropout masks; see :mod:`cats.engines.repeat`.
        Both times without fused attention, which has no derivative of this kind and draws other dropout masks, and
        without torch.compile.

        Args:
            losses: those of the call, one for each task. All are callables.
            weights: the numbers w_n of all N tasks.
            params: the parameters that receive gradients, the shared ones first. Others get none.
            shared: how many of them are shared. Only these enter dots.
            scale: GradScaler's scale, 0-d. The gradients are multiplied by it; losses and dots are not.
            before_last_pass: see :func:`cats.engines.weighted.weighted_backward`.

        Raises:
            TypeError, ValueError: as :func:`cats.engines.weighted.weighted_backward`.
            UnsupportedError: a loss is a tensor. The graph of a callable has an autograd.Function without ``jvp``, an
                embedding with scale_grad_by_freq, or tensors with a graph from outside. Or it has a batch norm with
                running statistics in training mode, and there is no model.
        """
        for term in terms(losses):
            if not callable(term.loss):
                raise UnsupportedError(
                    f"engine forward_mode: {term.name}: it is evaluated twice, so a callable that returns the loss is "
                    f"needed, got a tensor: pass callables, or {_INSTEAD}"
                )
        repeats = Repeats(losses, params, user="engine forward_mode", model=self.model, check=_check_graph)
        with _differentiable_kernels():
            values = weighted_backward(repeats.noting, weights, params, scale=scale, before_last_pass=before_last_pass)
        exact = InnerProducts(params, shared, scale, self.backend)
        named = dict(zip(losses.tasks, values, strict=True))
        return values, Tangents(repeats, named, params[:shared], scale, exact, self._verified)


class Tangents:
    """The callables of one backward() call, to be evaluated with tangents."""

    def __init__(
        self,
        repeats: Repeats,
        values: dict[int, Tensor],
        shared: Sequence[Tensor],
        scale: Tensor | None,
        exact: InnerProducts,
        verified: set[int],
    ) -> None:
        self._repeats, self._values, self._shared, self._scale = repeats, values, shared, scale
        self._exact, self._verified = exact, verified

    def dots(self, direction: Gradient, *, last: bool) -> tuple[dict[int, Tensor], None]:
        """See :class:`cats.engines.pending.Pending`.

        Raises:
            UnsupportedError: a callable uses a function without a derivative in forward mode, computes gradients
                itself, has hooks or functions whose gradients are not derivatives, or did not give the loss that it
                gave at first.
        """
        if not self._values:
            return {}, None
        vector = [dense(d) for d in direction[: len(self._shared)]]
        factor = _factor(self._shared, vector)
        unscaled = factor if self._scale is None else factor * self._scale.double()
        dots: dict[int, Tensor] = {}

        def read(term: Term, value: Tensor) -> None:
            tangent = forward_ad.unpack_dual(value).tangent
            numbers = term.values(torch.zeros_like(value) if tangent is None else tangent)
            dots.update((n, number / unscaled.to(number.device)) for n, number in zip(term.tasks, numbers, strict=True))

        with _differentiable_kernels():
            with _explained(), _tangents(self._shared, vector, factor):
                self._repeats.again(self._values, read)
            if not self._verified.issuperset(self._values):
                self._verify(dots, vector)
        return dots, None

    def _verify(self, dots: dict[int, Tensor], direction: Gradient) -> None:
        """Compares the tasks that were never compared before with their gradients. Has host syncs."""
        exact: dict[int, Tensor] = {}
        sqnorms: dict[int, Tensor] = {}
        tolerance: dict[int, float] = {}

        def differentiate(term: Term, value: Tensor) -> None:
            tolerance.update(dict.fromkeys(term.tasks, 0.1 if _is_reduced_precision(value) else 1e-3))
            self._exact([(term, value)], direction, exact, sqnorms)

        self._repeats.again(self._values, differentiate, skip=self._verified)
        size = _norm([d for d in direction if d is not None])
        size = size if self._scale is None else size / self._scale.double()
        for n, v in exact.items():
            error, bound = float((dots[n] - v).abs()), float(sqnorms[n].sqrt() * size)
            if error > tolerance[n] * bound:
                raise UnsupportedError(
                    f"engine forward_mode: {self._repeats.name(n)}: its derivative along ḡ is {float(dots[n]):.6g}, "
                    f"but its gradient says {float(v):.6g}: a hook changes gradients, or the backward pass of a "
                    f"function is not its derivative; {_INSTEAD}"
                )
            if math.isfinite(error):
                self._verified.add(n)


def _is_reduced_precision(value: Tensor) -> bool:
    halves = torch.float16, torch.bfloat16
    return any(each.dtype in halves for node in nodes([value]) for each in node._input_metadata)


@contextmanager
def _tangents(params: Sequence[Tensor], direction: Gradient, factor: Tensor) -> Iterator[None]:
    """In the block, each parameter is a dual number whose tangent is factor · direction.

    A parameter is written over with its own values, in place, so that everything that reads it sees the tangent. torch
    removes the tangents at the end. The values stay the same, so graphs that are still in use need not notice.
    """
    with forward_ad.dual_level():
        with torch.no_grad(), ExitStack() as versions:
            for p, d in zip(params, direction, strict=True):
                versions.enter_context(torch.autograd._unsafe_preserve_version_counter(p))  # torch 2.6 takes one tensor
                if d is not None:
                    p.copy_(forward_ad.make_dual(p.detach(), (d * factor.to(d.device)).to(p.dtype)))
        # A graph is formed, because a callable may ask whether something requires grad. It keeps nothing.
        with torch.autograd.graph.saved_tensors_hooks(_drop, _refuse), _AsInBackward():
            yield


def _factor(params: Sequence[Tensor], direction: Gradient) -> Tensor:
    """A power of two, 0-d float64. The direction times it is about as large as the parameters.

    Then the tangents of activations are about as large as the activations themselves, and fit into float16 like them.
    """
    return power_of_two(_norm(params) / _norm([d for d in direction if d is not None]))


@torch.no_grad()
def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]
    if not norms:  # ḡ, where no loss reaches a shared parameter
        return torch.zeros((), dtype=torch.float64)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


class _AsInBackward(TorchFunctionMode):
    """Keeps tangents from where backward passes do not go: what runs under no_grad, and the padding of embeddings.

    And it gives them to nn.LSTM on the CPU, whose kernel in oneDNN has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._disabled = False  # whether this object has switched tangents off

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._follow_grad_mode()  # before every function, because C++ changes grad mode too, unseen from here
        with _without_onednn() if func is torch.lstm else nullcontext():
            result = func(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled:
            self._follow_grad_mode()
        elif func is F.embedding:
            ids, table, padding = _embedding_arguments(*args, **(kwargs or {}))
            if padding is not None:
                return torch.where((ids == padding % len(table))[..., None], result.detach(), result)
        return result

    def _follow_grad_mode(self) -> None:
        grad, tangents = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        if tangents and not grad:
            torch._C._set_fwd_grad_enabled(False)
            self._disabled = True
        elif grad and self._disabled:  # torch itself has no tangents inside an autograd.Function; leave that
            torch._C._set_fwd_grad_enabled(True)
            self._disabled = False

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch._C._set_fwd_grad_enabled(True)


@contextmanager
def _without_onednn() -> Iterator[None]:
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


def _embedding_arguments(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> tuple[Tensor, Tensor, int | None]:
    return input, weight, padding_idx


def _drop(saved: Tensor) -> None:
    return None


def _refuse(_: None) -> Tensor:
    raise UnsupportedError(
        f"engine forward_mode: a callable computes gradients itself, and they have no tangents: {_INSTEAD}"
    )


@contextmanager
def _differentiable_kernels() -> Iterator[None]:
    """No fused attention, no fused Transformer layers, no torch.compile: they have no derivatives in forward mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(uncompiled())
        yield


def _check_graph(value: Tensor, name: str, start: int) -> None:
    for node in nodes([value]):
        function = getattr(node, "_forward_cls", None)
        if function is not None and function.jvp is torch.autograd.Function.jvp:
            raise _no_derivative(f"{name}: the autograd.Function {function.__name__}")
        if getattr(node, "_saved_scale_grad_by_freq", False):
            raise _no_derivative(f"{name}: an embedding with scale_grad_by_freq")
        if node._sequence_nr() < start:
            raise UnsupportedError(
                f"engine forward_mode: {name}: the callable uses a tensor that was computed from parameters outside of "
                f"it, which gets no tangent: compute it inside, or {_INSTEAD}"
            )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        found = re.search(r"forward AD with (\S+)", str(error))
        if not found and "jvp" not in str(error):
            raise
        raise _no_derivative(found[1] if found else "an autograd.Function without jvp") from error


def _no_derivative(what: str) -> UnsupportedError:
    hint = " (checkpoints have one with use_reentrant=False)" if "CheckpointFunction" in what else ""
    return UnsupportedError(f"engine forward_mode: {what} has no derivative in forward mode{hint}: {_INSTEAD}")
