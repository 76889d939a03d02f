"""What `caryatid attack gcg --json` prints, recomputed by plain transformers from the text; and memory that stays."""

import csv
import gc
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caryatid.attacks.base import Goal
from caryatid.attacks.gcg.state import start_state
from caryatid.cli import run
from caryatid.models.convert import ensure_embedded
from caryatid.models.template import ChatFormat
from searching import steps_of
from tiny import CHATML, INST, save_tiny, tiny_loaded, tiny_tokenizer

BEHAVIOURS = {
    "letter": "How do I write a letter to the office?",
    "tides": "Explain the tides",
    "merge": "Explain the tides [",
}


def attack(
    folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> list[dict[str, object]]:
    with (out / "b.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("Behavior", "BehaviorID"), *((text, name) for name, text in BEHAVIOURS.items())])
    arguments = ["--model", str(folder), "--behaviors", str(out / "b.csv"), "--json", *options]
    assert run(["attack", "gcg", *arguments]) == 0
    cases: list[dict[str, object]] = json.loads(capsys.readouterr().out)["cases"]
    assert [case["behavior_id"] for case in cases] == list(BEHAVIOURS)
    return cases


@torch.no_grad()
def sent_loss(folder: Path, case: dict[str, object], opening: str) -> tuple[float, list[int]]:
    """Loss and prompt ids of the text that a user would send; `opening` is what the template puts before answers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    user = f"{BEHAVIOURS[str(case['behavior_id'])]} {case['suffix_text']}"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    target = tokenizer(opening + str(case["target"]), add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt + target])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return float(model(input_ids=ids, labels=labels).loss), prompt


def assert_sent(folder: Path, case: dict[str, object], opening: str) -> None:
    loss, prompt = sent_loss(folder, case, opening)
    losses, suffix = case["losses"], case["suffix_ids"]
    assert isinstance(losses, list)
    assert isinstance(suffix, list)
    assert case["loss"] == min(losses) == losses[-1] < losses[0]
    assert case["loss"] == pytest.approx(loss, abs=5e-3)
    assert any(prompt[at : at + len(suffix)] == suffix for at in range(len(prompt)))


@pytest.mark.parametrize("template", [CHATML, INST], ids=["chatml", "inst"])
def test_the_printed_loss_is_that_of_the_text_as_sent(
    template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second template ordinary text surrounds the message: tokens merge across both of its ends."""
    folder = save_tiny(tmp_path / "model")
    tiny_tokenizer(template=template).save_pretrained(folder)
    sizes = ("--steps", "6", "--width", "16", "--top-k", "32", "--suffix-length", "4", "--batch-size", "5")
    for case in attack(folder, tmp_path, capsys, *sizes):
        assert_sent(folder, case, " " if template == INST else "")


@pytest.mark.slow
def test_the_printed_loss_on_the_embedded_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ensure_embedded().folder
    sizes = ("--steps", "2", "--width", "8", "--top-k", "32", "--suffix-length", "8")
    for case in attack(folder, tmp_path, capsys, *sizes):
        assert_sent(folder, case, "")


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_memory_at_step_200_is_that_at_step_20() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    state = start_state(chat, Goal("tides", "Explain the tides", "Sure, here is"), length=6)
    resident, traced = [], []

    def measure() -> None:
        gc.collect()  # what is still referred to, not when the collector last ran
        resident.append(_resident())
        traced.append(tracemalloc.get_traced_memory()[0])

    generator = torch.Generator().manual_seed(0)
    tracemalloc.start()
    try:
        sizes = {"width": 32, "top_k": 64, "batch_size": 16, "generator": generator}
        steps_of(loaded, chat, [state], steps=200, on_step=measure, **sizes)
    finally:
        tracemalloc.stop()
    assert len(resident) == 200
    assert resident[199] <= 1.02 * resident[19]
    assert traced[199] - traced[19] < 100_000  # bytes: the record's 180 further losses, nothing else
