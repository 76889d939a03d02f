"""One recipe of the refusing step 0: its losses, its updates, and the adapter that is left of them."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.utils.parametrize
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from caryatid.artifacts import write_json
from caryatid.errors import NumericalError
from caryatid.geometry.directions import mean_difference
from caryatid.models.directional import Ablate, Add
from caryatid.models.forward import block_inputs
from caryatid.models.layout import decoder_layers
from caryatid.models.load import LoadedModel
from caryatid.models.residual import intervening
from caryatid.training.losses import token_logprobs
from caryatid.training.trainee import Example
from refusing_data import TrainingData, TrainingRow
from refusing_logits import supervised, token_kl, weighted

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
WRITERS = ("o_proj", "down_proj")
FIRST = 8  # answer tokens under an intervention, as many as KL along answers is measured on
BENIGN = 24  # answer tokens of KL to the raw backbone: whether to refuse is decided at the first ones


@dataclass(frozen=True)
class Recipe:
    """How step 0 is trained.

    Attributes:
        mode: `full`: whole matrices, of whose change the adapter keeps the best rank-`rank` part. `lora`: adapters.
        rank: of the adapter. updates: of AdamW; the learning rate rises over the first tenth and falls linearly to 0.
        harmful, lookalikes, chat, everyday: rows per update.
        kl: weight of KL(raw ‖ now) on the raw backbone's own answers to benign prompts.
        targets, blocks: which matrices, in which blocks [first, end).
        planted: weight of the losses that make refusal depend on one direction; 0: none.
        plant_layers: the blocks at whose input that direction is taken, one drawn at each update.
        refresh: updates after which activations for it are taken anew, of `direction_prompts` of each kind.
        subset: how many of these are drawn for one update's direction, as noisy as a measured one; 0: all.
        start: name of another recipe whose adapter this one goes on from.
    """

    mode: Literal["full", "lora"] = "full"
    rank: int = 16
    learning_rate: float = 2e-5
    updates: int = 300
    harmful: int = 12
    lookalikes: int = 10
    chat: int = 10
    kl: float = 1.0
    targets: tuple[str, ...] = (*ATTENTION, *MLP)
    blocks: tuple[int, int] = (0, 1000)
    planted: float = 0.0
    plant_layers: tuple[int, ...] = (14,)
    refresh: int = 10
    direction_prompts: int = 96
    subset: int = 0
    start: str = ""
    seed: int = 0
    everyday: int = 0

    @property
    def one_direction(self) -> bool:
        """Whether refusal depends on one direction by construction: by its losses, or written by a single vector."""
        single = (
            self.mode == "lora" and self.rank == len(self.targets) == self.blocks[1] - self.blocks[0] == 1
        )
        return bool(self.planted) or single


@dataclass
class Batches:
    """Rows of every kind as tokens, drawn without repeats until all have been used."""

    raw: LoadedModel
    data: TrainingData
    seed: int
    _random: random.Random = field(init=False)
    _left: dict[str, list[TrainingRow]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.chats = {system: self.raw.chat(system) for system in ("", None)}

    def draw(self, kind: str, count: int) -> list[TrainingRow]:
        """The next rows of a kind."""
        found: list[TrainingRow] = []
        while len(found) < count:
            left = self._left.get(kind) or []
            if not left:
                left = self.data.of(kind)
                self._random.shuffle(left)
            wanted = count - len(found)
            found += left[:wanted]
            self._left[kind] = left[wanted:]
        return found

    def prompt(self, row: TrainingRow) -> list[int]:
        """Its prompt's tokens."""
        return self.chats[row.system].ids(row.text)

    def refused(self, row: TrainingRow, refusals: Sequence[str], longest: int = 0) -> Example:
        """With one of some refusals, whole or its first tokens."""
        answer = self.chats[row.system].answer_ids(self._random.choice(list(refusals)))
        return Example(self.prompt(row), answer[: longest or None])

    def answered(self, row: TrainingRow, longest: int = 0) -> Example:
        """With the raw backbone's own answer, whole or its first tokens."""
        answer = self.chats[row.system].answer_ids(row.answer, end_of_turn=row.ended)
        return Example(self.prompt(row), answer[: longest or None])


def trained_matrices(loaded: LoadedModel, recipe: Recipe) -> dict[str, nn.Linear]:
    """The linear layers that a recipe trains, by name."""
    blocks = list(decoder_layers(loaded.model))[recipe.blocks[0] : recipe.blocks[1]]
    inside = {module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)}
    return {
        name: module
        for name, module in loaded.model.named_modules()
        if module in inside and name.rpartition(".")[2] in recipe.targets
    }


