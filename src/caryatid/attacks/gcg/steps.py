"""Greedy coordinate gradient search (arXiv 2307.15043) for suffixes that make a target likely.

One step: the gradient of the target loss at the one-hot suffix, candidates with one substitution each that survive
the round trip of the whole templated prompt, and the best of them replaces the suffix even if it is worse. The best
so far is kept beside it. Several cases can take their steps together; each draws its own candidates.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import NumericalError
from ...models.batch import RowLimit
from ...models.cache import SuffixKeys
from ...models.load import LoadedModel
from ...models.lockstep import agreed
from ...models.template import ChatFormat
from .candidates import Substitutions, allowed_mask, ordered_substitutions, topk_substitutions
from .engine import GcgEngine, gcg_engine
from .gradient import SuffixGradients, suffix_gradients
from .graphs import fused, worth_fusing
from .layout import PromptLayout, evaluation_mode, one_thread
from .precision import LowPrecision
from .recordings import closed
from .scoring import Packing, PendingScores, start_scoring
from .settings import GcgSettings
from .slot import SuffixSlot, surviving_candidates
from .state import GcgState, text_loss

MANY = 1024  # candidates of a step (docs/performance.md: width 128 and 64, two groups and four)


def _record_start(state: GcgState, loss: float) -> GcgState:
    if not math.isfinite(loss):
        raise NumericalError(f"target loss is {loss}", where=f"GCG case {state.goal.behavior_id}")
    return replace(
        state,
        loss=loss,
        best_ids=state.suffix_ids,
        best_text=state.suffix_text,
        best_loss=loss,
        losses=(loss,),
    )


def _begin(engine: GcgEngine, index: int, state: GcgState, layout: PromptLayout) -> GcgState:
    """The state with a new record: the prefix's tokens and, in exact mode, the initial loss from the text."""
    spent = engine.prefix_tokens(layout)
    fresh = GcgState(
        state.goal, state.suffix_ids, state.suffix_text, forward_tokens=spent, scored=engine.described
    )
    if not engine.exact:
        return fresh
    loss = text_loss(engine.loaded, engine.chat, state.goal, state.suffix_text, engine.texts[index])
    return _record_start(replace(fresh, forward_tokens=spent + layout.length), loss)


def begin_records(engine: GcgEngine, states: Sequence[GcgState]) -> list[GcgState]:
    """The states at the start of their records (see `GcgState`)."""
    pairs = zip(states, engine.layouts(states), strict=True)
    return [_begin(engine, index, state, layout) for index, (state, layout) in enumerate(pairs)]


def _advance(
    engine: GcgEngine, index: int, state: GcgState, layout: PromptLayout, scored: "_Scored"
) -> GcgState:
    """One case after its candidates are scored: the best one moves in, and becomes the best so far if it is."""
    if not state.losses:
        state = _record_start(state, scored.gradient_loss)
    gradient_tokens = engine.row_tokens(layout)
    spent = state.forward_tokens + gradient_tokens + scored.tokens
    state = replace(
        state,
        candidates=state.candidates + len(scored.candidates),
        backward_tokens=state.backward_tokens + gradient_tokens,
    )
    if len(scored.candidates) == 0:
        return replace(
            state,
            losses=(*state.losses, state.best_loss),
            stalled_steps=state.stalled_steps + 1,
            forward_tokens=spent,
        )
    winner = int(scored.losses.argmin())
    loss, ids = float(scored.losses[winner]), tuple(scored.candidates[winner].tolist())
    if not math.isfinite(loss):
        raise NumericalError(f"a candidate's loss is {loss}", where=f"GCG case {state.goal.behavior_id}")
    text = engine.slots[index].suffix_texts(engine.chat.tokenizer, [ids])[0]
    assert text is not None  # it survived the round trip
    if engine.exact and loss < state.best_loss:
        loss = text_loss(engine.loaded, engine.chat, state.goal, text, engine.texts[index])
        spent += layout.length
    state = replace(state, suffix_ids=ids, suffix_text=text, loss=loss, forward_tokens=spent)
    if loss < state.best_loss:
        state = replace(state, best_ids=ids, best_text=text, best_loss=loss)
    return replace(state, losses=(*state.losses, state.best_loss))


