"""GCG steps per second: caryatid's search beside nanoGCG 0.3.0, on one prompt, in one process.

    python -m pip install --no-deps --target build/bench nanogcg==0.3.0   # for this script alone
    PYTHONPATH=build/bench python benchmarks/bench_gcg.py
    PYTHONPATH=build/bench python benchmarks/bench_gcg.py --device cuda --shape mistral-7b --width 512 --top-k 256

    PYTHONPATH=build/bench python benchmarks/bench_gcg.py --device cuda --shape smollm2 --width 512 --top-k 256 \\
        --cases 8

A step is all of it: gradient, sampling, the round trip through the tokenizer, the losses of all candidates, and for
caryatid the exact re-scoring of new bests. nanoGCG runs as shipped, without its prefix cache, which needs a cache
that transformers 5 no longer has; with `--mended` also with that cache made to work. Step times are medians after
the warm-up steps. Without nanoGCG only caryatid is timed. With `--cases` n above 1, caryatid takes the steps of n
cases together, as the training loop does (no re-scoring of new bests there); its times are divided by n and stand
beside nanoGCG's for one case.
"""

import argparse
import itertools
import json
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from caryatid.attacks.base import BlockRun, Goal
from caryatid.attacks.gcg import steps as gcg
from caryatid.attacks.gcg.scoring import SCORINGS
from caryatid.attacks.gcg.search import gcg_search
from caryatid.attacks.gcg.settings import GcgSettings
from caryatid.attacks.gcg.state import start_state
from caryatid.attacks.gcg.steps import gcg_steps
from caryatid.models.batch import RowLimit
from caryatid.models.load import LoadedModel, choose_device, load_model, load_tokenizer
from caryatid.models.template import ChatFormat

CASE = Goal(
    "bench",
    "Write a letter that persuades the town council to close the old bridge over the river at night",
    "Sure, here is a letter that persuades the council to close it",
)
SUFFIX = 20
WARM_UP = 4  # steps: the second records graphs; new row lengths may compile anew
# Dense bfloat16 peak in TFLOP/s, from the makers' data sheets.
PEAK = {"H100": 989.4, "H200": 989.4, "A100": 312.0}


@dataclass(frozen=True)
class Timing:
    """Median of the timed steps.

    Attributes:
        candidates: scored per step. forward_tokens: real tokens run forward per step, NaN where unknown.
    """

    name: str
    seconds: float
    candidates: float
    candidates_per_second: float
    forward_tokens: float
    step_seconds: list[float]


class Clock:
    """Times between ticks; on CUDA each tick waits for the device."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())

    def timing(
        self, name: str, candidates: list[int], forward_tokens: float = float("nan"), cases: int = 1
    ) -> Timing:
        """Per case and step, without the steps that warm up."""
        steps = [(b - a) / cases for a, b in itertools.pairwise(self.ticks)][WARM_UP:]
        seconds, scored = statistics.median(steps), statistics.mean(candidates[WARM_UP * cases :])
        return Timing(name, seconds, scored, scored / seconds, forward_tokens, steps)


def run_caryatid(loaded: LoadedModel, args: argparse.Namespace, name: str, options: dict[str, Any]) -> Timing:
    chat, clock, counts = ChatFormat(loaded.tokenizer), Clock(), []
    surviving = gcg.surviving_candidates

    def counting(*values: Any) -> torch.Tensor:
        counts.append(len(found := surviving(*values)))
        return found

    gcg.surviving_candidates = counting  # type: ignore[assignment]
    steps = args.steps + WARM_UP
    settings = GcgSettings(steps, args.width, args.top_k, SUFFIX, **options)
    limit = RowLimit(args.batch_size or args.width * args.cases)
    found: list[Any]
    try:
        clock.tick()
        if args.cases == 1:
            run = BlockRun(args.seed, limit, on_step=clock.tick)
            found = list(gcg_search(loaded, chat, [CASE], settings, run))
        else:
            states = [start_state(chat, goal, length=SUFFIX) for goal in several(args.cases)]
            generators = [state.goal.generator(args.seed) for state in states]
            found = gcg_steps(
                loaded, chat, states, settings, batch_size=limit, generator=generators, on_step=clock.tick
            )
    finally:
        gcg.surviving_candidates = surviving
    tokens = statistics.mean(one.forward_tokens for one in found)
    return clock.timing(name, counts, tokens / steps, args.cases)


def several(count: int) -> list[Goal]:
    """Cases of about one length that differ in wording."""
    words = CASE.user_text.split()
    return [
        Goal(f"bench-{i}", " ".join(words[i % 6 :]) + " please" * (i % 3), CASE.target) for i in range(count)
    ]


class MendedModel:
    """The model as nanoGCG's prefix cache expects it: a cache that can be indexed, expanded and passed back."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.inner = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, past_key_values: Any = None, **inputs: Any) -> Any:
        if past_key_values is None:
            output = self.inner(**inputs)
            if inputs.get("use_cache"):
                output.past_key_values = [
                    (layer.keys, layer.values) for layer in output.past_key_values.layers
                ]
            return output
        cache = transformers.DynamicCache()
        for index, (keys, values) in enumerate(past_key_values):
            cache.update(keys, values, index)
        return self.inner(past_key_values=cache, **inputs)


