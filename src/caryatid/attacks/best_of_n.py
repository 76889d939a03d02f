"""Best of N (arXiv 2412.03556): the request, garbled anew each time, is asked until an answer is drawn that answers it.

Three changes, with σ = 0.4 and one after the other, as released: in words of more than three characters the inner ones
are shuffled with probability √σ; letters change their case with probability √σ; characters move to a neighbouring
ASCII code with probability σ³.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..models.generate import Decoding, Sampling, generate
from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .base import Answered, AttackResult, BlockRun, Goal
from .gcg.layout import evaluation_mode
from .settings import BestOfNSettings
from .texts import TextRecord, target_losses


def augmented(text: str, sigma: float, draw: random.Random) -> str:
    """A garbled text. White space between words becomes single spaces, as released."""
    words = []
    for word in text.split():
        inner = list(word[1:-1])
        if len(word) > 3 and draw.random() < sigma**0.5:
            draw.shuffle(inner)
        words.append(word[:1] + "".join(inner) + word[-1:] if len(word) > 1 else word)
    cased = [
        one.swapcase() if one.isascii() and one.isalpha() and draw.random() < sigma**0.5 else one
        for one in " ".join(words)
    ]
    noisy = []
    for one in cased:
        moved = (
            ord(one) + draw.choice((-1, 1)) if one.isprintable() and draw.random() < sigma**3 else ord(one)
        )
        noisy.append(chr(moved) if 32 <= moved <= 126 else one)
    return "".join(noisy)


def best_of_n(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: BestOfNSettings, run: BlockRun
) -> list[AttackResult]:
    """For each goal the first text whose drawn answer `run.answered` takes for one; the request itself if none is.

    Without a judge the text with the lowest target loss, and nothing is generated. `details` says how many texts were
    asked, and whether an answer was found.

    Raises:
        InputError: a prompt beyond the model's context.
    """
    with evaluation_mode(loaded.model):
        return [_Search(loaded, chat, goal, settings, run).searched() for goal in goals]


@dataclass
class _Search:
    loaded: LoadedModel
    chat: ChatFormat
    goal: Goal
    settings: BestOfNSettings
    run: BlockRun

    def searched(self) -> AttackResult:
        settings, generator = self.settings, self.goal.generator(self.run.seed)
        seed = int(torch.randint(2**62, (), generator=generator))
        draw, record = random.Random(seed), TextRecord(self.goal, "best_of_n")
        judge = self.run.answered
        plain = target_losses(self.loaded, self.chat, [self.goal.user_text], self.goal.target, self.run.limit)
        record.spend(0, sum(plain.tokens))
        record.keep(self.goal.user_text, float(plain.target[0]))
        record.step()
        asked, found, spent = 0, False, 0
        while asked < settings.steps and not found:
            if record.ends(None, settings.token_budget, spent):
                break
            texts = [
                augmented(self.goal.user_text, settings.sigma, draw)
                for _ in range(min(settings.width, settings.steps - asked))
            ]
            before = record.forward_tokens
            found = (
                self._score(record, texts, asked) if judge is None else self._ask(record, texts, seed, judge)
            )
            asked, spent = asked + len(texts), record.forward_tokens - before
            self.run.on_step(len(texts))
        self.run.on_step(settings.steps - asked)
        if found:
            record.stopped = "answered"
        details = {"asked": asked, "answered": found if judge is not None else None}
        return record.result(self.run.limit.rows, details=details)

    def _score(self, record: TextRecord, texts: Sequence[str], asked: int) -> bool:
        """Keep the best of the garbled texts so far; none counts as answered."""
        scored = target_losses(self.loaded, self.chat, texts, self.goal.target, self.run.limit)
        record.spend(len(texts), sum(scored.tokens))
        for number, (text, loss) in enumerate(zip(texts, scored.target.tolist(), strict=True)):
            if loss < record.loss or asked + number == 0:
                record.keep(text, loss)
            record.step()
        return False

    def _ask(self, record: TextRecord, texts: Sequence[str], seed: int, judge: Answered) -> bool:
        """Draw an answer to each text; keep the first text whose answer the judge takes for one."""
        sampling = Sampling(self.settings.temperature, 1.0, (seed + record.candidates) % 2**31)
        decoding = Decoding(self.settings.max_new_tokens, self.run.limit.rows, sampling)
        answers = generate(self.loaded, self.chat, texts, decoding)
        prompts = self.chat.asked_ids_many(texts)
        record.spend(len(texts), sum(map(len, prompts)) + sum(one.n_tokens for one in answers))
        verdicts = judge([(self.goal, one.text) for one in answers])
        for text, verdict in zip(texts, verdicts, strict=True):
            if verdict:
                loss = target_losses(self.loaded, self.chat, [text], self.goal.target, self.run.limit)
                record.spend(0, sum(loss.tokens))
                record.keep(text, float(loss.target[0]))
            record.step()
            if verdict:
                return True
        return False
