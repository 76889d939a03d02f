"""Across anchors: carriers with their uncertainty, rank, drift, transfer ratios, and the verdict of each pair."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from ...artifacts import Stage, nan_to_none
from ...behaviour.judges.base import REFUSED, Exchange, Judge, judge_id
from ...behaviour.judges.phrases import RefusalPhrases
from ...causal.transfer import TransferRatio, transfer_ratio
from ...causal.transfer import transfer as transfer_rate
from ...geometry.angles import ExcessAngle, angle_summary, excess_angle
from ...geometry.bootstrap import CarrierBootstrap, shift_shares
from ...geometry.directions import category_directions, mean_difference, subspace
from ...geometry.profiles import SELECTORS, Profile
from ...geometry.rank import SiteActivations, compare_effective_rank
from ..carrier import Place, carrier_place, find_carrier, labels_of, profile_of, site_activations
from ..carrier_tables import BOTH, NAMES, PROFILES, SELECTION, UNITS, add_carrier_tables, drift_by_layer
from ..context import Context
from ..evidence import no_carrier, shift_rows
from ..plan import StagePlan
from ..rank_tables import Site, bank_rank_rows, site_rank_rows
from ..series import AnchorRef, anchors_of, transfer_sources, verdict_pairs
from ..verdict import Evidence, Thresholds, agreement, decide, sensitivity
from .intervene import read_answers
from .transfer import still_refused

Row = dict[str, Any]
ANY_SHIFT = 1e-6  # of depth, which comes in steps of 1/L


class Refused(NamedTuple):
    """Per transfer prompt: b refuses it as it is, under a's carrier, and under its own."""

    plain: Bool[np.ndarray, "prompts"]
    under_a: Bool[np.ndarray, "prompts"]
    under_b: Bool[np.ndarray, "prompts"]


