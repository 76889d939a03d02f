"""The tables of a run, assembled from the artifacts of its stages (contract: run directory)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..artifacts import RunDirectory, read_json
from ..behaviour.answers import HARM_FIELDS, AnswerRow
from ..behaviour.comparisons import AnchorAnswers, compare_arms
from ..behaviour.files import write_answers
from ..behaviour.metrics import metrics_rows, perplexity_rows
from ..behaviour.perplexity import Perplexity
from ..config import StudyConfig
from ..report.tables import write_table
from ..stats import paired_difference
from .plan import AnchorRef, Plan, StagePlan

Row = Mapping[str, Any]
COMPARISON_DRAWS = 1000
# Step 0's row of `training`: no loss yet, and nothing spent or changed.
STEP_ZERO = {
    **dict.fromkeys(("loss_sft", "loss_away", "loss_toward", "gcg_loss")),
    **dict.fromkeys(("gcg_steps", "tokens", "gcg_tokens"), 0),
    **dict.fromkeys(("flops", "delta_weight", "benign_kl", "seconds"), 0.0),
}
UNINFORMATIVE_ABOVE = (
    0.9  # direct compliance of step 0 above which a fixed-source attack has nothing to break
)
ACROSS = (
    "carriers",
    "carrier_summary",
    "carrier_places",
    "selectors",
    "threshold_sweep",
    "rank",
    "drift",
    "drift_by_layer",
    "transfer",
    "shifts",
    "verdict",
    "sensitivity",
    "agreement",
)


def write_tables(run: RunDirectory, config: StudyConfig, plan: Plan) -> None:
    """Write every table of the contract and the additional ones as parquet and CSV, and all judged answers."""
    tables: dict[str, list[Row]] = {}
    pairs = zip(plan.of_kind("answers"), plan.of_kind("harm"), strict=True)
    answers = [_answers(run, entry, judged) for entry, judged in pairs]
    where = [
        {"arm": one.anchor.arm, "step": one.anchor.step, "seed": one.anchor.seed}
        for one in answers
        for _ in one.rows
    ]
    write_answers(run.path / "answers", [row for one in answers for row in one.rows], where)
    tables["behaviour"] = _behaviour(answers, by_group=False)
    tables["behaviour_by_group"] = _behaviour(answers, by_group=True)
    tables["training"] = _training(run, plan)
    tables["comparisons"] = _comparisons(answers, tables["training"])
    tables["attacks"] = _attacks(run, plan)
    for name in ("causal", "controls", "localisation"):
        tables[name] = _causal(run, plan, name)
    (analysis,) = plan.of_kind("analysis")
    for name in ACROSS:
        tables[name] = read_json(analysis.stage(run).file(f"{name}.json"))
    tables["dropped"] = _dropped(run, plan, config)
    folder = run.path / "tables"
    for name, rows in tables.items():
        write_table(folder, name, rows)


class _Answers(NamedTuple):
    """The judged answers of one anchor, and its perplexity where it was taken."""

    anchor: AnchorRef
    rows: list[AnswerRow]
    perplexity: Perplexity | None


def _answers(run: RunDirectory, entry: StagePlan, judged: StagePlan) -> _Answers:
    assert entry.anchor is not None
    assert entry.anchor == judged.anchor
    stage = entry.stage(run)
    harm = {
        (row["prompt_id"], row["suite"], row["attack"]): {field: row[field] for field in HARM_FIELDS}
        for row in judged.stage(run).read_json("harm.json")
    }
    found_rows = [AnswerRow.from_json(row) for row in stage.read_json("answers.json")]
    rows = [replace(row, **harm.get((row.prompt_id, row.suite, row.attack), {})) for row in found_rows]
    stored = stage.file("perplexity.json")
    found = Perplexity.from_json(read_json(stored)) if stored.exists() else None
    return _Answers(entry.anchor, rows, found)


def _behaviour(answers: Sequence[_Answers], by_group: bool) -> list[Row]:
    rows: list[Row] = []
    for anchor, found, perplexity in answers:
        where = (anchor.arm, anchor.step, anchor.seed)
        if by_group:
            rows += metrics_rows(found, *where, by="category") + metrics_rows(found, *where, by="kind")
            continue
        rows += metrics_rows(found, *where)
        rows += _fixed_minus_direct(found, where)
        if perplexity is not None:
            rows += perplexity_rows(perplexity, *where, "chat_heldout")
    return _with_notes(rows)


def _with_notes(rows: Sequence[Row]) -> list[Row]:
    """Fixed-source rows say so where the attack is uninformative: its source answers direct requests anyway
    (protocol §4)."""
    wanted = ("base", "harmbench", "direct", "compliance", "")
    source = {
        row["seed"]: row["value"]
        for row in rows
        if tuple(row[key] for key in ("arm", "suite", "attack", "metric", "group")) == wanted
    }
    noted: list[Row] = []
    for row in rows:
        rate = source.get(row["seed"], 0.0)
        if row["attack"] == "fixed_source" and rate > UNINFORMATIVE_ABOVE:
            row = {**row, "note": f"uninformative: step 0 answers {rate:.2f} of direct requests"}
        noted.append(row)
    return noted


def _fixed_minus_direct(found: Sequence[AnswerRow], where: tuple[str, int, int]) -> list[Row]:
    """Fixed-source minus direct compliance on the attacked behaviours, paired, with a score interval."""
    direct = {row.prompt_id: row for row in found if (row.suite, row.attack) == ("harmbench", "direct")}
    fixed = [row for row in found if (row.suite, row.attack) == ("harmbench", "fixed_source")]
    pairs = [(row, direct[row.prompt_id]) for row in fixed if row.prompt_id in direct]
    pairs = [(a, b) for a, b in pairs if a.scored and b.scored]
    if not pairs:
        return []
    a, b = (np.array([pair[side].answered for pair in pairs], dtype=float) for side in (0, 1))
    gap = paired_difference(a, b)
    row = {
        "arm": where[0],
        "step": where[1],
        "seed": where[2],
        "suite": "harmbench",
        "attack": "fixed_source",
    }
    names = {"prompt_set": pairs[0][0].set_name, "group": "", "metric": "compliance_minus_direct"}
    return [
        {
            **row,
            **names,
            **gap._asdict(),
            "n": len(pairs),
            "judge": pairs[0][0].judge,
            "proxy": pairs[0][0].proxy,
        }
    ]


def _comparisons(answers: Sequence[_Answers], training: Sequence[Row]) -> list[Row]:
    kl = {AnchorRef(row["seed"], row["arm"], row["step"]): float(row["benign_kl"]) for row in training}
    anchors = [
        AnchorAnswers(ref.arm, ref.step, ref.seed, rows, kl.get(ref, math.nan)) for ref, rows, _ in answers
    ]
    return list(compare_arms(anchors, draws=COMPARISON_DRAWS, rng=np.random.default_rng(0)))


def _training(run: RunDirectory, plan: Plan) -> list[Row]:
    """Every arm's anchors; step 0, from which all is counted, once per seed. Nothing for an observed series."""
    rows: list[Row] = []
    seeds = dict.fromkeys(entry.seed for entry in plan.of_kind("train"))
    rows += [{"seed": seed, "arm": "base", "step": 0, **STEP_ZERO} for seed in seeds]
    for entry in plan.of_kind("train"):
        rows += [{"seed": entry.seed, **row} for row in read_json(entry.stage(run).file("training.json"))]
    return rows


