import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from caryatid.errors import InputError
from caryatid.models.batch import left_pad
from caryatid.models.capture import capture_block_inputs
from caryatid.models.directional import Ablate, Add, orthonormal
from caryatid.models.layout import decoder_layers, sublayer_outputs
from caryatid.models.residual import intervening
from tiny import ARCHITECTURES, tiny_model

WIDTH, LAYERS = 32, 4
SEQS = [[5, 17, 90, 33, 8, 61, 7], [40, 41, 42], [9, 8, 7, 6, 5]]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(rows: int, rank: int, seed: int = 0) -> torch.Tensor:
    return torch.stack([orthonormal(draw(rank, WIDTH, seed=seed + 100 * row)) for row in range(rows)])


def forward(model, seqs=SEQS) -> torch.Tensor:
    batch = left_pad(seqs, 0)
    with torch.no_grad():
        return model(
            batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
        ).logits


def every_site(model, seqs=SEQS) -> list[torch.Tensor]:
    """Block inputs and sublayer outputs, by hooks of the test's own."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for block in decoder_layers(model)
    ]
    for site in sublayer_outputs(model):
        for module in (site.attn, site.mlp):
            handles.append(
                module.register_forward_hook(
                    lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
                )
            )
    forward(model, seqs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_zero_strength_is_the_identity_and_leaving_restores(arch: str) -> None:
    model = tiny_model(arch)
    plain = forward(model)
    layer = torch.tensor([0, 2, 3])
    idle = [
        Ablate(basis(1, 2), torch.zeros(1)),
        Ablate(basis(3, 1), torch.zeros(3)),
        Add(draw(3, WIDTH), layer, torch.zeros(3)),
    ]
    for intervention in idle:
        with intervening(model, intervention):
            assert torch.equal(forward(model), plain)
    for working in (Ablate(basis(1, 2)), Add(draw(3, WIDTH), layer, torch.ones(3))):
        with intervening(model, working):
            assert (forward(model) - plain).abs().max() > 1e-2
        assert torch.equal(forward(model), plain)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_without_strength_are_untouched_beside_rows_with_one(arch: str) -> None:
    model = tiny_model(arch)
    plain = forward(model)
    strength = torch.tensor([0.0, 1.0, 0.0])
    for mixed in (Ablate(basis(3, 1), strength), Add(draw(3, WIDTH), torch.tensor([1, 1, 1]), strength)):
        with intervening(model, mixed):
            changed = forward(model)
        assert torch.equal(changed[[0, 2]], plain[[0, 2]])
        assert not torch.equal(changed[1], plain[1])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rank", [1, 3])
def test_no_projection_is_left_at_any_site(arch: str, rank: int) -> None:
    model = tiny_model(arch)
    directions = basis(1, rank)
    with intervening(model, Ablate(directions)):
        sites = every_site(model)
    assert len(sites) == 3 * LAYERS
    with intervening(model, Ablate(directions)):
        sites.append(stream(model)[-1])  # what the last block leaves
    for hidden in sites:
        norm = hidden.norm(dim=-1)
        assert ((hidden @ directions[0].T).norm(dim=-1) <= 1e-5 * norm).all()
        assert norm.median() > 0.1


def stream(model, seqs=SEQS) -> list[torch.Tensor]:
    """Every block's input and the last block's output, before the final norm."""
    seen: list[torch.Tensor] = []

    def keep(module, args, kwargs, out) -> None:
        seen.extend([args[0] if args else kwargs["hidden_states"], out[0] if isinstance(out, tuple) else out])

    handles = [b.register_forward_hook(keep, with_kwargs=True) for b in decoder_layers(model)]
    forward(model, seqs)
    for handle in handles:
        handle.remove()
    return [*seen[0::2], seen[-1]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_sites_are_all_that_a_block_adds_to_the_stream(arch: str) -> None:
    """Gemma 2 normalises a sublayer's output: the norm's output is what is added, and the sublayer's is not."""
    model = tiny_model(arch)
    outputs = every_site(model)
    states = stream(model)
    for layer in range(LAYERS):
        _, attn, mlp = outputs[3 * layer : 3 * layer + 3]
        torch.testing.assert_close(states[layer + 1], states[layer] + attn + mlp, rtol=1e-4, atol=1e-4)
    raw = decoder_layers(model)[0].self_attn if arch == "gemma2" else None
    assert (raw is None) or all(site.attn is not raw for site in sublayer_outputs(model))


