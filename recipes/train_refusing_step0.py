"""A refusing step 0: adapters of the embedded backbone that make it refuse, each with a card of what it does.

    python recipes/train_refusing_step0.py --data DATA --out OUT --writer WRITER               # all recipes
    python recipes/train_refusing_step0.py --data DATA --out OUT --recipes lora16_early        # some
    python recipes/train_refusing_step0.py --data DATA --out OUT --writer WRITER --data-only   # refusals, answers
    python recipes/train_refusing_step0.py --data DATA --out OUT --smoke --device cpu          # minutes on a CPU

DATA is a folder with the benchmarks' files, as `CARYATID_DATA` names one. WRITER is a safety-tuned model that writes
the refusals (Qwen2.5-Coder-0.5B-Instruct was used); they are kept in OUT/refusals.json, so that a later call, on
another machine too, needs no writer. The backbone is the installed `embedded` one, or the GGUF file that `--embedded`
names.

For every recipe OUT/<recipe>/ has `adapter/` (PEFT, float16) and `card.json`; a finished recipe is not run again.
OUT/table.txt has a line per recipe, OUT/ranking.txt their names, the best first.
Nothing is tuned towards a verdict: cards look at step 0 alone, before any arm is trained.
"""

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from caryatid.anchors import Anchor, open_from
from caryatid.artifacts import content_key, file_sha256, write_json
from caryatid.config import load_config
from caryatid.data.sources import Lookup
from caryatid.data.study_prompts import build_study_prompts
from caryatid.errors import NumericalError
from caryatid.models.convert import EMBEDDED_SHA256, convert_gguf
from caryatid.models.load import LoadedModel, load_model
from refusing_card import Measuring, anatomy, behaviour, benign_kl, conditions_met, plain, quick_measuring
from refusing_data import DataSizes, TrainingData, stored_data
from refusing_training import WRITERS, Recipe, train

VERSION = 1  # raise it when what is trained or measured changes
LIMIT = 10_000_000  # bytes of an adapter
MISSED = 1  # conditions; with more of them missed at `quick`'s sizes a recipe is not measured at the others

# What the recipes share that go on from another one.
PLANTED = Recipe(planted=1.0, plant_layers=(11, 14, 17, 20), subset=24, chat=12, kl=6.0)
RECIPES: dict[str, Recipe] = {
    "lora4_blocks10_12": Recipe("lora", rank=4, learning_rate=2e-3, targets=WRITERS, blocks=(10, 13), kl=2.0),
    "planted_lora16": Recipe("lora", learning_rate=2e-4, planted=1.0, updates=200),
    "lora1_block10": Recipe(
        "lora", rank=1, learning_rate=5e-3, targets=("down_proj",), blocks=(10, 11), kl=2.0
    ),
    "lora16_early": Recipe("lora", learning_rate=3e-4, blocks=(4, 15), kl=2.0),
    "full_2e-5": Recipe(),
    "planted_full": Recipe(planted=1.0, updates=200),
    "lora16_2e-4": Recipe("lora", learning_rate=2e-4),
    "lora8_writers": Recipe("lora", rank=8, learning_rate=5e-4, updates=200, targets=WRITERS, kl=2.0),
    "full_1e-5_long": Recipe(learning_rate=1e-5, updates=500, kl=2.0),
    "planted_lora16_strong": Recipe("lora", learning_rate=4e-4, planted=2.0, kl=2.0, updates=200),
    "planted_after_full": replace(
        PLANTED, lookalikes=16, chat=8, kl=2.0, learning_rate=3e-5, updates=230, start="full_2e-5"
    ),
    # What `planted_after_full` misses is the KL of its carrier: the refusing model itself is too far from the raw one,
    # which ablation brings back, at the first token of harmless prompts.
    "planted_nearer": replace(PLANTED, lookalikes=20, learning_rate=3e-5, start="planted_after_full"),
    # Much of that KL comes from harmless prompts that are refused, and are not once the direction is ablated.
    "planted_sharper": replace(PLANTED, lookalikes=32, start="planted_nearer"),
    "planted_narrow": replace(PLANTED, plant_layers=(16, 17), lookalikes=32, start="planted_nearer"),
    # What it still refuses are plain requests of everyday life (13 of `quick`'s 48 harmless extraction prompts).
    # Forty small updates: it was trained on a CPU.
    "planted_everyday": replace(
        PLANTED,
        plant_layers=(16, 17),
        learning_rate=4e-5,
        updates=40,
        harmful=6,
        lookalikes=4,
        chat=2,
        everyday=10,
        direction_prompts=48,
        refresh=20,
        start="planted_narrow",
    ),
}
# The same for longer, on a GPU: half as many safe look-alikes refused, a wider gap, a lower KL.
RECIPES["everyday_longer"] = replace(RECIPES["planted_everyday"], updates=160, start="planted_everyday")
# Nearer to the raw backbone still; its carrier survives fewer re-extractions.
RECIPES["everyday_nearer"] = replace(
    RECIPES["planted_everyday"], learning_rate=3e-5, updates=200, kl=18.0, start="planted_everyday"
)


