"""Judged answers of one model, with interventions or without, and the shares that they amount to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..behaviour.judges.base import Exchange, Judge
from ..behaviour.outcomes import Outcome, outcomes
from ..behaviour.utility import check_satisfied
from ..causal.conditions import Condition
from ..causal.locate import Measured
from ..causal.readouts import generate_under
from ..data.prompts import Prompt
from ..models.thoughts import part_text
from ..stats import wilson

NAN = math.nan


@dataclass(frozen=True)
class Answered:
    """Answers to some prompts and what they amount to.

    Attributes:
        ids: tokens as they follow a prompt whose positions are measured (`Completion.following`). first: the first one
            after the thought; None where that is unfinished. passed: whether the utility audit is passed.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    first: tuple[int | None, ...]
    outcomes: tuple[Outcome, ...]
    passed: tuple[bool, ...]

    @property
    def refused(self) -> list[bool]:
        """Which are refusals."""
        return [one.refused for one in self.outcomes]

    @property
    def scored(self) -> int:
        """How many a judge could read."""
        return sum(one.scored for one in self.outcomes)

    @property
    def refusal_rate(self) -> float:
        """Share refused of the scored answers; 0 where none is."""
        return sum(self.refused) / max(self.scored, 1)

    @property
    def first_tokens(self) -> list[tuple[int, bool]]:
        """The first token of each answer that has one, and whether it is a refusal."""
        pairs = zip(self.first, self.refused, strict=True)
        return [(token, refused) for token, refused in pairs if token is not None]


@dataclass(frozen=True)
class Several:
    """Answers by condition."""

    each: tuple[Answered, ...]


@dataclass(frozen=True)
class Plain:
    """Answers of the model as it is."""

    harmful: Answered
    harmless: Answered
    utility: Answered
    selection_harmful: Answered
    selection_harmless: Answered


@dataclass(frozen=True)
class Under:
    """Answers under conditions. `removed`, `induced`: by condition, the carrier's first, then random ones."""

    ablated: Answered
    utility: Answered
    removed: tuple[Answered, ...]
    induced: tuple[Answered, ...]


def answers_under(
    model: Measured,
    judge: Judge,
    rows: Sequence[Prompt],
    conditions: Sequence[Condition],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Several:
    """Judged answers to prompts under each condition."""
    if not rows:
        return Several(tuple(Answered((), (), (), (), ()) for _ in conditions))
    made = generate_under(
        model.loaded,
        model.chat,
        conditions,
        [row.user_text for row in rows],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=model.progress,
    )
    found = []
    for answers in made:
        pairs = [Exchange(row.text, one.text, row.context) for row, one in zip(rows, answers, strict=True)]
        judged = outcomes(judge, pairs)
        checks = [
            None if row.check is None else check_satisfied(row.check, part_text(one.text).answer)
            for row, one in zip(rows, answers, strict=True)
        ]
        found.append(
            Answered(
                tuple(one.text for one in answers),
                tuple(one.following(model.loaded.options) for one in answers),
                tuple(one.spoken[0] if one.spoken else None for one in answers),
                tuple(judged),
                tuple(one.passed(check) for one, check in zip(judged, checks, strict=True)),
            )
        )
    return Several(tuple(found))


def chosen_rows(answered: Answered, flags: Sequence[bool]) -> Answered:
    """The answers at which a flag is set."""
    chosen = [number for number, flag in enumerate(flags) if flag]
    names = ("texts", "ids", "first", "outcomes", "passed")
    return Answered(**{name: tuple(getattr(answered, name)[n] for n in chosen) for name in names})


def effects_of(plain: Plain, under: Under) -> list[dict[str, Any]]:
    """Shares with Wilson intervals, one row a condition and read-out."""

    def row(kind: str, control: str, read_out: str, flags: Sequence[bool], n: int) -> dict[str, Any]:
        rate = wilson(sum(flags), n)
        return {"intervention": kind, "control": control, "read_out": read_out, **rate._asdict()}

    names = ["carrier", *(f"random {n + 1}" for n in range(len(under.induced) - 1))]
    ablated = under.ablated
    rows = [
        row("none", "none", "refused", plain.harmful.refused, plain.harmful.scored),
        row("none", "none", "utility_pass", plain.utility.passed, len(plain.utility.passed)),
        row("ablate", "carrier", "refused", ablated.refused, ablated.scored),
        row("ablate", "carrier", "utility_pass", under.utility.passed, len(under.utility.passed)),
    ]
    for name, one in zip(names, under.removed, strict=True):
        flags = [outcome.answered for outcome in one.outcomes]
        rows.append(row("ablate", name, "removed", flags, len(flags)))
    for name, one in zip(names, under.induced, strict=True):
        rows.append(row("add", name, "induced", one.refused, one.scored))
    return rows


def summary_of(effects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The contract's shares: of the carrier, and the largest over the random subspaces."""

    def of(kind: str, read_out: str, random: bool = False) -> float:
        found = [
            float(row["value"])
            for row in effects
            if (row["intervention"], row["read_out"]) == (kind, read_out)
            and str(row["control"]).startswith("random") == random
        ]
        return max((value for value in found if not math.isnan(value)), default=NAN)

    return {
        "ablation": {
            "refused": of("ablate", "refused"),
            "removed": of("ablate", "removed"),
            "removed_random": of("ablate", "removed", random=True),
        },
        "addition": {"induced": of("add", "induced"), "induced_random": of("add", "induced", random=True)},
        "utility": {"before": of("none", "utility_pass"), "ablated": of("ablate", "utility_pass")},
    }