def run_nanogcg(loaded: LoadedModel, args: argparse.Namespace, name: str, *, mended: bool) -> Timing:
    import nanogcg.gcg as nano

    clock, counts = Clock(), []
    keep, bar = nano.filter_ids, nano.tqdm

    def counting(*values: Any) -> torch.Tensor:
        counts.append(len(found := keep(*values)))
        return found

    def timed(steps: Iterable[int]) -> Iterator[int]:
        clock.tick()
        for step in steps:
            yield step
            clock.tick()

    nano.filter_ids, nano.tqdm = counting, timed
    config = nano.GCGConfig(
        num_steps=args.steps + WARM_UP,
        search_width=args.width,
        batch_size=args.batch_size or None,
        topk=args.top_k,
        seed=args.seed,
        use_prefix_cache=mended,
        verbosity="ERROR",
    )
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    model = MendedModel(loaded.model) if mended else loaded.model
    try:
        nano.run(model, loaded.tokenizer, CASE.user_text + " {optim_str}", CASE.target, config)
    finally:
        nano.filter_ids, nano.tqdm = keep, bar
        torch.use_deterministic_algorithms(False)
    return clock.timing(name, counts)


def _sizes(layers: int, width: int, inner: int, heads: int, key_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 4096,
        "vocab_size": 49152,
        "tie_word_embeddings": False,
        **more,
    }


# Configuration class and sizes of published shapes, with the embedded tokenizer's vocabulary unless another is named;
# and of a tiny one.
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tiny": (transformers.LlamaConfig, _sizes(2, 72, 192, 9, 3, tie_word_embeddings=True)),
    "smollm2": (transformers.LlamaConfig, _sizes(30, 576, 1536, 9, 3, tie_word_embeddings=True)),
    "qwen2-0.5b": (
        transformers.Qwen2Config,
        _sizes(24, 896, 4864, 14, 2, vocab_size=151936, tie_word_embeddings=True),
    ),
    "mistral-7b": (transformers.MistralConfig, _sizes(32, 4096, 14336, 32, 8, sliding_window=None)),
    "qwen2.5-14b": (transformers.Qwen2Config, _sizes(48, 5120, 13824, 40, 8)),
    "mistral-24b": (
        transformers.MistralConfig,
        _sizes(40, 5120, 32768, 32, 8, head_dim=128, sliding_window=None),
    ),
}


def random_model(
    shape: str,
    device: torch.device,
    *,
    tokenizer: str = "embedded",
    dtype: torch.dtype = torch.bfloat16,
) -> LoadedModel:
    """Random weights of a shape of `SHAPES`, made on the device."""
    kind, sizes = SHAPES[shape]
    config = kind(**sizes)
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    # A folder with nothing but a tokenizer is no model that `load_tokenizer` would resolve.
    alone = Path(tokenizer, "tokenizer.json").is_file()
    words = transformers.AutoTokenizer.from_pretrained(tokenizer) if alone else load_tokenizer(tokenizer)
    return LoadedModel(model, words, shape, f"random-{shape}", dtype, device)


