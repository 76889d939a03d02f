"""What arms draw besides chat: the same behaviours and targets, with the suffixes that each arm has."""

import json

import pytest

from caryatid.attacks.gcg.state import resume_state
from caryatid.data.prompts import Prompt
from caryatid.models.template import ChatFormat
from caryatid.training.adversarial import Attacked, CaseSource
from caryatid.training.arms import arm_named
from caryatid.training.pool import Pool
from caryatid.training.settings import R2D2Settings
from caryatid.training.trainee import DrawnCases
from tiny import tiny_loaded

BEHAVIOURS = [
    Prompt(
        id=f"b{i}",
        text=f"do {word}",
        set_name="pool",
        label="harmful",
        targets=(f"Sure, {word}", f"Yes, {word}", f"Here, {word}"),
    )
    for i, word in enumerate(["harm", "theft", "fraud", "arson"])
]
SETTINGS = R2D2Settings(
    pool=5,
    cases=2,
    gcg_steps=2,
    width=4,
    top_k=8,
    suffix_length=3,
    restart_every=2,
    restart_fraction=0.4,
    static_gcg_steps=1,
)
MICRO_BATCHES = 2


def source_of(name: str, seed: int = 0) -> CaseSource:
    loaded = tiny_loaded("llama")
    pool = Pool(BEHAVIOURS, SETTINGS.pool, seed, SETTINGS.suffix_length)
    source = CaseSource(ChatFormat(loaded.tokenizer), arm_named(name), SETTINGS, pool, batch_size=64)
    if name == "r2d2_static":
        list(source.make_static(tiny_loaded()))
    return source


def updates(source: CaseSource, steps: range) -> list[tuple[DrawnCases, Attacked]]:
    """What the loop does with it."""
    drawn: list[tuple[DrawnCases, Attacked]] = []
    for step in steps:
        drawn += [source.draw(tiny_loaded()) for _ in range(MICRO_BATCHES)]
        source.after_update(step)
    return drawn


def requests(source: CaseSource, drawn: list[tuple[DrawnCases, Attacked]]) -> list[tuple[str, str, str]]:
    """Request, what follows it in the user's message, and target of each drawn case."""
    decode = source.chat.tokenizer.decode
    found = []
    for one, _ in drawn:
        assert [row.prompt for row in one.toward] == [row.prompt for row in one.away]
        assert {tuple(row.answer) for row in one.toward} == {
            tuple(source.chat.answer_ids(SETTINGS.toward_text))
        }
        for row in one.away:
            message = decode(row.prompt).split("user\n")[1].split("<|im_end|>")[0]
            request = next(row.text for row in BEHAVIOURS if message.startswith(row.text))
            found.append((request, message.removeprefix(request), decode(row.answer)))
    return found


def test_refusal_sft_draws_what_r2d2_draws_across_restarts_and_sends_no_suffix() -> None:
    found = {}
    for name in ("refusal_sft", "r2d2"):
        source = source_of(name)
        found[name] = requests(source, updates(source, range(1, 8)))
        assert source.pool.mean_age < 7
    plain, attacked = found["refusal_sft"], found["r2d2"]
    assert len(plain) == 7 * MICRO_BATCHES * SETTINGS.cases
    assert [(a, c) for a, _, c in plain] == [(a, c) for a, _, c in attacked]
    assert len({target for _, _, target in plain}) > SETTINGS.pool  # restarted cases draw anew from the lists
    assert {suffix for _, suffix, _ in plain} == {""}
    assert all(suffix.startswith(" ") and len(suffix) > 1 for _, suffix, _ in attacked)
    assert len({suffix for _, suffix, _ in attacked}) > 10


def test_static_cases_are_made_once_and_never_restart() -> None:
    source = source_of("r2d2_static")
    cases = source.pool.entries
    made = [resume_state(source.chat, source._goal(i), case.suffix_ids) for i, case in enumerate(cases)]
    found = requests(source, updates(source, range(1, 8)))
    suffixes = {(state.goal.user_text, f" {state.suffix_text}", state.goal.target) for state in made}
    assert set(found) <= suffixes
    assert [(a.behaviour, a.target, a.suffix_ids) for a in source.pool.entries] == [
        (a.behaviour, a.target, a.suffix_ids) for a in cases
    ]


@pytest.mark.parametrize("name", ["refusal_sft", "r2d2", "r2d2_static"])
def test_the_state_goes_on_exactly(name: str) -> None:
    """Suffixes, behaviours, targets, ages and both generators, through JSON, into a source of another seed."""
    whole = source_of(name)
    updates(whole, range(1, 4))
    state = json.loads(json.dumps(whole.state_dict()))
    other = source_of(name, seed=9)
    other.load_state_dict(state)
    rest, resumed = updates(whole, range(4, 8)), updates(other, range(4, 8))
    assert requests(other, resumed) == requests(whole, rest)
    assert [str(one) for _, one in resumed] == [str(one) for _, one in rest]
    assert other.pool.entries == whole.pool.entries


def test_costs_are_sums_over_cases() -> None:
    drawn = source_of("r2d2").draw(tiny_loaded())[1]
    assert drawn.steps == SETTINGS.cases * SETTINGS.gcg_steps
    assert 0 < drawn.backward_tokens < drawn.tokens
    assert drawn.stalled == 0
    assert drawn.loss > 0
    idle = source_of("refusal_sft").draw(tiny_loaded())[1]
    assert (idle.steps, idle.tokens, idle.backward_tokens) == (0, 0, 0)
    assert idle.loss != idle.loss
