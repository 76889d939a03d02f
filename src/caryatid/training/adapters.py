"""How LoRA adapters run in training where PEFT's own way costs accuracy or time.

**16-bit models** (`LowPrecisionAdapters`): multiplied together with their layers' weights, and rounded once.
PEFT adds its float32 branch to a layer's finished 16-bit output, where a change below half a step of that output is
lost. Here, as in opened anchors (`models/adapters.py`), y = [x, D x] · [W, U]ᵀ with D = A and U = scale · B in the
layer's precision, so that what trains, what is attacked and what is measured is one function, to the bit. (Accumulating
the product onto the branch, `addmm`, is no way around the copy of x: cuBLAS rounds the product before it adds.)

**float32 models under attack** (`MergedCopy`): an attack runs hundreds of forwards between two updates; merged weights
take one product where PEFT takes three and its bookkeeping, as in opened anchors.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..models.adapters import AdaptedLinear, aligned
from .settings import LoraSettings

# transformers' hook at the embeddings, so that checkpointed blocks get an input with a gradient.
_FOR_CHECKPOINTING = "make_inputs_require_grads"


class _Joined(torch.autograd.Function):
    """y = [x, x̃ Dᵀ] · [W, U]ᵀ, where x̃ is x after dropout, D = A and U = scale · B; gradients to x, x̃, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor, a: Tensor, b: Tensor, scale: float, down: Tensor, joined: Tensor
    ) -> Tensor:
        inner = nn.functional.linear(dropped, down)
        ctx.save_for_backward(dropped, inner, a, b, down, joined)
        ctx.scale, ctx.width = scale, x.shape[1]
        return nn.functional.linear(torch.cat([x, inner], dim=1), joined)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | float | None, ...]:
        dropped, inner, a, b, down, joined = ctx.saved_tensors
        (gradient,) = gradients
        at_inner = gradient @ joined[:, ctx.width :]
        at_a = (at_inner.T @ dropped)[: len(a)].to(a.dtype)
        at_b = (gradient.T @ inner)[:, : b.shape[1]].to(b.dtype) * ctx.scale
        return gradient @ joined[:, : ctx.width], at_inner @ down, at_a, at_b, None, None, None


