"""Fit the weights of the offline refusal judge: whether an answer refuses, and whether a refusal still gives something.

    python benchmarks/fit_refusal_judge.py $CARYATID_DATA/judge_gold/xstest_human_dev*.csv

The files hold answers of three models to XSTest with human labels of three classes (github.com/paul-rottger/xstest,
CC-BY-4.0). What was chosen (features, penalties, thresholds) was chosen by agreement on a model that was left out, with
its prompts left out as well: each answer is judged with weights fitted on the other models' answers to other prompts.
The rules in front were written with the answers of two models (GPT-4, Llama 2) in view, which flatters these two.
Beside them the weights see answers written by hand in the styles of further models (`STYLES`, sets 1 and 2; set 3 is
for testing). Same input, same weights.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from caryatid.behaviour.judges import cues, partial
from caryatid.behaviour.judges.acts import Reading, read
from caryatid.behaviour.judges.base import FULL_COMPLIANCE, FULL_REFUSAL, PARTIAL_REFUSAL, REFUSED, Verdict
from caryatid.behaviour.judges.partial import LEAST_WORDS, Weights, nothing_there, words_after
from caryatid.behaviour.judges.rules import decide, judged
from caryatid.behaviour.judges.text import latin
from fit_harm_judge import logistic

CUE_RIDGE, PART_RIDGE = 400.0, 6.0
FOLDS, REPEATS = 5, 2
STYLES = Path(__file__).parents[1] / "tests/behaviour/other_models.jsonl"
JUDGES = Path(__file__).parents[1] / "src/caryatid/behaviour/judges"
WRITTEN = "written by hand"
LABELS: Mapping[str, Verdict] = {
    "1_full_compliance": FULL_COMPLIANCE,
    "2_full_refusal": FULL_REFUSAL,
    "3_partial_refusal": PARTIAL_REFUSAL,
}


class Answer:
    """A labelled answer, read."""

    def __init__(self, model: str, prompt: str, answer: str, label: Verdict) -> None:
        self.model, self.prompt, self.label = model, prompt, label
        self.reading: Reading = read(answer)
        ruled = decide(self.reading, self.prompt)
        self.cues = cues.features(self.prompt, self.reading, ruled == FULL_REFUSAL, ruled == PARTIAL_REFUSAL)
        self.part = partial.features(self.prompt, self.reading)
        self.weighed = (
            ruled in REFUSED
            and self.label in REFUSED
            and not nothing_there(self.reading)
            and words_after(self.reading) >= LEAST_WORDS
        )

    def verdict(self, weights: "Fitted") -> Verdict:
        """What the judge says with these weights."""
        return judged(self.prompt, self.reading, weights.part, weights.cues)


class Fitted:
    """Both models, fitted on labelled answers: refusals against others, and partial refusals against full ones.

    Attributes:
        counts: answers behind `cues` and `part`.
    """

    def __init__(self, answers: Iterable[Answer]) -> None:
        used = list(answers)
        self.cues = _fit([one.cues for one in used], [one.label in REFUSED for one in used], CUE_RIDGE)
        weighed = [one for one in used if one.weighed and one.model != WRITTEN]
        self.counts = len(used), len(weighed)
        partials = [one.label == PARTIAL_REFUSAL for one in weighed]
        self.part = _fit([one.part for one in weighed], partials, PART_RIDGE)


def read_answers(*paths: Path) -> list[Answer]:
    """Labelled answers of CSV files with model, prompt, completion and final_label."""
    found = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as stream:
            found += [
                Answer(row["model"], row["prompt"], row["completion"], LABELS[row["final_label"]])
                for row in csv.DictReader(stream)
            ]
    return found


def read_styles() -> list[Answer]:
    """Hand-written answers that the weights may see, of no model."""
    rows = [json.loads(line) for line in STYLES.read_text(encoding="utf-8").split("\n") if line]
    return [
        Answer(WRITTEN, row["prompt"], row["answer"], row["label"])
        for row in rows
        if row["set"] in (1, 2) and latin(row["answer"])
    ]


def _fit(rows: Sequence[Mapping[str, float]], positive: Sequence[bool], ridge: float) -> Weights:
    names = list(rows[0])
    x = np.array([[row[name] for name in names] for row in rows])
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    standard = np.clip((x - mean) / scale, -partial.CLIP, partial.CLIP)
    p = logistic(standard, np.array(positive, dtype=float), ridge)
    values = zip(names, mean, scale, p[1:], strict=True)
    return Weights(float(p[0]), {n: (float(m), float(s), float(w)) for n, m, s, w in values}, {})


def fold_of(prompts: Iterable[str], seed: int) -> dict[str, int]:
    """A fold for each prompt, drawn at random."""
    distinct = sorted({*prompts})
    order = np.random.default_rng(seed).permutation(len(distinct))
    return {distinct[j]: i % FOLDS for i, j in enumerate(order)}


def unseen(answers: Sequence[Answer], seed: int) -> list[Verdict]:
    """Verdicts on all answers, each with weights fitted without its model and without its prompt."""
    fold = fold_of((one.prompt for one in answers), seed)
    weights = {
        (model, k): Fitted(one for one in answers if one.model != model and fold[one.prompt] != k)
        for model in models(answers)
        for k in range(FOLDS)
    }
    return [
        one.verdict(weights[one.model, fold[one.prompt]]) if one.model != WRITTEN else "" for one in answers
    ]


def models(answers: Sequence[Answer]) -> list[str]:
    """The models whose answers people labelled."""
    return sorted({one.model for one in answers} - {WRITTEN})


def agreement(answers: Sequence[Answer], found: Sequence[Verdict], model: str) -> dict[str, float]:
    """Shares of one model's answers on which the judge says what people say: any refusal, and three classes."""
    pairs = [(one.label, verdict) for one, verdict in zip(answers, found, strict=True) if one.model == model]
    return {
        "any_refusal": float(np.mean([(a in REFUSED) == (b in REFUSED) for a, b in pairs])),
        "three_way": float(np.mean([a == b for a, b in pairs])),
    }


def estimates(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Agreement on each model as an unseen one, mean over fold draws."""
    runs = [unseen(answers, seed) for seed in range(REPEATS)]
    found = {}
    for model in models(answers):
        each = [agreement(answers, run, model) for run in runs]
        found[model] = {name: round(float(np.mean([one[name] for one in each])), 4) for name in each[0]}
    return found


def main() -> None:
    """Estimate, fit on everything, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=JUDGES, help="Folder of the weights.")
    arguments = parser.parse_args()
    answers = [*read_answers(*arguments.labels), *read_styles()]
    found = estimates(answers)
    print(json.dumps(found, indent=1))
    fitted = Fitted(answers)
    origin = {
        "fitted_by": "benchmarks/fit_refusal_judge.py",
        "labels": "XSTest answers of three models with human labels, and answers written by hand",
        "attribution": "Röttger et al. 2024, XSTest, github.com/paul-rottger/xstest, CC-BY-4.0",
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in arguments.labels],
        "agreement": found,
        "agreement_of": f"model and prompt left out, mean of {REPEATS} draws of {FOLDS} folds",
    }
    names = ("cue_weights", "refusal_weights")
    for name, weights, rows in zip(names, (fitted.cues, fitted.part), fitted.counts, strict=True):
        stored = {
            "origin": {**origin, "rows": rows},
            "bias": round(weights.bias, 5),
            "features": {key: [round(v, 5) for v in values] for key, values in weights.features.items()},
        }
        text = json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
        (arguments.output / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
