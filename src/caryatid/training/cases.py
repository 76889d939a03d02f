"""What an arm trains on at each micro-batch besides chat: behaviours, with attack suffixes where the arm has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from ..attacks.gcg.state import GcgCase, GcgState, resume_state, start_state
from ..attacks.gcg.steps import RowLimit, gcg_steps
from ..data.prompts import Prompt
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .arms import ArmRecipe
from .losses import AwayVariant
from .pool import Pool
from .ranks import ALONE, Ranks
from .trainee import Example


@dataclass(frozen=True)
class AdversarialSettings:
    """R2D2's values (protocol §3). `cases` is n, `gcg_steps` is m, both per micro-batch."""

    pool: int
    cases: int
    gcg_steps: int
    width: int
    top_k: int
    suffix_length: int
    restart_every: int
    restart_fraction: float
    away_weight: float = 0.5
    toward_weight: float = 0.5
    away_variant: AwayVariant = "plain"
    toward_text: str = "Sorry, I can't do that."
    static_gcg_steps: int = 50
    gcg_batch: int = 64


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


class Drawn(NamedTuple):
    """Cases of one micro-batch: prompts with their affirmative targets, the same prompts with the refusal."""

    away: list[Example]
    toward: list[Example]
    attacked: Attacked


class CaseSource:
    """Draws cases from the pool and refreshes their suffixes as the arm's recipe says; ranks share the attacks."""

    def __init__(
        self,
        loaded: LoadedModel,
        chat: ChatFormat,
        recipe: ArmRecipe,
        settings: AdversarialSettings,
        behaviours: Sequence[Prompt],
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.loaded, self.chat, self.recipe, self.settings = loaded, chat, recipe, settings
        self.ranks = ranks
        self.pool = Pool(behaviours, settings.pool, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.limit = RowLimit(settings.gcg_batch)
        self.refusal = chat.answer_ids(settings.toward_text)

    def _case(self, index: int) -> GcgCase:
        prompt = self.pool.prompt(index)
        return GcgCase(prompt.id, prompt.user_text, self.pool.cases[index].target)

    def attack(self, indices: Sequence[int], steps: int) -> Attacked:
        """GCG from each case's present suffix against the current weights."""
        # Each case has its own generator, so that the draws do not depend on which rank attacks it.
        seeds = torch.randint(2**31 - 1, (len(indices),), generator=self.generator).tolist()
        mine = self.ranks.mine(len(indices))
        states = [self._state(indices[row]) for row in mine]
        if steps:
            states = gcg_steps(
                self.loaded,
                self.chat,
                states,
                steps=steps,
                width=self.settings.width,
                top_k=self.settings.top_k,
                batch_size=self.limit,
                generator=[torch.Generator().manual_seed(seeds[row]) for row in mine],
            )
        everywhere = self.ranks.gathered(states, len(indices))
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
        kept, case = self.pool.cases[index].suffix_ids, self._case(index)
        if kept:
            return resume_state(self.chat, case, kept)
        return start_state(self.chat, case, length=self.settings.suffix_length)

    def make_static(self) -> list[Attacked]:
        """Attack every case once at step 0, n at a time, for the static arm."""
        everything = range(len(self.pool.cases))
        return [
            self.attack(everything[start : start + self.settings.cases], self.settings.static_gcg_steps)
            for start in everything[:: self.settings.cases]
        ]

    def draw(self) -> Drawn:
        """The cases of one micro-batch."""
        indices = self.pool.draw(self.settings.cases)
        attacked = Attacked()
        if self.recipe.suffixes == "dynamic":
            attacked = self.attack(indices, self.settings.gcg_steps)
        away, toward = [], []
        for index in indices:
            kept = self.pool.cases[index].suffix_ids
            text = self._case(index).user_text
            if kept and self.recipe.suffixes != "none":
                text = f"{text} {resume_state(self.chat, self._case(index), kept).suffix_text}"
            prompt = self.chat.ids(text)
            away.append(
                Example(prompt, self.chat.answer_ids(self.pool.cases[index].target, end_of_turn=False))
            )
            toward.append(Example(prompt, self.refusal))
        return Drawn(away, toward, attacked)

    def after_update(self, step: int) -> None:
        """Age the pool, and restart a share of it when its time has come (dynamic arms; draws stay in step)."""
        self.pool.advance()
        if step % self.settings.restart_every == 0 and self.recipe.suffixes != "static":
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
        self.limit = RowLimit(int(state.get("gcg_batch", self.settings.gcg_batch)))


Mode = Literal["lora", "full"]
