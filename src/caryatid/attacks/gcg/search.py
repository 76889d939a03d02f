"""A search for one suffix after another, and its results."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from caryatid.attacks.gcg.scoring import Scoring
from caryatid.attacks.gcg.state import GcgCase, start_state
from caryatid.attacks.gcg.steps import RowLimit, gcg_steps
from caryatid.models.forward import check_context
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from caryatid.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class GcgResult:
    """What a search found, as the command line's contract names it.

    `losses[0]` is the initial loss, then the best so far after each step; `loss` = min(losses) is that of the text as
    sent, recomputed from the text. `stalled_steps` kept their suffix because no candidate survived the round trip. The
    budget: `candidates` scored, `forward_tokens` really run forward, `seconds` of wall time. `batch_size` is the rows
    per forward that fitted into memory.
    """

    behavior_id: str
    user_text: str
    target: str
    suffix_text: str
    suffix_ids: tuple[int, ...]
    loss: float
    losses: tuple[float, ...]
    steps: int
    stalled_steps: int
    candidates: int
    forward_tokens: int
    seconds: float
    batch_size: int = 0


def case_generator(seed: int, case: GcgCase) -> torch.Generator:
    """A case's own generator: its search does not depend on which other cases are searched, or when."""
    digest = hashlib.sha256(f"{seed}\n{case.behavior_id}\n{case.user_text}\n{case.target}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def gcg_search(
    loaded: LoadedModel,
    chat: ChatFormat,
    cases: Sequence[GcgCase],
    *,
    steps: int,
    width: int,
    top_k: int,
    batch_size: int,
    seed: int,
    suffix_length: int = 20,
    scoring: Scoring | None = None,
    fuse: bool | None = None,
    progress: Progress = NO_PROGRESS,
    on_result: Callable[[GcgResult], None] | None = None,
) -> list[GcgResult]:
    """Search a suffix for each case in turn, from "! ! ! …" of `suffix_length` tokens.

    Args:
        on_result: called with each finished result, so that it can be kept.

    Raises:
        InputError, NumericalError, MemoryExhaustedError: as `gcg_steps`.
    """
    results, limit = [], RowLimit(batch_size)
    progress.start("gcg", len(cases) * steps)
    for case in cases:
        began = time.perf_counter()
        start = start_state(chat, case, length=suffix_length)
        sent = chat.ids(f"{case.user_text} {start.suffix_text}")
        check_context(loaded, len(sent) + len(chat.answer_ids(case.target)))
        (state,) = gcg_steps(
            loaded,
            chat,
            [start],
            steps=steps,
            width=width,
            top_k=top_k,
            batch_size=limit,
            generator=case_generator(seed, case),
            scoring=scoring,
            fuse=fuse,
            exact=True,
            on_step=progress.advance,
        )
        result = GcgResult(
            behavior_id=case.behavior_id,
            user_text=case.user_text,
            target=case.target,
            suffix_text=state.best_text,
            suffix_ids=state.best_ids,
            loss=state.best_loss,
            losses=state.losses,
            steps=steps,
            stalled_steps=state.stalled_steps,
            candidates=state.candidates,
            forward_tokens=state.forward_tokens,
            seconds=time.perf_counter() - began,
            batch_size=limit.rows,
        )
        results.append(result)
        if on_result is not None:
            on_result(result)
    progress.done()
    return results
