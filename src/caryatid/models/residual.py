"""Interventions on the residual stream: what one is, and how it acts on a model, row by row and out of place.

Block l reads the stream h_l; its attention and its MLP each add an output to it. An intervention changes these tensors
while the context `intervening` is open; leaving it, also by an exception, removes every hook. Each row of a batch may
have its own directions, strength and layer, so that many conditions share one forward pass. No weight is ever edited.

`models.directional` holds the two that ship, ablation and addition. Another one is a subclass of `Intervention` and a
call of `register_intervention`; a causal condition then refers to it by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..registry import Registry
from .hooks import Hooks, block_input
from .layout import hidden_size


@dataclass(frozen=True)
class Intervention(ABC):
    """A change of the residual stream, with one row per row of a batch, or one row that holds for all.

    A subclass is a frozen dataclass. Its tensor fields all have the rows as first dimension; the first field holds
    directions, of which the last dimension is the width d. A row of zeros in every tensor leaves the stream untouched,
    bit for bit. Other fields (which blocks, for instance) hold for all rows.

    `references`: how many of the rows that `build` is given are no directions.

    Raises:
        InputError: tensors with different numbers of rows, or values that are not finite.
    """

    references: ClassVar[int] = 0

    def __post_init__(self) -> None:
        where, tensors = type(self).__name__, self._tensors()
        counts = {len(tensor) for tensor in tensors.values()}
        rows = max(counts)
        if 0 in counts or not counts <= {1, rows}:
            named = ", ".join(f"{name} {len(tensor)}" for name, tensor in tensors.items())
            raise InputError(
                f"row counts do not agree: {named}", where=where, remedy="Give 1 row, or the same number."
            )
        device = next(iter(tensors.values())).device
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{name} is not finite", where=where)
            object.__setattr__(self, name, tensor.to(device).expand(rows, *tensor.shape[1:]))  # not a copy

    @classmethod
    @abstractmethod
    def build(
        cls,
        directions: Float[Tensor, "rank d"],
        alpha: float,
        *,
        layer: int | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> "Intervention":
        """One row, from what a causal condition names: directions, strength, and where it acts.

        Raises:
            InputError: it cannot be made of these.
        """

    @abstractmethod
    def first_layers(self) -> Int[Tensor, "rows"]:
        """The first block that each row changes, at its input or inside it."""

    @abstractmethod
    def attach(self, hooks: Hooks) -> None:
        """Register what changes the stream, by `hooks.change_input` and `hooks.change_sublayers`."""

    def _tensors(self) -> dict[str, Tensor]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def rows(self) -> int:
        """Number of rows; 1 holds for every row of a batch."""
        return len(next(iter(self._tensors().values())))

    @property
    def width(self) -> int:
        """Width d of the directions."""
        return int(next(iter(self._tensors().values())).shape[-1])

    def take(self, index: Int[Tensor, "n"]) -> "Intervention":
        """The rows `index`, for one batch; an intervention of one row stays as it is."""
        if self.rows == 1:
            return self
        return replace(
            self, **{name: tensor[index.to(tensor.device)] for name, tensor in self._tensors().items()}
        )


def stack_rows(interventions: Sequence[Intervention | None]) -> list[Intervention]:
    """One-row interventions of any kind as rows of one batch; None leaves its row untouched.

    Those of one kind that agree in all but their tensors are one intervention, in which the other rows are zeros.
    Tensors of different size (ranks) are filled up with zeros.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, each in enumerate(interventions):
        if each is not None:
            tensors = each._tensors()
            shared = tuple(getattr(each, part.name) for part in fields(each) if part.name not in tensors)
            groups.setdefault((type(each), *shared), []).append(row)
    stacked = []
    for members in groups.values():
        parts = [(row, each) for row in members if (each := interventions[row]) is not None]
        first = parts[0][1]
        joined = {}
        for name, tensor in first._tensors().items():
            values = [(row, each._tensors()[name][0]) for row, each in parts]
            size = [max(sizes) for sizes in zip(*(value.shape for _, value in values), strict=True)]
            joined[name] = tensor.new_zeros(len(interventions), *size)
            for row, value in values:
                joined[name][row][tuple(slice(length) for length in value.shape)] = value
        stacked.append(replace(first, **joined))
    return stacked


