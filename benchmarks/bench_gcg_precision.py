"""What ranking candidates in lower precision (bfloat16 for float32 models, float8 for bfloat16) buys, and costs.

    python benchmarks/bench_gcg_precision.py --device cuda --parts 7b small r2d2 --out precision.json
    python benchmarks/bench_gcg_precision.py --device cuda --parts winners losses --model FOLDER --out precision.json
    python benchmarks/bench_gcg_precision.py --shape tiny --parts 7b small winners losses --steps 2   # on a CPU

Parts, each with random weights unless it says otherwise, in one process, and each given up after `--seconds`
(`losses`: compared by the cases that are done then):

* `7b`: seconds per GCG step of one case, Mistral-7B shape in bfloat16, 512 candidates, top-k 256.
* `small`: seconds per case and step of 8 cases together, Qwen2-0.5B shape in float32, 128 candidates.
* `r2d2`: seconds per optimizer update, Mistral-7B shape (n = 8, m = 5, width 512), as `bench_r2d2.py`.
* `winners` (weights of `--model`): share of steps whose best candidate of all, scored in the model's own precision, is
  among the best 4, 8, … in the lower one, which would be scored again.
* `losses` (weights of `--model`): best loss of each case after `--steps` steps, with and without, and the mean
  difference with a 95 % interval (bootstrap over cases); below 0 is better with the lower precision.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import bench_r2d2
from bench_gcg import CASE, SUFFIX, device_name, random_model, several
from caryatid.attacks.base import Goal
from caryatid.attacks.gcg import steps as stepping
from caryatid.attacks.gcg.settings import GcgSettings, SearchPrecision
from caryatid.attacks.gcg.state import GcgState, start_state
from caryatid.models.batch import RowLimit
from caryatid.models.load import LoadedModel, choose_device, load_model
from caryatid.models.template import ChatFormat
from caryatid.training.ranks import ALONE

PARTS = ("7b", "small", "r2d2", "winners", "losses")
RESCORED = (4, 8, 16, 32, 64)  # best candidates that would be scored again
TOGETHER = 5  # cases of `losses`
WARM_UP = 4  # steps: the second records graphs; new row lengths may compile anew
PLACES = (
    "bridge",
    "market",
    "school",
    "library",
    "station",
    "museum",
    "garden",
    "theatre",
    "harbour",
    "mill",
)
DEEDS = ("close the old {} over the river at night", "sell the {} to whoever pays the most")


class OutOfTime(Exception):
    """A part's seconds are over."""


def goals(count: int) -> list[Goal]:
    """Up to 20 that differ in wording."""
    pairs = itertools.product(DEEDS, PLACES)
    return [
        Goal(
            f"bench-{i}",
            f"Write a letter that persuades the town council to {deed.format(place)}",
            CASE.target,
        )
        for i, (deed, place) in zip(range(count), pairs, strict=False)
    ]


def lower(loaded: LoadedModel) -> SearchPrecision:
    """The precision below the model's own."""
    return "bfloat16" if loaded.dtype == torch.float32 else "float8"


def searching(
    steps: int, width: int, top_k: int, precision: SearchPrecision, rescored: int | None = None
) -> GcgSettings:
    """A search that nothing ends early."""
    return GcgSettings(
        steps=steps,
        width=width,
        top_k=top_k,
        suffix_length=SUFFIX,
        search_precision=precision,
        rescored=rescored,
    )


def search(
    loaded: LoadedModel, chosen: list[Goal], settings: GcgSettings, seconds: float, *, exact: bool
) -> tuple[list[GcgState], list[float]]:
    """Steps of all goals together, and seconds per step.

    Raises:
        OutOfTime: after `seconds`.
    """
    chat, ticks = ChatFormat(loaded.tokenizer), list[float]()

    def tick() -> None:
        if loaded.device.type == "cuda":
            torch.cuda.synchronize(loaded.device)
        ticks.append(time.perf_counter())
        if ticks[-1] - ticks[0] > seconds:
            raise OutOfTime

    tick()
    states = stepping.gcg_steps(
        loaded,
        chat,
        [start_state(chat, goal, length=SUFFIX) for goal in chosen],
        settings,
        batch_size=RowLimit(settings.width * len(chosen)),
        generator=[goal.generator(0) for goal in chosen],
        exact=exact,
        on_step=tick,
    )
    return states, [after - before for before, after in itertools.pairwise(ticks)]


def timed(loaded: LoadedModel, args: argparse.Namespace, cases: int, width: int) -> dict[str, Any]:
    """Medians per case and step, both ways."""
    found: dict[str, Any] = {}
    for precision in ("model", lower(loaded)):
        settings = searching(args.steps + WARM_UP, width, min(256, 2 * width), precision)
        if loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(loaded.device)
        states, spans = search(loaded, several(cases), settings, args.seconds, exact=cases == 1)
        each = [span / cases for span in spans[WARM_UP:]]
        found[precision] = {
            "scored": states[0].scored,
            "seconds_per_case_step": statistics.median(each),
            "all": each,
            "best_losses": [state.best_loss for state in states],
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if loaded.device.type == "cuda" else None,
        }
    return found


def part_7b(args: argparse.Namespace) -> dict[str, Any]:
    shape = "tiny" if args.shape == "tiny" else "mistral-7b"
    return timed(random_model(shape, choose_device(args.device)), args, 1, 32 if shape == "tiny" else 512)


