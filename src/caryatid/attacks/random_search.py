"""Random search over a suffix (arXiv 2404.02151): change a few tokens at a random place, keep what is better.

As released, but for six things: tokens are printable ASCII; a candidate whose whole templated prompt does not survive
decode → encode is drawn anew; the suffix keeps its length; the manual prompt around it is left to the attack
`templates`; it begins with "! ! ! …" for every model; nothing is generated and judged on the way, so that it ends after
its steps or by `stop_below` and `token_budget`. A step may score several candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .base import AttackResult, BlockRun, Goal
from .gcg.candidates import allowed_token_ids
from .gcg.layout import evaluation_mode
from .gcg.search import drawn_length
from .gcg.slot import PlacedSuffix, initial_suffix, round_trip
from .settings import RandomSearchSettings
from .texts import TextRecord, target_losses

_DRAWS_PER_CANDIDATE = 16


def tokens_to_change(most: int, probability: float) -> int:
    """How many tokens a candidate changes: fewer as the target becomes likely (the released schedule for open models).

    >>> [tokens_to_change(4, p) for p in (0.0, 0.01, 0.05, 0.2)]
    [4, 4, 2, 1]
    """
    share = 1 if probability <= 0.01 else 2 if probability <= 0.1 else 4
    return max(most // share, 1)


def changed_suffixes(
    suffix_ids: Int[Tensor, "length"],
    usable: Sequence[Int[Tensor, "_"]],
    change: int,
    count: int,
    generator: torch.Generator,
) -> Int[Tensor, "count length"]:
    """Suffixes in which `change` consecutive tokens from a random place on, or as many as follow it, are random ones.

    Args:
        usable: the tokens that may stand at each position.
    """
    rows = suffix_ids.repeat(count, 1)
    for row in rows:
        first = int(torch.randint(len(suffix_ids), (), generator=generator))
        for place in range(first, min(first + change, len(suffix_ids))):
            row[place] = usable[place][int(torch.randint(len(usable[place]), (), generator=generator))]
    return rows


def random_search(
    loaded: LoadedModel,
    chat: ChatFormat,
    goals: Sequence[Goal],
    settings: RandomSearchSettings,
    run: BlockRun,
) -> list[AttackResult]:
    """A suffix for each goal, from "! ! ! …", one goal after the other.

    Raises:
        InputError: a prompt beyond the model's context.
    """
    with evaluation_mode(loaded.model):
        return [_Search(loaded, chat, goal, settings, run).searched() for goal in goals]


@dataclass
class _Search:
    loaded: LoadedModel
    chat: ChatFormat
    goal: Goal
    settings: RandomSearchSettings
    run: BlockRun

    def searched(self) -> AttackResult:
        settings, generator = self.settings, self.goal.generator(self.run.seed)
        record = TextRecord(self.goal, "random_search")
        length = drawn_length(settings.suffix_length, generator)
        placed = initial_suffix(self.chat, self.goal.user_text, length)
        usable = self._usable(placed)
        ids, suffix, stalled = torch.tensor(placed.ids), placed.text, 0
        ((loss, objective),) = self._losses(record, [suffix])
        record.keep(f"{self.goal.user_text} {suffix}", loss)
        record.step()
        row = record.forward_tokens
        for _ in range(settings.steps):
            if record.ends(settings.stop_below, settings.token_budget, row * settings.width):
                break
            change = tokens_to_change(settings.change, math.exp(-objective))
            rows, texts = self._candidates(placed, ids, usable, change, generator)
            stalled += not texts
            for one, text, (loss, found) in zip(rows, texts, self._losses(record, texts), strict=True):
                if found < objective:
                    ids, suffix, objective = one, text, found
                    record.keep(f"{self.goal.user_text} {text}", loss)
            record.step()
            self.run.on_step(1)
        self.run.on_step(settings.steps - (len(record.losses) - 1))
        return record.result(
            self.run.limit.rows,
            suffix_text=suffix,
            suffix_ids=tuple(ids.tolist()),
            stalled_steps=stalled,
            details={"objective": settings.objective, "objective_loss": objective},
        )

    def _usable(self, placed: PlacedSuffix) -> list[Tensor]:
        vocabulary = int(self.loaded.model.config.get_text_config().vocab_size)
        tokens = allowed_token_ids(self.chat.tokenizer)
        mask = tokens.mask(vocabulary, len(placed.ids), bool(placed.slot.lead))
        return [row.nonzero().squeeze(1) for row in mask]

    def _candidates(
        self,
        placed: PlacedSuffix,
        ids: Tensor,
        usable: Sequence[Tensor],
        change: int,
        generator: torch.Generator,
    ) -> tuple[list[Tensor], list[str]]:
        """As many candidates as a step scores that survive the round trip, and their texts; fewer if few do."""
        rows: list[Tensor] = []
        width = self.settings.width
        for _ in range(_DRAWS_PER_CANDIDATE):
            drawn = changed_suffixes(ids, usable, change, width, generator)
            rows += drawn[round_trip(placed.slot, self.chat.tokenizer, drawn)]
            if len(rows) >= width:
                break
        kept = rows[:width]
        texts = placed.slot.suffix_texts(self.chat.tokenizer, [row.tolist() for row in kept])
        return kept, [text for text in texts if text is not None]

    def _losses(self, record: TextRecord, suffixes: Sequence[str]) -> list[tuple[float, float]]:
        """Target loss and objective after each suffix."""
        if not suffixes:
            return []
        texts = [f"{self.goal.user_text} {suffix}" for suffix in suffixes]
        scored = target_losses(self.loaded, self.chat, texts, self.goal.target, self.run.limit)
        record.spend(len(texts), scored.tokens)
        wanted = scored.first if self.settings.objective == "first_token" else scored.target
        return list(zip(scored.target.tolist(), wanted.tolist(), strict=True))
