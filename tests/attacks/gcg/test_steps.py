"""The search against a plain loop, its record against the text as sent, and what it leaves behind."""

import copy
import itertools

import pytest
import torch
from torch import nn

from caryatid.attacks.base import AttackResult, Goal
from caryatid.attacks.gcg import steps as gcg
from caryatid.attacks.gcg.candidates import allowed_token_ids
from caryatid.attacks.gcg.scoring import SCORINGS, Scoring
from caryatid.attacks.gcg.state import GcgState, resume_state, start_state
from caryatid.errors import InputError, NumericalError
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from searching import search_alone, steps_of
from tiny import ARCHITECTURES, INST, tiny_loaded, tiny_tokenizer

CASES = (
    Goal("letter", "How do I write a letter to the office?", "Sure, here is a letter"),
    Goal("tides", "Explain the tides", "Sure, here is how the tides work"),
    Goal("sea", "Où est la mer?\n\n---\n\nPlease write about it", "Sure"),
)


def search(
    loaded: LoadedModel, chat: ChatFormat, cases: tuple[Goal, ...] = CASES, **changes: object
) -> list[AttackResult]:
    settings = {
        "steps": 4,
        "width": 12,
        "top_k": 24,
        "batch_size": 8,
        "seed": 0,
        "suffix_length": 5,
        **changes,
    }
    return search_alone(loaded, chat, cases, **settings)