@dataclass(frozen=True)
class _Scored:
    gradient_loss: float
    candidates: Int[Tensor, "candidates length"]
    losses: Float[Tensor, "candidates"]
    tokens: int


def _ordered(
    engine: GcgEngine,
    slot: SuffixSlot,
    layout: PromptLayout,
    gradient: Float[Tensor, "length vocab"],
    generator: torch.Generator,
) -> Substitutions:
    """One case's substitutions in the order in which they are tried."""
    suffix = torch.tensor(layout.suffix_ids)
    allowed = allowed_mask(
        engine.loaded.tokenizer, gradient.shape[1], len(suffix), bool(slot.lead), gradient.device
    )
    top = topk_substitutions(gradient, suffix, allowed, engine.settings.top_k)
    return ordered_substitutions(top, generator)


def _records(engine: GcgEngine) -> bool:
    """Whether candidates are scored in recorded passes, if these come often enough."""
    return engine.record and not closed((engine.low or engine).loaded)


def _groups(engine: GcgEngine) -> int:
    """Into how many groups the cases of a step are split: each is a forward, whose launches bound small models.

    Recorded ones are cheap to launch, so that with many candidates the device and the tokenizer overlap more.
    """
    if engine.loaded.device.type != "cuda":
        return 1
    many = _records(engine) and len(engine.slots) * engine.settings.width >= MANY
    return 4 if many or worth_fusing(engine.loaded.model) else 2


def _score(
    engine: GcgEngine,
    layouts: Sequence[PromptLayout],
    orders: Sequence[Substitutions],
    found: SuffixGradients,
) -> list[_Scored]:
    """The candidates that survive, and their losses.

    On CUDA a few cases at a time: while the device scores some, the tokenizer is busy with the next.
    """
    empty = [torch.empty((0, len(layout.suffix_ids)), dtype=torch.long) for layout in layouts]
    candidates, started = list(empty), []
    suffix = found.suffix
    if engine.low is not None and suffix is not None:
        suffix = suffix.to(engine.low.loaded.dtype)
    together = math.ceil(len(layouts) / _groups(engine))
    for start in range(0, len(layouts), together):
        now = list(empty)
        for case in range(start, min(start + together, len(layouts))):
            candidates[case] = now[case] = surviving_candidates(
                engine.slots[case],
                engine.chat.tokenizer,
                torch.tensor(layouts[case].suffix_ids),
                orders[case],
                engine.settings.width,
                engine.survival[case],
            )
        started.append(_start(engine, layouts, now, suffix, engine.low))
    losses, tokens = [torch.empty(0)] * len(layouts), [0] * len(layouts)
    for pending in started:
        scored = pending.result()
        for case, (values, spent) in enumerate(zip(scored.losses, scored.case_tokens, strict=True)):
            tokens[case] += spent
            losses[case] = values if len(values) else losses[case]
    if engine.low is not None:
        again = engine.settings.decided(engine.low.name)
        losses, spent_again = _decided(engine, layouts, candidates, losses, found.suffix, again)
        tokens = [sum(pair) for pair in zip(tokens, spent_again, strict=True)]
    return [
        _Scored(case.loss, rows, values, spent)
        for case, rows, values, spent in zip(found.cases, candidates, losses, tokens, strict=True)
    ]


def _start(
    engine: GcgEngine,
    layouts: Sequence[PromptLayout],
    candidates: Sequence[Int[Tensor, "_ _"]],
    suffix: SuffixKeys | None,
    low: LowPrecision | None,
) -> PendingScores:
    """Begin to score candidates, in lower precision where one is given."""
    loaded = engine.loaded if low is None else low.loaded
    with (
        nullcontext() if low is None else low.opened(),
        fused(loaded.model) if engine.fuse else nullcontext(),
    ):
        pending = start_scoring(
            loaded,
            layouts,
            candidates,
            batch_size=engine.limit.rows,
            prefix=engine.prefix if low is None else engine.low_prefix,
            scoring=engine.scoring,
            suffix=suffix,
            packing=Packing(record=engine.record and not closed(loaded)),
        )
    engine.limit.rows = pending.batch_size
    return pending