def analysis(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """All tables that need several anchors, for every seed."""
    tables: dict[str, list[Row]] = {
        name: [] for name in (*NAMES, "rank", "drift", "drift_by_layer", "transfer", "shifts", "verdict")
    }
    tables["sensitivity"] = []
    for seed in context.config.seeds:
        _Seed(context, seed, tables).fill()
    tables["agreement"] = agreement(tables["verdict"])
    for name, rows in tables.items():
        stage.write_json(f"{name}.json", [nan_to_none(row) for row in rows])
    return {"verdicts": len(tables["verdict"])}


class _Seed:
    """One seed's trajectories."""

    def __init__(self, context: Context, seed: int, tables: dict[str, list[Row]]) -> None:
        self.context, self.seed, self.tables = context, seed, tables
        self.config = context.config.geometry
        self.anchors = anchors_of(context.config, seed)
        self.profile = profile_of(context.config)
        self.site = self._site(self.profile)
        self.labels = labels_of(context.prompts.extraction_harmful)
        self.places = {ref: self._at(ref, self.site) for ref in self.anchors}
        self.depths: dict[tuple[str, AnchorRef], CarrierBootstrap] = {}

    def _place(self, ref: AnchorRef, profile: Profile) -> Place:
        return carrier_place(self.context, ref, profile)

    def _site(self, profile: Profile) -> Site:
        choice, layer, position = self._place(self.anchors[0], profile)
        return Site(layer, position, choice.best is not None)

    def _at(self, ref: AnchorRef, site: Site) -> SiteActivations:
        return site_activations(self.context, ref, site.layer, site.position)

    def _excess(self, one: SiteActivations, two: SiteActivations) -> ExcessAngle:
        return excess_angle(one, two, self.labels, splits=self.config.splits, rng=self.rng())

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same for every anchor, so that anchors are compared draw by draw."""
        return np.random.default_rng(self.seed)

    def fill(self) -> None:
        for ref in self.anchors:
            for name, found in add_carrier_tables(self.context, ref, self.rng, self.tables).items():
                self.depths[name, ref] = found
            self._rank(ref)
        done = set(verdict_pairs(self.context.config, self.seed))
        for a, b in verdict_pairs(self.context.config, self.seed):
            self._verdict(a, b, self._drift(a, b))
        base = self.anchors[0]
        for ref in self.anchors[1:]:
            if (base, ref) not in done:
                self._drift(base, ref)
        for pair in sorted({*done, *((base, ref) for ref in self.anchors[1:])}):
            self.tables["drift_by_layer"] += drift_by_layer(self.context, *pair, self.rng)
        for target, sources in transfer_sources(self.context.config, self.seed).items():
            for source in sources:
                if (source, target) not in done:
                    self._transfer(source, target)

    def _where(self, ref: AnchorRef) -> Row:
        return {"seed": self.seed, "arm": ref.arm, "step": ref.step}

    def _rank(self, ref: AnchorRef) -> None:
        rows = site_rank_rows(self.places[self.anchors[0]], self.places[ref], self.labels, self.site)
        rows += bank_rank_rows(self.context, ref, self.profile)
        self.tables["rank"] += [{**self._where(ref), **row} for row in rows]

    def _drift(self, a: AnchorRef, b: AnchorRef) -> ExcessAngle:
        one, two = self.places[a], self.places[b]
        excess = self._excess(one, two)
        pair = {"seed": self.seed, "arm": b.arm, "from": a.step, "to": b.step, **self.site.columns}
        none = {"lo": float("nan"), "hi": float("nan")}
        halved = {"splits": excess.splits}
        rows: list[tuple[str, Row]] = [
            ("excess_angle", {**excess.excess._asdict(), **halved}),
            ("corrected_angle", {**excess.corrected._asdict(), **halved}),
            ("angle_across_halves", {"value": excess.across, **none, **halved}),
            ("angle_within_halves", {"value": excess.within, **none, **halved}),
        ]
        means = [mean_difference(place.harmful, place.harmless) for place in (one, two)]
        cosine = float(torch.nn.functional.cosine_similarity(means[0], means[1], dim=0))
        rows.append(("cosine", {"value": cosine, **none}))
        bases = [
            subspace(category_directions(p.harmful, p.harmless, self.labels).rows, self.config.rank).basis
            for p in (one, two)
        ]
        angles = angle_summary(bases[0], bases[1])
        compared = {**none, "rank": len(angles.angles)}  # below the rank asked for where categories span less
        for name in ("mean", "max", "grassmann", "chordal"):
            rows.append((f"subspace_{name}", {"value": getattr(angles, name), **compared}))
        for name, values in rows:
            unit = UNITS.get(name, "")
            self.tables["drift"].append(
                {**pair, "quantity": name, **values, "unit": unit, "noise": "extraction prompts"}
            )
        return excess

    def _refused(self, a: AnchorRef, b: AnchorRef, judge: Judge | None = None) -> Refused:
        """What b refuses, under nothing, under a's carrier and under its own; by the study's judge or another.

        Another judge reads the answers that the study's judge took for refusals, and what became of them.
        """
        stored = self.context.anchor_stage("transfer", b).read_json("transfer.json")
        asked, index = stored["asked"], {name: i for i, name in enumerate(stored["prompts"])}

        def spread(flags: Sequence[bool]) -> np.ndarray:
            found = np.zeros(len(index), dtype=bool)
            found[[index[name] for name in asked]] = flags
            return found

        names = [f"{ref.arm}@{ref.step}" for ref in (a, b)]
        if judge is None or not asked:
            flags = [stored["refused_under"].get(name, []) for name in names]
            return Refused(np.array(stored["refused"], dtype=bool), *map(spread, flags))
        prompts = {row.id: row for row in self.context.prompts.harmbench.prompts}
        plain = {
            row.prompt_id: row.text
            for row in read_answers(self.context, b)
            if (row.suite, row.attack) == ("harmbench", "direct")
        }

        def exchanges(answers: Sequence[str]) -> list[Exchange]:
            pairs = zip(asked, answers, strict=True)
            return [Exchange(prompts[name].text, text, prompts[name].context) for name, text in pairs]

        refused = [one.verdict in REFUSED for one in judge.judge(exchanges([plain[n] for n in asked]))]
        under = [still_refused(judge, exchanges(stored["answers"][name])) for name in names]
        return Refused(*map(spread, [refused, *under]))

    def _ratio(self, refused: Refused) -> TransferRatio:
        return transfer_ratio(*refused)

    def _transfer(self, a: AnchorRef, b: AnchorRef) -> TransferRatio:
        refused = self._refused(a, b)
        ratio = self._ratio(refused)
        common: Row = {
            "seed": self.seed,
            "arm": b.arm,
            "from": a.step,
            "to": b.step,
            "from_arm": a.arm,
            "carrier_admissible": find_carrier(self.context, a).admissible,
            "own_admissible": find_carrier(self.context, b).admissible,
            "n": int(refused.plain.sum()),
            "noise": "evaluation prompts",
        }
        rate = transfer_rate(refused.plain, refused.under_a)
        self.tables["transfer"].append({**common, "quantity": "transfer", **rate._asdict()})
        if a != b:
            note = {"reason": ratio.reason or ""}
            self.tables["transfer"].append({**common, "quantity": "ratio", **ratio.ratio._asdict(), **note})
        return ratio

    def _verdict(self, a: AnchorRef, b: AnchorRef, drift: ExcessAngle) -> None:
        pair: Row = {"seed": self.seed, "arm": b.arm, "from": a.step, "to": b.step}
        change = compare_effective_rank(self.places[a], self.places[b], self.labels).difference
        self.tables["drift"].append(
            {
                **pair,
                **self.site.columns,
                "quantity": "effective_rank_difference",
                **change._asdict(),
                "unit": "",
                "noise": "extraction prompts",
            }
        )
        ratio = self._transfer(a, b)
        evidence = Evidence(
            **self._places(self.profile, a, b),
            transfer_ratio=ratio.ratio,
            transfer_reason=ratio.reason,
            excess_angle=drift.excess,
            rank_difference=change,
            no_carrier=(self._no_carrier(a), self._no_carrier(b)),
        )
        thresholds = Thresholds(**self.context.config.verdict.model_dump())
        verdict = decide(evidence, thresholds)
        self.tables["shifts"] += [{**pair, **row} for row in shift_rows(evidence)]
        self.tables["drift"] += [{**pair, **row} for row in self._shifted(evidence)]
        self.tables["verdict"].append(
            {
                **pair,
                "label": verdict.label,
                "expansion": verdict.expansion,
                "reasons": " ".join(verdict.reasons),
                "profile": self.profile.name,
                "selector": self.profile.selector,
                "judge": judge_id(self.context.judge),
                "thresholds": json.dumps(asdict(thresholds), sort_keys=True),
            }
        )
        rows = sensitivity(evidence, thresholds) + self._choices(evidence, thresholds, a, b)
        self.tables["sensitivity"] += [{**pair, **row} for row in rows]

    def _shifted(self, evidence: Evidence) -> list[Row]:
        """How likely the two anchors differ in depth at all, and by as much as a move takes; draws without a carrier at
        one of them are in neither."""
        noise = BOTH if self.config.reextraction_resamples else SELECTION
        draws = {
            "depth": (evidence.depth_a, evidence.depth_b),
            "argmin_depth": (evidence.argmin_a, evidence.argmin_b),
        }
        shifts = {"differs": ANY_SHIFT, "moved": self.context.config.verdict.depth_shift}
        none = {"lo": float("nan"), "hi": float("nan"), "unit": "probability", "noise": noise}
        return [
            {"quantity": f"p_{name}_{what}", "value": shift_shares(*pair, shift).moved, **none}
            for name, pair in draws.items()
            for what, shift in shifts.items()
        ]

    def _draws(self, profile: Profile, ref: AnchorRef) -> CarrierBootstrap:
        return self.depths[
            profile.name if profile.selector == self.profile.selector else profile.selector, ref
        ]

    def _no_carrier(self, ref: AnchorRef) -> str:
        return no_carrier(self.tables, self.seed, ref.arm, ref.step, self.profile.name)

    def _places(self, profile: Profile, a: AnchorRef, b: AnchorRef) -> dict[str, Any]:
        one, two = self._draws(profile, a), self._draws(profile, b)
        return {
            "depth_a": one.depth_draws,
            "depth_b": two.depth_draws,
            "argmin_a": one.argmin_draws,
            "argmin_b": two.argmin_draws,
        }

    def _choices(self, evidence: Evidence, thresholds: Thresholds, a: AnchorRef, b: AnchorRef) -> list[Row]:
        """The label under each selector, profile and judge of transfer answers; a note says what stays as it was."""
        rows: list[Row] = []

        def add(setting: str, choice: str, changed: Evidence, note: str = "") -> None:
            verdict = decide(changed, thresholds)
            found = {"label": verdict.label, "expansion": verdict.expansion, "note": note}
            rows.append({"setting": setting, "threshold": None, "choice": choice, **found})

        places = self._places(self.profile, a, b)
        by_depth = {**places, "argmin_a": places["depth_a"], "argmin_b": places["depth_b"]}
        by_argmin = {**places, "depth_a": places["argmin_a"], "depth_b": places["argmin_b"]}
        add("selector", "depth and arg-min", evidence)
        add("selector", "depth", replace(evidence, **by_depth))
        add("selector", "arg-min", replace(evidence, **by_argmin))
        for selector in SELECTORS:
            if selector != self.profile.selector:
                other = replace(self.profile, selector=selector)
                add("carrier selector", selector, *self._under(other, evidence, a, b))
        for name in PROFILES:
            add("profile", name, *self._under(profile_of(self.context.config, name), evidence, a, b))
        for judge in (None, RefusalPhrases()):
            ratio = self._ratio(self._refused(a, b, judge))
            changed = replace(evidence, transfer_ratio=ratio.ratio, transfer_reason=ratio.reason)
            add("judge", judge_id(judge or self.context.judge), changed)
        return rows

    def _under(
        self, profile: Profile, evidence: Evidence, a: AnchorRef, b: AnchorRef
    ) -> tuple[Evidence, str]:
        """The evidence under a profile: places, and angle and rank at its site. Directions are not ablated anew."""
        changed = replace(evidence, **self._places(profile, a, b))
        if np.isnan(changed.depth_a).all() or np.isnan(changed.depth_b).all():
            return changed, "an anchor without a carrier"  # whatever the rest is
        site = self._site(profile)
        if site[:2] != self.site[:2]:
            one, two = self._at(a, site), self._at(b, site)
            difference = compare_effective_rank(one, two, self.labels).difference
            changed = replace(changed, excess_angle=self._excess(one, two).excess, rank_difference=difference)
        same = all(self._place(ref, profile)[1:] == self._place(ref, self.profile)[1:] for ref in (a, b))
        return changed, "" if same else "transfer of the study's own carriers"
