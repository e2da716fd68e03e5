"""From losses to gradients, and to the numbers <g_n, ḡ>.

An engine computes <g_n, ḡ> of the K tasks of a step, where ḡ = Σ w_n g_n is also what the base optimizer steps with.
All engines are exact. ``cats.MultiTask(engine=...)`` takes one of these names:

"per_task": one backward pass per task. K gradients are in memory. It knows ‖g_n‖² and the Gram matrix too.

"one_pass": one backward pass, and one more matrix product per Linear layer, for any number of tasks. No per-task
gradient is formed, so ‖g_n‖² is nan. It needs to know the task of each row: pass ``tasks`` to backward(), and see
:func:`rows`.

* It walks the autograd graph and finds every use of a parameter. For parameters that are used in ways that it does not
  know, it computes their gradients task by task.
* Examples of different tasks must not meet, as they do in batch normalisation. Masked backward passes (5 for 8 tasks, 9
  for 92) check that in the first such step, and when the graph has new connections. In between, it takes for granted
  that the rows of a layer keep their order if the graph stays the same. In calls 2, 4, 8, ..., 64, 100, 200, ... a
  single masked pass checks what is known, with the next of the sets of tasks each time: if the graph stays the same,
  but two tasks meet from some call on, it is found when each set has been used, after 5 such passes for 8 tasks.
* Compiled models are refused, unless the losses are a callable: then these steps run without compiled code.

"two_pass": one backward pass for ḡ, then one task's gradient after the other, of which one at a time is in memory. With
tensors it takes little more time than "per_task", with callables about twice as much. It knows ‖g_n‖², unless there are
several backward() calls.

"forward_mode": one backward pass for ḡ, then one forward pass that computes the derivative of every loss along ḡ, for
any number of tasks. ‖g_n‖² is nan. Losses must be callables. Both passes avoid fused attention and compiled code.
Functions without a derivative in forward mode are refused by name. The first numbers of each task are compared with
those of its gradient.

"auto": "one_pass" with ``tasks``, if the model allows it. Otherwise "per_task", or with one process "two_pass" if K
gradients would take more than half of the free memory. An engine that was refused once is not tried again by the same
optimizer. The log says which engine is used, and why.

"two_pass" and "forward_mode" evaluate a callable again, with the same random numbers of torch, the same autocast and
the same buffers of ``model``, and check that the loss is the same. A callable should have no other effects.

A weighting may compare the gradients with another direction d than ḡ, see :mod:`cats.direction`. All engines compute
<g_n, d> in the same way. d is known before the backward pass. So nothing has to wait for the last backward() call or
for the other processes, and "one_pass" keeps no layer's data.

If d is ḡ, the number of backward() calls of a step differs from that of the step before, and ``last`` of backward() is
not given, engines other than "per_task" may not know the numbers; then the weighting is not updated in this step.
"""

from .rows import rows

__all__ = ["rows"]