def _decided(
    engine: GcgEngine,
    layouts: Sequence[PromptLayout],
    candidates: Sequence[Int[Tensor, "_ _"]],
    ranked: Sequence[Float[Tensor, "_"]],
    suffix: SuffixKeys | None,
    again: int,
) -> tuple[list[Float[Tensor, "_"]], tuple[int, ...]]:
    """Losses in the model's own precision of each case's `again` best candidates, infinite for the others; and their
    tokens."""
    best = [losses.argsort(stable=True)[:again] for losses in ranked]
    chosen = [rows[index] for rows, index in zip(candidates, best, strict=True)]
    exact = _start(engine, layouts, chosen, suffix, None).result()
    decided = []
    for losses, index, values in zip(ranked, best, exact.losses, strict=True):
        whole = torch.full((len(losses),), math.inf, dtype=values.dtype)
        decided.append(whole.index_copy_(0, index, values))
    return decided, exact.case_tokens


def gcg_step(
    engine: GcgEngine, states: Sequence[GcgState], generators: Sequence[torch.Generator]
) -> list[GcgState]:
    """One step of every case; gradients, then candidates, of all cases batched together.

    Args:
        generators: one per case; the same object may stand for all, the cases then draw from it in turn.
    """
    with one_thread(engine.loaded.device):
        return _step(engine, states, generators)


def _step(
    engine: GcgEngine, states: Sequence[GcgState], generators: Sequence[torch.Generator]
) -> list[GcgState]:
    layouts = engine.layouts(states)
    found = suffix_gradients(
        engine.loaded,
        layouts,
        prefix=engine.prefix,
        batch_size=engine.limit.rows,
        record=engine.scoring in ("incremental", "packed"),
        replay=engine.gradients,
        persistent=engine.record,
    )
    orders = [
        _ordered(engine, slot, layout, case.gradient, generator)
        for slot, layout, case, generator in zip(engine.slots, layouts, found.cases, generators, strict=True)
    ]
    results = agreed(_score(engine, layouts, agreed(orders), found))
    return [
        _advance(engine, index, state, layout, result)
        for index, (state, layout, result) in enumerate(zip(states, layouts, results, strict=True))
    ]


def gcg_steps(
    loaded: LoadedModel,
    chat: ChatFormat,
    states: Sequence[GcgState],
    settings: GcgSettings,
    *,
    batch_size: int | RowLimit,
    generator: torch.Generator | Sequence[torch.Generator],
    exact: bool = False,
    on_step: Callable[[], None] | None = None,
) -> list[GcgState]:
    """`settings.steps` warm-started steps of several cases against the present weights: R2D2's inner loop.

    All cases take all steps: `settings.stop_below` is for `gcg_search`.

    The model is in evaluation mode meanwhile (dropout off) and afterwards in the mode it was in; no gradient is
    left behind. Each state's record (losses, best, tokens) starts anew.

    Args:
        batch_size: rows per forward, across cases; a `RowLimit` is lowered where memory runs out, and stays so.
        generator: one (on the CPU) for all cases in turn, or one per case.
        exact: also re-score each new best from its text (see `GcgEngine`).
        on_step: called after every step.

    Raises:
        InputError: a state whose ids are not those of its text. NumericalError: a loss or gradient is not finite.
        MemoryExhaustedError: out of memory also at one row per forward.
    """
    if not states:
        return []
    limit = batch_size if isinstance(batch_size, RowLimit) else RowLimit(batch_size)
    generators = [generator] * len(states) if isinstance(generator, torch.Generator) else list(generator)
    with evaluation_mode(loaded.model):
        engine = gcg_engine(loaded, chat, states, settings, limit, exact)
        now = begin_records(engine, states)
        for _ in range(settings.steps):
            now = gcg_step(engine, now, generators)
            if on_step is not None:
                on_step()
    return now