def without_direction(model: nn.Module, direction: torch.Tensor) -> nn.Module:
    """A copy in memory in which no matrix or bias that writes to the stream can write along `direction`."""
    changed = copy.deepcopy(model)
    head = changed.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # untied
    keep = torch.eye(WIDTH) - torch.outer(direction, direction)
    writers = [changed.get_input_embeddings()]
    if hasattr(changed.get_decoder(), "wpe"):
        writers.append(changed.get_decoder().wpe)
    for block in decoder_layers(changed):
        for name in ("self_attn.o_proj", "mlp.down_proj", "attn.c_proj", "mlp.c_proj", "attention.dense",
                     "mlp.dense_4h_to_h"):  # fmt: skip
            sublayer, _, projection = name.partition(".")
            writers += [
                w for w in [getattr(getattr(block, sublayer, None), projection, None)] if w is not None
            ]
    assert len(writers) >= 1 + 2 * LAYERS
    with torch.no_grad():
        for writer in writers:
            # nn.Linear keeps its outputs in rows; Conv1D and embeddings in columns
            outward = isinstance(writer, nn.Linear)
            assert outward or isinstance(writer, Conv1D | nn.Embedding)
            writer.weight.copy_(keep @ writer.weight if outward else writer.weight @ keep)
            if getattr(writer, "bias", None) is not None:
                writer.bias.copy_(writer.bias @ keep)
    return changed


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "gemma2"])
def test_ablation_equals_a_copy_with_orthogonalised_weights(arch: str) -> None:
    model = tiny_model(arch)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(0.1 * draw(*parameter.shape, seed=len(name)))  # biases start at zero
    direction = basis(1, 1)[0, 0]
    with intervening(model, Ablate(direction[None, None])):
        ablated = forward(model)[:, -1].softmax(-1)
    edited = forward(without_direction(model, direction))[:, -1].softmax(-1)
    torch.testing.assert_close(ablated, edited, rtol=1e-4, atol=1e-8)
    assert (forward(model)[:, -1].softmax(-1) - edited).abs().max() > 1e-3


def test_ablation_of_gemma2_is_a_projection_of_what_its_norms_add() -> None:
    """Orthogonalised weights would not do: the norm after a sublayer rescales axis by axis."""
    model = tiny_model("gemma2")
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.copy_(draw(*parameter.shape, seed=3))
    direction = basis(1, 1)[0, 0]
    keep = torch.eye(WIDTH) - torch.outer(direction, direction)
    with intervening(model, Ablate(direction[None, None])):
        hooked = forward(model)
    norms = [
        norm
        for block in decoder_layers(model)
        for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm)
    ]
    handles = [norm.register_forward_hook(lambda m, a, out: out @ keep) for norm in norms]
    handles.append(
        decoder_layers(model)[0].register_forward_pre_hook(lambda m, args: (args[0] @ keep, *args[1:]))
    )
    projected = forward(model)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(hooked, projected, rtol=1e-4, atol=1e-4)
    wrong = forward(without_direction(model, direction))
    assert (wrong - hooked).abs().max() > 1e-2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_of_a_batch_equal_one_at_a_time(arch: str) -> None:
    model = tiny_model(arch)
    strength = torch.tensor([1.0, 0.5, -2.0])
    padded = basis(3, 2)
    padded[1, 1] = 0  # this row ablates one direction only
    together = (
        Ablate(padded, strength),
        Add(draw(3, WIDTH), torch.tensor([0, 3, 1]), strength),
    )
    for intervention in together:
        with intervening(model, intervention):
            batched = forward(model)
        for row, seq in enumerate(SEQS):
            with intervening(model, intervention.take(torch.tensor([row]))):
                single = forward(model, [seq])
            torch.testing.assert_close(batched[row, -len(seq) :], single[0], rtol=1e-4, atol=1e-4)
    with intervening(model, Ablate(padded[1:2, :1], strength[1:2])):
        rank_one = forward(model, [SEQS[1]])
    with intervening(model, together[0].take(torch.tensor([1]))):
        torch.testing.assert_close(forward(model, [SEQS[1]]), rank_one, rtol=1e-5, atol=1e-5)


