"""What each candidate runs, and batches of it ready for one forward.

A candidate runs its *tail*: the whole row in the plain forward, what follows the prefix with a prefix cache, what
follows its first changed token where the present suffix's keys are kept too. A batch has one tail per row, of several
cases where wanted, or several tails of one case packed in a row (tree attention). Rows are filled up on the right: no
real token sees filling before it, no query is left without a key, and position ids count real tokens only.

All of this is made on the CPU in whole-tensor operations and moved to the model's device once per batch: nothing here
waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ...models.batch import to_device
from ...models.forward import pad_id
from ...models.load import LoadedModel
from .layout import PromptLayout


class Scored(NamedTuple):
    """Where a batch's targets are predicted, tail after tail.

    Attributes:
        rows, columns: places in the batch. targets: the tokens predicted there.
        owners: number of each place's tail in the batch; nth: which of its tail's targets it predicts.
        counts: targets per tail. most: the largest of them.
    """

    rows: Int[Tensor, "scored"]
    columns: Int[Tensor, "scored"]
    targets: Int[Tensor, "scored"]
    owners: Int[Tensor, "scored"]
    nth: Int[Tensor, "scored"]
    counts: Int[Tensor, "tails"]
    most: int

    def means(self, losses: Float[Tensor, "scored"]) -> Float[Tensor, "tails"]:
        """Mean over each tail's targets, summed through a padded table, so that the order is fixed."""
        table = losses.new_zeros((len(self.counts), self.most))
        return table.index_put((self.owners, self.nth), losses).sum(dim=1) / self.counts

    def to(self, device: torch.device) -> "Scored":
        """On the device, in two transfers."""
        places = torch.stack([self.rows, self.columns, self.targets, self.owners, self.nth])
        rows, columns, targets, owners, nth = to_device(places, device)
        return Scored(rows, columns, targets, owners, nth, to_device(self.counts, device), self.most)


class Packed(NamedTuple):
    """Several tails of one case per row, on the CPU.

    Attributes:
        owners: number of each token's tail in the batch, -1 at filling.
        prefix, skipped: per tail the cached columns that it sees, of its case's prefix and of its suffix.
    """

    ids: Int[Tensor, "rows columns"]
    positions: Int[Tensor, "rows columns"]
    owners: Int[Tensor, "rows columns"]
    prefix: Int[Tensor, "tails"]
    skipped: Int[Tensor, "tails"]
    scored: Scored


@dataclass(frozen=True)
class TailBatch:
    """One forward. `mask` has one column per key, or is additive [rows, 1, columns, keys], or is not needed."""

    ids: Int[Tensor, "rows columns"]
    mask: Tensor | None
    positions: Int[Tensor, "rows columns"]
    scored: Scored


