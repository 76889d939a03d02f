"""What stays the same over the steps of some GCG cases: their slots and prefixes, and how candidates are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...errors import InputError
from ...models.batch import RowLimit
from ...models.cache import PrefixCache, run_prefixes, tree_attention_supported
from ...models.load import LoadedModel
from ...models.lockstep import is_lockstep
from ...models.template import ChatFormat
from .gradient import GradientPass
from .graphs import Replay, worth_fusing
from .layout import PromptLayout, build_prefix_cache
from .precision import LowPrecision, low_precision, ranking
from .recordings import may_record, prefixes
from .scoring import default_scoring, usable_scoring
from .settings import GcgSettings, Scoring
from .slot import SuffixSlot, Survival, place_suffix
from .state import GcgState


@dataclass(frozen=True)
class GcgEngine:
    """What stays the same over the steps of some cases: their places in the prompts, targets, and prefixes.

    With `exact` each new best is scored again from its text in one fixed layout (single row, no cache), so that the
    record does not depend on batching. With `record`, passes are recorded where they can be (`recordings.py`).
    """

    loaded: LoadedModel
    chat: ChatFormat
    slots: tuple[SuffixSlot, ...]
    targets: tuple[tuple[int, ...], ...]
    prefix: PrefixCache | None
    settings: GcgSettings
    exact: bool
    limit: RowLimit
    scoring: Scoring
    fuse: bool
    low: LowPrecision | None
    low_prefix: PrefixCache | None
    survival: tuple[Survival, ...]
    gradients: Replay[GradientPass]
    texts: tuple[Replay[Tensor], ...]
    record: bool

    def layouts(self, states: Sequence[GcgState]) -> list[PromptLayout]:
        return [
            PromptLayout(slot.prefix_ids, state.suffix_ids, slot.post_ids, target)
            for slot, state, target in zip(self.slots, states, self.targets, strict=True)
        ]

    @property
    def described(self) -> str:
        """How candidates are scored."""
        own = str(self.loaded.dtype).removeprefix("torch.")
        if self.low is None:
            return f"{self.scoring}, {own}" + (", blocks on several devices" if self.loaded.split else "")
        again = self.settings.decided(self.low.name)
        return f"{self.scoring}, {self.low.name}, the best {again} again in {own}"

    def prefix_tokens(self, layout: PromptLayout) -> int:
        """Tokens that were run forward for a case's prefix."""
        return 0 if self.prefix is None else len(layout.prefix_ids)

    def row_tokens(self, layout: PromptLayout) -> int:
        return layout.length if self.prefix is None else layout.tail_length


def _slot(chat: ChatFormat, state: GcgState) -> SuffixSlot:
    placed = place_suffix(chat, state.goal.user_text, state.suffix_text)
    if placed is None or placed.ids != state.suffix_ids:
        raise InputError(
            f"suffix {state.suffix_text!r} is not what the tokenizer gives for it in its prompt",
            where=f"GCG case {state.goal.behavior_id}",
            remedy="Make the state with start_state or resume_state.",
        )
    return placed.slot


def gcg_engine(
    loaded: LoadedModel,
    chat: ChatFormat,
    states: Sequence[GcgState],
    settings: GcgSettings,
    limit: RowLimit,
    exact: bool,
) -> GcgEngine:
    """Prepare steps of some cases: prefixes are run forward, the low precision's weights are made.

    Raises:
        InputError: a state whose ids are not those of its text.
    """
    slots = tuple(_slot(chat, state) for state in states)
    targets = tuple(tuple(chat.answer_ids(state.goal.target, end_of_turn=False)) for state in states)
    # In lockstep each forward gathers weights, and over several devices it goes from one to the next: nothing is
    # recorded, compiled, or copied.
    plain = is_lockstep() or loaded.split
    repetitions = 0 if plain else settings.steps
    fuse = worth_fusing(loaded.model) if settings.compiled is None else settings.compiled
    engine = GcgEngine(
        loaded,
        chat,
        slots,
        targets,
        prefix=None,
        settings=settings,
        exact=exact,
        limit=limit,
        scoring="plain",
        fuse=fuse and not plain,
        low=None,
        low_prefix=None,
        survival=tuple(Survival() for _ in slots),
        gradients=Replay(loaded.device, repetitions),
        texts=tuple(Replay(loaded.device, repetitions) for _ in slots),
        record=False,
    )
    layouts, wanted = engine.layouts(states), settings.scoring or default_scoring(loaded.device)
    record = (
        wanted == "packed" and not engine.fuse and tree_attention_supported(loaded) and may_record(loaded)
    )
    run = prefixes if record else run_prefixes
    prefix = None if wanted == "plain" else build_prefix_cache(loaded, layouts, run)
    scoring, low = usable_scoring(loaded, layouts, prefix, wanted), None
    name = None if plain else ranking(loaded.dtype, loaded.device, settings.search_precision)
    if name is not None and settings.width > settings.decided(name):
        low = low_precision(loaded, settings.search_precision)
    low_prefix = prefix.to(low.loaded.dtype) if low is not None and prefix is not None else None
    record = record and scoring == "packed"
    return replace(engine, prefix=prefix, scoring=scoring, low=low, low_prefix=low_prefix, record=record)
