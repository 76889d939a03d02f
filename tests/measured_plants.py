"""Planted models (`planted.py`) measured as a study measures an anchor, each once in a test run."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from caryatid.causal.activations import prompt_activations
from caryatid.causal.conditions import Condition, random_bases
from caryatid.causal.locate import (
    Activations,
    CandidateScorer,
    CandidateSettings,
    Measured,
    extraction_activations,
)
from caryatid.causal.readouts import generate_under
from caryatid.causal.scores import CandidateDirections, SelectionPrompts
from caryatid.geometry.bootstrap import most_likely
from caryatid.geometry.carriers import CALIBRATED, CandidateScores, CarrierChoice, select
from caryatid.geometry.directions import unit
from caryatid.geometry.rank import SiteActivations
from caryatid.geometry.spread import SpreadComparison, compare_spread
from caryatid.geometry.turn import CorrectedAngle, corrected_angle
from caryatid.models.generate import Decoding, generate
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.stats import bootstrap_indices
from planted import (
    Plant,
    axis,
    categories,
    harmful_texts,
    harmless_texts,
    planted,
    refusal_ids,
    rotated,
    utility_texts,
)

EXTRACTION, SELECTION, EVALUATION = 32, 16, 24
RESAMPLES = 30  # of the extraction prompts: where all agree they show a probability of 0.9
SITE = 4  # after every writer used here, and before every reader has written


@dataclass(frozen=True, eq=False)
class Anchor:
    loaded: LoadedModel
    chat: ChatFormat
    activations: Activations
    scorer: CandidateScorer
    scores: CandidateScores
    choice: CarrierChoice

    @property
    def direction(self) -> torch.Tensor:
        """r at the carrier, or at the site where there is no carrier."""
        harmful, harmless = self.activations.at(SITE if self.choice.layer is None else self.choice.layer, -1)
        return (harmful.mean(dim=0) - harmless.mean(dim=0)).float()

    def site(self) -> SiteActivations:
        return self.activations.at(SITE, -1)

    @cached_property
    def resamples(self) -> list[CandidateScores]:
        """The likeliest four candidates with directions from resampled prompts, the same prompts at every anchor."""
        kept = most_likely(self.scores, [CALIBRATED], 4, draws=200, rng=np.random.default_rng(0))
        layers = tuple(int(self.scores.layers[index]) for index in kept)
        rng = np.random.default_rng(0)
        rows = [bootstrap_indices(EXTRACTION, RESAMPLES, rng) for _ in ("harmful", "harmless")]
        grids = [self.scorer.directions(up, down)[0, list(layers)] for up, down in zip(*rows, strict=True)]
        count = len(layers)
        flat = CandidateDirections(torch.cat(grids), (-1,) * (count * RESAMPLES), layers * RESAMPLES)
        found = self.scorer.score(flat, cosmic=False)
        return [found.rows(range(n * count, (n + 1) * count)) for n in range(RESAMPLES)]


def measure(plant: Plant, sample: int = 0) -> Anchor:
    """Activations and scored bank at the last position; `sample` draws the prompts."""
    loaded = planted(plant)
    chat = ChatFormat(loaded.tokenizer, "")
    model, seed = Measured(loaded, chat, 128), 10_000 * sample
    activations = extraction_activations(
        model, harmful_texts(EXTRACTION, seed), harmless_texts(EXTRACTION, seed + 1000), 1
    )
    kept = harmless_texts(SELECTION, seed + 3000)
    answers = [c.ids for c in generate(loaded, chat, kept, Decoding(3, SELECTION))]
    selection = SelectionPrompts(
        chat.ids_many(harmful_texts(SELECTION, seed + 2000)),
        chat.ids_many(kept),
        answers,
        refusal_ids(loaded),
    )
    scorer = CandidateScorer(model, activations, selection, CandidateSettings(answer_tokens=2))
    scores = scorer.score_all()
    return Anchor(loaded, chat, activations, scorer, scores, select(scores, CALIBRATED))


@lru_cache(maxsize=32)
def known(name: str) -> Anchor:
    return measure(PLANTS[name])


PLANTS = {
    "plant": Plant(),
    "same": Plant(),
    "early": Plant(writer=0, reader=1),
    "written early": Plant(
        writer=0
    ),  # read where "plant" is: the centre of mass moves by half as much as the depth
    "turned": Plant(direction=rotated(30)),
    "turned a little": Plant(direction=rotated(4)),
    "other": Plant(direction=axis(1)),
    "early other": Plant(writer=0, reader=1, direction=axis(1)),
    "two": Plant(second=axis(1)),
    "none": Plant(strength=0.0),
    "late": Plant(writer=3, reader=6),
    "coupled": Plant(utility=1.0),
    "one block earlier": Plant(writer=1),
    "other, one block earlier": Plant(writer=1, direction=axis(1)),
    "turned 7°": Plant(direction=rotated(7)),
    "turned 13°": Plant(direction=rotated(13)),
    "turned 45°": Plant(direction=rotated(45)),
    "turned 54°": Plant(direction=rotated(54)),
    "turned 60°": Plant(direction=rotated(60)),
    # one category of four turned
    "a quarter turned 45°": Plant(second=rotated(45), second_from=3),
    "a quarter turned 60°": Plant(second=rotated(60), second_from=3),
    # three categories early and one late, more or less along the same direction
    "mostly early": Plant(writer=0, second=rotated(30), second_from=3, second_writer=2),
    "partly early": Plant(writer=0, second=rotated(45), second_from=3, second_writer=2),
    # two categories of four along another direction
    "split 30°": Plant(second=rotated(30)),
    "split 50°": Plant(second=rotated(50)),
}


def refusals(anchor: Anchor, conditions: list[Condition], texts: list[str]) -> np.ndarray:
    """[conditions, prompts]: whether the generated answer is the refusal."""
    answers = generate_under(anchor.loaded, anchor.chat, conditions, texts, max_new_tokens=2, batch_size=64)
    return np.array([[one.text.startswith("Z") for one in row] for row in answers])


def controls_of(anchor: Anchor) -> torch.Tensor:
    """Random directions that hold as much of harmless prompts and utility questions as the carrier does."""
    useful = prompt_activations(
        anchor.loaded,
        anchor.chat.ids_many(utility_texts(EXTRACTION, 4000)),
        n_positions=1,
        batch_size=EXTRACTION,
    )
    benign = torch.cat([anchor.activations.harmless, useful])[:, SITE, -1]
    carrier = unit(anchor.direction)[None]
    return random_bases(benign, carrier, draws=8, generator=torch.Generator().manual_seed(0)).bases


def turn(a: Anchor, b: Anchor, *, paired: bool = True) -> CorrectedAngle:
    """`paired`: measured on the same prompts."""
    return corrected_angle(a.site(), b.site(), categories(EXTRACTION) if paired else None, paired=paired)


def rank_change(a: Anchor, b: Anchor, *, paired: bool = True) -> SpreadComparison:
    """`paired`: measured on the same prompts."""
    labels = categories(EXTRACTION)
    return compare_spread(a.site(), b.site(), labels, categories_b=None if paired else labels)
