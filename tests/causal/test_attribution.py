"""Attribution finds the plant's writer, sums to the stream exactly, and agrees with ablating one sublayer at a time."""

import pytest
import torch

from caryatid.causal.attribution import ablate_sublayers, agreement, attribute
from caryatid.errors import InputError
from caryatid.models.capture import capture_block_inputs
from caryatid.models.layout import decoder_layers
from caryatid.models.template import ChatFormat
from planted import Plant, axis, harmful_texts, harmless_texts, planted, refusal_ids
from tiny import ARCHITECTURES, tiny_loaded

N = 16


def rows_of(loaded) -> tuple[list[list[int]], list[list[int]]]:
    chat = ChatFormat(loaded.tokenizer)
    return chat.ids_many(harmful_texts(N)), chat.ids_many(harmless_texts(N))


@pytest.mark.parametrize(("writer", "reader"), [(0, 3), (2, 5), (3, 4)])
def test_the_plant_s_writer_is_found_and_ablating_it_alone_takes_most(writer: int, reader: int) -> None:
    loaded = planted(Plant(writer=writer, reader=reader))
    harmful, harmless = rows_of(loaded)
    found = attribute(loaded, harmful, harmless, axis(0), reader, batch_size=8)
    assert found.writer == (writer, "attention")
    assert float(found.attention[writer]) / found.total == pytest.approx(1.0, abs=0.02)
    others = [float(part) for block, part in enumerate(found.attention) if block != writer]
    assert max(map(abs, [*others, *found.mlp.tolist()])) < 0.02 * found.total
    effects = ablate_sublayers(loaded, harmful, axis(0), reader, refusal_ids(loaded), batch_size=8)
    assert bool(agreement(found, effects))
    assert float(effects.attention[writer]) > 5
    assert float(effects.mlp.abs().max()) < 0.01
    assert found.heads is not None
    assert torch.allclose(found.heads.sum(dim=1), found.attention, atol=1e-3)
    assert int(found.heads[writer].argmax()) == 0  # the plant's values are the first head's


def test_two_writers_share() -> None:
    loaded = planted(Plant(writer=1, second_writer=3, reader=5))
    harmful, harmless = rows_of(loaded)
    found = attribute(loaded, harmful, harmless, axis(0), 5, batch_size=8)
    shares = found.attention / found.total
    assert shares[1] == pytest.approx(0.5, abs=0.15)
    assert shares[3] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parts_are_what_each_sublayer_adds(arch: str) -> None:
    """Sums against captured streams; a head's part against the projection of that head alone."""
    loaded = tiny_loaded(arch)
    harmful, harmless = rows_of(loaded)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    along, layer = direction / direction.norm(), 3
    found = attribute(loaded, harmful, harmless, 7 * direction, layer, batch_size=4)
    means = []
    for rows in (harmful, harmless):
        with capture_block_inputs(loaded.model, [0, layer], 1) as captured, torch.no_grad():
            for row in rows:
                loaded.model(torch.tensor([row]))
        means.append(captured.stacked()[:, :, 0].mean(dim=0) @ along)
    difference = means[0] - means[1]
    assert found.embedding == pytest.approx(float(difference[0]), abs=1e-4)
    assert found.total == pytest.approx(float(difference[1]), abs=1e-3)
    assert found.embedding + float(found.attention.sum() + found.mlp.sum()) == pytest.approx(
        found.total, abs=1e-3
    )
    assert (found.heads is None) == (arch == "gemma2")
    if arch == "llama":
        projection = decoder_layers(loaded.model)[1].self_attn.o_proj
        inputs: list[torch.Tensor] = []
        handle = projection.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0, -1]))
        with torch.no_grad():
            for row in [*harmful, *harmless]:
                loaded.model(torch.tensor([row]))
        handle.remove()
        z = torch.stack(inputs)[:, 8:16] @ projection.weight[:, 8:16].T @ along  # the second head, of width 8
        assert found.heads is not None
        assert float(found.heads[1, 1]) == pytest.approx(float(z[:N].mean() - z[N:].mean()), abs=1e-4)


def test_the_first_block_reads_what_no_block_has_written() -> None:
    loaded = tiny_loaded("llama")
    harmful, harmless = rows_of(loaded)
    for layer in (0, 4):
        with pytest.raises(InputError, match="no block writes"):
            attribute(loaded, harmful, harmless, torch.ones(32), layer, batch_size=4)
