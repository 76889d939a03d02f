"""The stage of candidate directions where a model refuses harmless prompts too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from caryatid.artifacts import RunDirectory
from caryatid.causal.locate import CandidateScorer, Measured
from caryatid.models.forward import block_inputs
from caryatid.models.template import ChatFormat
from caryatid.study.stages.candidates import ScoredCandidates
from caryatid.study.stages.selection import Selected, SelectionAnswer
from caryatid.study.work import Work
from tiny import tiny_loaded

TEXTS = ("tell me about tea", "what is the sun", "name a sea", "who are you")
LOADED = tiny_loaded()


def _noted(place: Path, verdicts: list[str]) -> tuple[str, Any]:
    """The note on the refused-minus-answered direction, and the stage's folder."""
    folder = RunDirectory.create(place).stage("candidates", {})
    folder.path.mkdir(parents=True)
    rows = tuple(SelectionAnswer(str(i), "", (1,), verdict, 1) for i, verdict in enumerate(verdicts))
    work = SimpleNamespace(folder=folder, of=lambda kind: Selected((), rows))
    chat = ChatFormat(LOADED.tokenizer)
    torch.manual_seed(0)
    given = torch.randn(2, 3, 32)
    scorer = SimpleNamespace(
        model=Measured(LOADED, chat, batch_size=2),
        selection=SimpleNamespace(harmless=chat.ids_many(TEXTS)),
        layers=[1, 2, 3],
        positions=[-2, -1],
        directions=lambda: given,
    )
    stage = ScoredCandidates(cast(Any, None))
    return stage._refused_minus_answered(cast(Work, work), cast(CandidateScorer, scorer)), folder


def test_refused_minus_answered_is_the_difference_of_means(tmp_path: Path) -> None:
    verdicts = ["full_refusal", "full_compliance", "partial_refusal", "full_compliance"]
    note, folder = _noted(tmp_path / "run", verdicts)
    assert note.startswith("cosine with the harmful-minus-harmless direction: 0.")
    found = folder.read_tensors("refused_minus_answered.safetensors")["direction"]
    assert found.shape == (2, 3, 32)
    chat = ChatFormat(LOADED.tokenizer)
    one = [
        block_inputs(LOADED, [chat.ids(text)], layers=[2], n_positions=1, batch_size=1)[0, 0, 0]
        for text in TEXTS
    ]
    expected = (one[0] + one[2]) / 2 - (one[1] + one[3]) / 2
    torch.testing.assert_close(found[1, 1], expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_refuses_every_prompt_is_named(tmp_path: Path) -> None:
    note, _ = _noted(tmp_path / "run", ["full_refusal"] * 4)
    assert "every prompt was refused" in note
