"""The transfer stage: an anchor's refusals under its own carrier and under other anchors'."""

from collections.abc import Mapping
from typing import Any

from ...artifacts import Stage
from ...behaviour.judges.base import Exchange, Judge
from ...behaviour.outcomes import judged_prompts, outcomes
from ...causal.conditions import Condition
from ...causal.readouts import generate_under
from ..carrier import find_carrier, unit_row
from ..context import Context
from ..plan import AnchorRef, StagePlan
from .intervene import read_answers


def transfer(context: Context, entry: StagePlan, stage: Stage) -> Mapping[str, Any]:
    """Which of an anchor's refusals are gone under its own carrier and under other anchors'.

    Gone means answered: a degenerate or unscored answer does not count as control over refusal. The answers are kept,
    so that another judge can read them.
    """
    assert entry.anchor is not None
    target, config = entry.anchor, context.config
    sources = [AnchorRef(target.seed, arm, step) for arm, step in entry.params["sources"]]
    chosen = judged_prompts(context.prompts.harmbench.prompts)[: config.causal.transfer_prompts]
    rows = [r for r in read_answers(context, target) if (r.suite, r.attack) == ("harmbench", "direct")]
    refused = {row.prompt_id for row in rows if row.refused}
    asked = [row for row in chosen if row.id in refused]
    flags: dict[str, list[bool]] = {}
    texts: dict[str, list[str]] = {}
    if asked:
        loaded = context.open(target)
        carriers = {source: find_carrier(context, source) for source in sources}
        conditions = [Condition("ablate", s.label, unit_row(carriers[s].direction)) for s in sources]
        context.progress.start("transfer", len(conditions) * len(asked))
        made = generate_under(
            loaded,
            context.chat(loaded),
            conditions,
            [row.user_text for row in asked],
            max_new_tokens=config.behaviour.max_new_tokens,
            batch_size=context.batch.generate,
            progress=context.progress,
        )
        context.progress.done()
        for source, answers in zip(sources, made, strict=True):
            name = f"{source.arm}@{source.step}"
            texts[name] = [one.text for one in answers]
            pairs = [
                Exchange(row.text, text, row.context) for row, text in zip(asked, texts[name], strict=True)
            ]
            flags[name] = still_refused(context.judge, pairs)
    stage.write_json(
        "transfer.json",
        {
            "prompts": [row.id for row in chosen],
            "refused": [row.id in refused for row in chosen],
            "asked": [row.id for row in asked],
            "refused_under": flags,
            "answers": texts,
        },
    )
    return {"refused": len(asked), "prompts": len(chosen), "sources": len(sources)}


def still_refused(judge: Judge, pairs: list[Exchange]) -> list[bool]:
    """Per answer under an intervention: not an answer that complies (refused, unscored or degenerate)."""
    return [not one.answered for one in outcomes(judge, pairs)]
