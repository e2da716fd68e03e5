"""What a checkpoint recomputes is read once more than torch allows."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointError, checkpoint

from cats.engines.checkpoints import read_saved


@pytest.mark.parametrize("reads", [1, 2])
def test_a_recomputed_tensor_is_forgotten_after_the_read_that_follows_the_first(reads):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = checkpoint(torch.square, x, use_reentrant=False)
    seen = []

    def read(_):
        seen.append(read_saved(y.grad_fn, "self").detach())
        seen.extend(y.grad_fn._saved_self.detach() for _ in range(1, reads))

    y.grad_fn.register_prehook(read)
    for _ in range(2):  # each backward pass recomputes
        if reads == 1:
            y.sum().backward(retain_graph=True)
        else:  # the node's own read is the third
            with pytest.raises(CheckpointError, match="already unpacked once"):
                y.sum().backward(retain_graph=True)
    assert len(seen) == 2 * reads and all(torch.equal(each, x) for each in seen)
    assert reads == 2 or torch.equal(x.grad, 4 * x)
