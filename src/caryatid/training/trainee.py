"""A model in training: its trainable weights (LoRA or full), optimizer and schedule, and how they are saved."""

import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import DataMissingError, InputError, NumericalError, UsageError
from ..files import file_sha256, read_json, system_errors, write_json
from ..models.batch import right_pad
from ..models.heads import picked_head
from ..models.load import LoadedModel
from ..models.lockstep import in_lockstep
from ..models.quiet import quiet_transformers
from .adapters import LowPrecisionAdapters, MergedCopy, forked_rng, with_adapters
from .ranks import ALONE, Ranks
from .settings import Mode, TrainingSettings
from .shards import check_shards, like, shard, whole

SHARD = "Train with training.shard: fsdp2 under torchrun (docs/scale.md)."
_TENSORS = "state.safetensors"
_DAMAGED = "Delete its folder: training then goes on from the state before, or begins anew."


class Example(NamedTuple):
    """A prompt and the supervised tokens that follow it."""

    prompt: Sequence[int]
    answer: Sequence[int]


class DrawnCases(NamedTuple):
    """Harmful cases of one micro-batch: prompts with their affirmative targets, the same prompts with the refusal; and
    the micro-batch's chat, for arms whose terms read that, too."""

    away: list[Example]
    toward: list[Example]
    chat: Sequence[Example] = ()


class Supervised(NamedTuple):
    """Logits at the supervised positions of a batch, row after row.

    Attributes:
        logits: prediction of each supervised token. targets: these tokens. lengths: how many each row has.
        tokens: real (unpadded) tokens that went through the model.
    """

    logits: Float[Tensor, "tokens vocab"]
    targets: Int[Tensor, "tokens"]
    lengths: list[int]
    tokens: int


def check_precision(mode: Mode, dtype: torch.dtype) -> None:
    """Full training takes float32 weights: updates below half a step of a 16-bit weight are rounded away.

    Raises:
        InputError: `mode` is full and the weights are narrower.
    """
    if mode == "full" and dtype.itemsize < 4:
        raise InputError(
            f"full training of {str(dtype).removeprefix('torch.')} weights rounds small updates away",
            where="training.mode",
            remedy="Set model.dtype to float32 (and training.mixed_precision to bf16), or training.mode to lora.",
        )


def cut(example: Example, max_length: int) -> Example:
    """Keep the prompt; cut the answer so that both together have at most `max_length` tokens."""
    room = max(max_length - len(example.prompt), 1)
    return Example(example.prompt, example.answer[:room])


