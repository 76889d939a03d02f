"""Training stages: the warm-up, and the arms with their anchors."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...anchors import Anchor, anchor_to_json, name_base
from ...artifacts import Stage, nan_to_none
from ...attacks.goals import default_target
from ...behaviour.suites import run_suite
from ...data.prompts import Prompt
from ...models.load import LoadedModel
from ...training.arms import arm_named
from ...training.loop import ArmJob, train_arm
from ...training.settings import LoraSettings, R2D2Settings, TrainingSettings, WarmupSettings
from ...training.warmup import WarmupJob, warm_up
from ..context import Context
from ..plan import AnchorRef, StagePlan

CHECK_PROMPTS = 24  # held-out prompts of each kind for the warm-up's stopping rule
CHECK_TOKENS = 16


def _training(context: Context) -> TrainingSettings:
    found = context.config.training.model_dump()
    parts = {"lora": LoraSettings(**found["lora"]), "r2d2": R2D2Settings(**found["r2d2"])}
    return TrainingSettings(**{**found, **parts})


def warmup(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """A short refusal-SFT; the warmed model is step 0."""
    config, sets = context.config.warmup, context.prompts
    assert entry.seed is not None
    model = context.config.model
    backbone = Anchor("base", 0, model.spec, revision=model.revision)
    loaded = context.fresh(backbone)
    chat = context.chat(loaded)
    harmful, held_harmful = _held_out(sets.warmup_harmful.prompts, bool(config.check_every))
    examples = context.chat_examples["warmup"]
    held_harmless: list[Prompt] = []
    if config.check_every:
        held_ids = {row.id for row in examples[-min(CHECK_PROMPTS, len(examples) // 4) :]}
        held_harmless = [row for row in sets.warmup_harmless if row.id in held_ids]
        examples = [row for row in examples if row.id not in held_ids]
    checks: list[dict[str, float]] = []

    def enough(step: int, current: LoadedModel) -> bool:
        refused, safe = (_refusal_rate(context, current, rows) for rows in (held_harmful, held_harmless))
        checks.append({"step": step, "refusal": refused, "safe_refusal": safe})
        return refused >= config.min_refusal and safe <= config.max_safe_refusal

    training = context.config.training
    settings = WarmupSettings(**{k: v for k, v in config.model_dump().items() if k != "enabled"})
    warmed = warm_up(
        loaded,
        chat,
        WarmupJob(settings, _training(context), harmful, sets.refusals, examples, entry.seed),
        stage.file("weights"),
        stop_when=enough,
        progress=context.progress,
    )
    folder = str(stage.file("weights"))
    if training.mode == "lora":
        name_base(Path(folder), backbone, context.run.path)
    anchor = (
        replace(backbone, adapters=(folder,))
        if training.mode == "lora"
        else Anchor("base", 0, model.spec, weights=folder)
    )
    stage.write_json("anchor.json", anchor_to_json(anchor, stage.path.resolve()))
    stage.write_json("log.json", {"updates": [asdict(row) for row in warmed.rows], "checks": checks})
    return {"updates": warmed.steps, "checks": checks, "loss": warmed.rows[-1].loss}


def _held_out(prompts: tuple[Prompt, ...], hold: bool) -> tuple[list[Prompt], list[Prompt]]:
    """Rows to train on, and rows for the stopping rule (at most a quarter)."""
    count = min(CHECK_PROMPTS, len(prompts) // 4) if hold else 0
    return list(prompts[count:]), list(prompts[:count])


def _refusal_rate(context: Context, loaded: LoadedModel, prompts: list[Prompt]) -> float:
    rows = run_suite(
        loaded,
        context.chat(loaded),
        prompts,
        suite="warmup",
        attack="none",
        judge=context.judge,
        max_new_tokens=min(CHECK_TOKENS, context.config.behaviour.max_new_tokens),
        batch_size=context.batch.generate,
    )
    return sum(row.refused for row in rows) / max(len(rows), 1)


def _with_target(behaviour: Prompt) -> Prompt:
    """A user's behaviour may come without a target; it gets the one that `attack gcg` would use."""
    return behaviour if behaviour.targets else replace(behaviour, targets=(default_target(behaviour.text),))


def train(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """One arm, from step 0 to its last anchor."""
    assert entry.seed is not None
    config = context.config.training
    arm = arm_named(entry.params["arm"])
    context.close()
    base = context.anchor(AnchorRef(entry.seed, "base", 0))
    loaded = context.fresh(base)
    job = ArmJob(
        arm=arm,
        settings=_training(context),
        examples=context.chat_examples["train"],
        benign=context.chat_examples["heldout"],
        behaviours=[_with_target(row) for row in context.prompts.pool],
        anchors=context.config.steps[1:],
        seed=entry.seed,
        gcg_batch=context.batch.gcg,
    )
    trained = train_arm(
        loaded,
        context.chat(loaded),
        job,
        stage.file("anchors"),
        stage.work_dir,
        ranks=context.ranks,
        progress=context.progress,
    )
    if not context.ranks.main:
        return {}
    root = context.run.path.resolve()
    anchors = []
    for one in trained.anchors:
        folder = str(stage.file("anchors").resolve() / one.folder)
        if config.mode == "lora":
            name_base(Path(folder), base, root)
        found = (
            Anchor(arm.name, one.step, base.backbone, (*base.adapters, folder), base.weights, base.revision)
            if config.mode == "lora"
            else Anchor(arm.name, one.step, base.backbone, weights=folder)
        )
        anchors.append(anchor_to_json(found, root))
    stage.write_json("anchors.json", anchors)
    stage.write_json("training.json", [nan_to_none(asdict(row)) for row in trained.rows])
    return {
        "arm": arm.name,
        "anchors": [one.step for one in trained.anchors],
        "accumulation": config.accumulation,
        "gcg_steps_per_update": config.gcg_steps_per_update if arm.suffixes == "dynamic" else 0,
    }