def _attacks(run: RunDirectory, plan: Plan) -> list[Row]:
    """What the attacks came to and cost: sums over cases, and mean losses."""
    rows: list[Row] = []
    for kind, attack in (("cases", "fixed_source"), ("adaptive", "adaptive")):
        # `kind` runs over literals, which mypy widens to str.
        for entry in plan.of_kind(kind):  # type: ignore[arg-type]
            where = (entry.anchor.arm, entry.anchor.step) if entry.anchor else ("base", 0)
            found = {"seed": entry.seed, "arm": where[0], "step": where[1], "attack": attack}
            rows.append({**found, **entry.stage(run).manifest()["facts"]})
    return rows


def _causal(run: RunDirectory, plan: Plan, name: str) -> list[Row]:
    """Rows of one artifact of the causal stages, with the anchor and the carrier's site."""
    rows: list[Row] = []
    for entry in plan.of_kind("causal"):
        assert entry.anchor is not None
        stage = entry.stage(run)
        facts = stage.manifest()["facts"]
        where = {"seed": entry.anchor.seed, "arm": entry.anchor.arm, "step": entry.anchor.step}
        prefix = "carrier_" if name == "localisation" else ""  # whose own layer is that of the ablation
        site = {f"{prefix}{key}": facts[key] for key in ("layer", "position")}
        site["carrier_admissible"] = facts["admissible"]
        # A row that names a site, that of another anchor's carrier, keeps it.
        rows += [{**where, **site, **row} for row in stage.read_json(f"{name}.json")]
    return rows


def _dropped(run: RunDirectory, plan: Plan, config: StudyConfig) -> list[Row]:
    (prompts,) = plan.of_kind("prompts")
    (chat,) = plan.of_kind("chat")
    rows = prompts.stage(run).read_json("prompts.json")["dropped"] + chat.stage(run).read_json("dropped.json")
    return [{"seed": config.seeds[0], **row} for row in rows]
