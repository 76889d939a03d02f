"""The study's configuration: frozen, self-validating, every setting described.

Only `cli` and `study` see these objects; everything below takes plain parameters.
"""

import datetime as dt
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..attacks.builtin import attack_named
from ..attacks.gcg.settings import GcgSettings
from ..behaviour.judges.base import JudgeSpec
from ..behaviour.judges.registry import judge_names
from ..errors import UsageError
from ..models.chat_options import ChatOptions
from ..models.device_map import check_device_map
from ..models.sizes import BatchSizes
from ..settings import Settings, setting
from ..training.settings import TrainingSettings, WarmupSettings
from .measuring import CausalConfig, GeometryConfig, NullsConfig
from .names import PromptSetName
from .part import Domain, NonNegative, Part, Positive, model_of
from .thresholds import Thresholds


class ModelConfig(Part):
    """The backbone."""

    spec: str = Field(
        "embedded",
        description="Hub id, folder, .gguf file, adapter folder, `embedded`, or `embedded-refusing`.",
    )
    revision: str | None = Field(None, description="Hub revision.")
    system: str | None = Field(
        None, description="System message; null: the template's default; '': an empty one."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="null: float32 on CPU, bfloat16 on CUDA."
    )
    device: str | None = Field(None, description="null: cuda if there is one, else cpu.")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] | None = (
        Field(
            None,
            description="Instead of device: a model that is too large for one GPU is placed over several, as "
            "transformers does it; a mapping names each module's device.",
        )
    )
    matmul: Literal["highest", "high"] = Field(
        "highest",
        description="Products of float32 on CUDA; high: TF32, several times as fast, 10-bit mantissas.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with a checkpoint.")
    thinking: Literal["off", "strip", "keep"] = Field(
        "off",
        description="off: answers follow an empty thought; strip: the model thinks, what follows is its answer; keep: "
        "the template as it is.",
    )
    template_args: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the chat template, such as enable_thinking or effort."
    )
    date: str | None = Field(
        None, description="What a template that asks for today gets, YYYY-MM-DD; null: a fixed day."
    )
    template: str | None = Field(
        None,
        description="Name of one of the tokenizer's chat templates, or a .jinja file; null: its own.",
    )

    @field_validator("date", mode="before")
    @classmethod
    def _yaml_date(cls, value: object) -> object:
        return (
            value.isoformat() if isinstance(value, dt.date) else value
        )  # YAML reads an unquoted date as one

    @model_validator(mode="after")
    def _options_are_possible(self) -> Self:
        try:
            _ = self.chat_options
            if self.device_map is not None:
                check_device_map(self.device_map)
        except UsageError as error:
            raise ValueError(f"{error.where}: {error.what}") from error
        if self.device is not None and self.device_map is not None:
            raise ValueError("device and device_map: only one of them can say where it goes")
        return self

    def placed(self, device: str) -> dict[str, Any]:
        """Where its models go, as arguments of `load_model`: as `device_map` says, else to `device`."""
        return {"device": device} if self.device_map is None else {"device_map": self.device_map}

    @property
    def chat_options(self) -> ChatOptions:
        """How chat templates of all anchors are filled in."""
        return ChatOptions.of(
            thinking=self.thinking,
            arguments=self.template_args,
            date=self.date,
            template=self.template,
        )


class PromptConfig(Part):
    """Where prompts come from, and how many of each role."""

    source: Literal["auto", "benchmarks", "embedded"] = Field(
        "auto", description="auto: the real benchmarks where they can be had, else the embedded sets."
    )
    limits: dict[PromptSetName, NonNegative] = Field(
        default_factory=dict, description="Largest number of prompts by set, 0 = all."
    )
    files: dict[PromptSetName, str] = Field(default_factory=dict, description="Your own prompt files by set.")


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


@dataclass(frozen=True)
class WarmupConfig(WarmupSettings):
    """A short refusal-SFT that makes step 0 refuse."""

    enabled: bool = setting(False, "Warm the backbone before step 0.")