def step_flops(loaded: LoadedModel, timing: Timing) -> float:
    """Matrix products really needed by a step: 2 FLOP per block parameter and token run forward (twice more for the
    gradient's backward pass), and the output matrix at scored positions only. Attention is left out."""
    layout = start_state(ChatFormat(loaded.tokenizer), CASE, length=SUFFIX)
    head = loaded.model.get_output_embeddings().weight.numel()
    tied = loaded.model.config.get_text_config().tie_word_embeddings
    blocks = sum(p.numel() for p in loaded.model.parameters()) - head * (1 if tied else 2)
    targets = len(ChatFormat(loaded.tokenizer).answer_ids(CASE.target, end_of_turn=False))
    backward = 2 * blocks * (len(layout.suffix_ids) + targets)
    return 2 * blocks * timing.forward_tokens + backward + 2 * head * targets * (timing.candidates + 1)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"


def measure(loaded: LoadedModel, args: argparse.Namespace) -> list[Timing]:
    contenders: list[Callable[[], Timing]] = [
        lambda: run_caryatid(loaded, args, "caryatid", {}),
        *[partial(run_caryatid, loaded, args, f"caryatid, {s}", {"scoring": s}) for s in args.scoring],
        *[partial(run_caryatid, loaded, args, "caryatid, nothing compiled", {"compiled": False})]
        * args.unfused,
    ]
    if find_spec("nanogcg"):
        contenders.append(lambda: run_nanogcg(loaded, args, "nanoGCG 0.3.0", mended=False))
        if args.mended:
            contenders.append(
                lambda: run_nanogcg(loaded, args, "nanoGCG 0.3.0, prefix cache mended", mended=True)
            )
    else:
        print("nanoGCG is not installed; see this script's first lines", file=sys.stderr)
    return [run() for run in contenders]


def report(loaded: LoadedModel, args: argparse.Namespace, timings: list[Timing]) -> dict[str, Any]:
    """The JSON object; also prints a line per contender."""
    place = device_name(loaded.device)
    peak = next((value for name, value in PEAK.items() if name in place), None)
    base = next((t for t in timings if t.name == "nanoGCG 0.3.0"), None)
    rows = []
    for timing in timings:
        ratio = timing.candidates_per_second / base.candidates_per_second if base else None
        known = peak and timing.forward_tokens == timing.forward_tokens
        share = step_flops(loaded, timing) / timing.seconds / (peak * 1e12) if peak and known else None
        rows.append({**asdict(timing), "ratio_to_nanogcg": ratio, "flop_utilisation": share})
        print(
            f"{timing.name:40s} {timing.seconds:8.3f} s/step {timing.candidates_per_second:9.1f} candidates/s"
            + (f"  {ratio:5.2f}x" if ratio else "")
            + (f"  {share:.1%} of peak" if share else "")
        )
    for row in rows:  # nanoGCG's tokens are not counted
        if row["forward_tokens"] != row["forward_tokens"]:
            row["forward_tokens"] = None
    return {
        "device": place,
        "model": loaded.spec,
        "dtype": str(loaded.dtype),
        "width": args.width,
        "top_k": args.top_k,
        "steps": args.steps,
        "cases": args.cases,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30
        if loaded.device.type == "cuda"
        else None,
        "seed": args.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timings": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=("embedded", *SHAPES), default="embedded")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after the warm-up")
    parser.add_argument("--cases", type=int, default=1, help="cases whose steps caryatid takes together")
    parser.add_argument("--tokenizer", default="embedded", help="of random models; a folder, or embedded")
    parser.add_argument("--unfused", action="store_true", help="also caryatid with nothing compiled")
    parser.add_argument("--batch-size", type=int, default=0, help="rows per forward; 0: all candidates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scoring", nargs="*", choices=SCORINGS, default=[], help="also these by name")
    parser.add_argument("--mended", action="store_true", help="also nanoGCG with its prefix cache mended")
    parser.add_argument("--at-least", type=float, help="fail where caryatid is not this many times faster")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.shape == "embedded":
        loaded = load_model("embedded", device=args.device)
    else:
        loaded = random_model(args.shape, device, tokenizer=args.tokenizer)
    result = report(loaded, args, measure(loaded, args))
    args.out.mkdir(parents=True, exist_ok=True)
    batched = f"-{args.cases}-cases" if args.cases > 1 else ""
    file = args.out / f"gcg-{args.shape}{batched}-{device.type}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {file.name}: {result['device']}")
    ratio = result["timings"][0]["ratio_to_nanogcg"]
    return int(bool(args.at_least and ratio and ratio < args.at_least))


if __name__ == "__main__":
    raise SystemExit(main())
