"""Seconds per optimizer update of R2D2 with LoRA: the arm's own training loop, on random bfloat16 weights.

    python benchmarks/bench_r2d2.py                                    # a tiny model on the CPU
    python benchmarks/bench_r2d2.py --device cuda --shape mistral-7b   # the released n = 8, m = 5, width 512, top-k 256
    torchrun --nproc-per-node 2 benchmarks/bench_r2d2.py --device cuda --shape mistral-7b   # on two cards
    torchrun --nproc-per-node 2 benchmarks/bench_r2d2.py --device cuda --shape mistral-24b --dtype float32 --shard fsdp2

`train_arm` runs one warm-up and `--updates` timed updates of one micro-batch each and stops at its anchor. Parts are
clocked around the loop's own functions, waiting for the device at their edges: GCG (with drawing the cases), the chat
term, the away and toward terms (each term's forward and backward), the optimizer. Times are medians over updates.

FLOP utilisation counts 2 FLOP per block parameter and token run forward by GCG, 2 more per token of its gradients'
backward passes, and 4 per trained token (forward, and backward to activations; adapters are left out), over the
device's dense bfloat16 peak. Attention and the output matrix are left out, so that it is a lower bound.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import transformers

from bench_gcg import CASE, PEAK, SHAPES, device_name, random_model
from caryatid.data.chat import ChatExample
from caryatid.data.prompts import Prompt
from caryatid.models.load import LoadedModel, choose_device
from caryatid.models.template import ChatFormat
from caryatid.training import loop
from caryatid.training.adversarial import CaseSource
from caryatid.training.arms import arm_named
from caryatid.training.ranks import Ranks
from caryatid.training.settings import R2D2Settings, TrainingSettings
from caryatid.training.trainee import Trainee

PLACES = ("bridge", "market", "school", "library", "station", "museum", "garden", "theatre")
SUFFIX = 20


class Clock:
    """Seconds of each part, one entry per update."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: dict[str, list[float]] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.spans.setdefault(name, []).append(self.now() - began)

    def clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return timed


@contextmanager
def clocked_loop(clock: Clock) -> Iterator[None]:
    """The training loop with a clock around its parts."""
    training = Trainee.training

    @contextmanager
    def whole_update(trainee: Trainee) -> Iterator[None]:
        with clock.span("update"), training(trainee):
            yield

    found = (loop._micro_batch, loop._on_cases, CaseSource.draw, Trainee.update)
    loop._micro_batch = clock.clocked("micro_batch", found[0])
    loop._on_cases = clock.clocked("away_toward", found[1])
    CaseSource.draw = clock.clocked("gcg", found[2])  # type: ignore[method-assign]
    Trainee.update = clock.clocked("optimizer", found[3])  # type: ignore[method-assign]
    Trainee.training = whole_update  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        loop._micro_batch, loop._on_cases = found[:2]
        CaseSource.draw, Trainee.update = found[2:]  # type: ignore[method-assign]
        Trainee.training = training  # type: ignore[method-assign]


def behaviours() -> list[Prompt]:
    """Prompts with their targets, as long as the case of `bench_gcg.py`."""
    return [
        Prompt(
            id=f"bench-{place}",
            text=CASE.user_text.replace("bridge", place),
            set_name="bench",
            label="harmful",
            targets=(CASE.target,),
        )
        for place in PLACES
    ]


def chat_examples(loaded: LoadedModel, tokens: int, count: int) -> list[ChatExample]:
    """Chats that fill `tokens` tokens with prompt and answer."""
    return [
        ChatExample(f"chat-{i}", f"Tell me more about the {place}.", f"The {place} is old. " * tokens)
        for i, place in zip(range(count), PLACES * count, strict=False)
    ]


def train(
    loaded: LoadedModel, args: argparse.Namespace, out: Path, ranks: Ranks
) -> tuple[loop.TrainedArm, Clock]:
    clock, updates = Clock(loaded.device), args.updates + 1
    settings = TrainingSettings(
        chat_batch_size=args.chat_batch,
        accumulation=1,
        max_length=args.max_length,
        gradient_checkpointing=args.gradient_checkpointing,
        shard=args.shard,
        r2d2=R2D2Settings(
            pool=args.cases, cases=args.cases, gcg_steps=args.steps, width=args.width, top_k=args.top_k,
            suffix_length=SUFFIX, search_precision=args.search_precision,
        ),
    )  # fmt: skip
    examples = chat_examples(loaded, args.max_length, args.chat_batch)
    job = loop.ArmJob(
        arm_named("r2d2"), settings, examples, examples[:2], behaviours(), (updates,), args.seed,
        args.batch_size or args.width,
    )  # fmt: skip
    with clocked_loop(clock):
        arm = loop.train_arm(
            loaded, ChatFormat(loaded.tokenizer), job, out / "anchors", out / "work", ranks=ranks
        )
    return arm, clock


