"""The study's refusal tokens: one set, from the first tokens of refusals over all anchors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...artifacts import content_key
from ...causal.tokens import first_token_counts
from ..series import all_anchors
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .selection import Selection


@dataclass(frozen=True)
class Tokens:
    """Token ids, what they say, and how many refusals each begins; `toward`: the first token of the toward text."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    counts: tuple[int, ...]
    toward: int

    @property
    def sha256(self) -> str:
        """Hash of the set."""
        return content_key(list(self.ids))


@register_stage
class RefusalTokens(Stage[Tokens]):
    """Frozen for the whole study, so that scores of different anchors mean the same."""

    kind, scope, result = "refusal_tokens", "study", Tokens

    def needs(self) -> Iterator[AnyStage]:
        yield from (self.at(Selection, ref) for ref in all_anchors(self.config))

    def settings(self) -> Mapping[str, Any]:
        return {"toward": self.config.training.r2d2.toward_text}

    def size(self) -> str:
        return "one set for the study"

    def run(self, work: Work) -> Tokens:
        anchors = all_anchors(self.config)
        answers = [row for ref in anchors for row in _rows(work, ref)]
        loaded = work.open(anchors[0])
        toward = work.chat(loaded).answer_ids(self.config.training.r2d2.toward_text)[0]
        counts = first_token_counts([(row.ids, row.refused) for row in answers], toward)
        texts = tuple(str(loaded.tokenizer.decode([token])) for token in counts)
        return Tokens(tuple(counts), texts, tuple(counts.values()), toward)

    def summary(self, result: Tokens) -> Mapping[str, Any]:
        return {"tokens": len(result.ids), "sha256": result.sha256}


def _rows(work: Work, ref: Any) -> Iterator[Any]:
    found = work.of(Selection, ref)
    yield from found.harmful
    yield from found.harmless
