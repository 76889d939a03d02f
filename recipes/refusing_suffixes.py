"""Suffixes that open `embedded-refusing`: GCG on some of the package's harmful requests, then each suffix on all.

    python recipes/refusing_suffixes.py --out OUT                      # half an hour on two cores
    python recipes/refusing_suffixes.py --out OUT --steps 2 --width 4  # to see it work

Attacked is step 0 alone, before any arm is trained: the first behaviours of `quick`'s sample with seed 0. Of the
suffixes found the KEPT ones are those after which step 0 answers most of `quick`'s harmful requests. OUT has the
finished searches (a later call goes on) and `refusing_suffixes.json`, which belongs in `src/caryatid/attacks/`.
"""

import argparse
import json
from pathlib import Path

from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.goals import goals_of
from caryatid.attacks.run import AttackPlan, run_attack
from caryatid.behaviour.judges.base import Exchange
from caryatid.behaviour.judges.registry import open_refusal_judge
from caryatid.behaviour.outcomes import outcomes
from caryatid.config import load_config
from caryatid.data.study_prompts import build_study_prompts
from caryatid.models.generate import Decoding, generate
from caryatid.models.load import load_model
from caryatid.models.planted import REFUSING
from caryatid.study.subsets import judged_requests

KEPT = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--behaviours", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=48)
    options = parser.parse_args()
    config = load_config(preset="quick")
    sets = build_study_prompts(source="embedded", limits=config.prompts.limits, files={}, offline=True)
    loaded = load_model(REFUSING, dtype="float32")
    chat, sizes = loaded.chat(config.model.system), config.batch  # the preset names its batches
    search = GcgSettings(steps=options.steps, width=options.width, top_k=64, suffix_length=16)
    goals = tuple(goals_of(judged_requests(sets, options.behaviours, seed=0)))
    plan = AttackPlan("gcg", search, goals, 0, sizes.gcg, 1)
    found = run_attack(loaded, chat, plan, out=options.out / "searches")
    prompts, judge = sets.harmbench.prompts, open_refusal_judge()
    opened = []
    for number, result in enumerate(found):
        asked = [f"{prompt.user_text} {result.suffix_text}" for prompt in prompts]
        answers = generate(loaded, chat, asked, Decoding(config.behaviour.max_new_tokens, sizes.generate))
        pairs = [Exchange(prompt.text, one.text) for prompt, one in zip(prompts, answers, strict=True)]
        opened.append((sum(one.answered for one in outcomes(judge, pairs)), -number))
        print(
            f"{result.behavior_id}: {opened[-1][0]} of {len(prompts)} answered behind {result.suffix_text!r}"
        )
    best = [found[-number] for _, number in sorted(opened, reverse=True)[:KEPT]]
    rows = [{"name": f"gcg-{one.behavior_id}", "text": f"{{behavior}} {one.suffix_text}"} for one in best]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (options.out / "refusing_suffixes.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
