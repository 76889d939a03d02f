"""The study's configuration: frozen, self-validating, every setting described.

Only `cli` and `study` see these objects; everything below takes plain parameters.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HarmJudgeName = Literal[
    "harm-features",
    "harmbench-llama2",
    "harmbench-mistral",
    "strongreject-finetuned",
    "strongreject-rubric",
    "wildguard",
    "llama-guard",
]
ArmName = Literal["sft", "refusal_sft", "r2d2", "r2d2_static"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Part(BaseModel):
    """Common behaviour of all parts: no unknown keys, no changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ModelConfig(Part):
    """The backbone."""

    spec: str = Field("embedded", description="Hub id, folder, .gguf file, adapter folder, or `embedded`.")
    revision: str | None = Field(None, description="Hub revision.")
    system: str | None = Field(
        None, description="System message; null: the template's default; '': an empty one."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="null: float32 on CPU, bfloat16 on CUDA."
    )
    device: str | None = Field(None, description="null: cuda if there is one, else cpu.")
    trust_remote_code: bool = Field(False, description="Run code that comes with a checkpoint.")


class PromptConfig(Part):
    """Where prompts come from, and how many of each role."""

    source: Literal["auto", "benchmarks", "embedded"] = Field(
        "auto", description="auto: the real benchmarks where they can be had, else the embedded sets."
    )
    limits: dict[str, NonNegative] = Field(
        default_factory=dict, description="Largest number of prompts by set field, 0 = all."
    )
    files: dict[str, str] = Field(default_factory=dict, description="Your own prompt files by set field.")


class ChatConfig(Part):
    """Chat data for the SFT term that all arms share."""

    source: Literal["self_distilled", "jsonl", "dataset"] = Field(
        "self_distilled", description="Greedy answers of the backbone, a JSONL file, or a Hub dataset."
    )
    path: str | None = Field(None, description="JSONL file with `user` and `answer`, or `messages`.")
    dataset: str | None = Field(None, description="Dataset id for `datasets`.")
    split: str = Field("train", description="Split of the dataset.")
    rows: Positive = Field(2000, description="Rows used of a file or dataset.")
    heldout_rows: Positive = Field(64, description="Rows kept for perplexity and benign KL.")
    max_new_tokens: Positive = Field(128, description="Length of self-distilled answers.")

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if self.source == "jsonl" and not self.path:
            raise ValueError("source jsonl needs `path`")
        if self.source == "dataset" and not self.dataset:
            raise ValueError("source dataset needs `dataset`")
        return self


class WarmupConfig(Part):
    """A short refusal-SFT that makes step 0 refuse."""

    enabled: bool = Field(False, description="Warm the backbone before step 0.")
    steps: Positive = Field(40, description="Optimizer updates at most.")
    batch_size: Positive = Field(8, description="Examples per update, half harmful and half harmless.")
    learning_rate: float = Field(5e-4, gt=0)
    harmful_share: Fraction = Field(0.5, description="Share of a batch that is harmful.")
    check_every: NonNegative = Field(
        0, description="Check the stopping rule every so many updates, 0 = never."
    )
    min_refusal: Fraction = Field(0.5, description="Stop once direct refusal on held-out rows reaches this …")
    max_safe_refusal: Fraction = Field(0.2, description="… while refusal of harmless rows is at most this.")


class LoraPart(Part):
    """Shape of the adapters."""

    r: Positive = 8
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: str | tuple[str, ...] = Field("all-linear", description="`all-linear` or module names.")


class R2D2Config(Part):
    """R2D2's pool and inner attack (protocol §3; defaults are the released values)."""

    pool: Positive = Field(100, description="N, persistent cases.")
    cases: Positive = Field(8, description="n, cases drawn per micro-batch.")
    gcg_steps: NonNegative = Field(5, description="m, GCG steps on each drawn case.")
    width: Positive = Field(512, description="Candidates per GCG step.")
    top_k: Positive = Field(256, description="Substitutions considered per position.")
    suffix_length: Positive = Field(20, description="Tokens of the initial suffix.")
    restart_every: Positive = Field(50, description="R, optimizer updates between restarts.")
    restart_fraction: Fraction = Field(0.2, description="Share of the pool that restarts.")
    away_weight: float = Field(0.5, ge=0)
    toward_weight: float = Field(0.5, ge=0)
    away_variant: Literal["plain", "harmbench"] = Field(
        "plain", description="harmbench drops tokens with log p < −5 from the sum but not from the mean."
    )
    toward_text: str = Field("Sorry, I can't do that.", description="The refusal that is trained toward.")
    static_gcg_steps: NonNegative = Field(50, description="GCG steps per case made once, for r2d2_static.")


