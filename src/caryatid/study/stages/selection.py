"""An anchor's answers to the selection prompts: refusal rates, first tokens of refusals, and first answer tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...behaviour.judges.base import REFUSED, Exchange, judge_answers
from ...config import StudyConfig
from ...data.prompts import Prompt
from ...models.generate import Decoding, generate
from ..costs import Sizes, WorkUnits, decoding
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .prompts import Prompts
from .train import makers

JUDGED_TOKENS = 10  # enough to judge a refusal


@dataclass(frozen=True)
class SelectionAnswer:
    """An answer and the refusal judge's verdict.

    Attributes:
        ids: its tokens as they follow a prompt whose positions are measured: where thoughts are stripped, those after
            the thought. first: the first one after the thought; None where the thought is unfinished.
    """

    prompt_id: str
    text: str
    ids: tuple[int, ...]
    verdict: str
    first: int | None

    @property
    def refused(self) -> bool:
        """Fully or partially refused."""
        return self.verdict in REFUSED


@dataclass(frozen=True)
class Selected:
    """Answers to the harmful and to the harmless selection prompts."""

    harmful: tuple[SelectionAnswer, ...]
    harmless: tuple[SelectionAnswer, ...]

    @property
    def first_tokens(self) -> list[tuple[int, bool]]:
        """The first token of each answer that has one, and whether it is a refusal."""
        rows = (*self.harmful, *self.harmless)
        return [(row.first, row.refused) for row in rows if row.first is not None]

    @property
    def refusal_rates(self) -> tuple[float, float]:
        """Shares refused of the scored answers to the harmful and to the harmless prompts; 0 where none is scored."""
        scored = [[row.refused for row in side if row.verdict] for side in (self.harmful, self.harmless)]
        harmful, harmless = (sum(side) / max(len(side), 1) for side in scored)
        return harmful, harmless


@register_stage
class Selection(Stage[Selected]):
    """Short answers: what the choice of a carrier needs to know of behaviour."""

    kind, scope, result = "selection", "anchor", Selected
    version = 2

    @property
    def tokens(self) -> int:
        """Token limit: enough to judge a refusal, and for the KL along the first answer tokens; after thoughts more."""
        return max(
            judged_tokens(self.config),
            min(self.config.behaviour.max_new_tokens, self.config.geometry.answer_tokens),
        )

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield from makers(self.study, self.place)

    def settings(self) -> Mapping[str, Any]:
        judge = self.study.settings["behaviour"]["refusal_judge"]
        own = {"max_new_tokens": self.tokens, "judge": judge}
        return {**self.study.anchor_settings(self.place, "generate"), **own}

    def size(self) -> str:
        return f"answers to the selection prompts, {self.tokens} tokens"

    def work_units(self, sizes: Sizes) -> WorkUnits:
        rows, tokens = sizes.both("selection_harmful", "selection_harmless")
        return decoding(rows, tokens, self.tokens, self.study.facts.batch["generate"])

    def run(self, work: Work) -> Selected:
        sets = work.of(Prompts, None)
        harmful, harmless = sets.selection_harmful.prompts, sets.selection_harmless.prompts
        rows = short_answers(work, [*harmful, *harmless], self.tokens)
        return Selected(tuple(rows[: len(harmful)]), tuple(rows[len(harmful) :]))

    def summary(self, result: Selected) -> Mapping[str, Any]:
        harmful, harmless = result.refusal_rates
        return {"harmful_refusal_rate": harmful, "harmless_refusal_rate": harmless}


def judged_tokens(config: StudyConfig) -> int:
    """Tokens of an answer in which a refusal can be told: few, or all that are allowed where a thought comes before."""
    limit = config.behaviour.max_new_tokens
    return limit if config.model.thinking != "off" else min(limit, JUDGED_TOKENS)


def short_answers(work: Work, prompts: Sequence[Prompt], tokens: int) -> list[SelectionAnswer]:
    """Judged answers of the anchor in hand, of at most so many tokens."""
    loaded = work.open()
    label = f"{work.entry.stage.kind} answers"
    with work.kept("answers"), work.progressing(label, len(prompts)) as progress:
        completions = generate(
            loaded,
            work.chat(loaded),
            [row.user_text for row in prompts],
            Decoding(tokens, work.batch.generate),
            progress=progress,
        )
    asked = zip(prompts, completions, strict=True)
    verdicts = judge_answers(work.judge, [Exchange(row.text, one.text, row.context) for row, one in asked])
    return [
        SelectionAnswer(
            row.id,
            one.text,
            one.following(loaded.options),
            verdict.verdict,
            one.spoken[0] if one.spoken else None,
        )
        for row, one, verdict in zip(prompts, completions, verdicts, strict=True)
    ]
