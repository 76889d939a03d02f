"""Settings of training. Free of torch, so that a configuration can embed them."""

from dataclasses import dataclass
from typing import Literal

from ..attacks.gcg.settings import GcgSettings, SearchPrecision, SuffixLength, check_suffix_length
from ..settings import Settings, setting
from .arm_settings import CatSettings, CircuitBreakerSettings, DpoSettings, LatSettings

AwayVariant = Literal["plain", "harmbench"]
Mode = Literal["lora", "full"]


@dataclass(frozen=True)
class LoraSettings(Settings):
    """Shape of the adapters."""

    r: int = setting(8, "Rank.", gt=0)
    alpha: float = setting(16.0, "Scale: the change is alpha / r · B A.", gt=0)
    dropout: float = setting(0.0, "Dropout of the adapters' inputs.", ge=0, lt=1)
    targets: str | tuple[str, ...] = setting("all-linear", "`all-linear` or module names.")


@dataclass(frozen=True)
class R2D2Settings(Settings):
    """R2D2's pool and inner attack (protocol §3; defaults are the released values)."""

    pool: int = setting(100, "N, persistent cases.", gt=0)
    cases: int = setting(8, "n, cases drawn per micro-batch.", gt=0)
    gcg_steps: int = setting(5, "m, GCG steps on each drawn case.", ge=0)
    width: int = setting(512, "Candidates per GCG step.", gt=0)
    top_k: int = setting(256, "Substitutions considered per position.", gt=0)
    suffix_length: SuffixLength = setting(
        20, "Tokens of the initial suffix; [15, 20]: drawn for each new case, as released."
    )
    restart_every: int = setting(50, "R, optimizer updates between restarts.", gt=0)
    restart_fraction: float = setting(
        0.2, "Share of the pool that restarts; the number is rounded down, as released.", ge=0, le=1
    )
    away_weight: float = setting(0.5, "Weight of the away term.", ge=0)
    toward_weight: float = setting(0.5, "Weight of the toward term.", ge=0)
    away_variant: AwayVariant = setting(
        "plain", "harmbench drops tokens with log p < −5 from the sum but not from the mean."
    )
    toward_text: str = setting("Sorry, I can't do that.", "The refusal that is trained toward.")
    static_gcg_steps: int = setting(50, "GCG steps per case made once, for r2d2_static.", ge=0)

    search_precision: SearchPrecision = setting(
        "auto", "Precision in which the inner attack's candidates are ranked (attacks/gcg/settings.py)."
    )
    rescored: int | None = setting(
        None, "Best of them that are decided in the model's own precision; null: as for GCG.", gt=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_suffix_length(self.suffix_length)

    def gcg(self, steps: int) -> GcgSettings:
        """The inner attack."""
        return GcgSettings(
            steps,
            self.width,
            self.top_k,
            self.suffix_length,
            search_precision=self.search_precision,
            rescored=self.rescored,
        )


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """What all arms share: weights trained, optimizer, chat batches; and R2D2's part."""

    mode: Mode = setting("lora", "full takes float32 weights.")
    lora: LoraSettings = setting(LoraSettings(), "Shape of the adapters.")
    learning_rate: float = setting(2e-5, "Learning rate of AdamW; 0 trains nothing.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting("constant", "Of the learning rate.")
    lr_warmup_steps: int = setting(0, "Updates in which the learning rate rises from 0.", ge=0)
    weight_decay: float = setting(0.0, "Of AdamW.", ge=0)
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm.", gt=0)
    chat_batch_size: int = setting(8, "Chat examples per micro-batch.", gt=0)
    accumulation: int = setting(4, "Micro-batches per optimizer update (released recipe: 4).", gt=0)
    mixed_precision: Literal["no", "bf16"] = setting("no", "Autocast of training; losses stay float32.")
    max_length: int = setting(512, "Tokens of a training example; longer ones are cut.", gt=0)
    gradient_checkpointing: bool = setting(False, "Compute activations again in the backward pass.")
    shard: Literal["none", "fsdp2"] = setting(
        "none",
        "fsdp2: processes that train together (torchrun) hold each block's weights in parts; LoRA on float32 only.",
    )
    r2d2: R2D2Settings = setting(R2D2Settings(), "Pool and inner attack of the adversarial arms.")
    cat: CatSettings = setting(CatSettings(), "Of the arm cat.")
    lat: LatSettings = setting(LatSettings(), "Of the arm lat.")
    circuit_breakers: CircuitBreakerSettings = setting(
        CircuitBreakerSettings(), "Of the arm circuit_breakers."
    )
    dpo: DpoSettings = setting(DpoSettings(), "Of the arm dpo.")

    @property
    def gcg_steps_per_update(self) -> int:
        """GCG steps of an optimizer update of `r2d2`, over all cases and micro-batches (protocol §3)."""
        return self.accumulation * min(self.r2d2.cases, self.r2d2.pool) * self.r2d2.gcg_steps

    def updates(self, count: int, arm: str) -> str:
        """What `count` optimizer updates of an arm consist of, in words."""
        batches = f"{self.accumulation} micro-batch" + ("es" if self.accumulation > 1 else "")
        attacks = f" and {self.gcg_steps_per_update} GCG steps" if arm == "r2d2" else ""
        return f"{count} updates of {batches}{attacks}"


@dataclass(frozen=True)
class WarmupSettings(Settings):
    """A short refusal-SFT that makes step 0 refuse."""

    steps: int = setting(40, "Optimizer updates at most.", gt=0)
    batch_size: int = setting(8, "Examples per update, of both kinds.", ge=2)
    learning_rate: float = setting(5e-4, "Constant.", gt=0)
    harmful_share: float = setting(0.5, "Share of a batch that is harmful.", ge=0, le=1)
    check_every: int = setting(0, "Check the stopping rule every so many updates, 0 = never.", ge=0)
    min_refusal: float = setting(0.5, "Stop once direct refusal on held-out rows reaches this …", ge=0, le=1)
    max_safe_refusal: float = setting(0.2, "… while refusal of harmless rows is at most this.", ge=0, le=1)