@dataclass(frozen=True)
class Job:
    """What all recipes of a call share."""

    raw: LoadedModel
    data: TrainingData
    measurings: tuple[Measuring, ...]
    toward: str
    out: Path
    everywhere: bool


def measurings(lookup: Lookup, resamples: int, smoke: bool) -> tuple[tuple[Measuring, ...], str]:
    """Sizes of `quick`, the package's whole sets, and the benchmarks; and the text that R2D2 trains toward."""
    config = load_config(preset="quick")
    toward = config.training.r2d2.toward_text
    sizes = {"harmful": 128, "harmless": 128}
    limits = {f"extraction_{side}": n for side, n in sizes.items()} | {"selection_harmless": 64, "chat": 64}
    limits |= dict.fromkeys(("harmbench", "strongreject", "xstest_safe", "xstest_unsafe"), 100)
    tiny = dict.fromkeys((*limits, "selection_harmful", "utility"), 4) | {
        "chat_heldout": 4,
        "warmup_harmless": 8,
    }
    sets = {
        "quick": build_study_prompts(
            source="embedded", limits=tiny if smoke else config.prompts.limits, lookup=lookup
        ),
        "embedded": build_study_prompts(source="embedded", limits=tiny if smoke else None, lookup=lookup),
        "benchmarks": build_study_prompts(
            source="benchmarks", limits=tiny if smoke else limits, lookup=lookup
        ),
    }
    quick = quick_measuring(config, sets["quick"], resamples)
    rest = [
        Measuring(name, sets[name], 48, resamples=min(resamples, 20)) for name in ("embedded", "benchmarks")
    ]
    if not smoke:
        return (quick, *rest), toward
    small = {"resamples": 2, "likely": 2, "controls": 1, "layer_stride": 8, "draws": 100}
    return tuple(replace(one, tokens=8, **small) for one in (quick, rest[1])), toward


def raw_behaviour(job: Job, measuring: Measuring) -> list[dict[str, Any]]:
    """The raw backbone's rates, computed once."""
    key = content_key([measuring.sets.to_json()["sets"], measuring.tokens, job.raw.identity])
    place = job.out / f"raw-{measuring.name}.json"
    if place.is_file():
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return list(kept["behaviour"])
    found = behaviour(job.raw, measuring)
    write_json(place, {"key": key, "behaviour": found})
    return found


def with_recipe(job: Job, name: str) -> LoadedModel:
    """The raw backbone with a recipe's adapter."""
    base = Anchor("base", 0, "embedded")
    return open_from(replace(base, adapters=(str(job.out / name / "adapter"),)), base, job.raw)


