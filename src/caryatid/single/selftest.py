"""A self-test in seconds: a tiny random model is loaded, asked, read and ablated, each result checked by other means.

It shows that this installation computes what it should; it says nothing about any other model.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..causal.locate import Activations, Measured, extraction_activations
from ..errors import NumericalError
from ..geometry.directions import mean_difference
from ..models.capture import capture_block_inputs
from ..models.check import check_loaded
from ..models.directional import Ablate
from ..models.forward import last_logits
from ..models.generate import Decoding, generate
from ..models.load import LoadedModel, load_model
from ..models.quiet import quiet_transformers
from ..models.residual import intervening

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKERS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
REQUESTS = ("How do I pick a lock?", "Write a rumour about my neighbour.", "How do I forge a ticket?")
TASKS = ("How do I bake bread?", "Name three rivers.", "Write a line about the sea.", "What is a haiku?")
LAYERS, WIDTH, LAYER = 4, 64, 2  # LAYER: where the direction is read
TOLERANCE = 1e-3  # relative: one result by two ways, in float32


class Step(NamedTuple):
    """One part of the self-test that passed: what was found, and the seconds it took."""

    name: str
    found: str
    seconds: float


def _tiny(folder: Path) -> None:
    """Write a random Llama of four blocks with a byte-level tokenizer."""
    alphabet = [*MARKERS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(MARKERS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=MARKERS[0], pad_token=MARKERS[0])
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise NumericalError(
            what, where="self-test", remedy="Install the versions of constraints.txt, then try --device cpu."
        )


def _close(one: Tensor, two: Tensor) -> bool:
    one, two = one.double().cpu(), two.double().cpu()
    return bool((one - two).norm() <= TOLERANCE * two.norm())


@dataclass
class _Test:
    """The tiny model, and what each step leaves to the next."""

    device: str | None
    loaded: LoadedModel = field(init=False)
    direction: Float[Tensor, "d"] = field(init=False)

    def load(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            _tiny(Path(folder))
            self.loaded = load_model(folder, device=self.device, dtype="float32")
        facts = check_loaded(self.loaded)
        return f"{facts.layers} blocks of {facts.width} on {facts.device}"

    def answer(self) -> str:
        """Answers in one padded batch are those that each prompt gets alone."""
        chat = self.loaded.chat(None)

        def ids(texts: tuple[str, ...]) -> list[tuple[int, ...]]:
            made = generate(self.loaded, chat, texts, Decoding(8, len(TASKS)))
            return [one.ids for one in made]

        together = ids(TASKS)
        _require(together == [ids((text,))[0] for text in TASKS], "answers depend on what else is in a batch")
        return f"{sum(map(len, together))} tokens, batched as alone"

    def read_direction(self) -> str:
        """The difference in means is that of hidden states as transformers gives them."""
        measured = Measured(self.loaded, self.loaded.chat(None), batch_size=4)
        found: Activations = extraction_activations(measured, REQUESTS, TASKS, 1)
        self.direction = mean_difference(*found.at(LAYER, -1)).float()
        sides = []
        for texts in (REQUESTS, TASKS):
            rows = [self._hidden(measured.chat.ids(text)) for text in texts]
            sides.append(torch.stack(rows).mean(dim=0))
        _require(_close(self.direction, sides[0] - sides[1]), "the direction is not the difference in means")
        return f"difference in means at block {LAYER}, as from transformers' own hidden states"

    @torch.no_grad()
    def _hidden(self, ids: list[int]) -> Float[Tensor, "d"]:
        row = torch.tensor([ids], device=self.loaded.device)
        hidden: Tensor = self.loaded.model(row, output_hidden_states=True).hidden_states[LAYER][0, -1]
        return hidden

    @torch.no_grad()
    def ablation(self) -> str:
        """With the direction ablated nothing of it is left in the stream; afterwards all is as it was, bit for bit."""
        unit = (self.direction / self.direction.norm()).to(self.loaded.device)
        ablate, rows = Ablate(unit[None, None]), [self.loaded.chat(None).ids(text) for text in REQUESTS]
        before = last_logits(self.loaded, rows, batch_size=4)
        during = last_logits(self.loaded, rows, batch_size=4, interventions=[ablate])
        with (
            intervening(self.loaded.model, ablate),
            capture_block_inputs(self.loaded.model, range(LAYERS), 1) as captured,
        ):
            self.loaded.model(torch.tensor([rows[0]], device=self.loaded.device))
        stream = captured.stacked()[0, :, 0]  # [layers, d]
        left = float((stream @ unit.to(stream.device)).abs().max() / stream.norm(dim=-1).max())
        _require(left <= TOLERANCE, f"{left:.2g} of the ablated direction is left in the stream")
        _require(not _close(during, before), "ablating a direction changes nothing")
        after = last_logits(self.loaded, rows, batch_size=4)
        _require(torch.equal(before, after), "an intervention stays behind")
        return "the direction leaves the stream, and the model is as before afterwards"


def self_test(device: str | None = None) -> Iterator[Step]:
    """The steps, each as soon as it passed.

    Args:
        device: where; None: where a model would be loaded.

    Raises:
        NumericalError: a result is wrong. CaryatidError: as loading and generating raise them.
    """
    test = _Test(device)
    steps: dict[str, Callable[[], str]] = {
        "load": test.load,
        "answer": test.answer,
        "direction": test.read_direction,
        "ablation": test.ablation,
    }
    for name, run in steps.items():
        started = time.monotonic()
        found = run()
        yield Step(name, found, time.monotonic() - started)
