"""A model whose parameters are sharded over the processes: `train.distributed` = fsdp or hybrid.

The files of a run have whole tensors, so that they are the same as without sharding, for any number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cats.nmt.config import schema
from cats.nmt.errors import UserError
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes


def is_sharded(settings: schema.Train) -> bool:
    """Whether the parameters of this run are sharded. One process has all of them."""
    return settings.distributed != "replicas" and processes.world_size() > 1


def shards_of_model(settings: schema.Train) -> int:
    """How many processes share the parameters: all (fsdp), those of a machine (hybrid), or 1: each has all of them."""
    if settings.distributed == "replicas":
        return 1
    return processes.local_world_size() if settings.distributed == "hybrid" else processes.world_size()


def shard(model: Transformer, settings: schema.Train, device: torch.device) -> None:
    """Leaves each process its shard of the parameters (fully_shard, FSDP2). The layers gather theirs when they run.

    With "hybrid" each machine has all shards, and the machines are replicas.

    Args:
        model: in main memory. fully_shard moves one layer after the other, so the device never holds the whole model.
        device: where the shards will be.

    Raises:
        UserError: the machines have different numbers of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    count, shards = processes.world_size(), shards_of_model(settings)
    if not processes.equal_numbers([shards]) or count % shards:
        raise UserError("train.distributed=hybrid needs the same number of processes on every machine")
    shape = (count // shards, shards) if settings.distributed == "hybrid" else (count,)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if settings.communication == "bf16" else None)
    for module in (*model.encoder, *model.decoder, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "logits")  # training and validation call this method, not forward()


def drop_gathered(model: nn.Module) -> None:
    """Frees the parameters that a sharded model has gathered. The next forward pass gathers them again, as they are
    then. Only a backward pass would free those of the whole model's own group (the embeddings) otherwise."""
    reshard = getattr(model, "reshard", None)  # fully_shard gives its modules this method
    if reshard is not None:
        reshard()


def whole(state: Any) -> Any:
    """The same dicts and lists with whole tensors in place of shards: on the CPU of the main process, elsewhere None.

    All processes must call this.
    """
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    if hasattr(state, "full_tensor"):
        full = state.full_tensor()
        return full.cpu() if processes.is_main() else None
    return state


def model_shards(state: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """The shards that this process has of the whole tensors in a state of the model."""
    like = model.state_dict()
    return {name: shard_like(value, like.get(name)) for name, value in state.items()}


def optimizer_shards(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The same of a state of the optimizer."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {name: shard_like(value, params[i]) for name, value in numbers.items()}
        for i, numbers in state["state"].items()
    }
    return {**state, "state": moments}


def shard_like(value: Any, like: Any) -> Any:
    """The shard that this process has of a whole tensor, sharded as another one; the tensor itself if that is whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # No communication: every process has read the whole tensor.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