class TrainingConfig(Part):
    """What all arms share."""

    mode: Literal["lora", "full"] = Field("lora", description="full takes float32 weights.")
    lora: LoraPart = LoraPart()
    learning_rate: float = Field(2e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: NonNegative = 0
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    chat_batch_size: Positive = Field(8, description="Chat examples per micro-batch.")
    accumulation: Positive = Field(4, description="Micro-batches per optimizer update (released recipe: 4).")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="Autocast of training; losses stay float32."
    )
    max_length: Positive = Field(512, description="Tokens of a training example; longer ones are cut.")
    gradient_checkpointing: bool = False
    r2d2: R2D2Config = R2D2Config()


class AttackConfig(Part):
    """A GCG attack used for evaluation."""

    enabled: bool = True
    behaviours: Positive = Field(32, description="Behaviours attacked, taken from the HarmBench set.")
    steps: NonNegative = Field(500, description="GCG steps per behaviour.")
    width: Positive = 512
    top_k: Positive = 256
    suffix_length: Positive = 20


class AttacksConfig(Part):
    """Fixed-source cases are made once against step 0; adaptive ones against each anchor."""

    fixed_source: AttackConfig = AttackConfig()
    adaptive: AttackConfig = AttackConfig(enabled=False)


class HarmJudgeConfig(Part):
    """Who says whether a harmful behaviour was carried out."""

    name: HarmJudgeName = Field("harm-features", description="Offline, a published classifier, or a rubric.")
    model: str | None = Field(
        None, description="The judge's hub id, folder, or name at an endpoint; null: the published one."
    )
    base_url: str | None = Field(None, description="OpenAI-compatible endpoint; null: OPENAI_BASE_URL.")
    per_minute: float = Field(0.0, ge=0, description="Requests a minute to an endpoint, 0 = no limit.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_size: Positive = 8


class BehaviourConfig(Part):
    """Answers at every anchor."""

    suites: tuple[
        Literal["harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility", "perplexity"], ...
    ] = (
        "harmbench",
        "strongreject",
        "xstest_safe",
        "xstest_unsafe",
        "utility",
        "perplexity",
    )
    max_new_tokens: Positive = Field(512, description="Token limit of every answer.")
    refusal_judge: Literal["refusal-rules"] = "refusal-rules"
    harm_judge: HarmJudgeConfig = HarmJudgeConfig()


class ProfileConfig(Part):
    """Thresholds of an admissibility profile."""

    kl_max: float = Field(gt=0)
    induce_min: float | None = Field(None, description="Least induce score in nats (published: 0).")
    effects_min: float | None = Field(None, description="Least gap-normalised bypass and induce effects.")
    depth_fraction: float = Field(0.8, gt=0, le=1)


class GeometryConfig(Part):
    """Directions, the scored bank, rank and drift."""

    positions: Literal["all", "last"] = Field("all", description="Post-instruction positions scored.")
    layer_stride: Positive = Field(1, description="Score every so many layers, counted down from the last.")
    profile: Literal["published", "calibrated"] = "published"
    published: ProfileConfig = ProfileConfig(kl_max=0.1, induce_min=0.0)
    calibrated: ProfileConfig = ProfileConfig(kl_max=0.35, effects_min=0.5)
    min_gap: float = Field(
        1.0, gt=0, description="Nats between h and s below which no carrier is looked for."
    )
    answer_tokens: Positive = Field(8, description="First answer tokens over which the second KL is taken.")
    rank: Positive = Field(3, description="k of the rank-k subspaces.")
    bootstrap_draws: Annotated[int, Field(ge=100)] = 1000
    reextraction_resamples: NonNegative = Field(
        20, description="Resamples of the extraction prompts whose directions are scored anew; 0: none."
    )
    reextraction_candidates: Positive = Field(
        8, description="Candidates scored in each of these, those of lowest bypass."
    )
    splits: Annotated[int, Field(ge=20)] = 200


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
    transfer_prompts: Positive = Field(32, description="Evaluation prompts for the transfer table.")
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


class VerdictConfig(Part):
    """Thresholds of protocol §7."""

    depth_shift: float = Field(0.25, gt=0)
    probability: float = Field(0.95, gt=0.5, lt=1)
    replaced_below: float = Field(0.5, gt=0)
    kept_above: float = Field(0.8, gt=0)
    excess_angle: float = Field(10.0, gt=0, description="Degrees.")


class BatchConfig(Part):
    """Batch shapes. 0: chosen when the study is planned, from the device's free memory."""

    forward: NonNegative = 0
    generate: NonNegative = 0
    gcg: NonNegative = 0
    train: NonNegative = 0


class ObservedAnchor(Part):
    """A checkpoint that somebody else trained."""

    arm: str = Field("observed", min_length=1)
    step: NonNegative
    model: str | None = Field(None, description="Full weights: hub id or folder; null: the backbone.")
    revision: str | None = None
    adapter: str | None = Field(None, description="PEFT adapter folder over the backbone.")

    @field_validator("arm")
    @classmethod
    def _not_base(cls, arm: str) -> str:
        if arm == "base":
            raise ValueError("`base` is step 0's name; call the series something else")
        return arm


class StudyConfig(Part):
    """A study: what is trained, where it stops, and what is measured."""

    name: str = "study"
    seeds: tuple[NonNegative, ...] = Field((0,), min_length=1)
    model: ModelConfig = ModelConfig()
    prompts: PromptConfig = PromptConfig()
    chat: ChatConfig = ChatConfig()
    warmup: WarmupConfig = WarmupConfig()
    arms: tuple[ArmName, ...] = ("sft", "r2d2")
    anchors: tuple[NonNegative, ...] | tuple[ObservedAnchor, ...] = Field(
        (0, 50, 100, 250, 500), description="Steps at which arms stop, or checkpoints of an observed series."
    )
    training: TrainingConfig = TrainingConfig()
    attacks: AttacksConfig = AttacksConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    geometry: GeometryConfig = GeometryConfig()
    causal: CausalConfig = CausalConfig()
    verdict: VerdictConfig = VerdictConfig()
    batch: BatchConfig = BatchConfig()

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must be distinct")
        return seeds

    @field_validator("arms")
    @classmethod
    def _distinct_arms(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if not arms or len(set(arms)) != len(arms):
            raise ValueError("name at least one arm, each once")
        return arms

    @field_validator("anchors")
    @classmethod
    def _anchors_increase(
        cls, anchors: tuple[int, ...] | tuple[ObservedAnchor, ...]
    ) -> tuple[int, ...] | tuple[ObservedAnchor, ...]:
        if not anchors:
            raise ValueError("name at least one anchor")
        series = [anchor for anchor in anchors if isinstance(anchor, ObservedAnchor)]
        for arm in sorted({anchor.arm for anchor in series}):
            steps = [anchor.step for anchor in series if anchor.arm == arm]
            if steps != sorted(set(steps)):
                raise ValueError(f"steps of series {arm!r} must increase, got {steps}")
            if steps[0] == 0:
                raise ValueError("step 0 is the backbone itself; list later checkpoints only")
        if not series:
            steps = [anchor for anchor in anchors if isinstance(anchor, int)]
            if steps[0] != 0 or steps != sorted(set(steps)) or len(steps) < 2:
                raise ValueError(f"must start at 0 and increase, got {steps}")
        return anchors

    @property
    def observed(self) -> bool:
        """Whether the anchors are somebody else's checkpoints."""
        return any(isinstance(anchor, ObservedAnchor) for anchor in self.anchors)

    @property
    def observed_anchors(self) -> tuple[ObservedAnchor, ...]:
        """The observed series, empty when arms are trained."""
        return tuple(anchor for anchor in self.anchors if isinstance(anchor, ObservedAnchor))

    @property
    def steps(self) -> tuple[int, ...]:
        """The anchor steps, empty for an observed series."""
        return tuple(anchor for anchor in self.anchors if isinstance(anchor, int))
