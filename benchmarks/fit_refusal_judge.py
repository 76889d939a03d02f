"""Fit what tells full from partial refusals in the offline refusal judge, and write its weights.

    python benchmarks/fit_refusal_judge.py $CARYATID_DATA/judge_gold/xstest_human_dev.csv

The file holds answers of two models to XSTest with human labels of three classes (github.com/paul-rottger/xstest,
CC-BY-4.0). Whether an answer refuses at all is decided by rules; the weights see only answers that the rules and people
both call refused. Agreement is cross-validated over prompts (no prompt in two folds) and by leaving one model's answers
out. The rules were written, and the features chosen, with these answers in view: the figures flatter them a little.
Same input, same weights.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from caryatid.behaviour.judges.acts import Reading, read
from caryatid.behaviour.judges.base import FULL_COMPLIANCE, FULL_REFUSAL, PARTIAL_REFUSAL, REFUSED, Verdict
from caryatid.behaviour.judges.partial import (
    LEAST_WORDS,
    Weights,
    features,
    nothing_there,
    words_after,
)
from caryatid.behaviour.judges.rules import decide, judged
from fit_harm_judge import logistic

RIDGE = 6.0
FOLDS, REPEATS = 10, 20
TARGET = Path(__file__).parents[1] / "src/caryatid/behaviour/judges/refusal_weights.json"
LABELS: Mapping[str, Verdict] = {
    "1_full_compliance": FULL_COMPLIANCE,
    "2_full_refusal": FULL_REFUSAL,
    "3_partial_refusal": PARTIAL_REFUSAL,
}


class Answer:
    """A labelled answer, read."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self.model, self.prompt, self.label = row["model"], row["prompt"], LABELS[row["final_label"]]
        self.reading: Reading = read(row["completion"])
        self.features = features(self.prompt, self.reading)
        self.weighed = (
            decide(self.reading, self.prompt) in REFUSED
            and self.label in REFUSED
            and not nothing_there(self.reading)
            and words_after(self.reading) >= LEAST_WORDS
        )

    def verdict(self, weights: Weights) -> Verdict:
        """What the judge says with these weights."""
        return judged(self.prompt, self.reading, weights)


def read_answers(path: Path) -> list[Answer]:
    """Labelled answers of a CSV file with model, prompt, completion and final_label."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [Answer(row) for row in csv.DictReader(stream)]


def fit(answers: Iterable[Answer], origin: Mapping[str, object] | None = None) -> Weights:
    """Weights from labelled answers."""
    used = [one for one in answers if one.weighed]
    names = list(used[0].features)
    x = np.array([[one.features[name] for name in names] for one in used])
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    y = np.array([one.label == PARTIAL_REFUSAL for one in used], dtype=float)
    p = logistic((x - mean) / scale, y, RIDGE)
    values = zip(names, mean, scale, p[1:], strict=True)
    return Weights(float(p[0]), {n: (float(m), float(s), float(w)) for n, m, s, w in values}, origin or {})


def fold_of(prompts: Iterable[str], seed: int) -> dict[str, int]:
    """A fold for each prompt, drawn at random."""
    distinct = sorted({*prompts})
    order = np.random.default_rng(seed).permutation(len(distinct))
    return {distinct[j]: i % FOLDS for i, j in enumerate(order)}


def cross_validated(answers: Sequence[Answer], seed: int) -> list[Verdict]:
    """Verdicts on all answers, each with weights fitted without its prompt."""
    fold = fold_of((one.prompt for one in answers), seed)
    weights = [fit(one for one in answers if fold[one.prompt] != k) for k in range(FOLDS)]
    return [one.verdict(weights[fold[one.prompt]]) for one in answers]


def models_apart(answers: Sequence[Answer]) -> list[Verdict]:
    """Verdicts on all answers, each with weights fitted on the other model's."""
    weights = {
        name: fit(one for one in answers if one.model != name) for name in {one.model for one in answers}
    }
    return [one.verdict(weights[one.model]) for one in answers]


def agreement(answers: Sequence[Answer], found: Sequence[Verdict], model: str) -> dict[str, float]:
    """Shares of one model's answers on which the judge says what people say: any refusal, and three classes."""
    pairs = [(one.label, verdict) for one, verdict in zip(answers, found, strict=True) if one.model == model]
    return {
        "any_refusal": float(np.mean([(a in REFUSED) == (b in REFUSED) for a, b in pairs])),
        "three_way": float(np.mean([a == b for a, b in pairs])),
    }


def estimates(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Agreement by model, cross-validated (mean over fold draws) and with models apart."""
    runs = [cross_validated(answers, seed) for seed in range(REPEATS)]
    apart = models_apart(answers)
    found = {}
    for model in sorted({one.model for one in answers}):
        each = [agreement(answers, run, model) for run in runs]
        found[model] = {
            **{name: round(float(np.mean([one[name] for one in each])), 4) for name in each[0]},
            "three_way_fitted_on_other_model": round(agreement(answers, apart, model)["three_way"], 4),
        }
    return found


def main() -> None:
    """Cross-validate, fit on everything, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    answers = read_answers(arguments.labels)
    found = estimates(answers)
    print(json.dumps(found, indent=1))
    weights = fit(answers)
    origin = {
        "fitted_by": "benchmarks/fit_refusal_judge.py",
        "labels": "XSTest answers of two models with human labels, those refused",
        "attribution": "Röttger et al. 2024, XSTest, github.com/paul-rottger/xstest, CC-BY-4.0",
        "sha256": hashlib.sha256(arguments.labels.read_bytes()).hexdigest(),
        "rows": sum(one.weighed for one in answers),
        "agreement": found,
        "agreement_of": f"{FOLDS}-fold cross-validation over prompts, mean of {REPEATS} fold draws",
    }
    stored = {
        "origin": origin,
        "bias": round(weights.bias, 5),
        "features": {name: [round(v, 5) for v in values] for name, values in weights.features.items()},
    }
    arguments.output.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
