"""Which sublayers write the carrier: inner products of what each adds to the stream, checked by ablating one at a time.

The stream at the input of block l is the embedding plus what attention and MLP of the blocks before it have added, so
that a direction's component splits exactly into theirs (direct attribution, Elhage et al. 2021). Attention's part
splits further into its heads', which the output projection adds up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from ..geometry.directions import unit
from ..models.forward import last_logits
from ..models.hooks import Hooks, block_input, output_hook
from ..models.layout import num_layers, sublayer_outputs, unwrapped
from ..models.load import LoadedModel
from .scores import refusal_score, refusal_token_ids

_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo")


@dataclass(frozen=True)
class Attribution:
    """Difference between harmful and harmless prompts of ⟨what is added at the last position, r̂⟩, by what adds it.

    Attributes:
        embedding: of the first block's input. attention, mlp: of each block before the carrier's.
        heads: of each of these blocks' heads; None where a norm between projection and stream mixes them.
        total: of the stream at the carrier's block: the sum of embedding, attention and mlp.
    """

    embedding: float
    attention: Float[Tensor, "blocks"]
    mlp: Float[Tensor, "blocks"]
    heads: Float[Tensor, "blocks heads"] | None
    total: float

    @property
    def writer(self) -> tuple[int, str]:
        """Block and kind of the sublayer that adds most along the direction."""
        parts = torch.stack([self.attention, self.mlp])
        kind, block = divmod(int(parts.argmax()), parts.shape[1])
        return block, ("attention", "mlp")[kind]


def attribute(
    loaded: LoadedModel,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    direction: Float[Tensor, "d"],
    layer: int,
    *,
    batch_size: int,
) -> Attribution:
    """One pass over the prompts, each token row ending at the position where the carrier is read.

    Args:
        direction: the carrier, of any length. layer: the block at whose input it is read.

    Raises:
        InputError: a layer with no block before it, or a model whose sublayers are not simply added.
    """
    if not 1 <= layer < num_layers(loaded.model):
        raise InputError(f"no block writes what is read at the input of block {layer}", where="attribution")
    along = unit(direction.double()).float().to(loaded.device)
    sums = []
    for rows in (harmful, harmless):
        with _recording(loaded.model, along, layer) as parts:
            last_logits(loaded, rows, batch_size=batch_size, reduce=lambda logits: logits[:, :1])
        sums.append({name: torch.cat(values).double().mean(dim=0).cpu() for name, values in parts.items()})
    found = {name: sums[0][name] - sums[1][name] for name in sums[0]}
    attention = torch.stack([found[f"attention {block}"] for block in range(layer)])
    mlp = torch.stack(
        [sum((found[f"mlp {block} {n}"] for n in range(_mlps(loaded.model, block))), torch.zeros(()).double())
         for block in range(layer)]
    )  # fmt: skip
    embedding, total = float(found["embedding"]), float(found["total"])
    missing = abs(embedding + float(attention.sum() + mlp.sum()) - total)
    scale = max(abs(total), float(attention.abs().max()), float(mlp.abs().max()))
    if missing > 1e-2 * scale:
        raise InputError(
            "what its sublayers add is not what its stream gains",
            where=loaded.spec,
            remedy="Use a model whose blocks add attention and MLP to the stream unscaled.",
        )
    heads = [found.get(f"heads {block}") for block in range(layer)]
    split = (
        torch.stack([one for one in heads if one is not None]) if all(h is not None for h in heads) else None
    )
    return Attribution(embedding, attention, mlp, split, total)


def _mlps(model: nn.Module, block: int) -> int:
    return len(sublayer_outputs(model)[block].modules) - 1


@contextmanager
def _recording(model: Any, along: Float[Tensor, "d"], layer: int) -> Iterator[dict[str, list[Tensor]]]:
    """Keep, at the last position of every forward pass, inner products with the direction, by part."""
    parts: dict[str, list[Tensor]] = {}
    hooks = Hooks(model)

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def read(hidden: Tensor) -> Tensor:
            parts.setdefault(name, []).append(hidden[:, -1].float() @ along.to(hidden.device))
            return hidden

        return read

    def entering(name: str) -> Callable[..., None]:
        read = keep(name)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read(block_input(args, kwargs))

        return hook

    try:
        hooks.on_input(0, entering("embedding"))
        hooks.on_input(layer, entering("total"))
        for block, site in enumerate(sublayer_outputs(model)[:layer]):
            hooks.on_output(site.attn, output_hook(keep(f"attention {block}")))
            for number, module in enumerate(site.modules[1:]):
                hooks.on_output(module, output_hook(keep(f"mlp {block} {number}")))
            projection = _projection(site.attn)
            if projection is not None:
                hooks.on_output(
                    projection, _heads(model, projection, along, parts.setdefault(f"heads {block}", []))
                )
        yield parts
    finally:
        hooks.remove()


def _projection(attention: nn.Module) -> nn.Module | None:
    """Attention's output projection; None where the sublayer's output is another module's, a norm's."""
    named = (getattr(attention, name, None) for name in _PROJECTIONS)
    return next((found for found in named if isinstance(found, nn.Module)), None)


def _heads(
    model: Any, projection: nn.Module, along: Float[Tensor, "d"], kept: list[Tensor]
) -> Callable[..., None]:
    """A hook that keeps each head's part: ⟨z_h, (Wᵀ r̂)_h⟩. Wᵀ r̂ is a gradient, so that adapters are in it."""
    base: Any = unwrapped(model)
    heads = int(base.config.get_text_config().num_attention_heads)
    back: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        z = args[0][:, -1]
        if not back:
            with torch.enable_grad():
                probe = torch.zeros_like(z[:1]).requires_grad_(True)
                product = projection.forward(probe)[0].float()  # without the hooks on it, this one included
                (found,) = torch.autograd.grad(product @ along.to(product.device), probe)
            back.append(found[0])
        kept.append((z.float() * back[0].float()).unflatten(1, (heads, -1)).sum(dim=2))

    return hook


