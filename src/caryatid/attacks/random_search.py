"""Random search over a suffix (arXiv 2404.02151): change a few tokens at a random place, keep what is better.

As released, but for six things: tokens are printable ASCII; a candidate whose whole templated prompt does not survive
decode → encode is drawn anew; the suffix keeps its length; the manual prompt around it is left to the attack
`templates`; it begins with "! ! ! …" for every model; nothing is generated and judged on the way, so that it ends after
its steps or by `stop_below` and `token_budget`. A step may score several candidates; goals of a block share passes.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..artifacts import content_key
from ..errors import NumericalError
from ..keeping import kept, piece
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .base import AttackResult, BlockRun, Goal
from .gcg.candidates import allowed_token_ids
from .gcg.layout import evaluation_mode
from .gcg.search import drawn_length
from .gcg.slot import initial_suffix, round_trip
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
    """A suffix for each goal of a block, from "! ! ! …"; all score their candidates in the same passes.

    With `run.keep` the losses of finished steps are written to that folder once a minute; a later call with the same
    arguments draws the same candidates, takes their losses from there, and goes on.

    Raises:
        InputError: a prompt beyond the model's context. NumericalError: a loss is not finite.
    """
    with evaluation_mode(loaded.model), kept(run.keep) if run.keep else nullcontext():
        searches = [_Search(loaded, chat, goal, settings, run.seed) for goal in goals]
        block = _Block(loaded, chat, run)
        block.score(searches, [[search.suffix] for search in searches])
        for _ in range(settings.steps):
            going = [search for search in searches if not search.ended()]
            if not going:
                break
            block.score(going, [search.candidates() for search in going])
            run.on_step(len(going))
    run.on_step(sum(settings.steps - search.steps for search in searches))
    return [search.result(run.limit.rows, block.seconds / len(searches)) for search in searches]


class _Block:
    """What scores the suffixes of a block's searches, and for how long it has been at it, earlier calls included."""

    def __init__(self, loaded: LoadedModel, chat: ChatFormat, run: BlockRun) -> None:
        self.loaded, self.chat, self.run = loaded, chat, run
        self.seconds, self.since = 0.0, time.perf_counter()

    def score(self, searches: Sequence["_Search"], suffixes: Sequence[Sequence[str]]) -> None:
        """Losses of all searches' suffixes, run forward together, which each search then takes note of."""
        pairs = list(zip(searches, suffixes, strict=True))
        texts = [search.sent(text) for search, own in pairs for text in own]
        targets = [search.goal.target for search, own in pairs for _ in own]

        def scored() -> dict[str, Any]:
            found = target_losses(self.loaded, self.chat, texts, targets, self.run.limit)
            return {
                "target": found.target.tolist(),
                "first": found.first.tolist(),
                "tokens": list(found.tokens),
                "rows": self.run.limit.rows,
                "seconds": time.perf_counter() - self.since,
            }

        # Texts that are drawn otherwise by now, by another version say, have another name, and are scored anew.
        found = piece(content_key([texts, targets]), scored)
        self.seconds += found["seconds"]
        self.since = time.perf_counter()
        self.run.limit.rows = min(self.run.limit.rows, found["rows"])
        place = 0
        for search, own in pairs:
            part = slice(place, place + len(own))
            place += len(own)
            search.take(found["target"][part], found["first"][part], found["tokens"][part])


class _Search:
    """The search for one goal.

    Attributes:
        suffix, ids: what is kept. objective: its objective, in nats.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        chat: ChatFormat,
        goal: Goal,
        settings: RandomSearchSettings,
        seed: int,
    ) -> None:
        self.loaded, self.chat, self.goal, self.settings = loaded, chat, goal, settings
        self._generator = goal.generator(seed)
        self._placed = initial_suffix(
            chat, goal.user_text, drawn_length(settings.suffix_length, self._generator)
        )
        self._usable = self._tokens()
        self.ids, self.suffix, self.objective = torch.tensor(self._placed.ids), self._placed.text, math.inf
        self._drawn = [(self.ids, self.suffix)]
        self._record, self._stalled, self._row = TextRecord(goal, "random_search"), 0, 0

    def _tokens(self) -> list[Tensor]:
        """The tokens that may stand at each position of the suffix."""
        vocabulary = int(self.loaded.model.config.get_text_config().vocab_size)
        tokens = allowed_token_ids(self.chat.tokenizer)
        mask = tokens.mask(vocabulary, len(self._placed.ids), bool(self._placed.slot.lead))
        return [row.nonzero().squeeze(1) for row in mask]

    def sent(self, suffix: str) -> str:
        """What the user sends with a suffix."""
        return f"{self.goal.user_text} {suffix}"

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self._record.losses) - 1

    def ended(self) -> bool:
        """Whether a rule ends the search before its next step."""
        settings = self.settings
        return self._record.ends(settings.stop_below, settings.token_budget, self._row * settings.width)

    def candidates(self) -> list[str]:
        """The texts of as many candidates as a step scores that survive the round trip; fewer if few do."""
        change = tokens_to_change(self.settings.change, math.exp(-self.objective))
        slot, tokenizer, rows = self._placed.slot, self.chat.tokenizer, list[Tensor]()
        for _ in range(_DRAWS_PER_CANDIDATE):
            drawn = changed_suffixes(self.ids, self._usable, change, self.settings.width, self._generator)
            rows += drawn[round_trip(slot, tokenizer, drawn)]
            if len(rows) >= self.settings.width:
                break
        rows = rows[: self.settings.width]
        texts = slot.suffix_texts(tokenizer, [row.tolist() for row in rows])
        self._drawn = [(row, text) for row, text in zip(rows, texts, strict=True) if text is not None]
        self._stalled += not self._drawn
        return [text for _, text in self._drawn]

    def take(self, target: Sequence[float], first: Sequence[float], tokens: Sequence[int]) -> None:
        """A step: target loss, loss of the first target token and tokens of each candidate (of the start: its own).

        Raises:
            NumericalError: a loss is not finite.
        """
        if not all(map(math.isfinite, (*target, *first))):
            raise NumericalError(
                "a target loss is not finite", where=f"random search, {self.goal.behavior_id}"
            )
        self._record.spend(len(tokens), sum(tokens))
        self._row = self._row or sum(tokens)
        objectives = first if self.settings.objective == "first_token" else target
        for (ids, text), loss, objective in zip(self._drawn, target, objectives, strict=True):
            if objective < self.objective:
                self.ids, self.suffix, self.objective = ids, text, objective
                self._record.keep(self.sent(text), loss)
        self._record.step()

    def result(self, batch_size: int, seconds: float) -> AttackResult:
        """What the search came to; `seconds` of the block are its share."""
        return self._record.result(
            batch_size,
            seconds,
            suffix_text=self.suffix,
            suffix_ids=tuple(self.ids.tolist()),
            stalled_steps=self._stalled,
            details={"objective": self.settings.objective, "objective_loss": self.objective},
        )
