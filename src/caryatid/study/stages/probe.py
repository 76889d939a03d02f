"""Where harm and refusal can be read at an anchor: logistic probes at the input of every block."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...geometry.probes import auc, cross_validated
from ..stage import AnyStage, Stage, register_stage
from ..work import Work
from .activations import Activations
from .behaved import BehavedPrompts

Row = dict[str, Any]
FOLDS, DRAWS = 5, 200
HARM, REFUSAL = "harm", "refusal"


@dataclass(frozen=True)
class Probed:
    """Rows of the `probe` table, without the anchor."""

    rows: tuple[Row, ...]


@register_stage
class Probes(Stage[Probed]):
    """Harmful against harmless prompts, and refused against answered among the harmful ones; last prompt token."""

    kind, scope, result = "probe", "anchor", Probed

    def needs(self) -> Iterator[AnyStage]:
        yield self.at(Activations)
        yield self.at(BehavedPrompts)

    def settings(self) -> Mapping[str, Any]:
        return {"folds": FOLDS, "draws": DRAWS, "seed": self.place.seed}

    def size(self) -> str:
        return f"{FOLDS} folds of the extraction prompts, every block"

    def run(self, work: Work) -> Probed:
        here, behaved = work.of(Activations), work.of(BehavedPrompts)
        harmful, harmless = here.harmful[:, :, -1], here.harmless[:, :, -1]  # [prompts, layers, d]
        both = torch.cat([harmful, harmless]).numpy()
        refused = np.array(behaved.harmful_refused, dtype=bool)
        kinds = np.arange(len(both)) < len(harmful)
        rows = probe_rows(HARM, both, kinds, self.place.seed)
        return Probed((*rows, *probe_rows(REFUSAL, harmful.numpy(), refused, self.place.seed)))


def probe_rows(read: str, activations: np.ndarray, labels: np.ndarray, seed: int) -> list[Row]:
    """Balanced accuracy and AUC of every block; without values, with a note, where a kind has too few prompts.

    The interval resamples prompts with the scores of their folds' probes held fixed.
    """
    counts = {"n": int(labels.sum()), "n_against": int((~labels).sum())}
    folds = min(FOLDS, *counts.values())
    rows: list[Row] = []
    for layer in range(activations.shape[1]):
        for name in ("accuracy", "auc"):
            rows.append({"read": read, "quantity": name, "layer": layer, **counts, "note": ""})
        if folds < 2:
            for row in rows[-2:]:
                row["note"] = "one kind has fewer than two prompts"
            continue
        found = cross_validated(activations[:, layer], labels, np.random.default_rng(seed), folds=folds)
        rng, drawn = np.random.default_rng([seed, layer]), []
        for _ in range(DRAWS):
            chosen = np.concatenate([rng.choice(np.flatnonzero(labels == kind), counts[n]) for kind, n in
                                     ((True, "n"), (False, "n_against"))])  # fmt: skip
            scores, kinds = found.scores[chosen], labels[chosen]
            right = (scores > 0) == kinds
            drawn.append(((right[kinds].mean() + right[~kinds].mean()) / 2, auc(scores, kinds)))
        bounds = np.quantile(drawn, [0.025, 0.975], axis=0)
        for number, (row, value) in enumerate(zip(rows[-2:], (found.accuracy, found.auc), strict=True)):
            row |= {"value": value, "lo": float(bounds[0, number]), "hi": float(bounds[1, number])}
    return rows
