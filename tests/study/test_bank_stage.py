"""The bank stage where a model refuses harmless prompts too."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caryatid.study.stages.bank import _refused_minus_answered, scored_layers

from caryatid.artifacts import RunDirectory
from caryatid.data.prompts import Prompt
from caryatid.errors import InputError
from caryatid.models.forward import block_inputs
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

TEXTS = ("tell me about tea", "what is the sun", "name a sea", "who are you")


def _scorer(verdicts: list[str]) -> SimpleNamespace:
    loaded = tiny_loaded()
    rows = tuple(
        Prompt(id=str(i), text=text, set_name="s", label="harmless", targets=())
        for i, text in enumerate(TEXTS)
    )
    torch.manual_seed(0)
    given = torch.randn(2, 3, 32)
    return SimpleNamespace(
        loaded=loaded,
        chat=ChatFormat(loaded.tokenizer),
        sets=SimpleNamespace(selection_harmless=SimpleNamespace(prompts=rows)),
        layers=[1, 2, 3],
        positions=[-2, -1],
        verdicts=verdicts,
        context=SimpleNamespace(batch=SimpleNamespace(forward=2)),
        directions=lambda *_: given,
    )


def test_refused_minus_answered_is_the_difference_of_means(tmp_path: Path) -> None:
    stage = RunDirectory.create(tmp_path / "run").stage("bank", {})
    stage.path.mkdir(parents=True)
    scorer = _scorer(["full_refusal", "full_compliance", "partial_refusal", "full_compliance"])
    note = _refused_minus_answered(scorer, stage)  # type: ignore[arg-type]
    assert note.startswith("cosine with the harmful-minus-harmless direction: 0.")
    found = stage.read_tensors("refused_minus_answered.safetensors")["direction"]
    assert found.shape == (2, 3, 32)
    one = [
        block_inputs(scorer.loaded, [scorer.chat.ids(text)], layers=[2], n_positions=1, batch_size=1)[0, 0, 0]
        for text in TEXTS
    ]
    expected = (one[0] + one[2]) / 2 - (one[1] + one[3]) / 2
    torch.testing.assert_close(found[1, 1], expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_refuses_every_prompt_is_named(tmp_path: Path) -> None:
    stage = RunDirectory.create(tmp_path / "run").stage("bank", {})
    note = _refused_minus_answered(_scorer(["full_refusal"] * 4), stage)  # type: ignore[arg-type]
    assert "every prompt was refused" in note


def test_scored_layers_count_down_from_the_deepest_below_the_depth() -> None:
    assert scored_layers(30, 4) == [1, 5, 9, 13, 17, 21, 25, 29]
    assert scored_layers(30, 3, 0.8) == [2, 5, 8, 11, 14, 17, 20, 23]
    assert scored_layers(6, 1, 0.8) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="no layer of 2"):
        scored_layers(2, 1, 0.4)
