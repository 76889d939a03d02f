"""The verdict on a pair of anchors, with the evidence behind it and what changes when a setting does."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...behaviour.judges.base import judge_id
from ...behaviour.judges.phrases import RefusalPhrases
from ...causal.transfer import TransferRatio, transfer_ratio
from ...geometry.profiles import SELECTORS
from ..profiles import profile_of
from ..stage import AnyStage, Stage, register_stage
from ..verdict import Evidence, Thresholds, decide, sensitivity
from ..work import Work
from .carrier import ChosenCarrier
from .comparison import Comparison
from .transfer import RefusedUnder, Transfer
from .uncertainty import Uncertainty

Row = dict[str, Any]


@dataclass(frozen=True)
class Decided:
    """A verdict.

    Attributes:
        evidence: from which it follows with any thresholds. label, expansion, reasons: under the study's thresholds.
        sensitivity: rows of the `sensitivity` table, without the pair.
    """

    evidence: Evidence
    label: str
    expansion: bool
    reasons: tuple[str, ...]
    profile: str
    selector: str
    judge: str
    thresholds: dict[str, float]
    sensitivity: tuple[Row, ...]


@register_stage
class Verdicts(Stage[Decided]):
    """From intervals to one of the labels of protocol §7."""

    kind, scope, result = "verdict", "pair", Decided

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Comparison)
        yield self.at(Transfer, self.place.b)
        for ref in (self.place.a, self.place.b):
            yield self.at(ChosenCarrier, ref)
            yield self.at(Uncertainty, ref)

    def settings(self) -> Mapping[str, Any]:
        return {"verdict": self.study.settings["verdict"]}

    def size(self) -> str:
        return "evidence, label, sensitivity"

    def run(self, work: Work) -> Decided:
        profile, thresholds = profile_of(self.config), Thresholds(**self.study.settings["verdict"])
        under = self._refused(work)
        ratio = transfer_ratio(under.plain, under.under_a, under.under_b)
        evidence = self._evidence(work, profile.name, ratio)
        verdict = decide(evidence, thresholds)
        rows = sensitivity(evidence, thresholds) + self._choices(work, evidence, thresholds)
        return Decided(
            evidence,
            verdict.label,
            verdict.expansion,
            verdict.reasons,
            profile.name,
            profile.selector,
            judge_id(work.judge),
            asdict(thresholds),
            tuple(rows),
        )

    def _refused(self, work: Work) -> RefusedUnder:
        return work.of(Transfer, self.place.b).under(self.place.a, self.place.b)

    def _evidence(self, work: Work, alternative: str, ratio: TransferRatio) -> Evidence:
        """The evidence under a profile or selector. Transfer is that of the carriers that the study ablated."""
        carriers = [work.of(ChosenCarrier, ref).chosen[alternative] for ref in (self.place.a, self.place.b)]
        one, two = (work.of(Uncertainty, ref).used(alternative) for ref in (self.place.a, self.place.b))
        change = work.of(Comparison).changes[alternative]
        reasons = [chosen.choice.reason or "" for chosen in carriers]
        return Evidence(
            depth_a=one.depth_draws,
            depth_b=two.depth_draws,
            argmin_a=one.argmin_draws,
            argmin_b=two.argmin_draws,
            transfer_ratio=ratio.ratio,
            transfer_reason=ratio.reason,
            excess_angle=change.excess_angle,
            rank_difference=change.rank_difference,
            no_carrier=(reasons[0], reasons[1]),
        )

    def _choices(self, work: Work, evidence: Evidence, thresholds: Thresholds) -> list[Row]:
        """The label under each selector, profile and judge of transfer answers; a note says what stays as it was."""
        rows: list[Row] = []
        own = profile_of(self.config)

        def add(setting: str, choice: str, changed: Evidence, note: str = "") -> None:
            verdict = decide(changed, thresholds)
            found = {"label": verdict.label, "expansion": verdict.expansion, "note": note}
            rows.append({"setting": setting, "threshold": None, "choice": choice, **found})

        add("selector", "depth and arg-min", evidence)
        add("selector", "depth", replace(evidence, argmin_a=evidence.depth_a, argmin_b=evidence.depth_b))
        add("selector", "arg-min", replace(evidence, depth_a=evidence.argmin_a, depth_b=evidence.argmin_b))
        for selector in SELECTORS:
            if selector != own.selector:
                add("carrier selector", selector, *self._under(work, selector, evidence))
        for name in ("published", "calibrated"):
            add("profile", name, *self._under(work, name, evidence))
        transferred = work.of(Transfer, self.place.b)
        for judge in (None, RefusalPhrases()):
            under = (
                self._refused(work)
                if judge is None
                else transferred.judged_by(judge, self.place.a, self.place.b)
            )
            ratio = transfer_ratio(under.plain, under.under_a, under.under_b)
            changed = replace(evidence, transfer_ratio=ratio.ratio, transfer_reason=ratio.reason)
            add("judge", judge_id(judge or work.judge), changed)
        return rows

    def _under(self, work: Work, alternative: str, evidence: Evidence) -> tuple[Evidence, str]:
        """The evidence under another profile or selector. Directions are not ablated anew."""
        ratio = TransferRatio(evidence.transfer_ratio, evidence.transfer_reason)
        changed = self._evidence(work, alternative, ratio)
        if np.isnan(changed.depth_a).all() or np.isnan(changed.depth_b).all():
            return changed, "an anchor without a carrier"  # whatever the rest is
        carriers = [work.of(ChosenCarrier, ref) for ref in (self.place.a, self.place.b)]
        same = all(
            (one.chosen[alternative].site.layer, one.chosen[alternative].site.position)
            == (one.carrier.site.layer, one.carrier.site.position)
            for one in carriers
        )
        return changed, "" if same else "transfer of the study's own carriers"

    def summary(self, result: Decided) -> Mapping[str, Any]:
        return {"label": result.label, "expansion": result.expansion}
