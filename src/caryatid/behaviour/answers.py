"""One answer of one model to one prompt, with everything that was judged about it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from ..errors import InputError
from .judges.base import Exchange, Verdict
from .outcomes import Outcome, is_blank

SCHEMA = 2
"""Version of the fields below, as stored in JSON."""

Attack = Literal["none", "direct", "fixed_source", "adaptive"]
ATTACKS: tuple[Attack, ...] = ("none", "direct", "fixed_source", "adaptive")

HARM_FIELDS = ("harmful", "harm_score", "harm_probability", "harm_judge", "harm_proxy")
"""What a harmfulness judge adds to an answer."""


@dataclass(frozen=True)
class AnswerRow:
    """An answer.

    Attributes:
        prompt_id, set_name, label, kind, category: the prompt's.
        suite: the suite it was asked in. attack: see `ATTACKS`.
        prompt: the request as a person would state it. context: the text it refers to.
        user_text: what was sent, with context and suffix.
        text: the answer. n_tokens: generated tokens. ended: the model ended it before the token limit.
        verdict: the refusal judge's; empty when unscored. judge: `name@version`.
        degenerate: a `DegenerateReason`, or None.
        check: whether the prompt's utility check is satisfied; None without one.
        proxy: whether the refusal judge's rates are proxies for labels.
        harmful: a harmfulness judge's verdict (1, 0; None unscored; 0 for a blank answer).
        harm_score: its grade in [0, 1], if it grades.
        harm_probability: a classifier's own probability. harm_judge: `name@version`; None if none ran.
        harm_proxy: as `proxy`.
        sample: number of this answer among several drawn for one prompt.
    """

    prompt_id: str
    set_name: str
    suite: str
    attack: Attack
    label: str
    kind: str | None
    category: str | None
    prompt: str
    context: str | None
    user_text: str
    text: str
    n_tokens: int
    ended: bool
    verdict: Verdict
    judge: str
    degenerate: str | None
    check: bool | None = None
    proxy: bool = False
    harmful: int | None = None
    harm_score: float | None = None
    harm_probability: float | None = None
    harm_judge: str | None = None
    harm_proxy: bool = False
    sample: int = 0

    @property
    def exchange(self) -> Exchange:
        """What a judge reads."""
        return Exchange(self.prompt, self.text, self.context)

    @property
    def blank(self) -> bool:
        """See `is_blank`."""
        return is_blank(self.text)

    @property
    def outcome(self) -> Outcome:
        """The refusal judge's verdict beside degeneracy."""
        return Outcome(self.verdict, self.degenerate)

    @property
    def scored(self) -> bool:
        """See `Outcome.scored`."""
        return self.outcome.scored

    @property
    def refused(self) -> bool:
        """See `Outcome.refused`."""
        return self.outcome.refused

    @property
    def answered(self) -> bool:
        """See `Outcome.answered`."""
        return self.outcome.answered

    @property
    def passed(self) -> bool:
        """See `Outcome.passed`."""
        return self.outcome.passed(self.check)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the schema's version."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            InputError: written by another version, or fields are missing or unknown.
        """
        fields = dict(value)
        version = fields.pop("schema", None)
        if version != SCHEMA:
            raise InputError(
                f"answers of schema {version!r}",
                remedy=f"This version reads schema {SCHEMA}; generate them again.",
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"not an answer row: {error}", where=str(fields.get("prompt_id"))) from error