@dataclass(frozen=True)
class SublayerEffects:
    """How much of the mean refusal score goes when one sublayer's own part along the direction is taken out, in nats.

    Attributes:
        attention, mlp: by block; a block with one sublayer has the same in both.
    """

    attention: Float[Tensor, "blocks"]
    mlp: Float[Tensor, "blocks"]


def ablate_sublayers(
    loaded: LoadedModel,
    harmful: Sequence[Sequence[int]],
    direction: Float[Tensor, "d"],
    layer: int,
    refusal_tokens: Sequence[int],
    *,
    batch_size: int,
) -> SublayerEffects:
    """Refusal scores with o ← o − r̂ r̂ᵀ o at all positions of one sublayer's output at a time, before block `layer`."""
    along = unit(direction.double()).float().to(loaded.device)
    tokens = refusal_token_ids(loaded, refusal_tokens)

    def score() -> float:
        found = last_logits(
            loaded, harmful, batch_size=batch_size, reduce=lambda logits: refusal_score(logits, tokens)
        )
        return float(found.mean())

    def without(hidden: Tensor) -> Tensor:
        here = along.to(hidden.device)
        return (hidden.float() - (hidden.float() @ here)[..., None] * here).to(hidden.dtype)

    plain, effects = score(), list[list[float]]()
    for site in sublayer_outputs(loaded.model)[:layer]:
        both = []
        for modules in ((site.attn,), site.modules[1:] or (site.attn,)):
            hooks = Hooks(loaded.model)
            try:
                for module in modules:
                    hooks.on_output(module, output_hook(without))
                both.append(plain - score())
            finally:
                hooks.remove()
        effects.append(both)
    found = torch.tensor(effects)
    return SublayerEffects(found[:, 0], found[:, 1])


def agreement(attribution: Attribution, effects: SublayerEffects) -> Bool[Tensor, ""]:
    """Whether the sublayer that writes most is the one whose ablation takes most."""
    written = torch.cat([attribution.attention, attribution.mlp])
    taken = torch.cat([effects.attention, effects.mlp])
    return written.argmax() == taken.argmax()
