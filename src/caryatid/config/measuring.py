"""How geometry and causality are measured, and what the verdict asks for."""

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..geometry.profiles import CALIBRATED, PROFILES, PUBLISHED, Profile
from .part import Domain, Fraction, NonNegative, Part, Positive


class ConeConfig(Part):
    """Refusal cones: orthogonal directions that each carry refusal, found by gradient (docs/geometry.md)."""

    enabled: bool = Field(False, description="Whether cones are looked for at every anchor.")
    max_dimension: Positive = Field(
        5, description="Most dimensions; the search stops at the first that fails."
    )
    prompts: Positive = Field(24, description="Extraction prompts of each kind that a cone is fitted to.")
    starts: Positive = Field(
        3, description="Beginnings of the descent: what is known, the others random; the best counts."
    )
    steps: Positive = Field(20, description="Steps of the descent at most; it stops where the loss is flat.")
    draws: Positive = Field(8, description="Controls beside each cone.")
    least_effect: Fraction = Field(
        0.1, description="What the weakest edge must remove beyond the controls, as a share of the gap."
    )


class GeometryConfig(Part):
    """Directions, the scored candidates, rank and drift."""

    positions: Literal["all", "last"] = Field("all", description="Post-instruction positions scored.")
    scored_depth: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Score layers l < ⌊scored_depth · L⌋ only; profiles admit those below 0.8.",
    )
    layer_stride: Positive = Field(
        1, description="Score every so many of them, counted down from the deepest."
    )
    profile: Literal["auto", "published", "calibrated"] = Field(
        "auto",
        description="auto: published if it admits a carrier at step 0, else calibrated; decided at step 0 alone.",
    )
    published: Annotated[Profile, Domain()] = PUBLISHED
    calibrated: Annotated[Profile, Domain()] = CALIBRATED
    selector: Literal["bypass", "cosmic"] = Field(
        "bypass",
        description="What picks the carrier among admissible candidates: lowest bypass, or COSMIC's highest score, "
        "which asks for KL and depth alone.",
    )
    min_gap: float = Field(
        1.0, gt=0, description="Nats between h and s below which no carrier is looked for."
    )
    answer_tokens: Positive = Field(8, description="First answer tokens over which the second KL is taken.")
    discard_below: float | None = Field(
        None,
        description="Early discard: candidates that remove less than this share of the gap on the first "
        "`discard_after` harmful prompts are not scored further; null: all are scored.",
    )
    discard_after: Positive = Field(8, description="Harmful prompts on which early discard is decided.")
    rank: Positive = Field(3, description="k of the rank-k subspaces.")
    bootstrap_draws: Annotated[int, Field(ge=100)] = 1000
    reextraction_resamples: NonNegative = Field(
        100, description="Resamples of the extraction prompts whose directions are scored anew; 0: none."
    )
    reextraction_candidates: Positive = Field(
        8,
        description="Candidates scored in each of these, those most often chosen over the selection prompts; "
        "where these leave many draws without a carrier, further ones are scored (docs/geometry.md).",
    )
    splits: Annotated[int, Field(ge=20)] = 200
    cone: ConeConfig = ConeConfig()
    attribution: bool = Field(
        False, description="Whether it is asked at every anchor which sublayers write the carrier."
    )

    @field_validator("published", "calibrated", mode="before")
    @classmethod
    def _other_thresholds_stay(cls, value: object, info: ValidationInfo) -> object:
        """A profile of which some thresholds are named keeps its others."""
        own = PROFILES[str(info.field_name)]
        return {**asdict(own), **value, "name": own.name} if isinstance(value, dict) else value


class CausalConfig(Part):
    """Interventions, their controls, and transfer."""

    ranks: tuple[Positive, ...] = Field((1, 3), description="Ranks ablated beside random controls.")
    alphas: tuple[float, ...] = Field((0.5, 1.0), description="Added beside controls, in units of ‖r‖.")
    sweep_ranks: tuple[Positive, ...] = Field(
        (1, 2, 3, 4, 5), description="Ranks of the dose response, teacher-forced, without controls."
    )
    sweep_alphas: tuple[float, ...] = Field(
        (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
        description="α of the dose response, teacher-forced, without controls.",
    )
    sweeps_at: Literal["none", "key", "all"] = Field(
        "all", description="Anchors with a dose response; key: step 0, the most closed and each arm's last."
    )
    localise_at: Literal["none", "key", "all"] = Field(
        "all", description="Anchors at which the carrier is ablated at one layer at a time."
    )
    localise_stride: Positive = Field(1, description="Every so many layers, counted down from the last.")
    random_draws: Annotated[int, Field(ge=1)] = Field(8, description="Random subspaces per rank.")
    unmatched_controls: tuple[Literal["isotropic", "covariance"], ...] = Field(
        (),
        description="Further random subspaces, as drawn, beside those matched on mean ‖Px‖².",
    )
    variants: tuple[Literal["orthogonalised", "nullspace"], ...] = Field(
        (),
        description="The carrier without its part along the mean harmless activation, or without all that harmless "
        "activations vary along: ablated where random controls are.",
    )
    affine_alphas: tuple[float, ...] = Field(
        (),
        description="α of affine edits (ACE) beside controls: 0 sets the component to the harmless mean, 1 to the "
        "harmful one.",
    )
    prompts: Positive = Field(32, description="Prompts of each kind under every condition.")
    benign_prompts: Positive = Field(32, description="Held-out chat examples for benign KL and NLL.")
    answer_tokens: Positive = Field(24, description="First answer tokens over which these are taken.")
    controls_at: Literal["key", "all"] = Field("all", description="Anchors with random controls.")
    generated_at: Literal["key", "all"] = Field("key", description="Anchors with generated read-outs.")
    generated_controls: NonNegative = Field(
        8,
        description="Random subspaces per rank with generated read-outs, for coupling by answers; 0: controls and "
        "other directions are teacher-forced only.",
    )
    transfer_prompts: NonNegative = Field(
        0, description="HarmBench prompts that transfer is measured on; 0: all that were asked."
    )
    transfer_ranks: tuple[Positive, ...] = Field((1, 3), description="Ranks of the carriers ablated there.")
    transfer_random: Annotated[int, Field(ge=8)] = Field(
        8, description="Random subspaces beside them at every anchor, matched to its own carrier."
    )
    transfer_pairs: Literal["verdict", "all"] = Field(
        "verdict",
        description="verdict: consecutive anchors, and step 0's carrier everywhere; all: the whole matrix.",
    )

    @field_validator("alphas", "sweep_alphas")
    @classmethod
    def _some_strength(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if 0.0 in alphas or len(set(alphas)) != len(alphas):
            raise ValueError("each α once, and none of them 0 (the untouched model is always measured)")
        return alphas


class NullsConfig(Part):
    """One anchor against itself with all prompts drawn anew: how often the verdict sees what is not there."""

    redraws: NonNegative = Field(0, description="Random splits of the prompts into halves; 0: none.")
    at: Literal["first", "last"] = Field(
        "first", description="Which anchors; first: step 0; last: step 0 and the last of each arm."
    )
