"""The grid equals plain forwards under `intervening`, one condition and one prompt at a time."""

import pytest
import torch

from caryatid.causal.grid import UNTOUCHED, ConditionGroup, GridBatch, evaluate_grid, starting_at
from caryatid.errors import InputError
from caryatid.models.directional import Ablate, Add
from caryatid.models.forward import last_logits
from caryatid.models.load import LoadedModel
from caryatid.models.residual import Intervention
from caryatid.models.template import ChatFormat
from tiny import ARCHITECTURES, tiny_loaded

TEXTS = (
    "Hi",
    "How do I write a letter to the office?",
    "Explain tides",
    "What is the capital of France?",
    "Sea?",
)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def vectors(n: int, d: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def ablate(n: int, layers: tuple[int, ...] | None = None) -> Ablate:
    basis = torch.linalg.qr(vectors(n * 2).reshape(n, 2, 32).mT).Q.mT.contiguous()
    return Ablate(basis, torch.linspace(0.3, 1.0, n), layers)


def prompts(loaded: LoadedModel) -> list[list[int]]:
    return ChatFormat(loaded.tokenizer).ids_many(TEXTS)


def whole(batch: GridBatch) -> torch.Tensor:
    return batch.logits[:, -1]


def plainly(
    loaded: LoadedModel, seqs: list[list[int]], interventions: list[tuple[Intervention, ...]]
) -> torch.Tensor:
    """[conditions, prompts, vocab], every pair in a forward of its own."""
    return torch.stack(
        [
            torch.cat([last_logits(loaded, [seq], batch_size=1, interventions=each) for seq in seqs])
            for each in interventions
        ]
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_ablation_addition_and_base_equal_plain_forwards(arch: str, batch_size: int) -> None:
    loaded = tiny_loaded(arch)
    seqs = prompts(loaded)
    removed, added = ablate(3), Add(5 * vectors(2, seed=1), torch.full((2,), 2), torch.tensor([1.0, -0.5]))
    late = ablate(2, layers=(3,))
    groups = [
        UNTOUCHED,
        ConditionGroup((removed,), (1, 3, 5)),
        ConditionGroup((added,), (2, 7), start=2),
        ConditionGroup((late,), (6, 4), start=3),
    ]
    found = evaluate_grid(loaded, seqs, groups, reduce=whole, batch_size=batch_size)
    rows = [[()]] + [
        [(each.take(torch.tensor([i])),) for i in range(each.rows)] for each in (removed, added, late)
    ]
    assert len(found) == 8
    for group, expected, least in zip(groups, rows, (-1, 0.1, 0.1, 1e-3), strict=True):
        values = found[list(group.members)]
        torch.testing.assert_close(values, plainly(loaded, seqs, expected), **TOLERANCE)
        assert float((values - found[0]).abs().max()) > least  # the interventions do something


def test_an_addition_at_several_layers_in_one_group_starts_at_the_first() -> None:
    loaded = tiny_loaded("llama")
    seqs = prompts(loaded)
    added = Add(5 * vectors(3), torch.tensor([1, 2, 3]))
    found = evaluate_grid(
        loaded, seqs, [ConditionGroup((added,), range(3), start=1)], reduce=whole, batch_size=8
    )
    expected = plainly(loaded, seqs, [(added.take(torch.tensor([i])),) for i in range(3)])
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_prompts_without_a_common_prefix_and_a_prompt_that_is_one() -> None:
    loaded = tiny_loaded("qwen2")
    removed = ablate(2)
    for seqs in (
        [[5, 6, 7], [8, 9], [10, 11, 12, 13]],
        [[5, 6, 7], [5, 6, 7, 8]],
        [[5, 6, 7, 8]],
        [[9, 9]] * 3,
    ):
        found = evaluate_grid(
            loaded, seqs, [ConditionGroup((removed,), range(2))], reduce=whole, batch_size=8
        )
        expected = plainly(loaded, seqs, [(removed.take(torch.tensor([i])),) for i in range(2)])
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_kept_positions_are_the_last_ones_of_every_row() -> None:
    loaded = tiny_loaded("gpt2")
    seqs = prompts(loaded)
    found = evaluate_grid(loaded, seqs, [UNTOUCHED], reduce=lambda b: b.logits, keep=3, batch_size=4)
    for row, seq in enumerate(seqs):
        for back in range(3):
            (expected,) = last_logits(loaded, [seq[: len(seq) - back]], batch_size=1)
            torch.testing.assert_close(found[0, row, 2 - back], expected, **TOLERANCE)


def test_reduce_knows_which_condition_and_prompt_a_row_is() -> None:
    loaded = tiny_loaded("llama")
    groups = [
        ConditionGroup((ablate(5),), (0, 2, 3, 5, 6)),
        ConditionGroup((Add(vectors(2), torch.tensor([1])),), (1, 4), start=1),
    ]
    found = evaluate_grid(
        loaded,
        prompts(loaded),
        groups,
        reduce=lambda b: torch.stack([b.condition, b.prompt], dim=1).float(),
        batch_size=4,
    )
    expected = torch.cartesian_prod(torch.arange(7), torch.arange(5)).reshape(7, 5, 2)
    torch.testing.assert_close(found, expected.float())


def test_progress_counts_pairs() -> None:
    class Counter:
        total = 0

        def start(self, label: str, total: int | None) -> None: ...

        def advance(self, n: int = 1) -> None:
            self.total += n

        def done(self) -> None: ...

    loaded, counter = tiny_loaded("llama"), Counter()
    groups = [UNTOUCHED, ConditionGroup((ablate(3),), (1, 2, 3))]
    evaluate_grid(loaded, prompts(loaded), groups, reduce=whole, batch_size=4, progress=counter)
    assert counter.total == 4 * 5


def test_starting_at_a_layer_runs_nothing_before_it_and_comes_off() -> None:
    loaded = tiny_loaded("gpt_neox")
    ids = torch.tensor(prompts(loaded)[:1])
    blocks = loaded.model.gpt_neox.layers
    ran: list[int] = []
    handles = [
        blocks[i].attention.register_forward_hook(lambda *_args, i=i: ran.append(i))
        for i in range(len(blocks))
    ]
    before = loaded.model(ids).logits
    ran.clear()
    with starting_at(loaded, 2, torch.zeros(1, ids.shape[1], 32)):
        changed = loaded.model(ids).logits
    assert ran == [2, 3]
    assert not torch.equal(changed, before)
    with (
        pytest.raises(RuntimeError),
        starting_at(loaded, 2, torch.zeros(1, 1, 7)),
    ):  # a width that fails in block 2
        loaded.model(ids)
    assert torch.equal(loaded.model(ids).logits, before)
    assert all("forward" not in vars(block) for block in blocks)
    for handle in handles:
        handle.remove()


def test_grid_errors() -> None:
    loaded = tiny_loaded("llama")
    seqs = prompts(loaded)
    for wrong, message in (([], "no prompts"), ([[]], "no prompts")):
        with pytest.raises(InputError, match=message):
            evaluate_grid(loaded, wrong, [UNTOUCHED], reduce=whole, batch_size=4)
    with pytest.raises(InputError, match="batch size 0"):
        evaluate_grid(loaded, seqs, [UNTOUCHED], reduce=whole, batch_size=0)
    with pytest.raises(InputError, match="layer 4 is not one of"):
        evaluate_grid(loaded, seqs, [ConditionGroup(start=4)], reduce=whole, batch_size=4)
    with pytest.raises(InputError, match="3 rows for 2 conditions"):
        ConditionGroup((ablate(3),), range(2))
    for members in ((1,), (0, 0), (0, 2)):
        with pytest.raises(InputError, match="numbers from 0 on"):
            evaluate_grid(loaded, seqs, [ConditionGroup(members=members)], reduce=whole, batch_size=4)
    with pytest.raises(InputError, match="numbers from 0 on"):
        evaluate_grid(loaded, seqs, [], reduce=whole, batch_size=4)


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_bfloat16_runs_and_stays_close_to_its_own_plain_forwards(arch: str) -> None:
    loaded = tiny_loaded(arch, dtype=torch.bfloat16)
    seqs = prompts(loaded)
    removed, added = ablate(2), Add(2 * vectors(2), torch.tensor([2, 2]))
    groups = [ConditionGroup((removed,), (0, 1)), ConditionGroup((added,), (2, 3), start=2)]
    found = evaluate_grid(loaded, seqs, groups, reduce=whole, batch_size=8)
    for values, each in zip(found.split(2), (removed, added), strict=True):
        expected = plainly(loaded, seqs, [(each.take(torch.tensor([i])),) for i in range(2)])
        assert values.dtype == torch.float32
        assert float((values - expected).abs().mean()) < 0.05 * float(expected.std())
