"""An anchor's refusals under its own carrier and under other anchors'."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...behaviour.judges.base import REFUSED, Exchange, Judge, judge_answers
from ...behaviour.outcomes import outcomes
from ...causal.conditions import Condition, random_bases
from ...causal.locate import Carrier
from ...causal.readouts import generate_under
from ...causal.transfer import TransferCounts, transfer_counts
from ...config import StudyConfig
from ...data.prompts import Prompt
from ..costs import Sizes, WorkUnits, decoding
from ..series import AnchorRef, transfer_sources
from ..stage import AnyStage, Stage, register_stage
from ..subsets import judged_requests
from ..work import Work, texts_of
from .activations import Activations
from .answers import Answers
from .carrier import ChosenCarrier
from .prompts import Prompts

RANDOM = "random"


@dataclass(frozen=True)
class RefusedUnder:
    """Per transfer prompt: the target anchor still refuses it, as it is or with a subspace ablated."""

    plain: Bool[np.ndarray, "prompts"]
    old: Bool[np.ndarray, "prompts"]
    own: Bool[np.ndarray, "prompts"]
    random: Bool[np.ndarray, "subspaces prompts"]

    @property
    def counts(self) -> TransferCounts:
        """What the verdict needs."""
        return transfer_counts(self.plain, self.old, self.own, self.random)


@dataclass(frozen=True)
class Transferred:
    """What became of an anchor's refusals.

    Attributes:
        asked: ids of the study's transfer prompts. refused: whether the anchor refuses each.
        prompts: what was asked: request, context and the plain answer, of refusals alone.
        answers: to `prompts` with a subspace ablated, by `source#rank` or `random#rank#draw`.
        refused_under: whether these still refuse (or are degenerate or unscored), by the study's judge.
        ranks: of the subspaces. subspaces: random ones of each rank.
    """

    asked: tuple[str, ...]
    refused: tuple[bool, ...]
    prompts: tuple[Exchange, ...]
    answers: dict[str, tuple[str, ...]]
    refused_under: dict[str, tuple[bool, ...]]
    ranks: tuple[int, ...]
    subspaces: int

    def measured(self, a: AnchorRef, rank: int) -> bool:
        """Whether a's carrier has this rank (or there was no refusal to look at)."""
        return not self.prompts or f"{a.label}#{rank}" in self.answers

    def under(self, a: AnchorRef, b: AnchorRef, rank: int = 1) -> RefusedUnder:
        """By the study's judge: under a's carrier, b's own, and the random subspaces, all of one rank (`measured`)."""
        names = [f"{a.label}#{rank}", f"{b.label}#{rank}"]
        names += [f"{RANDOM}#{rank}#{draw}" for draw in range(self.subspaces)]
        flags = [self.spread(self.refused_under[name] if self.prompts else ()) for name in names]
        plain = np.array(self.refused, dtype=bool)
        return RefusedUnder(plain, flags[0], flags[1], np.array(flags[2:]))

    def judged_by(self, judge: Judge) -> "Transferred":
        """The same by another judge, which reads what the study's judge took for refusals and what became of it."""
        plain = [one.verdict in REFUSED for one in judge_answers(judge, self.prompts)]
        under = {
            name: tuple(still_refused(judge, self.prompts, texts)) for name, texts in self.answers.items()
        }
        spread = tuple(bool(flag) for flag in self.spread(plain))
        kept = {name: tuple(np.array(flags)[plain].tolist()) for name, flags in under.items()}
        asked = tuple(one for one, flag in zip(self.prompts, plain, strict=True) if flag)
        return replace(self, refused=spread, prompts=asked, refused_under=kept)

    def spread(self, flags: Sequence[bool]) -> Bool[np.ndarray, "prompts"]:
        """Flags of the refused prompts over all transfer prompts; False where nothing was refused."""
        spread = np.zeros(len(self.refused), dtype=bool)
        spread[np.flatnonzero(self.refused)] = flags if len(flags) else False
        return spread