@dataclass(frozen=True)
class AttackConfig(GcgSettings):
    """An attack used for evaluation; the settings of GCG stand beside these."""

    enabled: bool = setting(True, "Whether anchors are asked under it.")
    behaviours: int = setting(
        32,
        "Behaviours attacked: a sample of the HarmBench set without copyright, spread over its categories.",
        gt=0,
    )
    together: int = setting(
        0, "Behaviours attacked together; 0: chosen from the device and the batch sizes.", ge=0
    )
    method: str = setting("gcg", "A registered attack.")
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"description": "Settings of another attack than GCG."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options and attack_named(self.method).settings is GcgSettings:
            raise ValueError(f"the settings of {self.method} stand beside `method`, not in `options`")
        try:
            _ = self.settings
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"options.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    @property
    def settings(self) -> Settings:
        """The settings of the attack."""
        kind = attack_named(self.method).settings
        if kind is GcgSettings:
            return GcgSettings(**{one.name: getattr(self, one.name) for one in fields(GcgSettings)})
        checked = model_of(kind).model_validate(self.options)  # type: ignore[arg-type]  # a class is hashable
        return kind(**dict(checked))


@dataclass(frozen=True)
class AdaptiveConfig(AttackConfig):
    """An attack against some of the anchors themselves."""

    enabled: bool = setting(False, "Whether anchors are attacked themselves.")
    at: Literal["all", "key", "last"] | tuple[NonNegative, ...] = setting(
        "all",
        "Which anchors: all, the key ones (step 0 and the last one of every arm or series), the last one of every arm "
        "or series, or those at the listed steps.",
    )


class AttacksConfig(Part):
    """Fixed-source cases are made once against step 0; adaptive ones against each anchor, or those that are named."""

    fixed_source: Annotated[AttackConfig, Domain()] = AttackConfig()
    adaptive: Annotated[AdaptiveConfig, Domain()] = AdaptiveConfig()


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
    refusal_judge: Annotated[JudgeSpec, Domain()] = Field(
        JudgeSpec("refusal-rules"),
        description="Who says whether an answer refuses; by name, or with its settings.",
    )
    harm_judge: Annotated[JudgeSpec, Domain()] = Field(
        JudgeSpec("harm-features"), description="Who says whether a harmful behaviour was carried out."
    )

    @field_validator("refusal_judge", "harm_judge", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("refusal_judge", "harm_judge")
    @classmethod
    def _known(cls, spec: JudgeSpec, info: ValidationInfo) -> JudgeSpec:
        known = judge_names("refusal" if info.field_name == "refusal_judge" else "harm")
        if spec.name not in known:
            raise ValueError(f"no such judge {spec.name!r} (there are {', '.join(known)})")
        return spec

    @field_validator("suites")
    @classmethod
    def _what_others_read(cls, suites: tuple[str, ...]) -> tuple[str, ...]:
        if "harmbench" not in suites or len(set(suites)) != len(suites):
            raise ValueError("harmbench is always asked (transfer reads its answers), and each suite once")
        return suites


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

    @model_validator(mode="after")
    def _names_a_checkpoint(self) -> Self:
        if not (self.model or self.revision or self.adapter):
            raise ValueError("names neither `model`, `revision` nor `adapter`: it would be step 0 again")
        return self


class StudyConfig(Part):
    """A study: what is trained, where it stops, and what is measured."""

    name: str = "study"
    seeds: tuple[NonNegative, ...] = Field((0,), min_length=1)
    model: ModelConfig = ModelConfig()
    prompts: PromptConfig = PromptConfig()
    chat: ChatConfig = ChatConfig()
    warmup: Annotated[WarmupConfig, Domain()] = WarmupConfig()
    arms: tuple[str, ...] = ("sft", "r2d2")
    anchors: tuple[NonNegative, ...] | tuple[ObservedAnchor, ...] = Field(
        (0, 50, 100, 250, 500), description="Steps at which arms stop, or checkpoints of an observed series."
    )
    training: Annotated[TrainingSettings, Domain()] = TrainingSettings()
    attacks: AttacksConfig = AttacksConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    geometry: GeometryConfig = GeometryConfig()
    causal: CausalConfig = CausalConfig()
    verdict: Annotated[Thresholds, Domain()] = Thresholds()
    nulls: NullsConfig = NullsConfig()
    batch: Annotated[BatchSizes, Domain()] = BatchSizes()

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
        from ..training.arms import ARMS  # torch comes with it: not before a configuration is checked

        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"no arm named {unknown[0]!r} (there are {', '.join(ARMS)})")
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

    @model_validator(mode="after")
    def _adaptive_steps_exist(self) -> Self:
        at = self.attacks.adaptive.at
        steps = {0, *self.steps, *(anchor.step for anchor in self.observed_anchors)}
        if not isinstance(at, str) and (not at or not steps.issuperset(at)):
            known = ", ".join(map(str, sorted(steps)))
            raise ValueError(f"attacks.adaptive.at: {list(at)} must name steps of anchors ({known})")
        return self

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
