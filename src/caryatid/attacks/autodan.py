"""AutoDAN's genetic search (arXiv 2310.04451, GA; HarmBench's recipe) over frames of a request, offline.

A generation is scored by the target's loss of each text as sent. The best go on unchanged; parents of the others are
drawn with probabilities softmax(−loss), pairs of them are crossed sentence by sentence, and now and then a text has
words replaced by synonyms (where the released recipe asks a language model to rephrase). The released texts that it
begins with are not part of the package: it begins with the frames of the attack `templates`, and further copies of
these with synonyms.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import torch

from ..models.load import LoadedModel
from ..models.template import ChatFormat
from .base import AttackResult, BlockRun, Goal
from .gcg.layout import evaluation_mode
from .settings import AutoDanSettings
from .templates import fill, read_templates
from .texts import TextRecord, target_losses

_SENTENCES = re.compile(r"((?<=[.!?:])\s+)")
_WORDS = re.compile(r"(?<![\w{])[A-Za-z]+(?![\w}])")


@cache
def synonyms() -> Mapping[str, tuple[str, ...]]:
    """The package's list: words in lower case and what may stand in their place."""
    content = resources.files(__package__).joinpath("synonyms.json").read_text(encoding="utf-8")
    groups: list[list[str]] = json.loads(content)
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


def with_synonyms(text: str, most: int, draw: random.Random) -> str:
    """A text with up to `most` of its words replaced by synonyms; slots in braces are left alone."""
    known = [match for match in _WORDS.finditer(text) if match[0].lower() in synonyms()]
    chosen = sorted(draw.sample(known, min(most, len(known))), key=lambda match: -match.start())
    for match in chosen:
        other = draw.choice(synonyms()[match[0].lower()])
        other = other.capitalize() if match[0][0].isupper() else other
        text = text[: match.start()] + other + text[match.end() :]
    return text


def crossed(first: str, second: str, points: int, draw: random.Random) -> tuple[str, str]:
    """Two children: between drawn places each takes the sentences of one parent, and the other those of the other one.

    White space stays with the sentence before it.
    """
    a, b = _sentences(first), _sentences(second)
    most = min(len(a), len(b)) - 1
    places = sorted(draw.sample(range(1, most + 1), min(points, most))) if most > 0 else []
    children: tuple[list[str], list[str]] = ([], [])
    for start, end in zip([0, *places], [*places, None], strict=True):
        straight = draw.random() < 0.5
        children[0].extend((a if straight else b)[start:end])
        children[1].extend((b if straight else a)[start:end])
    return _joined(children[0]), _joined(children[1])


def _sentences(text: str) -> list[str]:
    parts = _SENTENCES.split(text)
    return ["".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]


def _joined(sentences: Sequence[str]) -> str:
    """Sentences one behind the other; one that had been a text's last gets the space that it lacks."""
    spaced = [one if one[-1:].isspace() else f"{one} " for one in sentences[:-1]]
    return "".join([*spaced, *sentences[-1:]]).rstrip()


def next_generation(
    texts: Sequence[str], losses: Sequence[float], settings: AutoDanSettings, draw: random.Random
) -> list[str]:
    """As many texts: the elites, then children of parents that are drawn by their losses, some of them mutated."""
    kept = max(1, int(len(texts) * settings.elites))
    order = sorted(range(len(texts)), key=lambda i: losses[i])
    weights = torch.softmax(-torch.tensor(losses, dtype=torch.float64), dim=0).tolist()
    parents = draw.choices(texts, weights, k=len(texts) - kept)
    children: list[str] = []
    for number in range(0, len(parents), 2):
        pair = parents[number], parents[number + 1] if number + 1 < len(parents) else parents[0]
        children += crossed(*pair, settings.points, draw) if draw.random() < settings.crossover else pair
    mutated = [
        with_synonyms(one, settings.synonyms, draw) if draw.random() < settings.mutation else one
        for one in children[: len(parents)]
    ]
    return [*(texts[i] for i in order[:kept]), *mutated]


def autodan(
    loaded: LoadedModel, chat: ChatFormat, goals: Sequence[Goal], settings: AutoDanSettings, run: BlockRun
) -> list[AttackResult]:
    """The best text of all generations for each goal, one goal after the other; no text is run twice.

    `losses` begins with that of the request as it is, which is not sent unless no generation is.

    Raises:
        InputError: a damaged file of templates, or a text beyond the model's context.
    """
    with evaluation_mode(loaded.model):
        return [_Search(loaded, chat, goal, settings, run).searched() for goal in goals]


@dataclass
class _Search:
    loaded: LoadedModel
    chat: ChatFormat
    goal: Goal
    settings: AutoDanSettings
    run: BlockRun
    known: dict[str, float] = field(default_factory=dict)

    def searched(self) -> AttackResult:
        settings, generator = self.settings, self.goal.generator(self.run.seed)
        draw = random.Random(int(torch.randint(2**62, (), generator=generator)))
        record = TextRecord(self.goal, "autodan")
        (plain,) = self._losses(record, [self.goal.user_text])
        record.keep(self.goal.user_text, plain)
        record.step()
        texts = self._first(draw)
        for step in range(settings.steps):
            # What a generation takes at most: all its texts, each as long as those so far were on average.
            mean = record.forward_tokens / record.candidates
            if record.ends(settings.stop_below, settings.token_budget, round(mean * len(texts))):
                break
            losses = self._losses(record, [fill(text, self.goal) for text in texts])
            best = min(range(len(texts)), key=losses.__getitem__)
            if step == 0 or losses[best] < record.loss:
                record.keep(fill(texts[best], self.goal), losses[best])
            record.step()
            self.run.on_step(1)
            texts = next_generation(texts, losses, settings, draw)
        self.run.on_step(settings.steps - (len(record.losses) - 1))
        return record.result(self.run.limit.rows)

    def _first(self, draw: random.Random) -> list[str]:
        frames = [one.text for one in read_templates(self.settings.templates)]
        copies = [
            with_synonyms(frames[number % len(frames)], self.settings.synonyms, draw)
            for number in range(len(frames), self.settings.width)
        ]
        return [*frames, *copies][: self.settings.width]

    def _losses(self, record: TextRecord, texts: Sequence[str]) -> list[float]:
        """Target loss of each text; those that were not scored before are run."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            scored = target_losses(self.loaded, self.chat, new, self.goal.target, self.run.limit)
            record.spend(len(new), sum(scored.tokens))
            self.known.update(zip(new, scored.target.tolist(), strict=True))
        return [self.known[text] for text in texts]