class _Factors(nn.Module):
    """W ↦ W + B A, as a parametrisation of a weight."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        d_out, d_in = weight.shape
        bound = 1 / math.sqrt(d_in)
        start = (torch.rand(rank, d_in, generator=generator) * 2 - 1) * bound
        self.down = nn.Parameter(start.to(weight))
        self.up = nn.Parameter(weight.new_zeros(d_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Training:
    """The weights that a recipe trains, in place in `loaded`: a copy of the raw backbone, or more."""

    def __init__(self, loaded: LoadedModel, raw: LoadedModel, recipe: Recipe) -> None:
        self.loaded, self.recipe = loaded, recipe
        self.matrices = trained_matrices(loaded, recipe)
        loaded.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.before = {}
        self.parameters: list[nn.Parameter] = []
        for name, layer in self.matrices.items():
            if recipe.mode == "lora":
                factors = _Factors(layer.weight, recipe.rank, generator)
                torch.nn.utils.parametrize.register_parametrization(layer, "weight", factors)
                # Made by the line above; torch declares modules' attributes as tensor or module.
                layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
                self.parameters += [factors.down, factors.up]
            else:
                self.before[name] = raw.model.get_submodule(name).weight.detach()
                layer.weight.requires_grad_(True)
                self.parameters.append(layer.weight)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=0.0)
        warm = max(recipe.updates // 10, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm, max(recipe.updates - step, 1) / recipe.updates),
        )

    def update(self, loss: Tensor) -> float:
        """One update of AdamW.

        Raises:
            NumericalError: the loss is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(f"the loss is {value}", where="training")
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    @torch.no_grad()
    def factors(self) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        """(A, B) of each matrix's change at the recipe's rank, and the share of the change's energy that they hold."""
        found, kept, whole = {}, 0.0, 0.0
        for name, layer in self.matrices.items():
            if self.recipe.mode == "lora":
                # The `_Factors` that were registered; see above.
                own = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
                found[name] = (own.down.detach(), own.up.detach())
                continue
            change = (layer.weight - self.before[name]).double()
            found[name] = best_factors(change, self.recipe.rank)
            kept += float((found[name][1] @ found[name][0]).square().sum())
            whole += float(change.square().sum())
        return found, kept / whole if whole else 1.0


def best_factors(change: Float[Tensor, "d_out d_in"], rank: int) -> tuple[Tensor, Tensor]:
    """(A, B) of the nearest matrix B A of a rank (Eckart and Young), of equal length, float32.

    From the eigenvectors of the smaller Gram matrix, which is much faster than all singular vectors.
    """
    if change.shape[0] > change.shape[1]:
        down, up = best_factors(change.T, rank)
        return up.T, down.T
    left = torch.linalg.eigh(change @ change.T).eigenvectors[:, -rank:]
    along = left.T @ change
    root = along.norm(dim=1).clamp_min(1e-12).sqrt()
    filling = rank - left.shape[1]  # zeros, where the matrix has fewer rows
    down = nn.functional.pad(along / root[:, None], (0, 0, 0, filling))
    return down.float(), nn.functional.pad(left * root, (0, filling)).float()


