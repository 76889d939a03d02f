"""Behaviour of an anchor: answers to all suites, and to the selection prompts; the study's refusal tokens."""

from collections.abc import Mapping
from typing import Any

from ...artifacts import Stage, content_key
from ...attacks.saved import load_cases
from ...behaviour.answers import HARM_FIELDS, AnswerRow, Attack
from ...behaviour.judges.base import REFUSED, Exchange, judge_id
from ...behaviour.judges.registry import endpoint_usage
from ...behaviour.perplexity import heldout_perplexity
from ...behaviour.suites import Asked, judge_harm, run_suites
from ...models.generate import generate
from ..context import Context
from ..plan import StagePlan

JUDGED_FOR_HARM = frozenset({"harmbench", "strongreject"})


def answers(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Answers of one anchor to every suite and attack, with the refusal judge's verdicts."""
    assert entry.anchor is not None
    loaded, config = context.open(entry.anchor), context.config.behaviour
    asked = [one for suite in config.suites if suite != "perplexity" for one in _asked(context, entry, suite)]
    context.progress.start("answers", sum(len(one.prompts) for one in asked))
    rows = run_suites(
        loaded,
        context.chat(loaded),
        asked,
        judge=context.judge,
        max_new_tokens=config.max_new_tokens,
        batch_size=context.batch.generate,
        chunks=stage.chunks("answers"),
        progress=context.progress,
    )
    context.progress.done()
    stage.write_json("answers.json", [row.to_json() for row in rows])
    if "perplexity" in config.suites:
        found = heldout_perplexity(
            loaded,
            context.chat(loaded),
            context.chat_examples["heldout"],
            batch_size=context.batch.forward,
        )
        stage.write_json("perplexity.json", found.to_json())
    return {"answers": len(rows), "judge": f"{context.judge.name}@{context.judge.version}"}


def _asked(context: Context, entry: StagePlan, suite: str) -> list[Asked]:
    """A suite's prompts as they are, and HarmBench's also with the suffixes of each attack."""
    prompts = getattr(context.prompts, suite).prompts
    found = [Asked(suite, "direct" if suite in JUDGED_FOR_HARM else "none", prompts)]
    for attack, source in _attacks(context, entry) if suite == "harmbench" else []:
        cases = {case.behavior_id: case.suffix_text for case in load_cases(source.file("cases.json")).cases}
        found.append(Asked(suite, attack, [row for row in prompts if row.id in cases], cases))
    return found


def _attacks(context: Context, entry: StagePlan) -> list[tuple[Attack, Stage]]:
    found: list[tuple[Attack, Stage]] = []
    assert entry.anchor is not None
    if context.config.attacks.fixed_source.enabled:
        found.append(("fixed_source", context.stage(f"cases/seed{entry.anchor.seed}")))
    if context.config.attacks.adaptive.enabled:
        found.append(("adaptive", context.anchor_stage("adaptive", entry.anchor)))
    return found


def harm(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """What a harmfulness judge says of the saved answers to HarmBench and StrongREJECT; nothing is generated."""
    saved = context.stage(entry.needs[0]).read_json("answers.json")
    rows = [row for row in map(AnswerRow.from_json, saved) if row.suite in JUDGED_FOR_HARM]
    judged = judge_harm(rows, context.harm_judge)
    verdicts = [
        {
            "prompt_id": row.prompt_id,
            "suite": row.suite,
            "attack": row.attack,
            **{field: getattr(row, field) for field in HARM_FIELDS},
        }
        for row in judged
    ]
    stage.write_json("harm.json", verdicts)
    unscored = sum(row.harmful is None for row in judged)
    facts = {"answers": len(judged), "unscored": unscored, "judge": judge_id(context.harm_judge)}
    usage = endpoint_usage(context.harm_judge)  # of all stages so far: one endpoint serves them
    return facts if usage is None else {**facts, "endpoint_so_far": usage}


def selection(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Answers to the selection prompts: refusal rates, first tokens of refusals, first answer tokens for the KL."""
    assert entry.anchor is not None
    loaded = context.open(entry.anchor)
    chat = context.chat(loaded)
    sides = {side: getattr(context.prompts, f"selection_{side}").prompts for side in ("harmful", "harmless")}
    prompts = [row for rows in sides.values() for row in rows]
    context.progress.start("selection answers", len(prompts))
    completions = generate(
        loaded,
        chat,
        [row.user_text for row in prompts],
        max_new_tokens=entry.params["max_new_tokens"],
        batch_size=context.batch.generate,
        progress=context.progress,
    )
    context.progress.done()
    verdicts = context.judge.judge(
        [Exchange(row.text, one.text, row.context) for row, one in zip(prompts, completions, strict=True)]
    )
    found = iter(zip(completions, verdicts, strict=True))
    facts: dict[str, Any] = {}
    for side, members in sides.items():
        rows = [
            {"prompt_id": row.id, "text": one.text, "ids": list(one.ids), "verdict": verdict.verdict}
            for row, (one, verdict) in zip(members, found, strict=False)
        ]
        stage.write_json(f"{side}.json", rows)
        facts[f"{side}_refusal_rate"] = sum(row["verdict"] in REFUSED for row in rows) / len(rows)
    return facts


def refusal_tokens(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """One set for the study: first tokens of refusals over all anchors, and the toward text's first token."""
    counts: dict[int, int] = {}
    for need in entry.needs:
        source = context.stage(need)
        for side in ("harmful", "harmless"):
            for row in source.read_json(f"{side}.json"):
                if row["verdict"] in REFUSED and row["ids"]:
                    counts[row["ids"][0]] = counts.get(row["ids"][0], 0) + 1
    loaded = context.open(next(iter(context.plan.of_kind("answers"))).anchor)  # type: ignore[arg-type]
    toward = context.chat(loaded).answer_ids(context.config.training.r2d2.toward_text)[0]
    counts.setdefault(toward, 0)
    ids = sorted(counts)
    stage.write_json(
        "tokens.json",
        {
            "ids": ids,
            "texts": [str(loaded.tokenizer.decode([token])) for token in ids],
            "counts": [counts[token] for token in ids],
            "toward": toward,
            "sha256": content_key(ids),
        },
    )
    return {"tokens": len(ids), "sha256": content_key(ids)}