_KINDS: Registry[str, type[Intervention]] = Registry("intervention", reserved=("none",))


def register_intervention(name: str, kind: type[Intervention]) -> None:
    """Make an intervention known by name to causal conditions and the `intervention` column of tables.

    Raises:
        ValueError: the name is taken by another one.
    """
    _KINDS.register(name, kind)


def intervention_kind(name: str) -> type[Intervention]:
    """The class registered under a name.

    Raises:
        UsageError: there is none.
    """
    return _KINDS.named(name)


@dataclass
class Touched:
    """How many token positions the interventions of one context have seen.

    Attributes:
        per_intervention: tokens of all rows, one entry per intervention in the order given. Each row is counted at the
            first block that it changes. Padding is left out where the forward pass is given a two-dimensional mask.
            Positions in a cache are not seen again. `caryatid.models.generate.generate(touched=…)` touches and counts
            every token of its prompts and answers. A plain `model.generate` inside `intervening` samples the last token
            of a batch and never runs it, and also counts what fills up rows that ended before others.
    """

    per_intervention: list[int]

    def add(self, other: "Touched", filling: int) -> None:
        """Add the count of another context with the same interventions, less `filling` tokens in each."""
        before = self.per_intervention or [0] * len(other.per_intervention)
        self.per_intervention = [
            old + new - filling for old, new in zip(before, other.per_intervention, strict=True)
        ]

    @property
    def tokens(self) -> int:
        """The count of the intervention that saw most; 0 without interventions."""
        return max(self.per_intervention, default=0)


class _RealTokens:
    """Real tokens per row of the forward pass under way, from its mask; None without a two-dimensional one."""

    def __init__(self, hooks: Hooks) -> None:
        self._mask: Tensor | None = None
        hooks.around(self._enter, self._leave)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._mask = None

    def counted(self, hidden: Tensor) -> Int[Tensor, "rows"]:
        """Tokens of each row of a block's input."""
        rows, tokens, _ = hidden.shape
        if self._mask is None or self._mask.shape[0] != rows or self._mask.shape[1] < tokens:
            return torch.full((rows,), tokens)
        return (self._mask[:, -tokens:] != 0).sum(dim=1).cpu()


def _count(hooks: Hooks, real: _RealTokens, touched: Touched, slot: int, intervention: Intervention) -> None:
    """Count tokens where each row acts first, and check there that a batch has the intervention's rows."""
    first = intervention.first_layers().cpu()

    def counter(layer: int) -> Callable[..., None]:
        here = first == layer

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = block_input(args, kwargs)
            if intervention.rows not in (1, hidden.shape[0]):
                raise InputError(
                    f"{intervention.rows} rows for a batch of {hidden.shape[0]}",
                    where=type(intervention).__name__,
                    remedy="Give one row, or as many as the batch has (take() selects them).",
                )
            touched.per_intervention[slot] += int((real.counted(hidden) * here).sum())

        return hook

    for layer in first.unique().tolist():
        hooks.on_input(layer, counter(layer))


@contextmanager
def intervening(model: nn.Module, *interventions: Intervention) -> Iterator[Touched]:
    """Apply `interventions`, in the order given at each site, to every forward pass inside the context.

    Computed in float32 and cast back to the stream's dtype. Gradients flow through. With `model.generate` the rows
    stay aligned with the batch, and cached positions keep the values that they were given.

    Yields:
        how many tokens were touched so far.

    Raises:
        InputError: wrong width or unknown layer (here), or a batch whose rows do not match (at its forward pass).
    """
    width = hidden_size(model)
    for each in interventions:
        if each.width != width:
            raise InputError(
                f"directions have width {each.width}, the model has {width}", where=type(each).__name__
            )
    touched = Touched([0] * len(interventions))
    hooks = Hooks(model)
    try:
        real = _RealTokens(hooks)
        for slot, each in enumerate(interventions):
            _count(hooks, real, touched, slot, each)
            each.attach(hooks)
        yield touched
    finally:
        hooks.remove()
