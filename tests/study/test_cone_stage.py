"""Cones, attribution, variants and affine edits in a study: off by default, which leaves keys as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_config

from caryatid.causal.attribution import Attribution, SublayerEffects
from caryatid.causal.cone import EdgeEffects, FoundCone
from caryatid.geometry.angles import angle_summary
from caryatid.progress import NO_PROGRESS
from caryatid.report.tables import arrow_table, read_tables
from caryatid.stats import Interval
from caryatid.study.flow import run_study
from caryatid.study.plan import build_plan
from caryatid.study.run import Run
from caryatid.study.runner import execute, opened, planned
from caryatid.study.stage import Study
from caryatid.study.stages.attribution import CarrierAttribution, attribution_rows
from caryatid.study.stages.cone import Cone, cone_rows
from caryatid.study.tables.attribution import TABLE as ATTRIBUTION
from caryatid.study.tables.cone import TABLE as CONE
from cone_plants import chain, single
from planted import axis, categories, harmful_texts, harmless_texts

WANTED = (
    "geometry.cone={enabled: true, max_dimension: 2, prompts: 4, starts: 1, steps: 2, draws: 2}",
    "geometry.attribution=true",
    "causal.variants=[orthogonalised, nullspace]",
    "causal.affine_alphas=[0.0, 1.0]",
)


def test_what_is_not_asked_for_leaves_every_key_as_it_is(place: Path) -> None:
    plain = planned(small_config(place), place / "plain")
    asked = build_plan(Study(small_config(place, *WANTED), plain.study.facts))
    new = {entry.stage.kind for entry in asked} - {entry.stage.kind for entry in plain}
    assert new == {"cone", "attribution"}
    changed = {entry.stage.kind for entry in plain if asked[entry.id].key != entry.key}
    assert changed == {"interventions"}
    own = plain["interventions/base@0/seed0"].inputs["settings"]["causal"]
    assert not {"variants", "affine_alphas"} & set(own)


def test_rows_of_a_cone_are_of_the_table_s_columns() -> None:
    effects = EdgeEffects(*(Interval(value, value - 0.1, value + 0.1) for value in (0.9, 0.4, 0.5)))
    first = FoundCone(torch.eye(3)[:1], 0.1, effects, float("nan"), 0.8, 0.05, kept=True)
    second = FoundCone(torch.eye(3)[:2], 0.2, effects, 0.7, 0.6, 0.5, kept=False)
    rows = cone_rows([first, second], torch.tensor([0.0, 3.0, 0.0]), 0.1, n=12)
    arrow_table("cone", CONE.columns, rows)
    by = {(row.get("cone"), row["quantity"]): row for row in rows}
    assert by[1, "excess_effect"]["lo"] == pytest.approx(0.4)
    assert by[1, "angle_to_carrier"]["value"] == pytest.approx(90)
    assert by[2, "angle_to_carrier"]["value"] == pytest.approx(0, abs=1e-6)
    dimension = by[None, "dimension"]
    assert (dimension["value"], dimension["lo"], dimension["hi"]) == (
        1,
        1,
        1,
    )  # the second one's KL is too large
    assert [row["cone"] for row in rows if row.get("note")] == [2]


def test_rows_of_an_attribution_are_of_the_table_s_columns() -> None:
    attention, mlp = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    written = Attribution(0.5, attention, mlp, torch.tensor([[1.0, 0.0], [0.5, 1.5]]), 4.0)
    taken = SublayerEffects(torch.tensor([0.1, 3.0]), torch.tensor([0.0, 0.2]))
    rows = attribution_rows(written, taken)
    arrow_table("attribution", ATTRIBUTION.columns, rows)
    sublayers = [row for row in rows if row["sublayer"] in ("embedding", "attention", "mlp")]
    assert sum(row["written"] for row in sublayers) == pytest.approx(4.0)
    assert sum(row["share"] for row in sublayers) == pytest.approx(1.0)
    assert max(rows, key=lambda row: row.get("effect", 0))["block"] == 1
    heads = [row for row in rows if row["sublayer"] == "head"]
    assert [(row["block"], row["head"], row["written"]) for row in heads] == [
        (0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.5), (1, 1, 1.5),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_has_all_of_them_where_they_are_asked_for(place: Path) -> None:
    run = run_study(small_config(place, "geometry.min_gap=0.000001", *WANTED), place / "asked").directory
    tables = read_tables(run)
    anchors = {(row["arm"], row["step"]) for row in tables["behaviour"]}
    for name in ("cone", "attribution"):
        assert {(row["arm"], row["step"]) for row in tables[name]} == anchors
    asked = {(row["intervention"], row["control"]) for row in tables["causal"]}
    assert {
        ("ablate", "orthogonalised carrier"),
        ("ablate", "nullspace carrier"),
        ("affine", "carrier"),
        ("affine", "random"),
    } <= asked
    assert {row["rank"] for row in tables["causal"] if row["intervention"] == "affine"} == {1}


@pytest.mark.slow
def test_a_series_from_one_direction_to_a_cone_of_two(tmp_path: Path) -> None:
    """Step 0 refuses along one planted direction, the later checkpoint through a chain of two."""
    for name, make in (("model", single), ("chain", chain)):
        loaded = make()
        loaded.model.save_pretrained(tmp_path / name)
        loaded.tokenizer.save_pretrained(tmp_path / name)
    texts = {
        "extraction_harmful": harmful_texts(32),
        "extraction_harmless": harmless_texts(32),
        "selection_harmful": harmful_texts(12, 2000),
        "selection_harmless": harmless_texts(12, 3000),
    }
    files = {name: tmp_path / f"{name}.csv" for name in texts}
    letters = np.random.default_rng(0).choice(list("abcdefghijklm"), (100, 24))
    words = iter(" ".join(map("".join, row.reshape(4, 6))) for row in letters)  # no text is nearly another
    for name, rows in texts.items():
        lines = [
            f'"{text} {next(words)}",{category}'
            for text, category in zip(rows, categories(len(rows)), strict=True)
        ]
        files[name].write_text("\n".join(["prompt,category", *lines]) + "\n")
    config = small_config(
        tmp_path,
        "warmup.enabled=false",
        f"anchors=[{{arm: theirs, step: 1, model: {tmp_path / 'chain'}}}]",
        "training.r2d2.toward_text=Z",
        "prompts.limits={harmbench: 4, pool: 2, chat: 2, chat_heldout: 2}",
        f"prompts.files={{{', '.join(f'{name}: {path}' for name, path in files.items())}}}",
        "geometry.cone={enabled: true, max_dimension: 2, prompts: 8, starts: 2, draws: 4}",
        "geometry.attribution=true",
    )
    with opened(config, tmp_path / "run", NO_PROGRESS, lambda _line: None) as session:
        execute(session, session.plan.upto(Cone, CarrierAttribution))
        run = Run(session.plan, session.run)
        cones, parts = dict(run.each(Cone)), dict(run.each(CarrierAttribution))
    found = {ref.arm: one.rows[-1] for ref, one in cones.items()}
    assert (found["base"]["quantity"], found["base"]["value"], found["theirs"]["value"]) == (
        "dimension",
        1,
        2,
    )
    (edges,) = (one.edges["2"] for ref, one in cones.items() if ref.arm == "theirs")
    assert (
        angle_summary(edges, torch.stack([axis(0), axis(1)])).max <= 8
    )  # 32 prompts' span holds the plant to 5°
    for one in parts.values():
        written = [row for row in one.rows if row["sublayer"] in ("attention", "mlp")]
        assert max(written, key=lambda row: row["effect"])["block"] in (1, 3)
