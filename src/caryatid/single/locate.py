"""Where one model carries refusal: does it refuse, where, how sure, what does removing and adding it do, at what cost.

The same functions as a study's stages, in one pass over one model:

    answers to evaluation prompts → refusal rates → activations → refusal tokens and gap → scored candidates
    → carrier, and how sure its place is → ablated and added beside random subspaces, with the utility audit
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..artifacts import content_key
from ..behaviour.judges.base import Judge, judge_id
from ..behaviour.judges.registry import open_refusal_judge
from ..behaviour.outcomes import judged_prompts
from ..causal.conditions import Condition, ablation_conditions, addition_conditions, random_bases
from ..causal.locate import (
    Activations,
    CandidateScorer,
    CandidateSettings,
    Carrier,
    Measured,
    carrier_at,
    choose,
    extraction_activations,
    refusal_tokens_of,
    selection_prompts,
)
from ..causal.readouts import refusal_scores
from ..causal.resamples import resampled_directions, rescored
from ..data.prompts import Prompt, spread
from ..data.study_prompts import StudyPrompts, build_study_prompts
from ..geometry.bootstrap import CarrierBootstrap, bootstrap_carrier, bootstrap_reextracted, most_likely
from ..geometry.carrier_rows import candidate_table
from ..geometry.carriers import (
    MIN_GAP,
    NO_REFUSAL_BELOW,
    PROFILES,
    CandidateScores,
    CarrierChoice,
    auto_profile,
    select,
)
from ..models.batch import plan_batch_sizes
from ..models.layout import num_layers
from ..models.load import LoadedModel
from ..models.sizes import BatchSizes
from ..paths import hub_offline
from ..progress import NO_PROGRESS, Progress
from .answered import Answered, Plain, Several, Under, answers_under, chosen_rows, effects_of, summary_of
from .intervene import TOWARD_TEXT
from .located import HARMFUL, HARMLESS, NAN, REMEDIES, Located, LocateSettings
from .steps import Steps, kept_steps

VERSION = 3  # raise it when what is computed changes
SELECTION_TOKENS = 10  # enough to judge a refusal, and for the KL along the first answer tokens
RANK = 3


@dataclass(frozen=True)
class _Banks:
    """Scores of candidates, one bank a resample."""

    banks: tuple[CandidateScores, ...]


def locate(
    loaded: LoadedModel,
    settings: LocateSettings | None = None,
    *,
    system: str | None = None,
    judge: Judge | None = None,
    sets: StudyPrompts | None = None,
    out: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> Located:
    """Locate a model's refusal.

    Args:
        loaded: checked already (`models.check.check_loaded`). settings: None: by the model's device.
        judge: of refusals; None: the offline rules.
        sets: prompts; None: as the settings say. out: finished steps are kept there, and not computed again.

    Raises:
        InputError: the model or the prompts cannot be used. UsageError: `out` cannot be used.
    """
    started = time.monotonic()
    settings = settings or LocateSettings.for_device(loaded.device.type)
    sets = sets or build_study_prompts(
        source=settings.source,
        limits=settings.limits,
        seed=settings.seed,
        files=settings.files,
        offline=hub_offline(),
    )
    used = judge or open_refusal_judge()
    kept = {name: value for name, value in asdict(settings).items() if name not in ("files", "source")}
    prompts = content_key({name: one.to_json() for name, one in sets.sets.items() if name in settings.limits})
    facts = {
        **{"version": VERSION, "model": loaded.identity, "dtype": str(loaded.dtype), "system": system},
        **{"settings": kept, "prompts": prompts, "judge": judge_id(used)},
    }
    with kept_steps(out, "locate", facts) as steps:
        batch = steps.of("batch", BatchSizes, lambda: plan_batch_sizes(loaded, 512))
        model = Measured(loaded, loaded.chat(system), batch.forward, progress)
        found = _Locating(model, settings, sets, used, steps, batch.generate).run()
    progress.done()
    ended = {"notes": list(loaded.notes), "seconds": round(time.monotonic() - started, 1)}
    return replace(found, facts={**found.facts, **ended}, notes=(*found.notes, *loaded.notes))


@dataclass
class _Locating:
    """One run."""

    model: Measured
    settings: LocateSettings
    sets: StudyPrompts
    judge: Judge
    steps: Steps
    generate_batch: int

    def run(self) -> Located:
        rates = self.selection_rates
        if max(self.plain.harmful.refusal_rate, rates[0]) < NO_REFUSAL_BELOW:
            return self._nothing("no refusal", NAN, ())
        profile = PROFILES["published"]
        choice = select(
            self.baseline, profile, min_gap=MIN_GAP, harmful_refusal=rates[0], harmless_refusal=rates[1]
        )
        if not choice.gap_suffices:
            return self._nothing(str(choice.reason), choice.gap, ())
        scores = self.scores
        profile = auto_profile(scores, min_gap=MIN_GAP)
        discarded = self.settings.discard_below is not None
        chosen = choose(scores, profile, min_gap=MIN_GAP, refusal_rates=rates, early_discard=discarded)
        rows = tuple(candidate_table(scores, profile, chosen.choice))
        if chosen.choice.best is None:
            return self._nothing(str(chosen.choice.reason), chosen.choice.gap, rows, profile.name)
        sure, best = self._bootstrap(scores, chosen.choice), rows[chosen.choice.best]
        questions = torch.tensor([row.text.rstrip().endswith("?") for row in self.sets.extraction_harmless])
        labels = [row.category or "unlabelled" for row in self.sets.extraction_harmful]
        carrier = carrier_at(self.activations, chosen.site, labels, RANK, questions)
        under = self._under(carrier)
        facts = {
            **self._facts(profile.name, chosen.choice.gap),
            "carrier": {
                "layer": chosen.site.layer,
                "position": chosen.site.position,
                **{"depth": chosen.choice.depth, "depth_lo": sure.depth.lo, "depth_hi": sure.depth.hi},
                **{name: best[name] for name in ("bypass_effect", "induce_effect", "kl")},
                "p_none": sure.none_share,
            },
        }
        effects = effects_of(self.plain, under)
        return Located(
            facts | summary_of(effects),
            carrier,
            rows,
            tuple(effects),
            sure.layer_share,
            None,
            (self.sets.note,),
        )

    def _facts(self, profile: str, gap: float) -> dict[str, Any]:
        loaded, plain = self.model.loaded, self.plain
        utility = sum(plain.utility.passed) / max(len(plain.utility.passed), 1)
        return {
            "model": loaded.spec,
            "identity": loaded.identity,
            "layers": num_layers(loaded.model),
            "profile": profile,
            "refusal": {"harmful": plain.harmful.refusal_rate, "harmless": plain.harmless.refusal_rate},
            "gap": gap,
            "carrier": None,
            "reason": None,
            "ablation": dict.fromkeys(("refused", "removed", "removed_random"), NAN),
            "addition": dict.fromkeys(("induced", "induced_random"), NAN),
            "utility": {"before": utility, "ablated": NAN},
        }

    def _nothing(
        self, reason: str, gap: float, rows: tuple[dict[str, Any], ...], profile: str = "published"
    ) -> Located:
        facts = {**self._facts(profile, gap), "reason": reason}
        return Located(facts, None, rows, (), {}, REMEDIES[reason], (self.sets.note,))

    def _prompts(self, name: str) -> list[Prompt]:
        return judged_prompts(getattr(self.sets, name))

    @cached_property
    def _harmful(self) -> list[Prompt]:
        return [row for name in HARMFUL for row in self._prompts(name)]

    @property
    def _short(self) -> int:
        """Token limit of answers to the selection prompts; after thoughts more."""
        thinks = self.model.loaded.options.thinking != "off"
        return self.settings.max_new_tokens if thinks else min(SELECTION_TOKENS, self.settings.max_new_tokens)

    def _answered(
        self, what: str, rows: Sequence[Prompt], conditions: Sequence[Condition], tokens: int = 0
    ) -> Several:
        self.model.progress.start(what, len(rows) * len(conditions))
        return answers_under(
            self.model,
            self.judge,
            rows,
            conditions,
            max_new_tokens=tokens or self.settings.max_new_tokens,
            batch_size=self.generate_batch,
        )

    @cached_property
    def plain(self) -> Plain:
        """Answers of the model as it is."""
        parts = {
            "harmful": self._harmful,
            "harmless": self._prompts(HARMLESS),
            "utility": self._prompts("utility"),
        }
        parts |= {name: self._prompts(name) for name in ("selection_harmful", "selection_harmless")}

        def answered(name: str, rows: Sequence[Prompt]) -> Answered:
            tokens = self._short if "selection" in name else 0
            return self.steps.of(
                "answers",
                Answered,
                lambda: self._answered(f"answers ({name})", rows, [Condition()], tokens).each[0],
                part=name,
            )

        return Plain(**{name: answered(name, rows) for name, rows in parts.items()})

    @property
    def selection_rates(self) -> tuple[float, float]:
        """Refusal rates on the harmful and the harmless selection prompts."""
        return self.plain.selection_harmful.refusal_rate, self.plain.selection_harmless.refusal_rate

    @cached_property
    def tokens(self) -> list[int]:
        """The refusal tokens."""
        plain = self.plain
        first = [*plain.selection_harmful.first_tokens, *plain.selection_harmless.first_tokens]
        return sorted(row.token for row in refusal_tokens_of(self.model, first, TOWARD_TEXT))

    @cached_property
    def activations(self) -> Activations:
        """On the extraction prompts."""
        positions = self.model.chat.n_post
        if self.settings.positions:
            positions = min(positions, self.settings.positions)
        harmful, harmless = (
            [row.user_text for row in side]
            for side in (self.sets.extraction_harmful, self.sets.extraction_harmless)
        )
        return self.steps.of(
            "activations",
            Activations,
            lambda: extraction_activations(self.model, harmful, harmless, positions),
        )

    @cached_property
    def scorer(self) -> CandidateScorer:
        """Scores candidates on the selection prompts."""
        selection = selection_prompts(
            self.model.chat,
            [row.user_text for row in self._prompts("selection_harmful")],
            [row.user_text for row in self._prompts("selection_harmless")],
            self.plain.selection_harmless.ids,
            self.tokens,
        )
        settings = self.settings
        return CandidateScorer(
            self.model,
            self.activations,
            selection,
            CandidateSettings(
                layer_stride=settings.layer_stride,
                scored_depth=max(one.depth_fraction for one in PROFILES.values()),
                discard_below=settings.discard_below,
                discard_after=settings.discard_after,
            ),
        )

    @cached_property
    def baseline(self) -> CandidateScores:
        """The gap alone: a bank without candidates, so that a model without one costs nothing more."""
        harmful, harmless = (
            refusal_scores(
                self.model.loaded,
                [Condition()],
                self.model.chat.ids_many([row.user_text for row in self._prompts(name)]),
                self.tokens,
                batch_size=self.model.batch_size,
            )[0]
            for name in ("selection_harmful", "selection_harmless")
        )
        none, empty = np.zeros(0, dtype=np.int64), np.zeros((0, len(harmless)))
        return CandidateScores(
            none,
            none,
            self.model.n_layers,
            harmful,
            harmless,
            np.zeros((0, len(harmful))),
            *(empty, empty, empty),
        )

    @cached_property
    def scores(self) -> CandidateScores:
        """All candidates, scored."""

        def compute() -> CandidateScores:
            self.model.progress.start("candidates", self.scorer.candidates * self.scorer.passes)
            found = self.scorer.score_all()
            self.scorer.release()
            return found

        return self.steps.of("candidates", CandidateScores, compute)

    def _bootstrap(self, scores: CandidateScores, choice: CarrierChoice) -> CarrierBootstrap:
        """The carrier's place in resamples of the selection and the extraction prompts."""
        settings, profile = self.settings, choice.profile

        def rng() -> np.random.Generator:
            return np.random.default_rng(settings.seed)

        if not settings.resamples:
            return bootstrap_carrier(scores, profile, draws=settings.draws, rng=rng())
        kept = most_likely(scores, [profile], settings.likely, draws=settings.draws, rng=rng())
        grids = resampled_directions(self.scorer, settings.resamples, settings.seed)
        places, cost = scores.rows([int(index) for index in kept]), len(kept) * self.scorer.passes

        def compute(start: int, end: int) -> _Banks:
            self.model.progress.start(
                f"resamples {start + 1}–{end} of {settings.resamples}", (end - start) * cost
            )
            return _Banks(tuple(rescored(self.scorer, grids(range(start, end)), places, cosmic=False)))

        banks: list[CandidateScores] = []
        together = 2
        for start in range(0, settings.resamples, together):
            end = min(start + together, settings.resamples)
            part = self.steps.of("resamples", _Banks, partial(compute, start, end), start=start)
            banks += part.banks
        self.scorer.release()
        return bootstrap_reextracted(scores, banks, profile, draws=settings.draws, rng=rng())

    def _under(self, carrier: Carrier) -> Under:
        """Answers with the carrier, and with random subspaces, ablated or added."""
        plain = self.plain
        refused = [row for row, flag in zip(self._harmful, plain.harmful.refused, strict=True) if flag]
        answered = [
            row
            for row, one in zip(self._prompts(HARMLESS), plain.harmless.outcomes, strict=True)
            if one.answered
        ]
        benign = self.activations.at(carrier.site.layer, carrier.site.position).harmless
        generator = torch.Generator().manual_seed(self.settings.seed)
        own = carrier.span(1)
        drawn = random_bases(benign, own, draws=self.settings.controls, generator=generator).bases
        ablations = ablation_conditions(own, drawn)
        additions = addition_conditions(carrier.direction, carrier.site.layer, [1.0], drawn)
        most = max(len(answered) // 4, 8)  # controls that are added cost as much as the carrier itself
        few = spread(answered, min(most, self.settings.control_prompts or most))

        def part(name: str, rows: Sequence[Prompt], conditions: Sequence[Condition]) -> list[Answered]:
            found = self.steps.of(
                "under",
                Several,
                lambda: self._answered(name, rows, conditions),
                part=name,
                site=[carrier.site.layer, carrier.site.position],
            )
            return list(found.each)

        (ablated,) = part("refusals with the carrier ablated", self._harmful, ablations[:1])
        (utility,) = part("utility with the carrier ablated", self._prompts("utility"), ablations[:1])
        asked = spread(refused, self.settings.control_prompts or len(refused))
        controls = part("refusals with random subspaces ablated", asked, ablations[1:])
        own_removed = chosen_rows(ablated, plain.harmful.refused)
        induced = part("harmless prompts with directions added", few, additions)
        return Under(ablated, utility, (own_removed, *controls), tuple(induced))
