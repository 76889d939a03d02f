"""Settings of the attacks beside GCG. Free of torch, so that a configuration can embed them."""

from dataclasses import dataclass
from typing import Literal

from ..settings import Settings, setting
from .gcg.settings import SuffixLength, check_suffix_length

_BUDGET = "Forward tokens per behaviour, after which a search ends; null: after its steps."
_STOP = (
    "A behaviour's search ends once its target loss (nats per token) is below this; null: after its steps."
)


@dataclass(frozen=True)
class PrefillSettings(Settings):
    """How much of the target the answer begins with."""

    tokens: int = setting(0, "Tokens of the target that the answer begins with; 0: all of it.", ge=0)


@dataclass(frozen=True)
class TemplateSettings(Settings):
    """Which templates are tried."""

    file: str | None = setting(
        None,
        'JSON list of texts, or of {"name", "text"}, each with {behavior} where the request goes; null: the '
        "package's own; `embedded-refusing`: suffixes that GCG found on it.",
    )


@dataclass(frozen=True)
class RandomSearchSettings(Settings):
    """Size of a random search (arXiv 2404.02151; defaults are the released values, but for steps: 10,000 there)."""

    steps: int = setting(1000, "Steps per behaviour.", ge=0)
    width: int = setting(1, "Candidates per step; published: 1.", gt=0)
    change: int = setting(4, "Consecutive tokens that a candidate changes at most.", gt=0)
    suffix_length: SuffixLength = setting(
        25, "Tokens of the initial suffix, or [lowest, highest], from which each case draws its own."
    )
    objective: Literal["first_token", "target"] = setting(
        "first_token",
        "What is made likely: the target's first token (published: “Sure”), or all of the target.",
    )
    stop_below: float | None = setting(None, _STOP)
    token_budget: int | None = setting(None, _BUDGET, gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_suffix_length(self.suffix_length)


@dataclass(frozen=True)
class EmbeddingSettings(Settings):
    """Descent on the embeddings of a suffix (arXiv 2402.09063)."""

    steps: int = setting(100, "Steps of signed gradient descent per behaviour.", ge=0)
    rate: float = setting(
        0.1,
        "What a step adds to every entry, as a share of the root mean square of the embedding matrix.",
        gt=0,
    )
    radius: float | None = setting(
        None, "Longest perturbation of a token, in mean lengths of an embedding; null: no limit.", gt=0
    )
    suffix_length: SuffixLength = setting(
        20, "Tokens of the suffix, or [lowest, highest], from which each case draws its own."
    )
    stop_below: float | None = setting(None, _STOP)
    token_budget: int | None = setting(None, _BUDGET, gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_suffix_length(self.suffix_length)


@dataclass(frozen=True)
class BestOfNSettings(Settings):
    """Augmented prompts and drawn answers (arXiv 2412.03556; σ, temperature and the three changes as released)."""

    steps: int = setting(64, "N, augmented texts per behaviour at most.", gt=0)
    width: int = setting(8, "Texts that are asked at a time.", gt=0)
    sigma: float = setting(0.4, "Strength of the augmentation.", ge=0, le=1)
    temperature: float = setting(1.0, "Of the drawn answers.", gt=0)
    max_new_tokens: int = setting(64, "Token limit of the drawn answers.", gt=0)
    token_budget: int | None = setting(None, _BUDGET, gt=0)


@dataclass(frozen=True)
class AutoDanSettings(Settings):
    """The genetic search of AutoDAN (arXiv 2310.04451; shares and rates are the released values)."""

    steps: int = setting(100, "Generations per behaviour.", ge=0)
    width: int = setting(64, "Texts of a generation.", ge=2)
    elites: float = setting(
        0.05, "Share of a generation that goes on unchanged; at least one text does.", ge=0, le=1
    )
    crossover: float = setting(0.5, "Probability that a pair of parents is crossed.", ge=0, le=1)
    points: int = setting(5, "Places at which a pair is crossed at most.", gt=0)
    mutation: float = setting(0.01, "Probability that a text's words are replaced by synonyms.", ge=0, le=1)
    synonyms: int = setting(10, "Words of a mutated text that are replaced at most.", gt=0)
    templates: str | None = setting(
        None, "File of the texts that it begins with, as of the attack templates; null: the package's own."
    )
    stop_below: float | None = setting(None, _STOP)
    token_budget: int | None = setting(None, _BUDGET, gt=0)
