"""What an arm trains on at each micro-batch besides chat: behaviours, with attack suffixes where the arm has them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..attacks.base import Goal
from ..attacks.gcg.state import GcgState, resume_state, start_state
from ..attacks.gcg.steps import gcg_steps
from ..models.batch import RowLimit
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .arms import Arm
from .pool import Pool
from .ranks import ALONE, Ranks
from .settings import R2D2Settings
from .trainee import DrawnCases, Example


class Attacked(NamedTuple):
    """What attacks came to, and what they cost.

    Attributes:
        loss: mean target loss of the cases after their last step, NaN where nothing was attacked.
        steps: GCG steps, over all cases. stalled: those of them in which no candidate survived the round trip.
        tokens: run forward. backward_tokens: those of them that gradients ran backward, too.
    """

    loss: float = math.nan
    steps: int = 0
    stalled: int = 0
    tokens: int = 0
    backward_tokens: int = 0


class CaseSource:
    """Draws cases from the pool and refreshes their suffixes as the arm says; ranks share the attacks
    (in lockstep all attack all cases).

    Args:
        settings: of the attack. pool: the cases; its seed is also that of attacks.
        batch_size: candidates per forward at most.
    """

    def __init__(
        self,
        chat: ChatFormat,
        arm: Arm,
        settings: R2D2Settings,
        pool: Pool,
        batch_size: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.chat, self.arm, self.settings = chat, arm, settings
        self.pool, self.ranks = pool, ranks
        self.generator = torch.Generator().manual_seed(pool.seed)
        self.limit = RowLimit(batch_size)
        self.refusal = chat.answer_ids(settings.toward_text)

    def _goal(self, index: int) -> Goal:
        prompt = self.pool.prompt(index)
        return Goal(prompt.id, prompt.user_text, self.pool.entries[index].target)

    def attack(self, loaded: LoadedModel, indices: Sequence[int], steps: int) -> Attacked:
        """GCG from each case's present suffix against the weights of `loaded`."""
        # Each case has its own generator, so that the draws do not depend on which rank attacks it.
        seeds = torch.randint(2**31 - 1, (len(indices),), generator=self.generator).tolist()
        mine = range(len(indices)) if self.ranks.lockstep else self.ranks.mine(len(indices))
        states = [self._state(indices[row]) for row in mine]
        if steps:
            states = gcg_steps(
                loaded,
                self.chat,
                states,
                self.settings.gcg(steps),
                batch_size=self.limit,
                generator=[torch.Generator().manual_seed(seeds[row]) for row in mine],
            )
        everywhere = states if self.ranks.lockstep else self.ranks.gathered(states, len(indices))
        for index, state in zip(indices, everywhere, strict=True):
            self.pool.put(index, state.suffix_ids)
        return Attacked(
            loss=sum(state.loss for state in everywhere) / len(everywhere),
            steps=steps * len(everywhere),
            stalled=sum(state.stalled_steps for state in everywhere),
            tokens=sum(state.forward_tokens for state in everywhere),
            backward_tokens=sum(state.backward_tokens for state in everywhere),
        )

    def _state(self, index: int) -> GcgState:
        entry, goal = self.pool.entries[index], self._goal(index)
        if entry.suffix_ids:
            return resume_state(self.chat, goal, entry.suffix_ids)
        return start_state(self.chat, goal, length=entry.length)

    def make_static(self, loaded: LoadedModel) -> Iterator[Attacked]:
        """Attack every case once at step 0, n at a time, for the static arm; those that have a suffix already not."""
        size = self.settings.cases
        for start in range(0, len(self.pool.entries), size):
            indices = range(len(self.pool.entries))[start : start + size]
            if not all(self.pool.entries[index].suffix_ids for index in indices):
                yield self.attack(loaded, indices, self.settings.static_gcg_steps)

    def draw(self, loaded: LoadedModel) -> tuple[DrawnCases, Attacked]:
        """The cases of one micro-batch, and what attacking them with the weights of `loaded` came to."""
        indices = self.pool.draw(self.settings.cases)
        attacked = Attacked()
        if self.arm.suffixes == "dynamic":
            attacked = self.attack(loaded, indices, self.settings.gcg_steps)
        away, toward = [], []
        for index in indices:
            kept = self.pool.entries[index].suffix_ids
            text = self._goal(index).user_text
            if kept and self.arm.suffixes != "none":
                text = f"{text} {resume_state(self.chat, self._goal(index), kept).suffix_text}"
            prompt = self.chat.ids(text)
            away.append(
                Example(prompt, self.chat.answer_ids(self.pool.entries[index].target, end_of_turn=False))
            )
            toward.append(Example(prompt, self.refusal))
        return DrawnCases(away, toward), attacked

    def after_update(self, step: int) -> None:
        """Age the pool, and restart a share of it when its time has come (dynamic arms; draws stay in step)."""
        self.pool.advance()
        if step % self.settings.restart_every == 0 and self.arm.suffixes != "static":
            self.pool.restart(self.settings.restart_fraction)

    def state_dict(self) -> dict[str, Any]:
        """Pool, attack generator and the batch size that fitted, exactly."""
        return {
            "pool": self.pool.state_dict(),
            "generator": self.generator.get_state().tolist(),
            "gcg_batch": self.limit.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.pool.load_state_dict(state["pool"])
        self.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
        self.limit = RowLimit(int(state["gcg_batch"]))
