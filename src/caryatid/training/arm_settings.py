"""Settings of the arms beside R2D2. Free of torch, so that a configuration can embed them."""

from dataclasses import dataclass

from ..settings import Settings, setting


@dataclass(frozen=True)
class CatSettings(Settings):
    """C-AdvUL (arXiv 2405.15589; weights, cutoffs and number of steps are the released values)."""

    steps: int = setting(10, "Steps of the attack on the embeddings of each drawn request.", ge=0)
    radius: float = setting(
        0.05, "Longest perturbation of a token, in mean lengths of an embedding (released: 0.05).", gt=0
    )
    rate: float = setting(
        0.25,
        "Length of a step of signed descent as a share of the radius: its entries are rate · radius / √d.",
        gt=0,
    )
    away_weight: float = setting(0.5, "Weight of the away term.", ge=0)
    toward_weight: float = setting(0.5, "Weight of the toward term.", ge=0)
    away_cutoff: float = setting(-5.0, "Below this the away term is almost flat.")
    toward_cutoff: float = setting(0.5, "Below this the toward term is almost flat.")


@dataclass(frozen=True)
class LatSettings(Settings):
    """Targeted latent adversarial training (arXiv 2407.15549); the terms' weights are those of `r2d2`."""

    steps: int = setting(16, "Steps of the attack on the residual stream of each drawn request.", ge=0)
    radius: float = setting(
        0.05, "Longest perturbation of a token, as a share of the median length of the stream there.", gt=0
    )
    rate: float = setting(
        0.1, "Learning rate of the attack's Adam as a share of the radius: rate · radius / √d.", gt=0
    )
    depths: tuple[float, ...] = setting(
        (0.28125, 0.53125, 0.78125, 0.96875),
        "Blocks at whose input it perturbs, as shares of the depth (9, 17, 25, 31 of 32).",
    )
    embedding: bool = setting(True, "Perturb the embeddings, too.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.depths or self.embedding) or not all(0 <= depth < 1 for depth in self.depths):
            raise ValueError(f"depths {self.depths} must be in [0, 1), and some place must be perturbed")


@dataclass(frozen=True)
class CircuitBreakerSettings(Settings):
    """Representation rerouting (arXiv 2406.04313; α and the layers are the released values of Llama 3)."""

    alpha: float = setting(10.0, "α, the weight of both terms together.", ge=0)
    retain: float = setting(1.0, "A factor of the retaining term alone; 1 as released.", ge=0)
    depths: tuple[float, ...] = setting(
        (0.3125, 0.625), "Blocks at whose input it reroutes, as shares of the depth (10 and 20 of 32)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depths or not all(0 <= depth < 1 for depth in self.depths):
            raise ValueError(f"depths {self.depths} must be in [0, 1), and at least one")


@dataclass(frozen=True)
class DpoSettings(Settings):
    """Direct preference optimization (arXiv 2305.18290) of the refusal over the affirmative target."""

    beta: float = setting(0.1, "β, the strength of the tie to step 0.", gt=0)
    weight: float = setting(1.0, "Weight of the term.", ge=0)