@register_stage
class Transfer(Stage[Transferred]):
    """The answers are kept, so that another judge can read them. Every source meets the same random subspaces."""

    kind, scope, result = "transfer", "anchor", Transferred

    @property
    def sources(self) -> list[AnchorRef]:
        """Whose carriers are ablated here."""
        return transfer_sources(self.config, self.place)

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Answers)
        yield self.at(Activations)
        yield from (self.at(ChosenCarrier, ref) for ref in self.sources)

    def settings(self) -> Mapping[str, Any]:
        causal = self.study.settings["causal"]
        own = {key: causal[key] for key in ("transfer_prompts", "transfer_ranks", "transfer_random")}
        return {"sources": [[ref.arm, ref.step] for ref in self.sources], **own}

    def size(self) -> str:
        causal = self.config.causal
        return (
            f"{len(self.sources)} carriers and {causal.transfer_random} random subspaces of ranks "
            f"{list(causal.transfer_ranks)} × {causal.transfer_prompts or 'all'} prompts"
        )

    def work_units(self, sizes: Sizes) -> WorkUnits:
        causal, batch = self.config.causal, self.study.facts.batch["generate"]
        under = len(causal.transfer_ranks) * (len(self.sources) + causal.transfer_random)
        rows, tokens = under * asked_count(self.config, sizes), sizes.tokens["harmbench"]
        return decoding(rows, tokens, self.config.behaviour.max_new_tokens, batch)

    def run(self, work: Work) -> Transferred:
        causal, requests = self.config.causal, transfer_requests(work)
        ranks = tuple(rank for rank in causal.transfer_ranks if rank in self._own(work).ranks)
        answers: dict[str, tuple[str, ...]] = {}
        if requests.asked:
            answers = answers_under(work, self._conditions(work, ranks), requests.asked)
        prompts = requests.exchanges
        flags = {name: tuple(still_refused(work.judge, prompts, texts)) for name, texts in answers.items()}
        ids = tuple(row.id for row in requests.chosen)
        return Transferred(ids, requests.refused, prompts, answers, flags, ranks, causal.transfer_random)

    def _own(self, work: Work) -> Carrier:
        return work.of(ChosenCarrier).carrier

    def _conditions(self, work: Work, ranks: Sequence[int]) -> dict[str, Condition]:
        """Every source's carrier at every rank that it has, and random subspaces matched to this anchor's own."""
        own = self._own(work)
        benign = work.of(Activations).at(own.site.layer, own.site.position).harmless
        generator = torch.Generator().manual_seed(self.place.seed)
        found: dict[str, Condition] = {}
        for rank in ranks:
            for ref in self.sources:
                carrier = work.of(ChosenCarrier, ref).carrier
                if rank in carrier.ranks:
                    found[f"{ref.label}#{rank}"] = Condition("ablate", ref.label, carrier.span(rank))
            drawn = random_conditions(benign, own.span(rank), self.config.causal.transfer_random, generator)
            found |= {f"{RANDOM}#{rank}#{draw}": each for draw, each in enumerate(drawn)}
        return found

    def summary(self, result: Transferred) -> Mapping[str, Any]:
        return {"refused": len(result.prompts), "prompts": len(result.refused), "sources": len(self.sources)}


@dataclass(frozen=True)
class Requests:
    """The transfer prompts of an anchor, whether it refuses each, and its plain answers by the prompt's id."""

    chosen: tuple[Prompt, ...]
    refused: tuple[bool, ...]
    plain: dict[str, str]

    @property
    def asked(self) -> list[Prompt]:
        """Those that it refuses: asked again under ablation."""
        return [row for row, flag in zip(self.chosen, self.refused, strict=True) if flag]

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The refusals."""
        return tuple(Exchange(row.text, self.plain[row.id], row.context) for row in self.asked)


def transfer_requests(work: Work) -> Requests:
    """What transfer is measured on at the anchor in hand."""
    seed = work.entry.stage.place.seed
    chosen = judged_requests(work.of(Prompts, None), work.study.config.causal.transfer_prompts, seed)
    plain = {row.prompt_id: row for row in work.of(Answers).to("harmbench", "direct")}
    refused = tuple(row.id in plain and plain[row.id].refused for row in chosen)
    return Requests(tuple(chosen), refused, {key: row.text for key, row in plain.items()})


def asked_count(config: StudyConfig, sizes: Sizes) -> float:
    """Requests that an anchor is taken to refuse."""
    wanted, there = config.causal.transfer_prompts, sizes.counts["harmbench"]
    return sizes.refusal_rate * (min(wanted, there) if wanted else there)


def random_conditions(
    benign: Float[Tensor, "prompts d"], span: Float[Tensor, "rank d"], draws: int, generator: torch.Generator
) -> list[Condition]:
    """Ablations of random subspaces matched to a carrier's."""
    drawn = random_bases(benign, span, draws=draws, generator=generator)
    return [Condition("ablate", RANDOM, basis, draw=draw) for draw, basis in enumerate(drawn.bases)]


def answers_under(
    work: Work, conditions: Mapping[str, Condition], asked: Sequence[Prompt]
) -> dict[str, tuple[str, ...]]:
    """The answers of the anchor in hand to some requests under each condition."""
    loaded = work.open()
    total = len(conditions) * len(asked)
    with work.kept("answers"), work.progressing(work.entry.stage.kind, total) as progress:
        made = generate_under(
            loaded,
            work.chat(loaded),
            list(conditions.values()),
            texts_of(asked),
            max_new_tokens=work.study.config.behaviour.max_new_tokens,
            batch_size=work.batch.generate,
            progress=progress,
        )
    return {name: tuple(one.text for one in found) for name, found in zip(conditions, made, strict=True)}


def still_refused(judge: Judge, prompts: Sequence[Exchange], answers: Sequence[str]) -> list[bool]:
    """Per answer under an intervention: not an answer that complies (refused, unscored or degenerate)."""
    pairs = [asked._replace(answer=text) for asked, text in zip(prompts, answers, strict=True)]
    return [not one.answered for one in outcomes(judge, pairs)]
