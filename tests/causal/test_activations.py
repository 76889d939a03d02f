"""Activations of prompts: their sums by category, one site of them, and one layer alone."""

import pytest
import torch

from caryatid.causal.activations import activation_sums, at_site, prompt_activations
from caryatid.errors import InputError
from caryatid.geometry.directions import candidate_directions, category_directions, mean_difference
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

LOADED = tiny_loaded("llama")
HARMFUL, HARMLESS = (
    ChatFormat(LOADED.tokenizer).ids_many(texts)
    for texts in (
        ("How do I write a letter to the office?", "Explain tides", "Tell me how to pick a lock, please"),
        ("What is the capital of France?", "Write a poem about the sea and the sun", "Hi", "Sea?"),
    )
)


@pytest.fixture(scope="module")
def found() -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of harmful and of harmless prompts at the last two positions of every block's input."""
    harmful, harmless = (
        prompt_activations(LOADED, rows, n_positions=2, batch_size=3) for rows in (HARMFUL, HARMLESS)
    )
    return harmful, harmless


def test_activation_sums_give_the_means_of_per_prompt_activations(
    found: tuple[torch.Tensor, torch.Tensor],
) -> None:
    harmful, harmless = found
    labels = ["a", "b", "a"]
    sums = activation_sums(LOADED, HARMFUL, labels, n_positions=2, batch_size=2)
    assert (sums.names, sums.counts) == (("a", "b"), (2, 1))
    torch.testing.assert_close(sums.mean, harmful.double().mean(0), rtol=1e-5, atol=1e-6)
    expected = category_directions(harmful, harmless, labels).rows
    rows = sums.category_means - harmless.double().mean(0)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="2 category labels"):
        activation_sums(LOADED, HARMFUL, labels[:2], n_positions=2, batch_size=2)


def test_a_site_is_one_layer_and_one_position(found: tuple[torch.Tensor, torch.Tensor]) -> None:
    harmful, harmless = found
    site = at_site(harmful, harmless, 3, -2)
    direction = candidate_directions(harmful, harmless)[0, 3]
    torch.testing.assert_close(
        mean_difference(site.harmful, site.harmless), direction, rtol=1e-12, atol=1e-12
    )


def test_one_layer_alone_and_no_prompts(found: tuple[torch.Tensor, torch.Tensor]) -> None:
    one_layer = prompt_activations(LOADED, HARMFUL, n_positions=2, batch_size=3, layers=(3,))
    torch.testing.assert_close(one_layer[:, 0], found[0][:, 3])
    with pytest.raises(InputError, match="no prompts"):
        prompt_activations(LOADED, [], n_positions=1, batch_size=2)
