"""The study's refusal tokens: one set, from the first tokens of answers pooled over all anchors (protocol §5)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...artifacts import content_key
from ...causal.locate import refusal_tokens_of
from ...geometry.tokens import TokenShares
from ..series import all_anchors
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .selection import Selection


@dataclass(frozen=True)
class Tokens:
    """The set T with both shares of each token, and what it says."""

    rows: tuple[TokenShares, ...]
    texts: tuple[str, ...]

    @property
    def ids(self) -> list[int]:
        """The tokens, in order."""
        return sorted(row.token for row in self.rows)

    @property
    def sha256(self) -> str:
        """Hash of the set."""
        return content_key(self.ids)


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
        answers = [token for ref in anchors for token in work.of(Selection, ref).first_tokens]
        model = work.measured(anchors[0])
        rows = refusal_tokens_of(model, answers, self.config.training.r2d2.toward_text)
        texts = tuple(str(model.loaded.tokenizer.decode([row.token])) for row in rows)
        return Tokens(tuple(rows), texts)

    def summary(self, result: Tokens) -> Mapping[str, Any]:
        return {"tokens": len(result.rows), "sha256": result.sha256}