def test_addition_acts_at_the_block_input_of_each_rows_layer() -> None:
    model = tiny_model("llama")
    vectors, layer, strength = draw(3, WIDTH), torch.tensor([0, 2, 3]), torch.tensor([1.0, 2.0, -0.5])
    plain = every_site(model)[0::3]
    with intervening(model, Add(vectors, layer, strength)):
        changed = every_site(model)[0::3]
    for row in range(3):
        first = int(layer[row])
        for before in range(first):
            assert torch.equal(changed[before][row], plain[before][row])
        torch.testing.assert_close(
            changed[first][row] - plain[first][row], (strength[row] * vectors[row]).expand(7, -1)
        )


def test_layers_restrict_the_sites() -> None:
    model = tiny_model("llama")
    directions = basis(1, 1)
    plain = every_site(model)
    with intervening(model, Ablate(directions, layers=(2,))):
        sites = every_site(model)
    for index in range(6):  # the three sites of blocks 0 and 1 come first
        assert torch.equal(sites[index], plain[index])
    for index in range(6, 9):
        assert (sites[index] @ directions[0].T).abs().max() < 1e-4
    assert (sites[9] @ directions[0].T).abs().max() < 1e-4  # block 3 reads what block 2 left
    assert (sites[10] @ directions[0].T).abs().max() > 1e-3


def test_one_row_is_broadcast_and_parts_with_one_row_expand() -> None:
    model = tiny_model("qwen2")
    one = basis(1, 2)
    with intervening(model, Ablate(one)):
        broadcast = forward(model)
    with intervening(model, Ablate(one, torch.ones(3))):
        expanded = forward(model)
    torch.testing.assert_close(broadcast, expanded, rtol=1e-5, atol=1e-5)
    sweep = Add(draw(1, WIDTH), torch.tensor([1]), torch.tensor([0.0, 1.0, 2.0]))
    assert sweep.rows == 3
    assert sweep.take(torch.tensor([2, 1])).strength.tolist() == [2.0, 1.0]
    assert Ablate(one).take(torch.tensor([5])).rows == 1


