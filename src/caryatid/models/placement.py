"""Where a model's blocks lie: on one device, or placed over several by transformers (its `device_map`).

Every module of a placed model has a hook of accelerate's that brings what it reads to its own device, and the model's
output comes back to the device of its input. What looks into the model in between must take tensors where they are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layout import decoder_layers, unwrapped


def _map_of(model: nn.Module) -> dict[str, Any]:
    """Where transformers, or accelerate, has placed the model's modules; empty: it was not asked to."""
    found: Any = getattr(unwrapped(model), "hf_device_map", None)
    return dict(found or {})


def is_split(model: nn.Module) -> bool:
    """Whether modules lie on several devices, or some are offloaded."""
    return len({str(place) for place in _map_of(model).values()}) > 1


def _embedding(model: nn.Module) -> Tensor:
    inner: Any = unwrapped(model)
    weight: Tensor = inner.get_input_embeddings().weight
    return weight


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that weights lie on, that of the embeddings first; offloaded weights lie on none."""
    weights = (_embedding(model), *model.parameters())
    return [device for device in dict.fromkeys(weight.device for weight in weights) if device.type != "meta"]


def check_placed(model: nn.Module, spec: str) -> None:
    """Refuse a placement that cannot be measured.

    Raises:
        InputError: the embeddings are offloaded, which attacks read; or a block lies on several devices, so that its
            own sum of input and outputs would be over several.
    """
    names, places = {module: name for name, module in model.named_modules()}, _map_of(model)
    if _embedding(model).is_meta:
        raise InputError(
            "device_map leaves its embeddings on no device",
            where=spec,
            remedy="Give them one (model.embed_tokens in most models); only blocks may be offloaded.",
        )
    for block in decoder_layers(model):
        inside = {str(place) for name, place in places.items() if name.startswith(f"{names[block]}.")}
        if len(inside) > 1:
            raise InputError(
                f"device_map places parts of {names[block]} on {' and '.join(sorted(inside))}",
                where=spec,
                remedy="Give each block one device.",
            )


def refuse_offloaded(model: nn.Module, folder: object) -> None:
    """Refuse to add an adapter to weights that are not in memory.

    Raises:
        InputError: some of the model's are offloaded.
    """
    if _map_of(model) and any(weight.is_meta for weight in model.parameters()):
        raise InputError(
            "an adapter cannot be added to a model with offloaded blocks",
            where=str(folder),
            remedy="Use more or larger GPUs, or merge the adapter into its base first.",
        )


def described(model: nn.Module) -> str:
    """Where the blocks lie, in words: `cuda:0: blocks 0–15; cuda:1: blocks 16–31`; empty for one device."""
    if not is_split(model):
        return ""
    runs: list[list[Any]] = []  # [place, first block, last block]
    for number, place in enumerate(_places(model)):
        if not runs or runs[-1][0] != place:
            runs.append([place, number, number])
        runs[-1][2] = number
    return "; ".join(
        f"{place}: block {first}" if first == last else f"{place}: blocks {first}–{last}"
        for place, first, last in runs
    )


def _places(model: nn.Module) -> Iterator[str]:
    """The place of each block: its own in the map, that of what holds it, or that of what it holds."""
    names, places = {module: name for name, module in model.named_modules()}, _map_of(model)
    for block in decoder_layers(model):
        parts = names[block].split(".")
        above = [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
        inside = [name for name in places if name.startswith(f"{names[block]}.")]
        yield str(next((places[name] for name in (*above, *inside) if name in places), "?"))
