"""The verdict on a pair of anchors, with the evidence behind it and what changes when a setting does."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...behaviour.judges.base import judge_id
from ...behaviour.judges.phrases import RefusalPhrases
from ...geometry.bootstrap import bootstrap_carrier, bootstrap_reextracted
from ...geometry.carriers import KL_CUTS, PROFILES, select
from ...geometry.profiles import SELECTORS
from ..decision import Evidence, Places, decide, sensitivity
from ..profiles import profile_of
from ..reach import Reach, Sizes, reach
from ..series import AnchorRef
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .candidates import ScoredCandidates
from .carrier import ChosenCarrier
from .comparison import Comparison
from .prompts import Prompts
from .reextraction import Reextraction
from .transfer import Transfer
from .uncertainty import Uncertainty

Row = dict[str, Any]


@dataclass(frozen=True)
class Decided:
    """A verdict.

    Attributes:
        evidence: from which it follows with any thresholds. label, rank, reasons: under the study's thresholds.
        reachable: which labels this pair can get at its sizes, and what would be seen with 80 % power.
        sensitivity: rows of the `sensitivity` table, without the pair.
    """

    evidence: Evidence
    label: str
    rank: str
    reasons: tuple[str, ...]
    profile: str
    selector: str
    judge: str
    reachable: str
    thresholds: dict[str, float]
    sensitivity: tuple[Row, ...]


@register_stage
class Verdicts(Stage[Decided]):
    """From bounds to one of the labels of protocol §7."""

    kind, scope, result = "verdict", "pair", Decided

    @property
    def anchors(self) -> tuple[AnchorRef, AnchorRef]:
        """Both anchors, the earlier one first."""
        return self.place.a, self.place.b

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Prompts, None)
        yield self.at(Comparison)
        yield self.at(Transfer, self.place.b)
        for ref in self.anchors:
            yield self.at(ScoredCandidates, ref)
            yield self.at(ChosenCarrier, ref)
            yield self.at(Uncertainty, ref)
            if self.config.geometry.reextraction_resamples:
                yield self.at(Reextraction, ref)

    def settings(self) -> Mapping[str, Any]:
        geometry = self.config.geometry
        own = {"asked": geometry.profile, "draws": geometry.bootstrap_draws}
        return {"verdict": self.study.settings["verdict"], **own}

    def size(self) -> str:
        return "evidence, label, sensitivity"

    def run(self, work: Work) -> Decided:
        thresholds, used = self.config.verdict, work.of(ChosenCarrier, self.place.a).profile
        evidence = self._evidence(work, used)
        if self.config.geometry.profile == "auto":
            (other,) = [name for name in PROFILES if name != used]
            evidence = replace(evidence, other_profile=(other, self._evidence(work, other)))
        verdict = decide(evidence, thresholds)
        rows = sensitivity(evidence, thresholds) + self._choices(work, evidence, used)
        return Decided(
            evidence,
            verdict.label,
            verdict.rank,
            verdict.reasons,
            used,
            self.config.geometry.selector,
            judge_id(work.judge),
            self._reach(work).text,
            asdict(thresholds),
            tuple(rows),
        )

    def _evidence(self, work: Work, alternative: str) -> Evidence:
        """The evidence under a profile or selector. Transfer is that of the carriers that the study ablated."""
        choices = [work.of(ChosenCarrier, ref).chosen[alternative].choice for ref in self.anchors]
        change = work.of(Comparison).changes[alternative]
        return Evidence(
            places=Places.between(*(work.of(Uncertainty, ref).used(alternative) for ref in self.anchors)),
            transfer=work.of(Transfer, self.place.b).under(self.place.a, self.place.b).counts,
            cosine=change.angle.cosine,
            rank_difference=change.spread.difference,
            excess_angle=change.excess_angle,
            angle_reason=change.angle.reason or "",
            rank_reason=change.spread.reason or "",
            no_carrier=(choices[0].reason or "", choices[1].reason or ""),
        )

    def _reach(self, work: Work) -> Reach:
        """What this pair can show at its numbers of prompts, refusals and resamples."""
        transferred, config = work.of(Transfer, self.place.b), self.config
        sizes = Sizes(
            prompts=len(work.of(Prompts, None).extraction_harmful),
            transfer_prompts=len(transferred.refused),
            refusal_rate=float(np.mean(transferred.refused)),
            subspaces=transferred.subspaces,
            resamples=config.geometry.reextraction_resamples,
        )
        return reach(sizes, config.verdict)

    def _choices(self, work: Work, evidence: Evidence, used: str) -> list[Row]:
        """The label under each selector, profile, KL cut, rank and judge of transfer; a note says what stays."""
        rows: list[Row] = []
        alone = replace(evidence, other_profile=None)

        def add(
            setting: str, choice: str, changed: Evidence, note: str = "", value: float | None = None
        ) -> None:
            verdict = decide(changed, self.config.verdict)
            found = {"label": verdict.label, "rank": verdict.rank, "note": note}
            rows.append({"setting": setting, "threshold": value, "choice": choice, **found})

        for selector in SELECTORS:
            if selector != self.config.geometry.selector:
                add("carrier selector", selector, *self._under(work, selector))
        for name in PROFILES:
            add("profile", name, *self._under(work, name))
        for cut in KL_CUTS:
            add("kl_max", f"{cut:g}", *self._with_kl_cut(work, alone, used, cut), cut)
        transferred = work.of(Transfer, self.place.b)
        for rank in (one for one in transferred.ranks if transferred.measured(self.place.a, one)):
            counts = transferred.under(self.place.a, self.place.b, rank).counts
            add("transfer rank", f"{rank}", replace(alone, transfer=counts))
        for judge in (work.judge, RefusalPhrases()):
            found = transferred if judge is work.judge else transferred.judged_by(judge)
            counts = found.under(self.place.a, self.place.b).counts
            add("judge", judge_id(judge), replace(alone, transfer=counts))
        return rows

    def _under(self, work: Work, alternative: str) -> tuple[Evidence, str]:
        """The evidence under another profile or selector. Directions are not ablated anew."""
        changed = self._evidence(work, alternative)
        if any(changed.no_carrier):
            return changed, "an anchor without a carrier"  # whatever the rest is
        carriers = [work.of(ChosenCarrier, ref) for ref in self.anchors]
        sites = [(one.chosen[alternative].site, one.carrier.site) for one in carriers]
        notes = []
        if any((a.layer, a.position) != (b.layer, b.position) for a, b in sites):
            notes.append("transfer of the study's own carriers")
        if any(alternative not in work.of(Uncertainty, ref).both for ref in self.anchors):
            notes.append("without re-extracted directions, which a move takes")
        return changed, "; ".join(notes)

    def _with_kl_cut(self, work: Work, evidence: Evidence, used: str, cut: float) -> tuple[Evidence, str]:
        """Places under another KL cut; angle, rank and transfer stay those of the study's own carriers."""
        config = self.config.geometry
        profile = replace(profile_of(self.config, used), kl_max=cut)
        draws: dict[str, Any] = {"draws": config.bootstrap_draws, "min_gap": config.min_gap}
        found, reasons = [], []
        for ref in self.anchors:
            scores, rng = work.of(ScoredCandidates, ref).scores, np.random.default_rng(ref.seed)
            resamples = work.of(Reextraction, ref).resamples if config.reextraction_resamples else ()
            found.append(
                bootstrap_reextracted(scores, resamples, profile, rng=rng, **draws)
                if resamples
                else bootstrap_carrier(scores, profile, rng=rng, **draws)
            )
            reasons.append(select(scores, profile, min_gap=config.min_gap).reason or "")
        changed = replace(evidence, places=Places.between(*found), no_carrier=(reasons[0], reasons[1]))
        return changed, "angle, rank and transfer of the study's own carriers"

    def summary(self, result: Decided) -> Mapping[str, Any]:
        return {"label": result.label, "rank": result.rank}