@torch.no_grad()
def loss_of_text(loaded: LoadedModel, template: str, user: str, target: str) -> float:
    """Plain transformers on the rendered text and the target, labels on the target's tokens."""
    tokenizer = loaded.tokenizer
    turn = [{"role": "user", "content": user}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = " " if template == INST else ""  # this template puts a space before answers
    answer = tokenizer(opening + target, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return float(loaded.model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_reported_loss_is_that_of_the_text_as_sent(arch: str) -> None:
    loaded = tiny_loaded(arch)
    chat = ChatFormat(loaded.tokenizer)
    for case, result in zip(CASES, search(loaded, chat), strict=True):
        text = f"{case.user_text} {result.suffix_text}"
        assert result.loss == pytest.approx(loss_of_text(loaded, "chatml", text, case.target), abs=1e-4)
        assert_contract(loaded, chat, case, result, steps=4)


@pytest.mark.parametrize("system", [None, ""])
def test_reported_loss_where_tokens_merge_with_the_template(system: str | None) -> None:
    plain = tiny_loaded("llama")
    loaded = LoadedModel(
        plain.model, tiny_tokenizer(template=INST, add_bos=True), "inst", "inst", plain.dtype, plain.device
    )
    chat = ChatFormat(loaded.tokenizer, system)
    for case, result in zip(CASES, search(loaded, chat, steps=8), strict=True):
        text = f"{case.user_text} {result.suffix_text}"
        assert result.loss == pytest.approx(loss_of_text(loaded, INST, text, case.target), abs=1e-4)
        assert_contract(loaded, chat, case, result, steps=8)


def assert_contract(
    loaded: LoadedModel, chat: ChatFormat, case: Goal, result: AttackResult, steps: int
) -> None:
    """What every result promises."""
    losses = list(result.losses)
    assert len(losses) == steps + 1
    assert losses == sorted(losses, reverse=True)
    assert result.loss == min(losses) == losses[-1]
    assert losses[-1] < losses[0]
    ids = chat.ids(f"{case.user_text} {result.suffix_text}")
    first = next(
        i for i in range(len(ids)) if tuple(ids[i : i + len(result.suffix_ids)]) == result.suffix_ids
    )
    assert loaded.tokenizer.decode(ids[first:]).startswith((f" {result.suffix_text}", result.suffix_text))
    assert result.suffix_text.isascii()
    assert result.suffix_text.isprintable()
    allowed = allowed_token_ids(loaded.tokenizer).allowed
    assert allowed[list(result.suffix_ids)].all()
    assert result.forward_tokens > 0
    assert result.seconds > 0


def test_initial_loss_is_that_of_the_initial_suffix() -> None:
    loaded = tiny_loaded("qwen2")
    chat = ChatFormat(loaded.tokenizer)
    (result,) = search(loaded, chat, CASES[:1], steps=0)
    state = start_state(chat, CASES[0], length=5)
    assert (result.suffix_text, result.suffix_ids) == (state.suffix_text, state.suffix_ids)
    text = f"{CASES[0].user_text} {state.suffix_text}"
    assert result.losses == (result.loss,)
    assert result.loss == pytest.approx(loss_of_text(loaded, "chatml", text, CASES[0].target), abs=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cases_together_equal_cases_alone(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded(arch)
    chat = ChatFormat(loaded.tokenizer, "")
    states = [start_state(chat, case, length=4 + i) for i, case in enumerate(CASES)]

    def run(chosen: list[int], **changes: object) -> list[GcgState]:
        settings = {"steps": 3, "width": 10, "top_k": 20, "batch_size": 7, **changes}
        generators = [CASES[i].generator(1) for i in chosen]
        return steps_of(loaded, chat, [states[i] for i in chosen], generator=generators, **settings)

    together = run([0, 1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(gcg, "_groups", lambda device: 2)
        grouped = run([0, 1, 2])
    variants = [
        grouped,
        [run([i])[0] for i in range(3)],
        *[run([0, 1, 2], scoring=scoring) for scoring in SCORINGS],
        run([0, 1, 2], batch_size=100),
        run([0, 1, 2], batch_size=1),
    ]
    for variant in variants:
        for one, other in zip(variant, together, strict=True):
            assert (one.suffix_ids, one.best_ids) == (other.suffix_ids, other.best_ids)
            assert one.losses == pytest.approx(other.losses, rel=1e-4)


def test_the_best_candidate_moves_in_even_if_worse_and_the_best_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    state = start_state(chat, CASES[0], length=5)
    seen: list[GcgState] = []
    step = gcg.gcg_step

    def recording(*args: object) -> list[GcgState]:
        seen.extend(found := step(*args))
        return found

    monkeypatch.setattr(gcg, "gcg_step", recording)
    steps_of(
        loaded,
        chat,
        [state],
        steps=30,
        width=3,
        top_k=40,
        batch_size=8,
        generator=torch.Generator().manual_seed(0),
    )
    moved = [a.suffix_ids != b.suffix_ids for a, b in itertools.pairwise(seen)]
    worse = [b.loss > a.loss for a, b in itertools.pairwise(seen)]
    assert all(moved)
    assert any(worse)
    assert all(now.best_loss <= now.loss for now in seen)
    last = seen[-1]
    assert last.best_loss == min(now.loss for now in (*seen, seen[0])) or last.best_loss == last.losses[0]
    assert last.best_loss < last.loss


def test_seed_decides_and_the_other_cases_do_not() -> None:
    loaded = tiny_loaded("mistral")
    chat = ChatFormat(loaded.tokenizer)

    def found(results: list[AttackResult]) -> list[tuple[object, ...]]:
        return [(r.behavior_id, r.suffix_ids, r.losses, r.forward_tokens) for r in results]

    first = found(search(loaded, chat))
    assert found(search(loaded, chat)) == first
    assert found(search(loaded, chat, CASES[::-1]))[::-1] == first
    assert found(search(loaded, chat, seed=1)) != first


class _WithDropout(nn.Module):
    """Stands for any training-time noise beside the model's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, *args: object, **kwargs: object) -> object:
        output = self.inner(*args, **kwargs)
        output.logits = self.drop(output.logits)
        return output

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    @property
    def config(self) -> object:
        return self.inner.config


def test_modes_are_restored_and_dropout_is_off_meanwhile() -> None:
    loaded = tiny_loaded("gpt2")
    model = _WithDropout(copy.deepcopy(loaded.model)).train()
    model.inner.transformer.h[1].eval()
    noisy = LoadedModel(model, loaded.tokenizer, "noisy", "noisy", loaded.dtype, loaded.device)
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    chat = ChatFormat(loaded.tokenizer)
    quiet, found = search(loaded, chat), search(noisy, chat)
    for one, other in zip(quiet, found, strict=True):
        assert one.suffix_ids == other.suffix_ids
        assert one.losses == pytest.approx(other.losses, rel=1e-6)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_lora_model_in_training_is_searched_with_its_adapter_and_left_alone() -> None:
    from peft import LoraConfig, get_peft_model

    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(loaded.model), config)
    model.enable_input_require_grads()
    model.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tuned = LoadedModel(model, loaded.tokenizer, "lora", "lora", loaded.dtype, loaded.device)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = search(tuned, chat)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    merged = LoadedModel(
        model.merge_and_unload().eval(), loaded.tokenizer, "merged", "merged", loaded.dtype, loaded.device
    )
    for one, other in zip(found, search(merged, chat), strict=True):
        assert one.suffix_ids == other.suffix_ids
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
    assert [r.suffix_ids for r in found] != [r.suffix_ids for r in search(loaded, chat)]


def test_without_surviving_candidates_the_suffix_is_kept_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gcg,
        "surviving_candidates",
        lambda slot, tokenizer, ids, order, width, survival: ids.new_empty((0, len(ids))),
    )
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    (result,) = search(loaded, chat, CASES[:1], steps=3)
    assert result.stalled_steps == 3
    assert len(set(result.losses)) == 1
    assert result.suffix_ids == start_state(chat, CASES[0], length=5).suffix_ids


@pytest.mark.parametrize("scoring", SCORINGS)
def test_forward_tokens_are_those_the_model_ran(scoring: Scoring) -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    run = [0]

    def count(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        ids = kwargs.get("input_ids")
        run[0] += ids.numel() if ids is not None else kwargs["inputs_embeds"].shape[:-1].numel()

    handle = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        for case in CASES:
            run[0] = 0
            (result,) = search(loaded, chat, (case,), scoring=scoring, batch_size=1)
            assert result.forward_tokens == run[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("scoring", SCORINGS)
def test_candidates_and_tokens_of_gradients_are_counted(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    backward, scored = [0], [0]
    surviving = gcg.surviving_candidates

    def count(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and embeds.requires_grad:
            backward[0] += embeds.shape[:-1].numel()

    def counting(*args: object) -> torch.Tensor:
        scored[0] += len(found := surviving(*args))
        return found

    monkeypatch.setattr(gcg, "surviving_candidates", counting)
    handle = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        generator = torch.Generator().manual_seed(0)
        for case in CASES:
            backward[0] = scored[0] = 0
            (state,) = steps_of(
                loaded, chat, [start_state(chat, case, length=5)], steps=3, width=7, top_k=16, batch_size=4,
                generator=generator, scoring=scoring,
            )  # fmt: skip
            assert state.backward_tokens == backward[0] > 0
            assert state.candidates == scored[0] == 3 * 7
    finally:
        handle.remove()


def test_warm_started_steps_begin_a_new_record() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    generator = torch.Generator().manual_seed(0)
    settings = {"width": 8, "top_k": 16, "batch_size": 8, "generator": generator}
    first = steps_of(loaded, chat, [start_state(chat, c, length=5) for c in CASES], steps=2, **settings)
    other = tiny_loaded("llama", seed=1)
    second = steps_of(other, chat, first, steps=2, **settings)
    for case, before, after in zip(CASES, first, second, strict=True):
        text = f"{case.user_text} {before.suffix_text}"
        assert after.losses[0] == pytest.approx(loss_of_text(other, "chatml", text, case.target), rel=1e-4)
        assert len(after.losses) == 3
        again = resume_state(chat, case, after.suffix_ids)
        assert (again.suffix_ids, again.suffix_text) == (after.suffix_ids, after.suffix_text)
    assert steps_of(loaded, chat, [], steps=2, **settings) == []


def test_a_state_whose_ids_are_not_its_texts_is_refused() -> None:
    loaded = tiny_loaded("llama")
    chat = ChatFormat(loaded.tokenizer)
    state = start_state(chat, CASES[0], length=5)
    forged = GcgState(state.goal, (*state.suffix_ids[::-1], 7), state.suffix_text)
    with pytest.raises(InputError, match="letter"):
        steps_of(loaded, chat, [forged], steps=1, width=4, top_k=4, batch_size=4, generator=torch.Generator())


@pytest.mark.parametrize("name", ["width", "top_k", "batch_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    loaded = tiny_loaded("llama")
    with pytest.raises((ValueError, InputError), match=name):
        search(loaded, ChatFormat(loaded.tokenizer), CASES[:1], **{name: 0})


def test_weights_that_are_not_finite_are_named() -> None:
    loaded = tiny_loaded("llama")
    broken = copy.deepcopy(loaded.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    bad = LoadedModel(broken, loaded.tokenizer, "bad", "bad", loaded.dtype, loaded.device)
    with pytest.raises(NumericalError, match="letter"):
        search(bad, ChatFormat(loaded.tokenizer), CASES[:1])


def test_bfloat16_reports_the_loss_of_one_fixed_layout() -> None:
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    chat = ChatFormat(loaded.tokenizer)
    for case, result in zip(CASES, search(loaded, chat, steps=6), strict=True):
        text = f"{case.user_text} {result.suffix_text}"
        assert result.loss == pytest.approx(loss_of_text(loaded, "chatml", text, case.target), abs=5e-3)
        assert result.loss == min(result.losses)
