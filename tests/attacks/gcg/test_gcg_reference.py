"""The search against GCG as plainly as it can be said."""

import pytest
import torch
from torch.nn import functional

from caryatid.attacks.base import Goal
from caryatid.attacks.gcg.candidates import allowed_token_ids
from caryatid.attacks.gcg.scoring import SCORINGS
from caryatid.attacks.gcg.state import start_state
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from searching import search_alone, steps_of
from tiny import INST, tiny_loaded, tiny_tokenizer

CASE = Goal("letter", "How do I write a letter to the office?", "Sure, here is a letter")


def substitutions(
    suffix: list[int], tops: list[list[int]], top_k: int, generator: torch.Generator
) -> list[list[int]]:
    """Each one-token change once: in turn one of each position's top tokens, positions in a random order."""
    token_order = torch.rand((len(suffix), top_k), generator=generator).argsort(dim=1).tolist()
    position_order = torch.rand((top_k, len(suffix)), generator=generator).argsort(dim=1).tolist()
    return [
        [*suffix[:position], tops[position][rank], *suffix[position + 1 :]]
        for turn in range(top_k)
        for position in position_order[turn]
        if (rank := token_order[position][turn]) < len(tops[position])
    ]


def reference_search(
    loaded: LoadedModel,
    chat: ChatFormat,
    case: Goal,
    *,
    steps: int,
    width: int,
    top_k: int,
    length: int,
    seed: int,
) -> tuple[list[int], list[int], list[float]]:
    """GCG as plainly as it can be said: full rows, one at a time, python lists. Returns last ids, best ids, losses."""
    tokenizer, model = loaded.tokenizer, loaded.model
    filtered = allowed_token_ids(tokenizer)
    allowed = filtered.allowed.nonzero().flatten().tolist()
    spaced = filtered.spaced.nonzero().flatten().tolist()
    generator = case.generator(seed)
    target = chat.answer_ids(case.target, end_of_turn=False)
    table = model.get_input_embeddings()(torch.arange(len(tokenizer))).detach()

    start = start_state(chat, case, length=length)
    prompt = chat.ids(f"{case.user_text} {start.suffix_text}")
    at = next(i for i in range(len(prompt)) if tuple(prompt[i : i + length]) == start.suffix_ids)
    before, after = prompt[:at], prompt[at + length :]
    before_text = tokenizer.decode(before)
    in_token = tokenizer.decode(prompt)[len(before_text) :].startswith(" ")

    def loss_of(suffix: list[int]) -> float:
        row = torch.tensor([before + suffix + after + target])
        with torch.no_grad():
            logits = model(input_ids=row).logits[0, -len(target) - 1 : -1].double()
        return float(functional.cross_entropy(logits, torch.tensor(target)))

    def typed(suffix: list[int]) -> str | None:
        text = tokenizer.decode(before + suffix)[len(before_text) :]
        if in_token and not text.startswith(" "):
            return None
        text = text[1:] if in_token else text
        return text if text and text == text.strip() else None

    def survives(suffix: list[int]) -> bool:
        text = typed(suffix)
        return text is not None and chat.ids(f"{case.user_text} {text}") == before + suffix + after

    suffix = list(start.suffix_ids)
    best, best_loss = suffix, loss_of(suffix)
    losses = [best_loss]
    for _ in range(steps):
        onehot = functional.one_hot(torch.tensor(suffix), len(tokenizer)).to(table.dtype).requires_grad_(True)
        embeds = torch.cat([table[before], onehot @ table, table[after + target]]).unsqueeze(0)
        logits = model(inputs_embeds=embeds).logits[0, -len(target) - 1 : -1].double()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, torch.tensor(target)), onehot)
        tops = []
        for position in range(length):
            usable = spaced if position == 0 and in_token else allowed
            usable = [token for token in usable if token != suffix[position]]
            tops.append(sorted(usable, key=lambda t, p=position: float(gradient[p, t]))[:top_k])
        tried = substitutions(suffix, tops, top_k, generator)[: 16 * width]
        candidates = [candidate for candidate in tried if survives(candidate)][:width]
        if candidates:
            scores = [loss_of(candidate) for candidate in candidates]
            suffix = candidates[scores.index(min(scores))]
            if min(scores) < best_loss:
                best, best_loss = suffix, min(scores)
        losses.append(best_loss)
    return suffix, best, losses


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_same_suffix_as_a_plain_reference_loop_in_float64(arch: str, template: str) -> None:
    loaded = tiny_loaded(arch, dtype=torch.float64)
    if template == "inst":
        loaded = LoadedModel(
            loaded.model, tiny_tokenizer(template=INST), "inst", "inst", loaded.dtype, loaded.device
        )
    chat = ChatFormat(loaded.tokenizer)
    case = CASE
    settings = {"steps": 10, "width": 16, "top_k": 24, "seed": 5}
    last, best, losses = reference_search(loaded, chat, case, length=5, **settings)
    for scoring in SCORINGS:
        (result,) = search_alone(
            loaded, chat, [case], batch_size=8, suffix_length=5, scoring=scoring, **settings
        )
        assert list(result.suffix_ids) == best
        assert result.losses == pytest.approx(losses, rel=1e-6)
    (state,) = steps_of(
        loaded,
        chat,
        [start_state(chat, case, length=5)],
        steps=10,
        width=16,
        top_k=24,
        batch_size=5,
        generator=case.generator(5),
    )
    assert list(state.suffix_ids) == last
    assert state.losses == pytest.approx(losses, rel=1e-6)
