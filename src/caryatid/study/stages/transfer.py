"""An anchor's refusals under its own carrier and under other anchors'."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ...behaviour.judges.base import REFUSED, Exchange, Judge
from ...behaviour.outcomes import outcomes
from ...causal.conditions import Condition
from ...causal.locate import unit_row
from ...causal.readouts import generate_under
from ..series import AnchorRef, transfer_sources
from ..stage import AnyStage, Stage, register_stage
from ..subsets import judged_requests
from ..work import Work, texts_of
from .answers import Answers
from .carrier import ChosenCarrier
from .prompts import Prompts


@dataclass(frozen=True)
class RefusedUnder:
    """Per transfer prompt: the target anchor refuses it as it is, under a's carrier, and under its own."""

    plain: Bool[np.ndarray, "prompts"]
    under_a: Bool[np.ndarray, "prompts"]
    under_b: Bool[np.ndarray, "prompts"]


@dataclass(frozen=True)
class Transferred:
    """What became of an anchor's refusals.

    Attributes:
        prompts: what was asked: request, context and the plain answer, of refusals alone. refused: per prompt of the
            study's transfer prompts, whether the anchor refuses it.
        answers: to `prompts` under each source's carrier, by the source's label.
        refused_under: whether these still refuse (or are degenerate or unscored), by the study's judge.
    """

    refused: tuple[bool, ...]
    prompts: tuple[Exchange, ...]
    answers: dict[str, tuple[str, ...]]
    refused_under: dict[str, tuple[bool, ...]]

    def under(self, a: AnchorRef, b: AnchorRef) -> RefusedUnder:
        """By the study's judge."""
        plain = np.array(self.refused, dtype=bool)
        flags = [self.refused_under.get(ref.label, ()) for ref in (a, b)]
        return RefusedUnder(plain, *(self._spread(one) for one in flags))

    def judged_by(self, judge: Judge, a: AnchorRef, b: AnchorRef) -> RefusedUnder:
        """By another judge: of the answers that the study's judge took for refusals, and of what became of them."""
        if not self.prompts:
            return self.under(a, b)
        plain = [one.verdict in REFUSED for one in judge.judge(list(self.prompts))]
        under = [still_refused(judge, self.prompts, self.answers[ref.label]) for ref in (a, b)]
        return RefusedUnder(*(self._spread(flags) for flags in (plain, *under)))

    def _spread(self, flags: Sequence[bool]) -> Bool[np.ndarray, "prompts"]:
        """Flags of the refused prompts over all transfer prompts; False where nothing was refused."""
        spread = np.zeros(len(self.refused), dtype=bool)
        spread[np.flatnonzero(self.refused)] = flags if len(flags) else False
        return spread


@register_stage
class Transfer(Stage[Transferred]):
    """The answers are kept, so that another judge can read them."""

    kind, scope, result = "transfer", "anchor", Transferred

    @property
    def sources(self) -> list[AnchorRef]:
        """Whose carriers are ablated here."""
        return transfer_sources(self.config, self.place)

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Answers)
        yield from (self.at(ChosenCarrier, ref) for ref in self.sources)

    def settings(self) -> Mapping[str, Any]:
        sources = [[ref.arm, ref.step] for ref in self.sources]
        return {"sources": sources, "prompts": self.config.causal.transfer_prompts}

    def size(self) -> str:
        return f"{len(self.sources)} carriers × {self.config.causal.transfer_prompts} prompts"

    def run(self, work: Work) -> Transferred:
        causal = self.config.causal
        chosen = judged_requests(work.of(Prompts, None), causal.transfer_prompts, self.place.seed)
        plain = {row.prompt_id: row for row in work.of(Answers).to("harmbench", "direct")}
        refused = tuple(row.id in plain and plain[row.id].refused for row in chosen)
        asked = [row for row, flag in zip(chosen, refused, strict=True) if flag]
        prompts = tuple(Exchange(row.text, plain[row.id].text, row.context) for row in asked)
        answers: dict[str, tuple[str, ...]] = {}
        if asked:
            loaded = work.open()
            conditions = [
                Condition("ablate", ref.label, unit_row(work.of(ChosenCarrier, ref).carrier.direction))
                for ref in self.sources
            ]
            with work.progressing("transfer", len(conditions) * len(asked)) as progress:
                made = generate_under(
                    loaded,
                    work.chat(loaded),
                    conditions,
                    texts_of(asked),
                    max_new_tokens=self.config.behaviour.max_new_tokens,
                    batch_size=work.batch.generate,
                    progress=progress,
                )
            for source, found in zip(self.sources, made, strict=True):
                answers[source.label] = tuple(one.text for one in found)
        flags = {name: tuple(still_refused(work.judge, prompts, texts)) for name, texts in answers.items()}
        return Transferred(refused, prompts, answers, flags)

    def summary(self, result: Transferred) -> Mapping[str, Any]:
        return {"refused": len(result.prompts), "prompts": len(result.refused), "sources": len(self.sources)}


def still_refused(judge: Judge, prompts: Sequence[Exchange], answers: Sequence[str]) -> list[bool]:
    """Per answer under an intervention: not an answer that complies (refused, unscored or degenerate)."""
    pairs = [asked._replace(answer=text) for asked, text in zip(prompts, answers, strict=True)]
    return [not one.answered for one in outcomes(judge, pairs)]
