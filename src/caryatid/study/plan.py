"""The stages of a study, with what each depends on. Keys follow from content alone, so that a plan needs no model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..config import StudyConfig
from ..geometry.carriers import PROFILES
from .builder import STAGE_VERSIONS as STAGE_VERSIONS
from .builder import Builder
from .builder import Kind as Kind
from .builder import StagePlan as StagePlan
from .series import AnchorRef as AnchorRef
from .series import anchors_of as anchors_of
from .series import series_of as series_of
from .series import transfer_sources
from .series import verdict_pairs as verdict_pairs

# Settings of `behaviour` that answers depend on; harm is judged afterwards, from saved answers.
ANSWERED = ("suites", "max_new_tokens", "refusal_judge")


@dataclass(frozen=True)
class Facts:
    """What is settled when a study is planned, recorded in the manifest and reused on resume."""

    model_identity: str
    dtype: str
    device: str
    prompts_source: Literal["benchmarks", "embedded"]
    prompts_note: str
    prompts_sha256: str
    batch: Mapping[str, int]
    observed_identities: tuple[str, ...] = ()
    chat_sha256: str = ""  # of the user's chat file

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        plain = {"batch": dict(self.batch), "observed_identities": list(self.observed_identities)}
        return {**vars(self), **plain}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Facts":
        """Read back what `to_json` wrote."""
        return cls(**{**value, "observed_identities": tuple(value["observed_identities"])})


@dataclass(frozen=True)
class Plan:
    """All stages in an order in which they can run."""

    stages: tuple[StagePlan, ...]

    def __iter__(self) -> Iterator[StagePlan]:
        return iter(self.stages)

    def __getitem__(self, stage_id: str) -> StagePlan:
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(stage_id)

    def of_kind(self, kind: Kind, seed: int | None = None) -> list[StagePlan]:
        """Stages of a kind, of one seed if named."""
        return [
            stage
            for stage in self.stages
            if stage.kind == kind and (seed is None or stage.seed in (None, seed))
        ]


def build_plan(config: StudyConfig, facts: Facts) -> Plan:
    """The stages of `config`, in order. Pure: reads nothing."""
    builder = Builder()
    dump = config.model_dump(mode="json")
    prompts = builder.add(
        "prompts",
        "prompts",
        {"source": facts.prompts_source, "sha256": facts.prompts_sha256, "limits": dump["prompts"]["limits"]},
        (),
        f"{facts.prompts_source} sets",
    )
    model = {
        "identity": facts.model_identity,
        "dtype": facts.dtype,
        "system": config.model.system,
        "batch": dict(facts.batch),
    }
    if facts.dtype != "float32":
        model["adapters"] = "kept"  # earlier versions merged them: another model
    talk = {"model": model, "chat": dump["chat"]} | ({"file": facts.chat_sha256} if facts.chat_sha256 else {})
    chat = builder.add("chat", "chat", talk, (prompts,), f"source {config.chat.source}")
    measured: list[str] = []
    for seed in config.seeds:
        measured += _plan_seed(builder, config, facts, dump, model, seed, prompts, chat)
    tokens = builder.add(
        "refusal_tokens",
        "refusal_tokens",
        {"toward": config.training.r2d2.toward_text},
        tuple(name for name in measured if name.startswith("selection/")),
        "one set for the study",
    )
    for seed in config.seeds:
        _Measuring(builder, config, dump, seed, (prompts, chat, tokens)).add()
    builder.add(
        "analysis",
        "analysis",
        {"geometry": dump["geometry"], "verdict": dump["verdict"], "seeds": list(config.seeds)},
        tuple(builder.stages),
        "bootstrap, rank, drift, verdict",
    )
    for seed in config.seeds:
        for anchor in anchors_of(config, seed):
            suffix = f"/{anchor.arm}@{anchor.step}/seed{anchor.seed}"
            judge = dump["behaviour"]["harm_judge"]
            builder.add(
                "harm",
                f"harm{suffix}",
                {"judge": {key: judge[key] for key in ("name", "model", "dtype")}},
                (f"answers{suffix}",),
                f"judged by {judge['name']}",
                anchor=anchor,
            )
    return Plan(tuple(builder.stages.values()))


def _plan_seed(
    builder: Builder,
    config: StudyConfig,
    facts: Facts,
    dump: Mapping[str, Any],
    model: Mapping[str, Any],
    seed: int,
    prompts: str,
    chat: str,
) -> list[str]:
    """Training and first measurements of one seed; returns the ids of measuring stages."""
    suffix = f"/seed{seed}"
    base: str = chat
    if config.warmup.enabled and not config.observed:
        warm = {
            "warmup": dump["warmup"],
            "lora": dump["training"]["lora"],
            "mode": config.training.mode,
            "seed": seed,
        }
        base = builder.add(
            "warmup", f"warmup{suffix}", warm, (prompts, chat), f"≤ {config.warmup.steps} updates", seed=seed
        )
    attack = config.attacks.fixed_source
    cases: tuple[str, ...] = ()
    if attack.enabled:
        params = {"attack": dump["attacks"]["fixed_source"], "model": model, "seed": seed}
        size = f"{attack.behaviours} behaviours × {attack.steps} GCG steps"
        cases = (builder.add("cases", f"cases{suffix}", params, (prompts, base), size, seed=seed),)
    trained: dict[str, str] = {}
    if not config.observed:
        for arm in config.arms:
            params = {"arm": arm, "steps": list(config.steps), "training": dump["training"], "seed": seed}
            size = f"{config.training.updates(config.steps[-1], arm)}, anchors {', '.join(map(str, config.steps[1:]))}"
            trained[arm] = builder.add(
                "train", f"train/{arm}{suffix}", params, (prompts, chat, base), size, seed=seed
            )
    measured: list[str] = []
    for index, anchor in enumerate(anchors_of(config, seed)):
        source = trained.get(anchor.arm, base)
        where: dict[str, Any] = {"anchor": [anchor.arm, anchor.step], "model": model}
        if config.observed and index:
            where["checkpoint"] = facts.observed_identities[index - 1]
        measured += _plan_anchor(builder, config, dump, anchor, where, (prompts, chat, source), cases)
    return measured


def _plan_anchor(
    builder: Builder,
    config: StudyConfig,
    dump: Mapping[str, Any],
    anchor: AnchorRef,
    where: Mapping[str, Any],
    needs: tuple[str, ...],
    cases: tuple[str, ...],
) -> list[str]:
    needs = tuple(dict.fromkeys(needs))
    suffix = f"/{anchor.arm}@{anchor.step}/seed{anchor.seed}"
    if config.attacks.adaptive.enabled:
        attack = config.attacks.adaptive
        params = {**where, "attack": dump["attacks"]["adaptive"]}
        size = f"{attack.behaviours} behaviours × {attack.steps} GCG steps"
        cases = (*cases, builder.add("adaptive", f"adaptive{suffix}", params, needs, size, anchor=anchor))
    limits = ", ".join(config.behaviour.suites)
    answers = builder.add(
        "answers",
        f"answers{suffix}",
        {**where, "behaviour": {key: dump["behaviour"][key] for key in ANSWERED}},
        needs + cases,
        f"{limits}; ≤ {config.behaviour.max_new_tokens} tokens",
        anchor=anchor,
    )
    # Enough to judge a refusal and for the KL along the first answer tokens.
    tokens = min(config.behaviour.max_new_tokens, max(config.geometry.answer_tokens, 10))
    selection = builder.add(
        "selection",
        f"selection{suffix}",
        {**where, "max_new_tokens": tokens, "judge": config.behaviour.refusal_judge},
        needs,
        f"answers to the selection prompts, {tokens} tokens",
        anchor=anchor,
    )
    activations = builder.add(
        "activations",
        f"activations{suffix}",
        {**where, "positions": config.geometry.positions},
        needs,
        "residual stream on the extraction prompts",
        anchor=anchor,
    )
    return [answers, selection, activations]


class _Measuring:
    """Adds the banks, interventions and transfers of one seed."""

    def __init__(
        self,
        builder: Builder,
        config: StudyConfig,
        dump: Mapping[str, Any],
        seed: int,
        needs: tuple[str, ...],
    ) -> None:
        self.builder, self.config, self.dump, self.needs = builder, config, dump, needs
        self.anchors = anchors_of(config, seed)
        self.suffixes = {anchor: f"/{anchor.arm}@{anchor.step}/seed{anchor.seed}" for anchor in self.anchors}
        profile = {"profile": config.geometry.profile, **dump["geometry"][config.geometry.profile]}
        chosen = ("selector", "rank", "min_gap")
        self.choice = {"profile": profile, **{key: dump["geometry"][key] for key in chosen}}
        self.sources = transfer_sources(config, seed)

    def add(self) -> None:
        """Anchor by anchor where carriers of later anchors are not needed, so that each is opened once."""
        if self.config.causal.transfer_pairs == "all":
            for anchor in self.anchors:
                self.bank(anchor)
        for anchor in self.anchors:
            if self.config.causal.transfer_pairs != "all":
                self.bank(anchor)
            self.causal(anchor)
            self.transfer(anchor)

    def at(self, kind: str, anchors: Iterable[AnchorRef]) -> tuple[str, ...]:
        return tuple(kind + self.suffixes[anchor] for anchor in anchors)

    def bank(self, anchor: AnchorRef) -> None:
        (prompts, _, tokens), geometry = self.needs, self.config.geometry
        names = (
            "positions",
            "scored_depth",
            "layer_stride",
            "answer_tokens",
            "discard_below",
            "discard_after",
        )
        scoring = {key: self.dump["geometry"][key] for key in names}
        self.builder.add(
            "bank",
            f"bank{self.suffixes[anchor]}",
            scoring,
            (prompts, tokens, *self.at("activations", [anchor]), *self.at("selection", [anchor])),
            f"every {geometry.layer_stride}. layer, {geometry.positions} position(s)",
            anchor=anchor,
        )
        if geometry.reextraction_resamples:
            self.reextract(anchor, scoring)

    def reextract(self, anchor: AnchorRef, scoring: Mapping[str, Any]) -> None:
        (prompts, _, tokens), here = self.needs, self.suffixes[anchor]
        names = ("reextraction_resamples", "reextraction_candidates", *PROFILES)
        resampling = {key: self.dump["geometry"][key] for key in names}
        self.builder.add(
            "reextract",
            f"reextract{here}",
            {**scoring, **resampling, "choice": self.choice},
            (prompts, tokens, *(kind + here for kind in ("bank", "activations", "selection"))),
            "{reextraction_resamples} resamples × {reextraction_candidates} candidates".format(**resampling),
            anchor=anchor,
        )

    def causal(self, anchor: AnchorRef) -> None:
        prompts, chat, _ = self.needs
        causal = self.config.causal
        settings = {k: v for k, v in self.dump["causal"].items() if not k.startswith("transfer_")}
        carriers = dict.fromkeys((anchor, self.anchors[0]))
        self.builder.add(
            "causal",
            f"causal{self.suffixes[anchor]}",
            {
                "causal": settings,
                "choice": self.choice,
                "max_new_tokens": self.config.behaviour.max_new_tokens,
            },
            (
                prompts,
                chat,
                *self.at("bank", carriers),
                *self.at("activations", carriers),
                *self.at("answers", self.anchors),
            ),
            f"ranks {list(causal.ranks)}, α {list(causal.alphas)}, {causal.random_draws} controls",
            anchor=anchor,
        )

    def transfer(self, target: AnchorRef) -> None:
        sources = self.sources[target]
        count = self.config.causal.transfer_prompts
        self.builder.add(
            "transfer",
            f"transfer{self.suffixes[target]}",
            {"sources": [[a.arm, a.step] for a in sources], "prompts": count, "choice": self.choice},
            (
                self.needs[0],
                *self.at("bank", sources),
                *self.at("activations", sources),
                *self.at("answers", [target]),
            ),
            f"{len(sources)} carriers × {count} prompts",
            anchor=target,
        )
