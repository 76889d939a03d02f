"""How much work a stage is, in units that a device can be timed in (`Stage.work_units`, `calibration`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from transformers import AutoConfig

from ..attacks.gcg.settings import SuffixLength
from ..config import StudyConfig
from ..data.study_prompts import ROLES, StudyPrompts
from ..models.load import load_tokenizer
from ..models.resolve import resolve
from ..models.template import ChatFormat
from ..models.weight_files import opened, used_files
from .series import AnchorRef

SAMPLED = 64  # prompts of each set whose tokens are counted
ANSWER_TOKENS = 12  # of a refusal, and of a target that begins an answer
UNKNOWN_COUNT, UNKNOWN_TOKENS = 100, 32.0  # prompts of a set and tokens of each, where the prompts are gone
NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe")  # matrices that `all-linear` leaves alone


@dataclass(frozen=True)
class WorkUnits:
    """Work, by what it is made of.

    Attributes:
        loaded: models opened from their files. adapted: anchors made from step 0 by an adapter. prepared: models made
            trainable.
        passes: forward passes (batches). tokens: that go through the blocks in them. logits: rows of the vocabulary's
            size that are computed and compared.
        steps: decoding steps (of a batch). decoded: tokens decoded (in all rows). attended: tokens before each of them,
            all together.
        updates: optimizer updates. trained: tokens run forward and back.
        attacks: goals whose attack begins, or goes on from a kept suffix. attack_steps: steps of these, one gradient
            each. candidates: suffixes scored.
        angles: layers at which two anchors are compared.
        disk: bytes that stay. scratch: bytes on disk while the stage runs. held: bytes of results in memory.
    """

    loaded: float = 0
    adapted: float = 0
    prepared: float = 0
    passes: float = 0
    tokens: float = 0
    logits: float = 0
    steps: float = 0
    decoded: float = 0
    attended: float = 0
    updates: float = 0
    trained: float = 0
    attacks: float = 0
    attack_steps: float = 0
    candidates: float = 0
    angles: float = 0
    disk: float = 0
    scratch: float = 0
    held: float = 0

    def __add__(self, other: "WorkUnits") -> "WorkUnits":
        return WorkUnits(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __mul__(self, times: float) -> "WorkUnits":
        return WorkUnits(*(times * value for value in self.values()))

    def values(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return tuple(getattr(self, one.name) for one in fields(self))


NOTHING = WorkUnits()
TIMED = tuple(one.name for one in fields(WorkUnits) if one.name not in ("disk", "scratch", "held"))
"""Units that take time."""


def suffix_tokens(length: SuffixLength) -> float:
    """Mean length of an initial suffix."""
    return float(length) if isinstance(length, int) else sum(length) / 2


def decoding(rows: float, prompt_tokens: float, new_tokens: int, batch: int) -> WorkUnits:
    """Answers of `new_tokens` tokens to `rows` prompts: how long an answer is before its end is not known."""
    batches = math.ceil(rows / batch)
    return WorkUnits(
        passes=batches,
        tokens=rows * prompt_tokens,
        steps=batches * new_tokens,
        decoded=rows * new_tokens,
        attended=rows * new_tokens * (prompt_tokens + new_tokens / 2),
    )


def scoring(rows: float, tokens: float, batch: int, logits: float = 1) -> WorkUnits:
    """Forward passes over `rows` rows, with `logits` positions of each compared."""
    return WorkUnits(passes=math.ceil(rows / batch), tokens=rows * tokens, logits=rows * logits)


@dataclass(frozen=True)
class ModelSizes:
    """What of a backbone decides how much work there is.

    Attributes:
        positions: post-instruction tokens. prefix: tokens before the user's text, the same for all prompts.
        parameters: of the model. adapter: of a LoRA adapter of rank 1.
    """

    layers: int
    width: int
    positions: int
    prefix: int
    parameters: int
    adapter: int


@dataclass(frozen=True)
class Sizes:
    """What work depends on besides a study's configuration.

    Attributes:
        counts: prompts by set. tokens: mean length of a set's prompts in the chat format.
        refusal_rate: share of the transfer prompts that anchors are taken to refuse.
    """

    model: ModelSizes
    counts: Mapping[str, int]
    tokens: Mapping[str, float]
    refusal_rate: float = 0.5

    def both(self, *names: str) -> tuple[int, float]:
        """Prompts of some sets together, and their mean length."""
        counts = [self.counts.get(name, 0) for name in names]
        total = sum(counts)
        tokens = sum(n * self.tokens.get(name, 0.0) for n, name in zip(counts, names, strict=True))
        return total, tokens / max(total, 1)

    def weights(self, config: StudyConfig) -> float:
        """Bytes of an anchor's trained weights, float32."""
        training = config.training
        return 4.0 * (
            self.model.parameters if training.mode == "full" else training.lora.r * self.model.adapter
        )

    def opened(self, config: StudyConfig, place: AnchorRef) -> WorkUnits:
        """Opening an anchor while step 0 is open, which stays so."""
        if place == place.base:
            return NOTHING
        whole = config.training.mode == "full" if not config.observed else not _adapted(config, place)
        return WorkUnits(loaded=1) if whole else WorkUnits(adapted=1)

    def trained(self, config: StudyConfig, anchors: int = 1) -> WorkUnits:
        """Opening a model for training, and keeping `anchors` of its states; for resuming, with two moments of each."""
        size = anchors * self.weights(config)
        return WorkUnits(loaded=1, prepared=1, disk=size, scratch=3 * size)


