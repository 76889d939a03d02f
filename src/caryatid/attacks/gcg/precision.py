"""Search in lower precision: candidates are ranked by cheaper products, and the best are decided in the model's own.

A float32 model is ranked by a bfloat16 copy of its weights; a bfloat16 one by products in float8 (e4m3) with one scale
per row of the activations and one per row of the weights, as `torch._scaled_mm` computes them. Both follow the present
weights: what has changed since the last search is rounded anew.
"""

import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...models.adapters import AdaptedLinear
from ...models.layout import decoder_layers
from ...models.load import LoadedModel
from .graphs import compiled
from .settings import Ranking, SearchPrecision

log = logging.getLogger(__name__)
_FLOAT8 = torch.float8_e4m3fn
_LARGEST = float(torch.finfo(_FLOAT8).max)
_MULTIPLE = 16  # of both sides of a weight, for float8 products


@dataclass(frozen=True)
class LowPrecision:
    """How candidates are ranked: `name` of the precision, the model to run, and a context to run it in."""

    name: Ranking
    loaded: LoadedModel
    opened: Callable[[], AbstractContextManager[None]]


def ranking(dtype: torch.dtype, device: torch.device, wanted: SearchPrecision) -> Ranking | None:
    """The precision in which candidates of a model are ranked; None: its own.

    `auto` takes bfloat16 for float32 models on CUDA. float8, for bfloat16 models on cards that have it, must be asked
    for: it needs so many candidates decided again that it hardly pays (docs/performance.md).
    """
    if dtype == torch.float32 and (wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")):
        return "bfloat16"
    if dtype == torch.bfloat16 and wanted == "float8" and _float8_works(device):
        return "float8"
    return None


def low_precision(loaded: LoadedModel, wanted: SearchPrecision) -> LowPrecision | None:
    """That precision for a search with the present weights; None also under autocast."""
    name = ranking(loaded.dtype, loaded.device, wanted)
    if name is None or torch.is_autocast_enabled(loaded.device.type):
        return None
    if name == "bfloat16":
        model = _copied(loaded.model)
        return LowPrecision(name, replace(loaded, model=model, dtype=torch.bfloat16), nullcontext)
    places = _float8_places(loaded.model)
    return LowPrecision(name, loaded, partial(_in_float8, places)) if places else None


@dataclass
class _Copy:
    """A bfloat16 copy of a model, and the versions of the parameters that it holds."""

    model: Any
    pairs: list[tuple[str, nn.Parameter, nn.Parameter]]
    versions: list[int]


_COPIES: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()


@torch.no_grad()
def _copied(model: nn.Module) -> Any:
    """The copy, with the present weights. Buffers (rotary frequencies) keep their precision."""
    found, named = _COPIES.get(model), list(model.named_parameters())
    if found is None or [(name, id(p)) for name, p in named] != [(n, id(p)) for n, p, _ in found.pairs]:
        rounded = {
            id(value): nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False)
            for _, value in named
        }
        pairs = [(name, value, rounded[id(value)]) for name, value in named]
        model_copy = copy.deepcopy(model, dict(rounded)).eval()
        found = _COPIES[model] = _Copy(model_copy, pairs, [value._version for _, value in named])
        return found.model
    for index, (_, value, twin) in enumerate(found.pairs):
        if value.requires_grad or value._version != found.versions[index]:
            twin.copy_(value)
            found.versions[index] = value._version
    return found.model


def quantised_rows(x: Float[Tensor, "rows d"]) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """Rows as float8 and their scales: x ≈ rows · scales, each row's largest value being the largest float8."""
    scales = (x.abs().amax(dim=1, keepdim=True).float() / _LARGEST).clamp_min(1e-12)
    return (x.float() / scales).clamp(-_LARGEST, _LARGEST).to(_FLOAT8), scales


