"""An optimizer around another one: parameters, groups, state and checkpoints are those of the base optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from .parameters import check_kinds
from .state import State, base_restored_on_error
from .state_dict import ENTRY, add_entry, load_entry, take_entry
from .tasks import Task
from .weighting import Weighting
from .wrapping import attribute_of, not_compiled


class Wrapper(Optimizer):
    """What :class:`cats.MultiTask` does as a ``torch.optim.Optimizer``.

    Attributes:
        base: the base optimizer.
        tasks: the names of the tasks.
        weighting: the weighting, whose state is saved and loaded with that of the base optimizer.
    """

    base: Optimizer
    tasks: tuple[Task, ...]
    weighting: Weighting
    _own: State

    # Tells GradScaler that step() unscales the gradients and skips non-finite steps itself. step() checks for
    # non-finite numbers anyway, so this saves a host sync.
    _step_supports_amp_scaling = True
    grad_scale = attribute_of("_own", "grad_scale")
    found_inf = attribute_of("_own", "found_inf")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base optimizer. The first one has a key more, ``"multitask"``, with the value None.

        torch.distributed.checkpoint keeps settings of groups, but not other entries of a state_dict. It looks here for
        the names of the settings; state_dict() puts the weights, multipliers and counters there.
        """
        groups = self.base.param_groups
        if groups:
            groups[0][ENTRY] = None  # a plain optimizer that has loaded our state_dict has the bytes here
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    state = attribute_of("base", "state")
    defaults = attribute_of("base", "defaults")

    @not_compiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and everything that backward() has accumulated since the last step()."""
        with self._own.lock:
            if set_to_none:
                self.base.zero_grad()  # that of an optimizer from elsewhere may have no arguments
            else:
                self.base.zero_grad(set_to_none=False)
            self._own.discard()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)
        try:
            check_kinds(self.param_groups)
        except (TypeError, RuntimeError):
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict, plus an entry ``"multitask"`` with weights, multipliers and counters.

        It holds no gradients, so call it after step(), not between backward() and step(). The first parameter group
        has the same entry as bytes, because torch.distributed.checkpoint drops all entries of a state_dict but
        ``"state"`` and ``"param_groups"``.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = self.base.state_dict()
        add_entry(state, self.tasks, self.weighting, self._own)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state = post_hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned for the same tasks. If it raises, nothing has changed.

        Raises:
            ValueError: it is the state of a plain optimizer (load that into ``.base``), or of other tasks or another
                kind of weighting, or it does not fit the weighting or the base optimizer, or something is missing or
                has a wrong type or length.
        """
        state = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state = pre_hook(self, state) or state
        entry, own = take_entry(state), self._own
        with own.lock, own.restored_on_error(self.weighting), base_restored_on_error(self.base):
            load_entry(entry, self.tasks, self.weighting, own)
            self.base.load_state_dict(state)
            own.accumulation = None
            own.reducer = None  # a new one compares the processes at the next call
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, hooks are not copied or pickled, nor is the step() that a scheduler wrapped.
        return {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):  # a property raised AttributeError: it does so again, with its own message
            return object.__getattribute__(self, name)
        # What this class does not have is the base's, such as train() and eval() of a schedule-free optimizer. Private
        # names are not: copy and pickle look for some of them while there is no base yet.
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.tasks)}, {type(self.weighting).__name__}) over {self.base!r}"
