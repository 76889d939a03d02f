"""A GCG search for the suffixes of a block of goals, all together; an unfinished one is kept, and goes on exactly."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from ...artifacts import read_json, write_json
from ...models.forward import check_context
from ...models.load import LoadedModel
from ...models.template import ChatFormat
from ..base import AttackResult, BlockRun, Goal
from .engine import GcgEngine, gcg_engine
from .layout import evaluation_mode
from .settings import GcgSettings, SuffixLength
from .state import GcgState, start_state
from .steps import begin_records, gcg_step

KEEP_EVERY = 60.0  # seconds between two states that are kept of an unfinished search


def drawn_length(length: SuffixLength, generator: torch.Generator) -> int:
    """The number itself (nothing is drawn), or one of a range, both ends included, all equally likely."""
    if isinstance(length, int):
        return length
    low, high = length
    return int(torch.randint(low, high + 1, (), generator=generator))


def gcg_search(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: GcgSettings, run: BlockRun
) -> list[AttackResult]:
    """Search a suffix for each goal of a block, from "! ! ! …", all taking their steps together.

    With `run.keep` the state is written there once a minute. A later call with the same arguments goes on from it, and
    comes to what an undisturbed call comes to, but for `seconds`. With `settings.stop_below` a goal whose loss is below
    it leaves the block, and its result says `stopped="stop_below"`.

    Raises:
        InputError: a prompt beyond the model's context, or a damaged state. NumericalError, MemoryExhaustedError: as
            `gcg_steps`.
    """
    began = time.perf_counter()
    generators = [goal.generator(run.seed) for goal in goals]
    starts = []
    for goal, generator in zip(goals, generators, strict=True):
        start = start_state(chat, goal, length=drawn_length(settings.suffix_length, generator))
        sent = chat.ids(f"{goal.user_text} {start.suffix_text}")
        check_context(loaded, len(sent) + len(chat.answer_ids(goal.target)))
        starts.append(start)
    search = _Search(loaded, chat, settings, run, starts, generators, began=began)
    with evaluation_mode(loaded.model):
        if not search.resume():
            search.begin()
        while search.advance():
            search.keep()
    return search.results()


@dataclass
class _Search:
    """A search under way.

    Attributes:
        starts: the goals with their initial suffixes; engines are made from these, whatever the present suffixes are.
        states: where the goals are now. going: numbers of those that the engine was made for.
        began, kept: when the search began (earlier calls included), and when its state was last kept.
    """

    loaded: LoadedModel
    chat: ChatFormat
    settings: GcgSettings
    run: BlockRun
    starts: list[GcgState]
    generators: list[torch.Generator]
    began: float
    kept: float = field(default_factory=time.perf_counter)
    states: list[GcgState] = field(default_factory=list)
    going: list[int] = field(default_factory=list)
    engine: GcgEngine | None = None

    def _open(self, going: list[int]) -> GcgEngine:
        self.engine = None  # its memory is free before the next one needs it
        starts = [self.starts[index] for index in going]
        self.going = going
        self.engine = gcg_engine(self.loaded, self.chat, starts, self.settings, self.run.limit, exact=True)
        return self.engine

    def begin(self) -> None:
        """Losses of the initial suffixes."""
        engine = self._open(list(range(len(self.starts))))
        self.states = begin_records(engine, self.starts)
        for state in self.states:
            self.run.on_step(self._skipped(state))

    def advance(self) -> bool:
        """One step of every goal whose search has not ended; False: all have."""
        going = [index for index, state in enumerate(self.states) if not self._ended(state)]
        if not going:
            return False
        engine = self.engine
        if engine is None or going != self.going:
            engine = self._open(going)
            for index, layout in zip(going, engine.layouts([self.states[i] for i in going]), strict=True):
                spent = self.states[index].forward_tokens + engine.prefix_tokens(layout)
                self.states[index] = replace(self.states[index], forward_tokens=spent)
        now = gcg_step(engine, [self.states[i] for i in going], [self.generators[i] for i in going])
        for index, state in zip(going, now, strict=True):
            self.states[index] = state
            self.run.on_step(1 + self._skipped(state))
        return True

    def _steps(self, state: GcgState) -> int:
        return len(state.losses) - 1

    def _stops(self, state: GcgState) -> bool:
        return self.settings.stop_below is not None and state.best_loss < self.settings.stop_below

    def _ended(self, state: GcgState) -> bool:
        return self._steps(state) >= self.settings.steps or self._stops(state)

    def _skipped(self, state: GcgState) -> int:
        """Steps that an ended search does not take."""
        return self.settings.steps - self._steps(state) if self._stops(state) else 0

    def keep(self) -> None:
        """Save the state if saving is on and the last save is long enough ago."""
        now = time.perf_counter()
        if self.run.keep is None or now - self.kept < KEEP_EVERY:
            return
        content = {
            "seconds": now - self.began,
            "rows": self.run.limit.rows,
            "going": self.going,
            "states": [asdict(state) for state in self.states],
            "generators": [bytes(one.get_state().tolist()).hex() for one in self.generators],
        }
        write_json(self.run.keep, content)
        self.kept = time.perf_counter()

    def resume(self) -> bool:
        """Go on from the state that was kept; False: there is none."""
        if self.run.keep is None or not self.run.keep.is_file():
            return False
        content = read_json(self.run.keep, remedy="Delete this file: the search then begins anew.")
        self.began -= content["seconds"]
        self.run.limit.rows = min(self.run.limit.rows, content["rows"])
        self.states = [GcgState.from_json(state) for state in content["states"]]
        for generator, state in zip(self.generators, content["generators"], strict=True):
            generator.set_state(torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8))
        self._open(content["going"])
        for state in self.states:
            self.run.on_step(self._steps(state) + self._skipped(state))
        return True

    def results(self) -> list[AttackResult]:
        """What the search came to; its time is shared evenly."""
        seconds = (time.perf_counter() - self.began) / max(len(self.states), 1)
        return [
            AttackResult(
                attack="gcg",
                behavior_id=state.goal.behavior_id,
                user_text=state.goal.user_text,
                target=state.goal.target,
                sent_text=f"{state.goal.user_text} {state.best_text}",
                loss=state.best_loss,
                losses=state.losses,
                steps=self._steps(state),
                candidates=state.candidates,
                forward_tokens=state.forward_tokens,
                backward_tokens=state.backward_tokens,
                seconds=seconds,
                stopped="stop_below" if self._stops(state) else "steps",
                stalled_steps=state.stalled_steps,
                batch_size=self.run.limit.rows,
                suffix_text=state.best_text,
                suffix_ids=state.best_ids,
                scored=state.scored,
            )
            for state in self.states
        ]