class Trainee:
    """Trainable weights on top of a frozen step 0.

    LoRA is injected into `loaded.model` in place, so that `loaded` stays the one handle to the current weights.

    Args:
        loaded: step 0, its adapters merged or kept; this object takes it over.
        settings: what is trained, optimizer and schedule.
        updates: length of the whole schedule, in optimizer updates.
        seed: of the adapters' initial values and of dropout.
        ranks: the processes that train together; all hold the same weights, in lockstep each a part of them
            (`shards.py`; `loaded.device` is then where its part goes).

    Raises:
        InputError: full training of 16-bit weights, or what cannot be shared out.
        UsageError: blocks on several devices (`device_map`).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: TrainingSettings,
        *,
        updates: int,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        from transformers import get_scheduler

        mode = settings.mode
        check_precision(mode, loaded.dtype)
        if loaded.split:
            raise UsageError(
                "a model on several devices is measured, not trained", where="device_map", remedy=SHARD
            )
        self.loaded, self.mode, self.settings, self.ranks = loaded, mode, settings, ranks
        model: Any = loaded.model
        self.peft: Any = None
        if mode == "lora":
            self.peft = with_adapters(model, settings.lora, seed)
            model.eval()  # PEFT's new modules start in training mode
        else:
            model.requires_grad_(True)
        self.recomputing = False
        if settings.gradient_checkpointing:
            self.recompute()
        if ranks.lockstep:
            check_shards(mode, loaded.dtype)
            shard(model, loaded.device, ranks)
        low = self.peft is not None and LowPrecisionAdapters.suit(self.peft)
        self._low_precision = LowPrecisionAdapters(self.peft) if low else None
        self._merged: MergedCopy | None = None  # made at the first attack
        self._modules = list(model.modules())
        self.names = [name for name, value in model.named_parameters() if value.requires_grad]
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.initial = [value.detach().clone() for value in self.parameters] if mode == "full" else []
        self.model: Any = self.peft or model
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        self.scheduler: Any = get_scheduler(
            name, self.optimizer, num_warmup_steps=settings.lr_warmup_steps, num_training_steps=updates
        )
        self._random = torch.Generator().manual_seed(seed).get_state()
        self._cuda_random: Tensor | None = None  # dropout on CUDA draws there
        if loaded.device.type == "cuda":
            self._cuda_random = torch.Generator(loaded.device).manual_seed(seed).get_state()
        self.step, self.updates = 0, updates

    def recompute(self) -> None:
        """Compute activations again in backward passes from now on (gradient checkpointing): less memory, more time."""
        model: Any = self.loaded.model
        with warnings.catch_warnings():
            # Its new name is not known to all versions that are allowed.
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        self.recomputing = True

    def _precision(self) -> torch.autocast:
        """That of mixed-precision training; losses are float32 in any case."""
        mixed = self.settings.mixed_precision == "bf16"
        return torch.autocast(self.loaded.device.type, torch.bfloat16, enabled=mixed)

    def forward(self, examples: Sequence[Example]) -> Supervised:
        """Logits at the supervised positions, the only ones that are computed.

        Rows are padded on the right. Padding on the left attends to nothing, for which the gradient of CUDA's
        memory-efficient attention can be NaN, depending on what its memory held before.
        """
        rows = [[*example.prompt, *example.answer] for example in examples]
        lengths = [len(example.answer) for example in examples]
        device = self.loaded.device
        batch = right_pad(rows, self.loaded.tokenizer.pad_token_id or 0, device)
        row = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
        column = torch.cat([torch.arange(len(one.answer)) + len(one.prompt) - 1 for one in examples])
        targets = torch.tensor([token for one in examples for token in one.answer], device=device)
        with (
            self._precision(),
            picked_head(self.loaded.model, row.to(device), column.to(device)) as picked,
        ):
            out = self.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
        return Supervised(picked(out.logits).float(), targets, lengths, sum(map(len, rows)))

    def backward(self, loss: Tensor, what: str) -> float:
        """Accumulate the gradient of a loss, which must be finite.

        Raises:
            NumericalError: it is not.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(
                f"{what} loss is {value} at step {self.step + 1}",
                where="training",
                remedy="Lower the learning rate; earlier anchors are kept.",
            )
        loss.backward()
        return value

    def update(self) -> None:
        """One optimizer update from the gradients accumulated on all ranks."""
        if not self.ranks.lockstep:  # else each part has its sum already
            self.ranks.sum_gradients(self.parameters)
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)))
        if not math.isfinite(norm):
            raise NumericalError(
                f"the gradient's norm is {norm} at step {self.step + 1}",
                where="training",
                remedy="Lower the learning rate; earlier anchors are kept.",
            )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode, with dropout drawn from the trainee's own random state."""
        with forked_rng(self.loaded.device):
            torch.set_rng_state(self._random)
            if self._cuda_random is not None:
                torch.cuda.set_rng_state(self._cuda_random, self.loaded.device)
            self._set_mode(True)
            try:
                yield
            finally:
                self._set_mode(False)
                self._random = torch.get_rng_state()
                if self._cuda_random is not None:
                    self._cuda_random = torch.cuda.get_rng_state(self.loaded.device)

    def _set_mode(self, training: bool) -> None:
        """As `nn.Module.train`, which looks for all modules anew and tests what each attribute is."""
        for module in self._modules:
            object.__setattr__(module, "training", training)

    @contextmanager
    def attacked(self) -> Iterator[LoadedModel]:
        """The model for the many forwards of an attack, in the precision of training.

        Adapters are merged into a copy of a float32 model, and in 16 bits in a 16-bit one; where the weights lie in
        parts, they run as in training, and all ranks attack in lockstep.
        """
        if self.ranks.lockstep:
            with self._precision(), in_lockstep(self.ranks.shared):
                yield self.loaded
            return
        if self.peft is not None and self._low_precision is None and self._merged is None:
            self._merged = MergedCopy(self.peft) if MergedCopy.suit(self.peft) else None
        narrow = nullcontext() if self._low_precision is None else self._low_precision.open()
        with self._precision(), narrow:
            if self._merged is None:
                yield self.loaded
            else:
                yield replace(self.loaded, model=self._merged.refresh())

    @contextmanager
    def at_step_zero(self) -> Iterator[None]:
        """Context in which the model computes as at step 0."""
        if self.peft is not None:
            with self.peft.disable_adapter():
                yield
            return
        current = [value.detach().clone() for value in self.parameters]
        try:
            self._set(self.initial)
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(like(value, parameter))

    @torch.no_grad()
    def delta_weight(self) -> float:
        """‖ΔW‖: Frobenius norm of all weight changes since step 0; for LoRA from A Aᵀ and Bᵀ B, not from B A."""
        if self.mode == "full":
            pairs = zip(self.parameters, self.initial, strict=True)
            return math.sqrt(sum(float((now - then).double().square().sum()) for now, then in pairs))
        total = 0.0
        for module in self.loaded.model.modules():
            if not hasattr(module, "lora_A"):
                continue
            # torch declares a module's attributes as tensor or module: PEFT's are dictionaries of layers by adapter.
            for name, scale in module.scaling.items():  # type: ignore[union-attr, operator]
                a = whole(module.lora_A[name].weight).double()  # type: ignore[index, union-attr]
                b = whole(module.lora_B[name].weight).double()  # type: ignore[index, union-attr]
                total += float(scale) ** 2 * float(((a @ a.T) * (b.T @ b)).sum())
        return math.sqrt(max(total, 0.0))

    def save_weights(self, folder: Path) -> None:
        """The trained weights as safetensors: a PEFT adapter, or the full model with its tokenizer. Atomic.

        All ranks that `Ranks.saves` names call it together; the first one writes.
        """
        model: Any = self.peft or self.loaded.model
        given: dict[str, Any] = {}
        if self.ranks.lockstep:
            kept = {name: value for name, value in model.state_dict().items() if "lora_" in name}
            given = {"state_dict": {name: whole(value) for name, value in kept.items()}}
        if not self.ranks.main:
            return
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with quiet_transformers(), system_errors(folder):
            model.save_pretrained(str(partial), **given)
            if self.mode == "full":
                self.loaded.tokenizer.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def save_state(self, folder: Path, extra: dict[str, Any]) -> None:
        """Everything a resumed run needs: weights, optimizer moments, schedule, random state, and `extra` as JSON.

        Called as `save_weights`.
        """
        from safetensors.torch import save_file

        tensors = {f"weight.{i}": whole(value.detach()) for i, value in enumerate(self.parameters)}
        for index, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{key}"] = whole(torch.as_tensor(value))
        if not self.ranks.main:
            return
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors["random"] = self._random
        if self._cuda_random is not None:
            tensors["random_cuda"] = self._cuda_random
        with system_errors(folder):
            save_file(
                {key: value.cpu().contiguous().clone() for key, value in tensors.items()}, partial / _TENSORS
            )
        facts = {"step": self.step, "names": self.names, "schedule": self.scheduler.state_dict()}
        digest = file_sha256(partial / _TENSORS)
        write_json(partial / "state.json", {**facts, "sha256": digest, "extra": extra})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def load_state(self, folder: Path) -> dict[str, Any]:
        """The inverse of `save_state`; returns `extra`.

        Raises:
            InputError, DataMissingError: the state is damaged; names the file.
        """
        from safetensors.torch import load_file

        facts = read_json(folder / "state.json", remedy=_DAMAGED)
        file = folder / _TENSORS
        if not file.is_file() or file_sha256(file) != facts.get("sha256"):
            raise DataMissingError("the kept state is damaged", where=str(file), remedy=_DAMAGED)
        tensors = load_file(file)
        self._set([tensors[f"weight.{i}"] for i in range(len(self.parameters))])
        for index, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{index}."
            found = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            if found:
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else like(value, parameter) for key, value in found.items()
                }
        self.scheduler.load_state_dict(facts["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self._random = tensors["random"]
        if self._cuda_random is not None:
            self._cuda_random = tensors.get("random_cuda", self._cuda_random)
        self.step = facts["step"]
        extra: dict[str, Any] = facts["extra"]
        return extra