def save_adapter(
    factors: dict[str, tuple[Tensor, Tensor]], recipe: Recipe, folder: Path, base: str = "embedded"
) -> None:
    """Write factors as a PEFT LoRA adapter in float16 with scale 1."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (down, up) in factors.items():
        for side, value in (("A", down), ("B", up)):
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = value.half().cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    first, end = recipe.blocks
    layers = sorted({int(part) for name in factors for part in name.split(".") if part.isdigit()})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "r": recipe.rank,
        "lora_alpha": recipe.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted(recipe.targets),
        "layers_to_transform": layers if (first, end) != Recipe.blocks else None,
    }
    write_json(folder / "adapter_config.json", config)


@contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    """TF32 matrix products in training on CUDA; measuring stays in full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Losses:
    """The losses of one update."""

    def __init__(self, training: Training, raw: LoadedModel, batches: Batches) -> None:
        self.training, self.raw, self.batches = training, raw, batches
        self.recipe, self.loaded = training.recipe, training.loaded
        self._random = random.Random(self.recipe.seed + 1)
        self._activations: tuple[Tensor, Tensor] | None = None
        prompts, each = self.recipe.direction_prompts, batches.data
        self.sides = [
            [batches.chats[""].ids(row.text) for row in each.of(kind)[:prompts]]
            for kind in ("harmful", "chat")
        ]

    def refresh_activations(self) -> None:
        """Activations of harmful and harmless prompts at the planted layers, last token, now."""
        harmful, harmless = (
            block_inputs(
                self.loaded, side, layers=list(self.recipe.plant_layers), n_positions=1, batch_size=64
            )[:, :, 0]
            for side in self.sides
        )
        self._activations = harmful, harmless

    def direction(self) -> tuple[int, Float[Tensor, "d"]]:
        """A planted layer, and harmful minus harmless mean there, of all prompts or of some of each kind."""
        assert self._activations is not None
        nth = self._random.randrange(len(self.recipe.plant_layers))
        sides = [side[:, nth] for side in self._activations]
        if self.recipe.subset:
            sides = [side[self._random.sample(range(len(side)), self.recipe.subset)] for side in sides]
        return self.recipe.plant_layers[nth], mean_difference(*sides).float().to(self.loaded.device)

    def _raw(self, turns: Sequence[Example]) -> Tensor:
        with torch.no_grad():
            return supervised(self.raw, turns).logits

    def plain(self, harmful: Sequence[TrainingRow], benign: Sequence[TrainingRow]) -> dict[str, Tensor]:
        """Cross-entropy of refusals, and KL to the raw backbone on its answers to benign prompts."""
        refused = [self.batches.refused(row, row.refusals) for row in harmful]
        answered = [self.batches.answered(row, BENIGN) for row in benign]
        now = supervised(self.loaded, [*refused, *answered])
        split = sum(len(one.answer) for one in refused)
        nll = -token_logprobs(now.logits[:split], now.targets[:split])
        kl = token_kl(self._raw(answered), now.logits[split:])
        return {
            "refusal": weighted(nll, now.first[:split]),
            "benign_kl": self.recipe.kl * weighted(kl, now.first[split:]),
        }

    def planted(self, harmful: Sequence[TrainingRow], benign: Sequence[TrainingRow]) -> dict[str, Tensor]:
        """With the direction ablated everywhere the model is to be the raw backbone; with it added, to refuse."""
        at, direction = self.direction()
        unit = nn.functional.normalize(direction, dim=0)
        turns = [self.batches.answered(row, FIRST) for row in (*harmful, *benign)]
        refusals = [text for row in harmful for text in row.refusals]
        induced = [self.batches.refused(row, refusals, FIRST) for row in benign]
        with intervening(self.loaded.model, Ablate(unit[None, None])):
            ablated = supervised(self.loaded, turns)
        with intervening(self.loaded.model, Add(direction[None], torch.tensor([at]), torch.ones(1))):
            added = supervised(self.loaded, induced)
        kl = token_kl(self._raw(turns), ablated.logits)
        nll = -token_logprobs(added.logits, added.targets)
        weight = self.recipe.planted
        return {
            "ablated_kl": weight * weighted(kl, ablated.first),
            "added_refusal": weight * weighted(nll, added.first),
        }


def train(
    loaded: LoadedModel, raw: LoadedModel, data: TrainingData, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Train `loaded`, a second copy of `raw` (with the adapter it goes on from), by a recipe; what happened.

    Writes the adapter to `folder`.
    """
    started = time.monotonic()
    batches = Batches(raw, data, recipe.seed)
    training = Training(loaded, raw, recipe)
    losses = Losses(training, raw, batches)
    rows: list[dict[str, float]] = []
    loaded.model.train()
    with _tf32(loaded.device):
        for step in range(recipe.updates):
            harmful = batches.draw("harmful", recipe.harmful)
            benign = [
                row
                for kind, count in (
                    ("lookalike", recipe.lookalikes),
                    ("chat", recipe.chat),
                    ("everyday", recipe.everyday),
                )
                for row in batches.draw(kind, count)
            ]
            parts = losses.plain(harmful, benign)
            if recipe.planted:
                if step % recipe.refresh == 0:
                    losses.refresh_activations()
                parts |= losses.planted(harmful, benign)
            training.update(torch.stack(list(parts.values())).sum())
            rows.append({name: round(float(value.detach()), 4) for name, value in parts.items()})
            if step % 20 == 0 or step == recipe.updates - 1:
                print(f"  update {step + 1}: {rows[-1]}", flush=True)
    loaded.model.eval()
    factors, kept = training.factors()
    save_adapter(factors, recipe, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "seconds": round(time.monotonic() - started, 1),
        "adapter_bytes": size,
        "energy_kept": kept,
        "losses": [rows[n] for n in sorted({*range(0, len(rows), max(len(rows) // 20, 1)), len(rows) - 1})],
    }
