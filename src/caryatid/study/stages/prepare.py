"""Stages before training: prompts, chat data, and attack cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...anchors import Anchor
from ...artifacts import Stage
from ...attacks.gcg.settings import GcgSettings
from ...attacks.goals import goals_of
from ...attacks.run import AttackPlan, run_attack
from ...attacks.saved import TestCase, save_cases
from ...config.schema import AttackConfig
from ...data.chat import (
    ChatExample,
    distill,
    hold_out,
    load_chat_dataset,
    load_chat_jsonl,
    without_overlaps,
)
from ...data.prompts import Prompt
from ...errors import InputError
from ...models.generate import generate
from ...models.load import LoadedModel
from ..context import Context
from ..plan import AnchorRef, StagePlan

MIN_EXTRACTION = 4  # so that halves have two prompts each (excess angle)
CHUNK_BATCHES = 2  # batches per resumable chunk of answers


def prompts(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """The study's prompt sets, by role, with what was dropped for overlap."""
    settled = context.settled_prompts
    if settled is None:
        raise InputError(
            "the prompts of this run are damaged and their files are gone",
            where=str(stage.path),
            remedy="Start anew.",
        )
    for side in ("harmful", "harmless"):
        count = len(getattr(settled, f"extraction_{side}"))
        if count < MIN_EXTRACTION:
            raise InputError(
                f"at least {MIN_EXTRACTION} extraction prompts of each kind are needed, {count} are {side}",
                where=f"prompts.limits.extraction_{side}",
                remedy="Use more.",
            )
    stage.write_json("prompts.json", settled.to_json())
    return {"source": settled.source, "dropped": len(settled.dropped)}


def chat(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Chat examples for the SFT term, held-out ones, and harmless answers for the warm-up."""
    config, sets = context.config.chat, context.prompts
    dropped: list[Any] = []
    model = context.config.model
    loaded = context.fresh(Anchor("base", 0, model.spec, revision=model.revision))
    examples: dict[str, list[ChatExample]] = {}
    if config.source == "self_distilled":
        examples["train"] = _distilled(context, stage, loaded, "chat", sets.chat.prompts)
        examples["heldout"] = _distilled(context, stage, loaded, "heldout", sets.chat_heldout.prompts)
    else:
        rows = config.rows + config.heldout_rows
        found = (
            load_chat_jsonl(Path(config.path or ""), rows)
            if config.source == "jsonl"
            else load_chat_dataset(config.dataset or "", config.split, rows)
        )
        others = [one for name, one in sets.sets.items() if name not in ("chat", "chat_heldout")]
        kept = without_overlaps(found, others, config.path or config.dataset or "")
        dropped = [row.to_json() for row in kept.dropped]
        split = hold_out(kept.examples, min(config.heldout_rows, len(kept.examples) // 2), seed=0)
        examples["heldout"], examples["train"] = split.heldout, split.train
    examples["warmup"] = (
        _distilled(context, stage, loaded, "warmup", sets.warmup_harmless.prompts)
        if context.config.warmup.enabled and not context.config.observed
        else []
    )
    stage.write_json(
        "examples.json", {name: [row.to_json() for row in rows] for name, rows in examples.items()}
    )
    stage.write_json("dropped.json", dropped)
    return {"source": config.source, "examples": {name: len(rows) for name, rows in examples.items()}}


class _Kept(NamedTuple):
    """A stored answer."""

    text: str
    ended: bool


def _distilled(
    context: Context, stage: Stage, loaded: LoadedModel, name: str, rows: Sequence[Prompt]
) -> list[ChatExample]:
    """The backbone's own greedy answers, chunk by chunk, so that a killed run goes on."""
    size = CHUNK_BATCHES * context.batch.generate
    chunks = stage.chunks(name)

    def answer(texts: Sequence[str]) -> list[_Kept]:
        kept = [_Kept(*row) for part in chunks.load() for row in part]
        context.progress.start(f"chat answers ({name})", len(texts))
        context.progress.advance(len(kept))
        for index in range(len(kept) // size, -(-len(texts) // size)):
            made = generate(
                loaded,
                context.chat(loaded),
                texts[index * size : (index + 1) * size],
                max_new_tokens=context.config.chat.max_new_tokens,
                batch_size=context.batch.generate,
                progress=context.progress,
            )
            chunks.append(index, [[one.text, one.ended] for one in made])
            kept += [_Kept(one.text, one.ended) for one in made]
        context.progress.done()
        return kept

    return distill(rows, answer)


def cases(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Fixed-source GCG cases, optimised once against step 0."""
    assert entry.seed is not None
    return _attack(context, stage, AnchorRef(entry.seed, "base", 0), context.config.attacks.fixed_source)


def adaptive(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """GCG cases optimised against the anchor itself."""
    assert entry.anchor is not None
    return _attack(context, stage, entry.anchor, context.config.attacks.adaptive)


def _attack(context: Context, stage: Stage, ref: AnchorRef, attack: AttackConfig) -> Mapping[str, Any]:
    loaded = context.open(ref)
    behaviours = [row for row in context.prompts.harmbench if row.kind != "copyright"][: attack.behaviours]
    settings = GcgSettings(attack.steps, attack.width, attack.top_k, attack.suffix_length)
    goals = tuple(goals_of(behaviours))
    plan = AttackPlan("gcg", settings, goals, ref.seed, context.batch.gcg)
    results = run_attack(loaded, context.chat(loaded), plan, out=stage.work_dir, progress=context.progress)
    found = [TestCase.of(result) for result in results]
    source = {"model": context.facts.model_identity, "anchor": [ref.arm, ref.step], **attack.model_dump()}
    saved = save_cases(stage.file("cases.json"), found, source)
    return {
        "sha256": saved.sha256,
        "cases": len(found),
        "steps": attack.steps,
        "stalled_steps": sum(r.stalled_steps for r in results),
        "candidates": sum(r.candidates for r in results),
        "forward_tokens": sum(r.forward_tokens for r in results),
        "seconds": sum(r.seconds for r in results),
        "batch_size": min(r.batch_size for r in results),
        "loss_before": sum(r.losses[0] for r in results) / len(results),
        "loss_after": sum(r.loss for r in results) / len(results),
    }
