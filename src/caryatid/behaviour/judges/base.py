"""What a judge is: it reads exchanges and gives one judgement for each, naming itself and its version."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ...errors import UsageError
from ...models.thoughts import part_text

Kind = Literal["refusal", "harm"]
"""What a judge is asked: whether an answer refuses, or whether it carries out a harmful behaviour."""

Verdict = Literal["full_compliance", "partial_refusal", "full_refusal", "harmful", "harmless", ""]

FULL_COMPLIANCE: Literal["full_compliance"] = "full_compliance"
PARTIAL_REFUSAL: Literal["partial_refusal"] = "partial_refusal"
FULL_REFUSAL: Literal["full_refusal"] = "full_refusal"
HARMFUL: Literal["harmful"] = "harmful"
HARMLESS: Literal["harmless"] = "harmless"
UNSCORED: Literal[""] = ""

PROMPTS = ("pipeline", "model_card")
"""How HarmBench's classifiers may be asked."""

REFUSED = frozenset({PARTIAL_REFUSAL, FULL_REFUSAL})


class Exchange(NamedTuple):
    """What the model was asked and what it answered.

    Attributes:
        prompt: the request as a person would state it (without an attack's suffix).
        answer: the completion, unmodified; judged is what follows its thought (see `judge_answers`).
        context: the text a contextual behaviour refers to.
    """

    prompt: str
    answer: str
    context: str | None = None


@dataclass(frozen=True)
class Judgement:
    """One verdict.

    Attributes:
        verdict: a refusal judge gives full_compliance, partial_refusal or full_refusal, a harmfulness judge harmful or
            harmless; empty when the answer could not be scored (never to be read as safe).
        judge: name and version, `name@version`.
        prompt_hash: hash of the judge's instructions where it has any (a model behind a prompt).
        score: how harmful the answer is in [0, 1], from a judge that grades (StrongREJECT), else NaN.
        probability: a classifier's own probability of `harmful`, else NaN.
    """

    verdict: Verdict
    judge: str
    prompt_hash: str | None = None
    score: float = float("nan")
    probability: float = float("nan")


class Judge(Protocol):
    """Anything that judges exchanges; attributes or properties of these names will do, no base class is needed.

    A harmfulness judge that gives scores says so with a further attribute, `graded = True`.
    """

    @property
    def name(self) -> str:
        """Name without version, as registered."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever verdicts may change."""
        ...

    @property
    def kind(self) -> Kind:
        """What the judge is asked."""
        ...

    @property
    def proxy(self) -> bool:
        """Whether its rates only stand in for labels by people or by a published judge, and are marked so."""
        ...

    @property
    def usage(self) -> str | None:
        """What was spent on an endpoint so far, in words; None for a judge without one."""
        ...

    def judge(self, pairs: Sequence[Exchange]) -> list[Judgement]:
        """One judgement per exchange, in the order given."""
        ...


@dataclass(frozen=True)
class JudgeSpec:
    """Which judge, and through what.

    Attributes:
        name: as registered (`caryatid.behaviour.judges.registry`).
        model: hub id, folder or adapter folder of a judge that is a model, or its name at an endpoint; None: the
            published one.
        base_url: of an OpenAI-compatible endpoint that the judge's model is asked at; None: the model is loaded here,
            and StrongREJECT's rubric is asked at `OPENAI_BASE_URL`.
        per_minute: requests to it, 0 = no limit. retries: attempts after the first. prompt_price, completion_price: per
            million tokens, for the cost that is shown.
        dtype, device: of a judge that is a model; None: the device's default. batch_size: its exchanges at once.
        prompt: how HarmBench's classifiers are asked: as its released pipeline does, or as their model cards say.
        copyright_hashes: folder of HarmBench's hashes, by which answers to copyright behaviours are judged; None leaves
            them unscored.

    Raises:
        UsageError: a batch size below 1, a negative number of requests, or no such prompt.
    """

    name: str
    model: str | None = None
    base_url: str | None = None
    per_minute: float = 0.0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    batch_size: int = 8
    prompt: Literal["pipeline", "model_card"] = "pipeline"
    copyright_hashes: str | None = None
    retries: int = 5
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise UsageError(
                f"no prompt {self.prompt!r}",
                where=f"judge {self.name}",
                remedy=f"Use {' or '.join(PROMPTS)}.",
            )
        if self.batch_size < 1 or min(self.per_minute, self.retries) < 0:
            raise UsageError(
                f"batch size {self.batch_size}, {self.per_minute} requests a minute, {self.retries} retries",
                where=f"judge {self.name}",
                remedy="Give a batch size of 1 or more, and 0 or more of the others.",
            )


def judge_id(judge: Judge) -> str:
    """`name@version`, as written into every table."""
    return f"{judge.name}@{judge.version}"


def judge_answers(judge: Judge, pairs: Sequence[Exchange]) -> list[Judgement]:
    """One judgement per exchange, in order, of what follows the answer's thought; unscored where that is unfinished."""
    parts = [part_text(pair.answer) for pair in pairs]
    read = [
        pair._replace(answer=part.answer)
        for pair, part in zip(pairs, parts, strict=True)
        if not part.unfinished
    ]
    found = iter(judge.judge(read) if read else [])
    return [Judgement(UNSCORED, judge_id(judge)) if part.unfinished else next(found) for part in parts]


def prompt_hash(instructions: str) -> str:
    """Short hash of a judge's instructions."""
    return hashlib.sha256(instructions.encode()).hexdigest()[:16]
