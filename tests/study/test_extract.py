"""Directions of a single model: from sums, one batch at a time; every prompt's activations on request."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caryatid.causal import activations
from caryatid.data.study_prompts import build_study_prompts
from caryatid.errors import NumericalError, UsageError
from caryatid.geometry.directions import candidate_directions, category_directions
from caryatid.models.sizes import BatchSizes
from caryatid.single import extract
from tiny import tiny_loaded

GIVEN = {"prompts": 7, "source": "embedded", "seed": 0, "system": None}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches of three prompts; their sizes."""
    sizes: list[int] = []
    original = activations.block_inputs

    def recorded(loaded, rows, **given):  # type: ignore[no-untyped-def]
        sizes.append(len(rows))
        return original(loaded, rows, **given)

    monkeypatch.setattr(activations, "block_inputs", recorded)
    monkeypatch.setattr(extract, "plan_batch_sizes", lambda *_: BatchSizes(3, 3, 3, 3))
    return sizes


def test_directions_from_sums_are_those_of_every_prompts_activations(
    tmp_path: Path, batches: list[int]
) -> None:
    out, whole = tmp_path / "directions.safetensors", tmp_path / "activations.safetensors"
    loaded = tiny_loaded()
    facts = extract.extract_directions(loaded, out, activations=whole, **GIVEN)  # type: ignore[arg-type]
    assert batches == [3, 3, 1] * 2
    found, kept = load_file(out), load_file(whole)
    assert kept["harmful"].shape == (7, 4, len(facts["positions"]), 32)
    expected = candidate_directions(kept["harmful"], kept["harmless"]).float()
    torch.testing.assert_close(found["directions"], expected, rtol=1e-6, atol=1e-6)
    limits = {"extraction_harmful": 7, "extraction_harmless": 7}
    rows = build_study_prompts(source="embedded", limits=limits, seed=0, offline=True).extraction_harmful
    labels = [row.category or "unlabelled" for row in rows]
    by_category = category_directions(kept["harmful"], kept["harmless"], labels)
    assert facts["categories"] == list(by_category.names)
    torch.testing.assert_close(found["category_directions"], by_category.rows.float(), rtol=1e-6, atol=1e-6)


def test_activations_are_written_only_on_request(tmp_path: Path) -> None:
    facts = extract.extract_directions(tiny_loaded(), tmp_path / "d.safetensors", **GIVEN)  # type: ignore[arg-type]
    assert facts["activations"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_a_broken_model_and_an_unwritable_file_are_one_line(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        extract.extract_directions(loaded, tmp_path / "file" / "d.safetensors", **GIVEN)  # type: ignore[arg-type]
    loaded.model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match="harmful activations are not finite"):
        extract.extract_directions(loaded, tmp_path / "d.safetensors", **GIVEN)  # type: ignore[arg-type]