class _Layer:
    """One adapted layer. Its base layer's weights become a view of `joined`, so that they are in memory once.

    Attributes:
        down: D, filled up with zeros. joined: the base layer's product, then U.
        seen: versions of A and B that both hold.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        base = layer.get_base_layer()
        product = _product(base)
        (name,) = layer.active_adapters
        self.a, self.b = layer.lora_A[name].weight, layer.lora_B[name].weight
        self.scale: float = layer.scaling[name]
        self.dropout: nn.Module = layer.lora_dropout[name]
        filled = aligned(len(self.a))
        self.width = product.shape[1]
        self.down = product.new_zeros(filled, self.a.shape[1])
        self.joined = torch.cat([product, product.new_zeros(len(product), filled)], dim=1)
        view = self.joined[:, : self.width]
        if isinstance(base, AdaptedLinear):
            base.joined.data = view
        else:
            base.weight.data = view.T if isinstance(base, Conv1D) else view
        self.seen = (-1, -1)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The backbone's weight."""
        return self.joined[:, : self.a.shape[1]]

    @property
    def bias(self) -> Tensor | None:
        """The backbone's bias."""
        bias: Tensor | None = self.layer.get_base_layer().bias
        return bias

    def rest(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        """What the adapters add, those of the base layer included, as they are now."""
        base = self.layer.get_base_layer()
        before = base.rest(x) if isinstance(base, AdaptedLinear) else 0
        if self.layer.disable_adapters:
            return before + torch.zeros_like(x[:, :1])
        self.refresh()
        return before + nn.functional.linear(nn.functional.linear(x, self.down), self.joined[:, self.width :])

    @torch.no_grad()
    def refresh(self) -> None:
        """Round A and B again if they have changed. Updated in place: captured CUDA graphs hold their addresses."""
        now = (self.a._version, self.b._version)
        if now != self.seen:
            self.down[: len(self.a)] = self.a
            self.joined[:, self.width : self.width + len(self.a)] = self.b * self.scale
            self.seen = now

    def forward(self, x: Float[Tensor, "... d_in"], trained: bool) -> Float[Tensor, "... d_out"]:
        """`trained`: with dropout, and gradients to A and B."""
        base = self.layer.get_base_layer()
        if self.layer.disable_adapters:
            return base(x)
        self.refresh()
        rows = x.reshape(-1, x.shape[-1]).to(self.joined.dtype)
        inputs = base.beside(rows) if isinstance(base, AdaptedLinear) else rows
        if trained:
            parts = (inputs, self.dropout(rows), self.a, self.b)
            output = _Joined.apply(*parts, self.scale, self.down, self.joined)
        else:
            inner = nn.functional.linear(rows, self.down)
            output = nn.functional.linear(torch.cat([inputs, inner], dim=1), self.joined)
        if base.bias is not None:
            output = output + base.bias
        return output.view(*x.shape[:-1], -1)


class LowPrecisionAdapters:
    """Runs the adapters of a 16-bit model, which PEFT keeps in float32, as this module says.

    Args:
        peft: a PEFT model with LoRA on linear layers; its layers run so from now on.
    """

    def __init__(self, peft: Any) -> None:
        self._attacked = False
        for layer in _adapted(peft):
            layer.joined_product = _Layer(layer)
            layer.forward = partial(self._forward, layer.joined_product)

    @staticmethod
    def suit(peft: Any) -> bool:
        """Whether all adapters are on linear layers that are in a narrower precision."""
        return all(
            isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
            and layer.get_base_layer().weight.dtype.itemsize < next(layer.lora_A.parameters()).dtype.itemsize
            for layer in _adapted(peft)
        )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context without dropout and without gradients to the adapters, whatever the mode."""
        self._attacked = True
        try:
            yield
        finally:
            self._attacked = False

    def _forward(self, layer: _Layer, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return layer.forward(x, trained=torch.is_grad_enabled() and not self._attacked)


class MergedCopy:
    """A second model in evaluation mode that computes what a float32 PEFT model does; adapted weights are W + s B A.

    All other weights and the buffers are shared.

    Args:
        peft: a PEFT model with plain LoRA, see `suit`.
    """

    def __init__(self, peft: Any) -> None:
        model = peft.get_base_model()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model: Any = copy.deepcopy(model, shared).eval()
        for hooks in [module._forward_hooks for module in self.model.modules()]:
            names = {key: getattr(hook, "__name__", "") for key, hook in hooks.items()}
            for key in [key for key, name in names.items() if name == _FOR_CHECKPOINTING]:
                del hooks[key]  # the copy is not trained, and passes with hooks are not recorded
        self._pairs: list[tuple[Any, nn.Parameter]] = []
        self._seen: list[tuple[int, int]] = []
        for name, layer in [(name, one) for name, one in model.named_modules() if hasattr(one, "lora_A")]:
            base = self.model.get_submodule(name).get_base_layer()
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            self.model.set_submodule(name, base)
            self._pairs.append((layer, base.weight))
            self._seen.append((-1, -1))

    @staticmethod
    def suit(peft: Any) -> bool:
        """Whether all adapters are plain LoRA on linear layers in float32."""
        return all(
            isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
            and type(layer.get_base_layer().weight) is nn.Parameter
            and layer.get_base_layer().weight.dtype == torch.float32
            for layer in _adapted(peft)
        )

    @torch.no_grad()
    def refresh(self) -> Any:
        """The copy with the present weights. Updated in place."""
        for index, (layer, merged) in enumerate(self._pairs):
            (name,) = layer.active_adapters
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            if (now := (a._version, b._version)) != self._seen[index]:
                base = layer.get_base_layer()
                product = (a.T, b.T) if isinstance(base, Conv1D) else (b, a)
                torch.addmm(base.weight, *product, alpha=layer.scaling[name], out=merged)
                self._seen[index] = now
        return self.model


def _adapted(peft: Any) -> list[Any]:
    return [layer for layer in peft.modules() if hasattr(layer, "lora_A")]


def _product(base: Any) -> Float[Tensor, "d_out d_in"]:
    """What a linear layer multiplies its input with."""
    if isinstance(base, AdaptedLinear):
        return base.joined.detach()
    weight: Tensor = base.weight.detach()
    return weight.T if isinstance(base, Conv1D) else weight


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """PyTorch's random states put back afterwards; of GPUs this one's alone, since a process that trains beside others
    on one host must not open theirs."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def with_adapters(model: nn.Module, lora: LoraSettings, seed: int) -> Any:
    """A PEFT model with fresh adapters, injected into `model` in place; their values are drawn with the seed."""
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.r,
        # PEFT declares an int, and does no more with it than divide it by r: a float is as good.
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with forked_rng(next(model.parameters()).device), warnings.catch_warnings():
        # PEFT still reads an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, config)