def float8_product(
    x: tuple[Tensor, Float[Tensor, "rows 1"]], weight: tuple[Tensor, Float[Tensor, "1 d_out"]]
) -> Float[Tensor, "rows d_out"]:
    """x · Wᵀ from float8 rows of both with their scales, in bfloat16; in float32 on other devices than CUDA."""
    rows, scales = x
    weight_rows, weight_scales = weight
    if rows.device.type != "cuda":
        return ((rows.float() @ weight_rows.float().T) * scales * weight_scales).to(torch.bfloat16)
    return torch._scaled_mm(
        rows,
        weight_rows.T,
        scale_a=scales,
        scale_b=weight_scales,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


_WORKS: dict[torch.device, bool] = {}


def _float8_works(device: torch.device) -> bool:
    """Whether the device computes float8 products with scales per row; tried once."""
    if device not in _WORKS:
        try:
            one = torch.ones(32, 32, device=device, dtype=torch.bfloat16)
            rows, scales = quantised_rows(one)
            product = float8_product((rows, scales), (rows, scales.T.contiguous()))
            _WORKS[device] = bool((product == 32).all())
        except RuntimeError as error:
            log.warning("no float8 products on %s: %s", device, str(error).splitlines()[0])
            _WORKS[device] = False
    return _WORKS[device]


class Float8Linear(nn.Module):
    """A linear layer's product in float8, with the weight it had when `refresh` was last called.

    Args:
        product: gives `weight`, `bias` and, with adapters, `rest`: what they add, computed in their own precision.
    """

    rows: Tensor
    scales: Tensor

    def __init__(self, product: Any) -> None:
        super().__init__()
        self.bias: Tensor | None = product.bias
        self.adapted = weakref.ref(product) if hasattr(product, "rest") else None
        self.seen = (-1, -1)
        rows, scales = quantised_rows(product.weight.detach())
        self.register_buffer("rows", rows)
        self.register_buffer("scales", scales.T.contiguous())
        self.seen = (product.weight._version, product.weight.data_ptr())

    def refresh(self, product: Any) -> None:
        """Round the weight anew if it has changed."""
        now = (product.weight._version, product.weight.data_ptr())
        if now != self.seen:
            rows, scales = quantised_rows(product.weight.detach())
            self.rows.copy_(rows)
            self.scales.copy_(scales.T)
            self.seen = now

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        flat = x.reshape(-1, x.shape[-1])
        output = float8_product(_quantised(flat), (self.rows, self.scales))
        product = None if self.adapted is None else self.adapted()
        if product is not None:
            output = output + product.rest(flat)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*x.shape[:-1], -1)


def _quantised(x: Float[Tensor, "rows d"]) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """`quantised_rows` in one pass over memory where a compiler works; inside a compiled part it is part of that."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return quantised_rows(x)
    found: tuple[Tensor, Tensor] = compiled(quantised_rows)(x)
    return found


@dataclass(frozen=True)
class _Place:
    """A linear layer, the module `parent` that holds it, and the layer that replaces it."""

    parent: nn.Module
    name: str
    own: nn.Module
    low: Float8Linear


_LAYERS: WeakKeyDictionary[nn.Module, Float8Linear] = WeakKeyDictionary()


@torch.no_grad()
def _float8_places(model: nn.Module) -> list[_Place]:
    """The decoder's linear layers that can be multiplied in float8, with their present weights."""
    found: list[_Place] = []
    inside: set[nn.Module] = set()
    for parent in decoder_layers(model).modules():
        if parent in inside:
            continue
        for name, own in parent.named_children():
            product: Any = getattr(own, "joined_product", own)
            linear = type(own) is nn.Linear or isinstance(own, AdaptedLinear) or product is not own
            if not linear:
                continue
            inside.update(own.modules())
            weight: Tensor = product.weight
            if weight.dtype != torch.bfloat16 or any(size % _MULTIPLE for size in weight.shape):
                continue
            if own not in _LAYERS:
                _LAYERS[own] = Float8Linear(product)
            _LAYERS[own].refresh(product)
            found.append(_Place(parent, name, own, _LAYERS[own]))
    return found


@contextmanager
def _in_float8(places: Sequence[_Place]) -> Iterator[None]:
    """Context in which these layers compute in float8; afterwards the model is as it was."""
    try:
        for place in places:
            place.parent._modules[place.name] = place.low
        yield
    finally:
        for place in places:
            place.parent._modules[place.name] = place.own