def _adapted(config: StudyConfig, place: AnchorRef) -> bool:
    """Whether an observed anchor is an adapter of the backbone."""
    named = [one for one in config.observed_anchors if (one.arm, one.step) == (place.arm, place.step)]
    return all(one.adapter and not one.model for one in named)


def sizes_of(config: StudyConfig, prompts: StudyPrompts | None, refusal_rate: float = 0.5) -> Sizes:
    """Sizes of a study, from its backbone's files and its prompts; reads no weights.

    Args:
        prompts: None: they are gone; the configuration's limits stand for their number, and a guess for their length.

    Raises:
        DataMissingError, InputError: as finding the model and its tokenizer.
    """
    model = config.model
    found = resolve(model.spec, revision=model.revision, trust_remote_code=model.trust_remote_code)
    tokenizer = load_tokenizer(model.spec, revision=model.revision, trust_remote_code=model.trust_remote_code)
    chat = ChatFormat(tokenizer, model.system, model.chat_options, model.spec)
    text = AutoConfig.from_pretrained(
        str(found.folder), trust_remote_code=model.trust_remote_code, local_files_only=True
    ).get_text_config()
    parameters = adapter = 0
    for path in used_files(found.folder, model.spec):
        with opened(path, model.spec) as weights:
            for name in weights.keys():  # noqa: SIM118 - a safetensors file is no mapping
                shape = weights.get_slice(name).get_shape()
                parameters += math.prod(shape)
                if len(shape) == 2 and not any(part in name for part in NOT_ADAPTED):
                    adapter += sum(shape)
    sizes = ModelSizes(
        int(text.num_hidden_layers),
        int(text.hidden_size),
        chat.n_post,
        len(chat.prefix_ids),
        parameters,
        adapter,
    )
    limits = config.prompts.limits
    counts = {name: limits.get(name) or UNKNOWN_COUNT for name in ROLES}
    tokens = dict.fromkeys(ROLES, UNKNOWN_TOKENS)
    for name, one in prompts.sets.items() if prompts else ():
        counts[name] = len(one)
        rows = chat.ids_many([prompt.user_text for prompt in one.prompts[:SAMPLED]])
        tokens[name] = float(np.mean([len(row) for row in rows]))
    if config.chat.source != "self_distilled":  # rows of a file or a dataset
        counts |= {"chat": config.chat.rows, "chat_heldout": config.chat.heldout_rows}
    return Sizes(sizes, counts, tokens, refusal_rate)