def parts(clock: Clock) -> dict[str, list[float]]:
    """Seconds per timed update: the whole and what it consists of."""
    spans = {name: values[1:] for name, values in clock.spans.items()}
    zipped = zip(spans.pop("micro_batch"), spans["gcg"], spans["away_toward"], strict=True)
    return {**spans, "chat": [whole - gcg - adversarial for whole, gcg, adversarial in zipped]}


def flops(loaded: LoadedModel, row: loop.TrainingRow, updates: int) -> float:
    """Matrix products needed by one update, as the first lines of this script count them."""
    model, chat = loaded.model, ChatFormat(loaded.tokenizer)
    adapters = sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)
    tied = model.config.get_text_config().tie_word_embeddings
    outside = model.get_input_embeddings().weight.numel() * (1 if tied else 2)
    blocks = sum(value.numel() for value in model.parameters()) - adapters - outside
    tail = SUFFIX + len(chat.answer_ids(CASE.target, end_of_turn=False))
    return blocks * (2 * row.gcg_tokens + 2 * row.gcg_steps * tail + 4 * row.tokens) / updates


def report(
    loaded: LoadedModel,
    args: argparse.Namespace,
    arm: loop.TrainedArm,
    clock: Clock,
    built: float,
    processes: int,
) -> dict[str, Any]:
    (row,) = arm.rows
    seconds, updates, place = parts(clock), args.updates + 1, device_name(loaded.device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peak = next((value for name, value in PEAK.items() if name in place), None)
    needed = flops(loaded, row, updates)
    on_gpu = loaded.device.type == "cuda"
    return {
        "device": place,
        "model": loaded.spec,
        "dtype": str(loaded.dtype),
        "cases": args.cases,
        "gcg_steps_per_case": args.steps,
        "width": args.width,
        "top_k": args.top_k,
        "suffix_tokens": SUFFIX,
        "chat_batch": args.chat_batch,
        "max_length": args.max_length,
        "gradient_checkpointing": args.gradient_checkpointing,
        "shard": args.shard,
        "updates": args.updates,
        "seed": args.seed,
        "build_seconds": built,
        "seconds": medians,
        "update_seconds": seconds["update"],
        "gcg_batch": row.gcg_batch,
        "gcg_tokens_per_update": row.gcg_tokens / updates,
        "trained_tokens_per_update": row.tokens / updates,
        "flops_per_update": needed,
        "processes": processes,
        "flop_utilisation": needed / medians["update"] / (peak * 1e12) / processes if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "losses": {
            "sft": row.loss_sft,
            "away": row.loss_away,
            "toward": row.loss_toward,
            "gcg": row.gcg_loss,
        },
        "benign_kl": row.benign_kl,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--tokenizer", default="embedded", help="folder, hub id, or `embedded`")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--updates", type=int, default=5, help="timed updates, after one warm-up update")
    parser.add_argument("--cases", type=int, default=8, help="n, cases per update")
    parser.add_argument("--steps", type=int, default=5, help="m, GCG steps per case")
    parser.add_argument("--width", type=int, help="default: 512, for tiny 32")
    parser.add_argument("--top-k", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=0, help="rows per GCG forward; 0: the width")
    parser.add_argument("--chat-batch", type=int, default=8, help="chat examples per update")
    parser.add_argument("--max-length", type=int, help="tokens per chat example; default: 512, for tiny 64")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--search-precision", choices=("auto", "model", "bfloat16", "float8"), default="auto")
    parser.add_argument("--shard", choices=("none", "fsdp2"), default="none", help="fsdp2: blocks in parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    tiny = args.shape == "tiny"
    args.width = args.width or (32 if tiny else 512)
    args.max_length = args.max_length or (64 if tiny else 512)
    ranks, dtype = Ranks.start(), getattr(torch, args.dtype)
    parts_of_blocks = args.shard == "fsdp2"
    if parts_of_blocks and (ranks.size == 1 or dtype != torch.float32):
        parser.error("--shard fsdp2 needs several processes (torchrun) and --dtype float32")
    device, began = choose_device(args.device), time.perf_counter()
    loaded = random_model(args.shape, device, tokenizer=args.tokenizer, dtype=dtype)
    if parts_of_blocks:
        loaded.model.to("cpu")  # whole, in each process; the blocks come back in parts
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    built = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        arm, clock = train(loaded, args, Path(ranks.shared(folder)), ranks)
        ranks.barrier()
    if not ranks.main:
        return 0
    result = report(loaded, args, arm, clock, built, ranks.size)
    args.out.mkdir(parents=True, exist_ok=True)
    several = f"-{ranks.size}-processes" if ranks.size > 1 else ""
    several += "-fsdp2" if parts_of_blocks else ""
    file = args.out / f"r2d2-{args.shape}-{device.type}{several}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result["seconds"].items():
        print(f"{name:12s} {value:9.3f} s")
    used, peak = result["flop_utilisation"], result["peak_gib"]
    print(
        f"model built in {built:.1f} s" + (f", {used:.1%} of peak, {peak:.1f} GiB" if used and peak else "")
    )
    print(f"written to {file.name}: {result['device']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