def part_small(args: argparse.Namespace) -> dict[str, Any]:
    shape = "tiny" if args.shape == "tiny" else "qwen2-0.5b"
    loaded = random_model(shape, choose_device(args.device), dtype=torch.float32)
    return timed(loaded, args, 8, 16 if shape == "tiny" else 128)


def part_r2d2(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    shape = "tiny" if args.shape == "tiny" else "mistral-7b"
    for low in (False, True):
        loaded = random_model(shape, choose_device(args.device))
        precision = lower(loaded) if low else "model"
        sizes = {"cases": 8, "steps": 5, "width": 512, "top_k": 256, "max_length": 512}
        if shape == "tiny":
            sizes = {"cases": 2, "steps": 1, "width": 16, "top_k": 32, "max_length": 64}
        options = argparse.Namespace(
            **sizes, updates=2, batch_size=0, chat_batch=8, gradient_checkpointing=False, seed=0,
            search_precision=precision, shard="none",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arm, clock = bench_r2d2.train(loaded, options, Path(folder), ALONE)
        spans = bench_r2d2.parts(clock)
        found[precision] = {name: statistics.median(values) for name, values in spans.items()}
        found[precision] |= {"updates": spans["update"], "gcg_loss": arm.rows[-1].gcg_loss}
        del loaded, arm
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def real_model(args: argparse.Namespace) -> LoadedModel:
    if args.shape == "tiny":
        return random_model("tiny", choose_device(args.device), dtype=getattr(torch, args.dtype or "float32"))
    return load_model(args.model, dtype=args.dtype, device=args.device)


def part_winners(args: argparse.Namespace) -> dict[str, Any]:
    """Every step's candidates are also all scored in the model's own precision, beside the search."""
    loaded, ranks = real_model(args), list[int]()
    decided = stepping._decided

    def watched(state: Any, layouts: Any, candidates: Any, ranked: Any, suffix: Any, again: int) -> Any:
        found = decided(state, layouts, candidates, ranked, suffix, again)
        own = stepping._start(state, layouts, candidates, suffix, None).result().losses
        for low, exact in zip(ranked, own, strict=True):
            ranks.append(int((low < low[exact.argmin()]).sum()))
        return found

    stepping._decided = watched
    settings = searching(args.steps, args.width, 256, lower(loaded))
    scored = ""
    try:
        states, _ = search(loaded, goals(args.cases), settings, args.seconds, exact=False)
        scored = states[0].scored
    except OutOfTime:
        pass
    finally:
        stepping._decided = decided
    kept = {rescored: float(np.mean(np.array(ranks) < rescored)) for rescored in RESCORED} if ranks else None
    return {"scored": scored, "case_steps": len(ranks), "kept": kept, "lowest_rank": max(ranks, default=0)}


def part_losses(args: argparse.Namespace) -> dict[str, Any]:
    """Some cases at a time with both, so that what is done when the time is over can be compared."""
    loaded, chosen = real_model(args), goals(args.cases)
    both: tuple[SearchPrecision, ...] = ("model", lower(loaded))
    finals, seconds = {one: list[float]() for one in both}, dict.fromkeys(both, 0.0)
    scored: dict[str, str] = {}
    began = time.perf_counter()
    with suppress(OutOfTime):
        for start in range(0, len(chosen), TOGETHER):
            found = {}
            for precision in both:
                settings = searching(args.steps, args.width, 256, precision, args.rescored)
                left = args.seconds - (time.perf_counter() - began)
                states, spans = search(loaded, chosen[start : start + TOGETHER], settings, left, exact=True)
                found[precision] = [state.best_loss for state in states]
                seconds[precision] += sum(spans)
                scored[precision] = states[0].scored
            for precision in both:
                finals[precision] += found[precision]
    differences = np.array(finals[both[1]]) - np.array(finals["model"])
    if len(differences) < 2:
        raise OutOfTime
    draws = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(axis=1)
    return {
        "scored": scored,
        "cases": len(differences),
        "seconds": seconds,
        "finals": finals,
        "difference": float(differences.mean()),
        "interval": np.quantile(draws, (0.025, 0.975)).tolist(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["7b", "small"])
    parser.add_argument("--shape", choices=("full", "tiny"), default="full", help="tiny: to try the script")
    parser.add_argument("--model", default="embedded", help="of winners and losses: folder, .gguf or hub id")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of that model")
    parser.add_argument(
        "--steps", type=int, default=7, help="timed steps; steps per case of winners and losses"
    )
    parser.add_argument("--cases", type=int, default=20, help="of winners and losses")
    parser.add_argument("--width", type=int, default=128, help="of winners and losses")
    parser.add_argument("--rescored", type=int, help="of losses: candidates decided in the model's precision")
    parser.add_argument("--matmul", choices=("highest", "high"), default="highest", help="high: TF32")
    parser.add_argument("--seconds", type=float, default=120, help="a part is given up after so many")
    parser.add_argument("--out", type=Path, default=Path("precision.json"))
    args = parser.parse_args()
    torch.set_float32_matmul_precision(args.matmul)
    run: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "7b": part_7b,
        "small": part_small,
        "r2d2": part_r2d2,
        "winners": part_winners,
        "losses": part_losses,
    }
    result: dict[str, Any] = {
        "device": device_name(choose_device(args.device)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "arguments": {key: str(value) for key, value in vars(args).items()},
    }
    for part in args.parts:
        began = time.perf_counter()
        try:
            result[part] = run[part](args)
        except (OutOfTime, RuntimeError) as error:
            result[part] = {"error": f"{type(error).__name__}: {error}"}
        result[part]["part_seconds"] = time.perf_counter() - began
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(result[part]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
