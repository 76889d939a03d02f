"""Weights in parts over the processes that train together (FSDP2), so that no device holds the whole model.

Each decoder block's weights are gathered when it runs and let go afterwards; embeddings, the last norm and the output
matrix are whole everywhere, since attacks read them. Gradients are summed over processes where their parts lie.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import InputError
from ..models.layout import decoder_layers
from .ranks import Ranks
from .settings import Mode


def check_shards(mode: Mode, dtype: torch.dtype) -> None:
    """Only LoRA on float32 weights is trained in parts: adapters of 16-bit weights are rounded with whole ones.

    Raises:
        InputError: it is something else; names the setting.
    """
    if mode != "lora" or dtype != torch.float32:
        raise InputError(
            f"{mode} training of {str(dtype).removeprefix('torch.')} weights cannot be shared out by fsdp2",
            where="training.shard",
            remedy="Set training.mode to lora and model.dtype to float32 (training.mixed_precision may be bf16).",
        )


def shard(model: nn.Module, device: torch.device, ranks: Ranks) -> None:
    """Share the blocks' weights out over all ranks, in place; the model moves to `device`, a block at a time.

    Args:
        model: a transformers model, equal on all ranks, adapters included.

    Raises:
        InputError: weights outside its blocks are trained.
    """
    blocks = decoder_layers(model)
    inside = {id(value) for value in blocks.parameters()}
    outside = {value for value in model.parameters() if id(value) not in inside}
    if any(value.requires_grad for value in outside):
        raise InputError(
            "adapters outside the decoder's blocks cannot be shared out by fsdp2",
            where="training.lora.targets",
            remedy="Use all-linear, or name modules of the blocks.",
        )
    mesh = init_device_mesh(device.type, (ranks.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for value in (*outside, *model.buffers()):
        value.data = value.data.to(device)
    # The decoder has no weights of its own to share; it makes all blocks parts of one pass, which then fetches ahead.
    root: Any = model
    fully_shard(root.get_decoder(), mesh=mesh, ignored_params=outside)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses already count by their share of all tokens
            module.set_force_sum_reduction_for_comms(True)


def whole(value: Tensor) -> Tensor:
    """A tensor from its parts; all ranks call this together. What is whole stays as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor in parts as another one is, where that is; all ranks call this together."""
    value = value.to(other.device)
    return (
        distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value
    )