@dataclass(frozen=True)
class Tails:
    """The tails of candidates of several cases, on the CPU.

    Attributes:
        ids: filled up on the right.
        cases, lengths, skipped, prefix: per tail its case, its real tokens, the suffix tokens before it that it reads
            from a cache, and the prefix tokens that it reads from one.
        targets: per case the target tokens; a tail's last columns predict them.
        device: where batches go.
    """

    ids: Int[Tensor, "tails columns"]
    cases: Int[Tensor, "tails"]
    lengths: Int[Tensor, "tails"]
    skipped: Int[Tensor, "tails"]
    prefix: Int[Tensor, "tails"]
    targets: tuple[tuple[int, ...], ...]
    device: torch.device

    @cached_property
    def _target_table(self) -> Int[Tensor, "cases targets"]:
        longest = max(map(len, self.targets))
        return torch.tensor([[*target, *[0] * (longest - len(target))] for target in self.targets])

    def _scored(
        self, chosen: Int[Tensor, "chosen"], rows: Int[Tensor, "chosen"], offsets: Int[Tensor, "chosen"]
    ) -> Scored:
        """Where the targets of tails `chosen` are predicted, each in its row from column `offsets` on."""
        cases = self.cases[chosen]
        counts = torch.tensor([len(target) for target in self.targets])[cases]
        table = self._target_table[cases]
        owners, nth = (torch.arange(table.shape[1]) < counts.unsqueeze(1)).nonzero(as_tuple=True)
        first = offsets + self.lengths[chosen] - counts
        columns = first[owners] + nth
        return Scored(rows[owners], columns, table[owners, nth], owners, nth, counts, int(counts.max()))

    def batch(self, chosen: Sequence[int], prefix_columns: int, suffix_columns: int) -> TailBatch:
        """One tail per row, behind that many cached columns of prefix and of suffix."""
        index = torch.tensor(chosen)
        lengths, prefix, skipped = self.lengths[index], self.prefix[index], self.skipped[index]
        columns = int(lengths.max())
        column = torch.arange(columns)
        real = column < lengths.unsqueeze(1)
        mask = torch.cat([seen_context(prefix, skipped, prefix_columns, suffix_columns), real], dim=1)
        start = (prefix + skipped).unsqueeze(1)
        return TailBatch(
            ids=to_device(self.ids[index, :columns], self.device),
            mask=None if bool(mask.all()) else to_device(mask.long(), self.device),
            positions=to_device(torch.where(real, column + start, 0), self.device),
            scored=self._scored(index, torch.arange(len(index)), torch.zeros_like(index)).to(self.device),
        )

    def packed(
        self, packed: Packed, prefix_columns: int, suffix_columns: int, dtype: torch.dtype
    ) -> TailBatch:
        """Several tails of one case per row, behind that many cached columns; each sees its own context and itself.

        `dtype` is that of the additive mask. A place of filling sees the filling before it and itself.
        """
        context = seen_context(packed.prefix, packed.skipped, prefix_columns, suffix_columns)
        owners = to_device(packed.owners, self.device)
        return TailBatch(
            ids=to_device(packed.ids, self.device),
            mask=tree_mask(owners, to_device(context, self.device), dtype),
            positions=to_device(packed.positions, self.device),
            scored=packed.scored.to(self.device),
        )

    def pack(self, packs: Sequence[Sequence[int]]) -> Packed:
        """The tails of each of `packs` one behind the other in a row."""
        chosen = torch.tensor([tail for pack in packs for tail in pack])
        rows = torch.arange(len(packs)).repeat_interleave(torch.tensor([len(pack) for pack in packs]))
        lengths = self.lengths[chosen]
        ends = lengths.cumsum(0)
        totals = torch.zeros(len(packs), dtype=torch.long).index_add_(0, rows, lengths)
        offsets = ends - lengths - (totals.cumsum(0) - totals)[rows]
        width = int(totals.max())
        numbers = torch.arange(len(chosen)).repeat_interleave(lengths)
        within = torch.arange(int(ends[-1])) - (ends - lengths)[numbers]
        places = rows[numbers] * width + offsets[numbers] + within
        start = self.prefix[chosen] + self.skipped[chosen]

        def spread(values: Tensor, filling: int) -> Tensor:
            """One value per real token, in its row and column."""
            table = torch.full((len(packs) * width,), filling)
            return table.index_copy_(0, places, values).view(len(packs), width)

        return Packed(
            ids=spread(self.ids[chosen[numbers], within], 0),
            positions=spread(within + start[numbers], 0),
            owners=spread(numbers, -1),
            prefix=self.prefix[chosen],
            skipped=self.skipped[chosen],
            scored=self._scored(chosen, rows, offsets),
        )

    def packs(self, tokens: int) -> list[list[int]]:
        """Tails of one case each, first fit decreasing into rows of at most `tokens` tokens, longest rows first.

        Row after row takes the longest tail that still fits, which is what first fit decreasing comes to.
        """
        found: list[list[int]] = []
        lengths, case_of = self.lengths.tolist(), self.cases.tolist().__getitem__
        for _, members in groupby(sorted(self.by_length(), key=case_of), key=case_of):
            left = {length: list(some) for length, some in groupby(members, key=lengths.__getitem__)}
            while left:
                pack: list[int] = []
                room = max(tokens, next(iter(left)))
                for length in list(left):
                    taken = left[length][: room // length]
                    pack += taken
                    room -= length * len(taken)
                    left[length] = left[length][len(taken) :]
                    if not left[length]:
                        del left[length]
                found.append(pack)
        return sorted(found, key=lambda pack: -sum(lengths[tail] for tail in pack))

    def by_length(self) -> list[int]:
        """All tails, longest first."""
        return self.lengths.argsort(descending=True, stable=True).tolist()


def seen_context(
    prefix: Int[Tensor, "tails"], skipped: Int[Tensor, "tails"], prefix_columns: int, suffix_columns: int
) -> Bool[Tensor, "tails before"]:
    """Which cached columns each tail sees: its real prefix, and the suffix tokens that it skips."""
    device = prefix.device
    seen_prefix = torch.arange(prefix_columns, device=device) < prefix.unsqueeze(1)
    seen_suffix = torch.arange(suffix_columns, device=device) < skipped.unsqueeze(1)
    return torch.cat([seen_prefix, seen_suffix], dim=1)


def tree_mask(
    owner: Int[Tensor, "rows columns"], context: Bool[Tensor, "tails before"], dtype: torch.dtype
) -> Float[Tensor, "rows 1 columns keys"]:
    """Additive mask by which each place sees its tail's context and its tail up to itself; `owner` -1 is filling."""
    column = torch.arange(owner.shape[1], device=owner.device)
    before = context[owner.clamp_min(0)] & (owner >= 0).unsqueeze(2)
    itself = (owner.unsqueeze(2) == owner.unsqueeze(1)) & (column.unsqueeze(1) >= column)
    seen = torch.cat([before, itself], dim=2).unsqueeze(1)
    hidden = torch.zeros(seen.shape, dtype=dtype, device=owner.device)
    return hidden.masked_fill_(~seen, torch.finfo(dtype).min)


def first_changes(
    layout: PromptLayout, candidates: Int[Tensor, "candidates length"]
) -> Int[Tensor, "candidates"]:
    """Where each candidate first differs from the present suffix; its last token where it does not."""
    present = torch.tensor(layout.suffix_ids)
    same = (candidates.cpu() == present).long().cumprod(dim=1).sum(dim=1)
    return same.clamp_max(len(present) - 1)


def assemble_tails(
    loaded: LoadedModel,
    layouts: Sequence[PromptLayout],
    candidates: Sequence[Int[Tensor, "_ _"]],
    *,
    cached: bool,
    incremental: bool = False,
) -> Tails:
    """Tails of all candidates, case after case.

    Args:
        candidates: per case, as many tokens each as its suffix.
        cached: without the prefix. incremental: also without the suffix's tokens before the first changed one.
    """
    longest = torch.tensor([layout.tail_length if cached else layout.length for layout in layouts])
    columns, fill = int(longest.max()), pad_id(loaded)
    blocks, skips = [], []
    for layout, rows in zip(layouts, candidates, strict=True):
        before = torch.tensor(() if cached else layout.prefix_ids, dtype=torch.long)
        after = torch.tensor([*layout.post_ids, *layout.target_ids[:-1]], dtype=torch.long)
        whole = torch.cat([before.expand(len(rows), -1), rows.cpu(), after.expand(len(rows), -1)], dim=1)
        blocks.append(pad(whole, (0, columns - whole.shape[1]), value=fill))
        none = torch.zeros(len(rows), dtype=torch.long)
        skips.append(first_changes(layout, rows) if incremental else none)
    ids, skipped = torch.cat(blocks), torch.cat(skips)
    cases = torch.arange(len(layouts)).repeat_interleave(torch.tensor([len(rows) for rows in candidates]))
    source = torch.arange(columns) + skipped.unsqueeze(1)  # each row moves left by what it skips
    prefix = torch.tensor([len(layout.prefix_ids) if cached else 0 for layout in layouts])
    return Tails(
        ids=torch.where(source < columns, ids.gather(1, source.clamp_max(columns - 1)), fill),
        cases=cases,
        lengths=longest[cases] - skipped,
        skipped=skipped,
        prefix=prefix[cases],
        targets=tuple(layout.target_ids for layout in layouts),
        device=loaded.device,
    )
