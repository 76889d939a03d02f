"""Families of models: the stream is captured and changed where it is, with and without padding and cache."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from caryatid.errors import InputError
from caryatid.models.capture import capture_block_outputs
from caryatid.models.check import check_loaded
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.forward import block_inputs, last_logits
from caryatid.models.generate import Decoding, generate_ids
from caryatid.models.load import load_model
from caryatid.models.quiet import LoadWarning
from caryatid.models.residual import intervening
from families import FAMILIES, REFUSED, VISION, WHOLE, family, vision_language
from tiny import tiny_tokenizer

GENERATOR = torch.Generator().manual_seed(0)
SEQS = [torch.randint(4, 400, (length,), generator=GENERATOR).tolist() for length in (11, 5, 23, 8)]
BASIS = orthonormal(torch.randn(2, 32, generator=GENERATOR))
VECTOR = torch.randn(1, 32, generator=GENERATOR)
LAYERS = range(4)
opened = lru_cache(maxsize=1)(family)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("kind", FAMILIES)
def test_family(kind: str) -> None:
    loaded = opened(kind)
    report = check_loaded(loaded)
    assert report.stream_error < 1e-5
    plain = torch.cat([last_logits(loaded, [seq], batch_size=1) for seq in SEQS])
    # A batch padded on the left is its rows.
    assert close(last_logits(loaded, SEQS, batch_size=4), plain)
    # Captured are the block inputs that transformers reports itself.
    longest = SEQS[2]
    hidden = loaded.model(torch.tensor([longest]), output_hidden_states=True, use_cache=False).hidden_states
    found = block_inputs(loaded, SEQS, layers=LAYERS, n_positions=3, batch_size=4)
    expected = torch.stack([hidden[layer][0, -3:] for layer in LAYERS])
    assert close(found[2], expected)
    # Added at block 2, seen at its input, not before; later blocks and the answer change.
    add = Add(VECTOR, torch.tensor([2]))
    changed = block_inputs(loaded, SEQS, layers=LAYERS, n_positions=3, batch_size=4, interventions=[add])
    assert close(changed[:, 2], found[:, 2] + VECTOR)
    assert torch.equal(changed[:, :2], found[:, :2])
    assert not close(changed[:, 3], found[:, 3] + VECTOR, 1e-3)
    assert not close(last_logits(loaded, SEQS, batch_size=4, interventions=[add]), plain, 1e-3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_ablation_leaves_nothing_in_the_stream(kind: str) -> None:
    loaded = opened(kind)
    plain = last_logits(loaded, SEQS, batch_size=4)
    ablate = Ablate(BASIS[None])
    with capture_block_outputs(loaded.model, LAYERS) as captured:
        ablated = last_logits(loaded, SEQS, batch_size=4, interventions=[ablate])
        outputs = captured.take()  # [rows, layers, d]
        before = block_inputs(
            loaded, SEQS, layers=LAYERS, n_positions=3, batch_size=4, interventions=[ablate]
        )
    for stream in (outputs, before):
        assert (stream @ BASIS.T).norm() < 1e-4 * stream.norm()
    assert not close(ablated, plain, 1e-3)
    single = torch.cat([last_logits(loaded, [s], batch_size=1, interventions=[ablate]) for s in SEQS])
    assert close(ablated, single)
    none = Ablate(BASIS[None], strength=torch.zeros(1))
    assert torch.equal(last_logits(loaded, SEQS, batch_size=4, interventions=[none]), plain)
    assert torch.equal(last_logits(loaded, SEQS, batch_size=4), plain)


@pytest.mark.parametrize("kind", FAMILIES)
def test_decoding_with_a_cache_is_decoding_without(kind: str) -> None:
    loaded = opened(kind)
    for interventions in ([], [Ablate(BASIS[None])], [Add(VECTOR, torch.tensor([2]))]):
        found = generate_ids(loaded, SEQS, Decoding(4, 4), stop=(), interventions=interventions)
        for seq, answer in zip(SEQS, found, strict=True):
            with intervening(loaded.model, *interventions), torch.no_grad():
                logits = loaded.model(torch.tensor([[*seq, *answer]]), use_cache=False).logits[0]
            chosen = logits[len(seq) - 1 : -1]
            best = chosen.max(dim=-1).values
            picked = chosen.gather(1, torch.tensor(answer)[:, None])[:, 0]
            assert bool((best - picked <= 1e-3 * chosen.std()).all())  # ties fall either way


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("kind", VISION)
def test_the_text_part_of_a_vision_language_checkpoint(kind: str, tmp_path: Path) -> None:
    whole = vision_language(kind)
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(LoadWarning, match="loaded whole" if kind in WHOLE else "only the text part"):
        loaded = load_model(str(tmp_path), device="cpu")
    ids = torch.tensor([SEQS[0]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, whole(input_ids=ids).logits)
    assert check_loaded(loaded).stream_error < 1e-5
    if kind not in WHOLE:
        assert sum(p.numel() for p in loaded.model.parameters()) < sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bloom", r"block 0 \(BloomBlock\): the output of BloomAttention does not reach its output"),
        ("mpt", r"block 0 \(MptBlock\): the output of MptAttention does not reach its output"),
        (
            "minimax",
            r"block 0 .*is not its input and the outputs of MiniMax\w+ and MiniMaxSparseMoeBlock",
        ),
        ("gemma3n_text", r"block 0 .*is not its input and the outputs of Gemma3nRMSNorm"),
        ("recurrent_gemma", r"change by 0\.\d+ of their size when a text is padded on the left"),
    ],
)
def test_families_that_cannot_be_measured_are_refused(kind: str, reason: str) -> None:
    """BLOOM's and MPT's sublayers return the stream; MiniMax keeps the normalised input; Gemma 3n has four streams;
    RecurrentGemma's recurrence reads padding."""
    assert kind in REFUSED
    with pytest.raises(InputError, match=reason):
        check_loaded(family(kind))


def test_numbers_that_are_not_finite_name_the_block_and_the_type() -> None:
    loaded = family("llama")
    loaded.model.model.layers[2].mlp.down_proj.weight.fill_(1e38)
    with pytest.raises(
        InputError, match=r"block 2 \(LlamaDecoderLayer\) computes numbers .* not finite in float32"
    ):
        check_loaded(loaded)