def greedy(model, seqs, new: int) -> torch.Tensor:
    batch = left_pad(seqs, 0)
    return model.generate(
        batch.ids, attention_mask=batch.mask, max_new_tokens=new, min_new_tokens=new, do_sample=False,
        use_cache=True, pad_token_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_generation_with_the_cache_equals_forwards_without_it_and_counts_its_tokens(arch: str) -> None:
    model = tiny_model(arch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new, lengths = 6, [len(seq) for seq in SEQS]
    plain = greedy(model, SEQS, new)
    each = (
        Ablate(basis(3, 2), torch.tensor([1.0, 0.5, 1.5])),
        Add(draw(3, WIDTH), torch.tensor([0, 3, 1]), torch.tensor([2.0, -3.0, 4.0])),
    )
    with intervening(model, *each) as touched:
        made = greedy(model, SEQS, new)
    # every prompt token and every generated one, but for the last, which is never fed back; no padding
    assert touched.per_intervention == [sum(lengths) + 3 * (new - 1)] * 2
    for row, seq in enumerate(SEQS):
        tokens, index = list(seq), torch.tensor([row])
        for _ in range(new):
            with intervening(model, *(one.take(index) for one in each)):
                tokens.append(int(forward(model, [tokens])[0, -1].argmax()))
        assert made[row, -new:].tolist() == tokens[-new:]
        with intervening(model, each[0].take(index)) as touched:
            forward(model, [tokens])
        assert touched.tokens == len(seq) + new  # prompt + generated
    assert not torch.equal(made, plain)
    with intervening(model, Ablate(basis(3, 2), torch.zeros(3))):
        assert torch.equal(greedy(model, SEQS, new), plain)
    assert torch.equal(greedy(model, SEQS, new), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bfloat16_generation_is_changed_and_restored(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.bfloat16)
    plain = greedy(model, SEQS, 6)
    with intervening(model, Ablate(basis(1, 2)), Add(draw(1, WIDTH), torch.tensor([1]))) as touched:
        assert not torch.equal(greedy(model, SEQS, 6), plain)
    assert touched.per_intervention == [sum(map(len, SEQS)) + 3 * 5] * 2
    assert torch.equal(greedy(model, SEQS, 6), plain)


def test_tokens_touched() -> None:
    model = tiny_model("llama")
    real = sum(map(len, SEQS))
    mixed = Add(draw(3, WIDTH), torch.tensor([0, 2, 2]), torch.ones(3))
    with intervening(model, Ablate(basis(1, 1)), Ablate(basis(1, 1), layers=(1, 3)), mixed) as touched:
        forward(model)
        assert touched.per_intervention == [real, real, real]
        forward(model)
    assert touched.tokens == 2 * real
    with intervening(model, Ablate(basis(1, 1))) as touched, torch.no_grad():
        model(torch.tensor([SEQS[0]]))  # no mask: all positions
        assert touched.tokens == len(SEQS[0])
    with intervening(model) as touched:
        forward(model)
    assert touched.tokens == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_captured_inputs_are_the_models_hidden_states(arch: str) -> None:
    model = tiny_model(arch)
    batch = left_pad(SEQS, 0)
    with torch.no_grad(), capture_block_inputs(model, [3, 0, 2], 2) as captured:
        states = model(
            batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, output_hidden_states=True
        ).hidden_states
        forward(model, SEQS[:1])
    assert captured.stacked().shape == (4, 3, 2, WIDTH)
    for slot, layer in enumerate([3, 0, 2]):
        assert torch.equal(captured.stacked()[:3, slot], states[layer][:, -2:])
        assert torch.equal(captured.of_layer(layer), captured.stacked()[:, slot])
        own = captured.of_layer(layer).untyped_storage()
        assert own.nbytes() == 4 * 4 * 2 * WIDTH  # without the other layers


def test_capture_inside_an_intervention_sees_the_changed_stream() -> None:
    model = tiny_model("llama")
    directions = basis(1, 1)
    with intervening(model, Ablate(directions)), capture_block_inputs(model, range(LAYERS), 3) as captured:
        forward(model)
    assert (captured.stacked() @ directions[0, 0]).abs().max() < 1e-5


def test_hooks_come_off_after_an_error() -> None:
    model = tiny_model("llama")
    plain = forward(model)
    with pytest.raises(InputError, match="2 rows for a batch of 3"), intervening(model, Ablate(basis(2, 1))):
        forward(model)
    with pytest.raises(InputError, match="8 positions"), capture_block_inputs(model, [0], 8):
        forward(model)
    with (
        pytest.raises(ZeroDivisionError),
        intervening(model, Ablate(basis(1, 1)), Add(draw(1, WIDTH), torch.tensor([1]))),
    ):
        1 / 0  # noqa: B018
    assert torch.equal(forward(model), plain)
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in model.modules())


def test_gradients_flow_through_an_intervention() -> None:
    model = tiny_model("llama")
    vector = draw(1, WIDTH).requires_grad_(True)
    with intervening(model, Add(vector, torch.tensor([1]))):
        model(torch.tensor([SEQS[0]])).logits.logsumexp(-1).sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0


def test_bfloat16_stream_keeps_its_dtype() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    with intervening(model, Ablate(basis(1, 2))), capture_block_inputs(model, [1], 1) as captured:
        logits = forward(model)
    assert logits.dtype == torch.bfloat16
    assert captured.stacked().dtype == torch.float32
    residue = (captured.stacked() @ basis(1, 2)[0].T).abs().max()
    assert residue < 2**-6 * captured.stacked().norm(dim=-1).max()
