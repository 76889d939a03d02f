"""What an attack is: from goals to what a user would send, in one format, with what it cost.

An attack is a name, a class of settings and a function that attacks a block of goals together. To add one, write these
in a module of its own and register it with one line (`register_attack`); a package outside caryatid can do the same.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import nan_to_none, none_to_nan
from ..registry import Registry
from ..settings import Settings

if TYPE_CHECKING:
    import torch

    from ..models.batch import RowLimit
    from ..models.load import LoadedModel
    from ..models.template import ChatFormat
    from ..models.turns import Sent, SoftTokens


@dataclass(frozen=True)
class Goal:
    """What is attacked: a behaviour as the user asks for it (context included), and the answer's beginning to reach."""

    behavior_id: str
    user_text: str
    target: str

    def generator(self, seed: int) -> "torch.Generator":
        """The goal's own random generator: what is drawn for it depends on `seed` and the goal alone."""
        import torch

        content = f"{seed}\n{self.behavior_id}\n{self.user_text}\n{self.target}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1)


@dataclass(frozen=True)
class AttackResult:
    """What an attack on one goal came to, and what it cost.

    Attributes:
        attack: the attack's name.
        sent_text: what the user sends.
        loss: target loss (nats per token) of the text as sent; NaN for an attack that has none.
        losses: initial loss, then that of what is kept after each step: the best so far.
        steps: taken. stopped: `steps` (all of them were taken) or the rule that ended the search before (`stop_below`,
            `token_budget`, `answered`).
        stalled_steps: those of them without a usable candidate.
        candidates: texts scored. forward_tokens: real tokens run forward. backward_tokens: those of them that gradients
            ran backward, too. seconds: wall time; of goals attacked together each has its share.
        batch_size: rows per forward that fitted into memory.
        suffix_text, suffix_ids: where the attack appends a suffix to the user's text and one space.
        begun_text: with which it begins the answer. soft: embeddings that it puts in place of tokens. Where there is
            one of these, the attack is no text, and `loss` is that of what is sent.
        scored: how candidates were scored, in words.
        details: plain JSON values that only this attack has.
    """

    attack: str
    behavior_id: str
    user_text: str
    target: str
    sent_text: str
    loss: float
    losses: tuple[float, ...]
    steps: int
    candidates: int
    forward_tokens: int
    seconds: float
    backward_tokens: int = 0
    stopped: str = "steps"
    stalled_steps: int = 0
    batch_size: int = 0
    suffix_text: str = ""
    suffix_ids: tuple[int, ...] = ()
    scored: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    begun_text: str = ""
    soft: "SoftTokens | None" = None

    @property
    def sent(self) -> "Sent":
        """What the model is sent: `sent_text`, or a turn where that is not all."""
        return sent_of(self.sent_text, self.begun_text, self.soft)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes null."""
        return nan_to_none({**asdict(self), "suffix_ids": list(self.suffix_ids), "losses": list(self.losses)})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AttackResult":
        """The inverse of `to_json`."""
        from ..models.turns import soft_from_json

        lists = {"suffix_ids": tuple(value["suffix_ids"]), "losses": tuple(value["losses"])}
        soft = soft_from_json(value.get("soft"))
        return cls(**{**none_to_nan(dict(value), cls), **lists, "soft": soft})


def sent_of(text: str, begun: str, soft: "SoftTokens | None") -> "Sent":
    """A text alone as it is, with more as a `Turn`."""
    from ..models.turns import Turn

    return Turn(text, begun, soft) if begun or soft is not None else text


@dataclass(frozen=True)
class BlockRun:
    """What a search of one block is given beside its goals and settings.

    Attributes:
        seed: with the goal it decides everything that is drawn.
        limit: rows per forward; lowered where memory runs out, and shared by all blocks.
        keep: where the state of an unfinished search is kept, in a file or a folder; None: nowhere.
        on_step: called with the number of steps that were taken, summed over goals.
        answered: who judges answers while it searches; None: nobody does.
    """

    seed: int
    limit: "RowLimit"
    keep: Path | None = None
    on_step: Callable[[int], None] = lambda steps: None
    answered: "Answered | None" = None


Answered = Callable[[Sequence[tuple[Goal, str]]], list[bool]]
"""From goals with an answer each to whether a judge takes them for answers: not refused, not degenerate."""

Search = Callable[["LoadedModel", "ChatFormat", Sequence[Goal], Any, BlockRun], list[AttackResult]]
"""From a model, its chat format, a block of goals, the attack's settings and the run to one result a goal, in order."""


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Attributes:
        name: as `caryatid attack NAME` and results call it.
        settings: its settings' class; with a field `steps` if progress is counted in steps.
        search: attacks a block of goals together.
        together: whether the goals of a block share forward passes; else one goal a block is as fast.
    """

    name: str
    settings: type[Settings]
    search: Search
    together: bool = False


ATTACKS: Registry[str, Attack] = Registry("attack")


def register_attack(attack: Attack) -> Attack:
    """Make an attack known by its name; see `Registry.register`."""
    return ATTACKS.register(attack.name, attack)
