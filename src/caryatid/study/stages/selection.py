"""An anchor's answers to the selection prompts: refusal rates, first tokens of refusals, and first answer tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...behaviour.judges.base import REFUSED, Exchange
from ...data.prompts import Prompt
from ...models.generate import generate
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .prompts import Prompts
from .train import makers

JUDGED_TOKENS = 10  # enough to judge a refusal


@dataclass(frozen=True)
class SelectionAnswer:
    """An answer, its tokens, and the refusal judge's verdict."""

    prompt_id: str
    text: str
    ids: tuple[int, ...]
    verdict: str

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
        return [(row.ids[0], row.refused) for row in (*self.harmful, *self.harmless) if row.ids]

    @property
    def refusal_rates(self) -> tuple[float, float]:
        """Shares refused of the harmful and of the harmless prompts."""
        harmful, harmless = (
            sum(row.refused for row in side) / len(side) for side in (self.harmful, self.harmless)
        )
        return harmful, harmless


@register_stage
class Selection(Stage[Selected]):
    """Short answers: what the choice of a carrier needs to know of behaviour."""

    kind, scope, result = "selection", "anchor", Selected

    @property
    def tokens(self) -> int:
        """Token limit: enough to judge a refusal, and for the KL along the first answer tokens."""
        config = self.config
        return min(config.behaviour.max_new_tokens, max(config.geometry.answer_tokens, JUDGED_TOKENS))

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield from makers(self.study, self.place)

    def settings(self) -> Mapping[str, Any]:
        judge = self.study.settings["behaviour"]["refusal_judge"]
        own = {"max_new_tokens": self.tokens, "judge": judge}
        return {**self.study.anchor_settings(self.place), **own}

    def size(self) -> str:
        return f"answers to the selection prompts, {self.tokens} tokens"

    def run(self, work: Work) -> Selected:
        sets = work.of(Prompts, None)
        harmful, harmless = sets.selection_harmful.prompts, sets.selection_harmless.prompts
        rows = short_answers(work, [*harmful, *harmless], self.tokens)
        return Selected(tuple(rows[: len(harmful)]), tuple(rows[len(harmful) :]))

    def summary(self, result: Selected) -> Mapping[str, Any]:
        harmful, harmless = result.refusal_rates
        return {"harmful_refusal_rate": harmful, "harmless_refusal_rate": harmless}


def short_answers(work: Work, prompts: Sequence[Prompt], tokens: int) -> list[SelectionAnswer]:
    """Judged answers of the anchor in hand, of at most so many tokens."""
    loaded = work.open()
    with work.progressing(f"{work.entry.stage.kind} answers", len(prompts)) as progress:
        completions = generate(
            loaded,
            work.chat(loaded),
            [row.user_text for row in prompts],
            max_new_tokens=tokens,
            batch_size=work.batch.generate,
            progress=progress,
        )
    verdicts = work.judge.judge(
        [Exchange(row.text, one.text, row.context) for row, one in zip(prompts, completions, strict=True)]
    )
    return [
        SelectionAnswer(row.id, one.text, tuple(one.ids), verdict.verdict)
        for row, one, verdict in zip(prompts, completions, verdicts, strict=True)
    ]