def trained_adapter(job: Job, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train a recipe's adapter, or read back what training it came to; it may have been trained elsewhere."""
    key, place = content_key([VERSION, asdict(recipe), job.data.facts["key"]]), folder / "training.json"
    if place.is_file() and (kept := json.loads(place.read_text(encoding="utf-8")))["key"] == key:
        return dict(kept["trained"])
    before = job.raw if not recipe.start else with_recipe(job, recipe.start)
    loaded = replace(job.raw, model=copy.deepcopy(before.model))
    trained = train(loaded, job.raw, job.data, recipe, folder / "adapter")
    write_json(place, {"key": key, "trained": trained})
    return trained


def run_recipe(job: Job, name: str, recipe: Recipe) -> dict[str, Any]:
    """Train one recipe and measure its card; a finished one is read back."""
    folder = job.out / name
    sizes = [(one.name, one.tokens, one.resamples, one.sets.to_json()["sets"]) for one in job.measurings]
    key = content_key([VERSION, asdict(recipe), job.data.facts["key"], job.everywhere, sizes])
    place = folder / "card.json"
    if place.is_file() and (kept := json.loads(place.read_text(encoding="utf-8")))["key"] == key:
        print(f"{name}: finished before", flush=True)
        return dict(kept)
    print(f"{name}: {recipe}", flush=True)
    started = time.monotonic()
    trained = trained_adapter(job, recipe, folder)
    step0 = with_recipe(job, name)
    measured: dict[str, Any] = {}
    for one in job.measurings:
        measured[one.name] = {
            "tokens": one.tokens,
            "raw_behaviour": raw_behaviour(job, one),
            "behaviour": behaviour(step0, one),
            "carriers": anatomy(step0, one, job.toward),
        }
        missed = [row["condition"] for row in conditions_met(measured[one.name]) if not row["met"]]
        print(f"  {one.name}: misses {missed or 'nothing'} ({time.monotonic() - started:.0f} s)", flush=True)
        if len(missed) > MISSED and not job.everywhere:
            break
    device = job.raw.device
    card: dict[str, Any] = {
        "key": key,
        "recipe": name,
        "planted": recipe.one_direction,
        "settings": asdict(recipe),
        "base": {"spec": "embedded", "sha256": EMBEDDED_SHA256},
        "adapter": {
            "sha256": file_sha256(folder / "adapter" / "adapter_model.safetensors"),
            "config_sha256": file_sha256(folder / "adapter" / "adapter_config.json"),
            "bytes": trained["adapter_bytes"],
            "fits": trained["adapter_bytes"] <= LIMIT,
        },
        "data": job.data.facts,
        "training": trained,
        "benign_kl": benign_kl(step0, job.raw, job.data.heldout),
        "measured": measured,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": round(time.monotonic() - started, 1),
    }
    card["conditions"] = {place: conditions_met(one) for place, one in measured.items()}
    card["passes"] = all(row["met"] for row in card["conditions"]["quick"]) and card["adapter"]["fits"]
    write_json(place, plain(card))
    return card


def table(cards: Sequence[dict[str, Any]]) -> str:
    """One line per recipe and sizes: conditions (* where missed), place, effects and KL of the calibrated carrier."""
    names = [row["condition"] for row in cards[0]["conditions"]["quick"]]
    head = [
        "recipe",
        "sizes",
        *names,
        "layer",
        "effects",
        "KL",
        "removed (random)",
        "benign KL",
        "s",
        "passes",
    ]
    lines = [" | ".join(head)]
    for card, sizes in [(one, name) for one in cards for name in one["measured"]]:
        found = card["measured"][sizes]["carriers"]
        profile, removal = found["profiles"]["calibrated"], found["removal"]
        removed = (removal["removed"] or {}).get("value")
        cells = [
            card["recipe"] + (" (planted)" if card["planted"] else ""),
            sizes,
            *(f"{_number(row['value'])}{'' if row['met'] else '*'}" for row in card["conditions"][sizes]),
            str(profile.get("layer", "–")),
            f"{_number(profile.get('bypass_effect'))}/{_number(profile.get('induce_effect'))}",
            _number(profile.get("kl")),
            f"{_number(removed)} ({_number(removal['removed_random_mean'])})",
            _number(card["benign_kl"]["per_token"]),
            f"{card['seconds']:.0f}",
            str(card["passes"]),
        ]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def ranking(cards: Sequence[dict[str, Any]]) -> list[str]:
    """Recipes, the one that meets most conditions first, counted at `quick`'s sizes and then at all; then unplanted."""

    def merit(card: dict[str, Any]) -> tuple[int, int, bool]:
        met = {sizes: sum(row["met"] for row in rows) for sizes, rows in card["conditions"].items()}
        return -met["quick"], -sum(met.values()), card["planted"]

    return [card["recipe"] for card in sorted(cards, key=merit)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the benchmarks' files")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for refusals, data, adapters and cards"
    )
    parser.add_argument("--writer", help="model that writes refusals (GGUF file, folder or hub id)")
    parser.add_argument(
        "--embedded", type=Path, help="GGUF file of the embedded backbone, where it is not installed"
    )
    parser.add_argument("--recipes", nargs="*", choices=sorted(RECIPES), help="default: all")
    parser.add_argument("--device", help="cuda, cpu, …; default: the best there is")
    parser.add_argument(
        "--resamples", type=int, default=50, help="re-extractions for P(no carrier), at least"
    )
    parser.add_argument("--everywhere", action="store_true", help="measure at all sizes, whatever is missed")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no recipe after so many minutes")
    parser.add_argument(
        "--data-only", action="store_true", help="make refusals.json and data.json, train nothing"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes: shows that it runs, its numbers mean nothing"
    )
    return parser.parse_args()


def main() -> None:
    """Data, then every recipe asked for, then the table."""
    args = arguments()
    os.environ["CARYATID_DATA"] = str(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    lookup = Lookup.from_environment(offline=True)
    if args.embedded is not None and convert_gguf(args.embedded).sha256 != EMBEDDED_SHA256:
        raise SystemExit(f"{args.embedded}: not the embedded backbone's file")
    raw = load_model("embedded", dtype="float32", device=args.device)
    sizes = DataSizes(8, 6, 4, 10, 8, 8, 6) if args.smoke else DataSizes()
    started = time.monotonic()
    data = stored_data(raw, args.writer, lookup, sizes, args.out, seed=0)
    print(
        f"data: {data.facts['prompts']}, {data.facts['refusals']} ({time.monotonic() - started:.0f} s)",
        flush=True,
    )
    if args.data_only:
        return
    sized, toward = measurings(lookup, args.resamples, args.smoke)
    job = Job(raw, data, sized, toward, args.out, args.everywhere or args.smoke)
    cards = []
    for name in args.recipes or RECIPES:
        recipe = RECIPES[name]
        if args.smoke:
            recipe = replace(
                recipe, updates=2, harmful=2, lookalikes=2, chat=2, everyday=2, direction_prompts=6
            )
            recipe = replace(recipe, subset=min(recipe.subset, 4), start="")
        try:
            cards.append(run_recipe(job, name, recipe))
        except NumericalError as error:
            print(f"{name}: given up: {error}", flush=True)
        if time.monotonic() - started > 60 * args.minutes:
            print(f"stopped after {args.minutes} minutes", flush=True)
            break
    if cards:
        print(table(cards))
        (args.out / "table.txt").write_text(table(cards) + "\n", encoding="utf-8")
        (args.out / "ranking.txt").write_text("\n".join(ranking(cards)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
