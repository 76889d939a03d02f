"""Answers to whole suites: caryatid's batches beside one prompt at a time.

    python benchmarks/bench_generate.py                  # CPU: 4 prompts per suite, 16 new tokens
    python benchmarks/bench_generate.py --device cuda    # 400 + 313 + 250 + 200 + 60 prompts, 256 new tokens

Suites of HarmBench's, StrongREJECT's, XSTest's and the utility audit's sizes, filled from the package's own prompts;
where these are fewer they come again behind a number (“2. …”). Ours is what `caryatid evaluate` runs per suite:
templating, batches of the planned size, greedy answers, degeneracy and the offline refusal judge, whose share is timed
again by itself. The peer is `model.generate` on one prompt after the other, for a spread of the same prompts, without
judging. Both run once in one process after a warm-up, ours first. Extra memory is the peak of allocated device memory
above the loaded model (CUDA only).
"""

import argparse
import json
import platform
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from bench_candidates import timed
from caryatid.behaviour.answers import AnswerRow
from caryatid.behaviour.judges.rules import RefusalRules
from caryatid.behaviour.suites import Asked, Asking, rejudge, run_suites
from caryatid.data.embedded_sets import embedded_fields, embedded_harmful
from caryatid.data.prompts import Prompt, Role
from caryatid.models.batch import plan_batch_sizes
from caryatid.models.forward import pad_id
from caryatid.models.generate import stop_ids
from caryatid.models.load import LoadedModel, load_model
from caryatid.models.template import ChatFormat

SIZES = {"harmbench": 400, "strongreject": 313, "xstest_safe": 250, "xstest_unsafe": 200, "utility": 60}
CPU_PROMPTS, CPU_TOKENS, TOKENS = 4, 16, 256
PROMPT_TOKENS = 256  # what `caryatid evaluate` plans for
PEER_PROMPTS = 16
WARM_UP_TOKENS = 8


def filled(suite: str, prompts: tuple[Prompt, ...], size: int) -> list[Prompt]:
    """So many different prompts: those given, then the same behind a number."""
    found = []
    for at, prompt in enumerate(islice(cycle(prompts), size)):
        turn = at // len(prompts) + 1
        text = prompt.text if turn == 1 else f"{turn}. {prompt.text}"
        found.append(Prompt(f"{suite}-{at}", text, prompt.set_name, prompt.label, prompt.category))
    return found


def suites(limit: int | None) -> dict[str, list[Prompt]]:
    """The suites' prompts, at most `limit` of each."""
    fields = embedded_fields(dict.fromkeys(("xstest_safe", "xstest_unsafe", "utility"), Role.EVALUATION))
    given = {"harmbench": embedded_harmful(), "strongreject": embedded_harmful()[::-1]}
    given |= {name: one.prompts for name, one in fields.items()}
    return {name: filled(name, given[name], min(size, limit or size)) for name, size in SIZES.items()}


def one_by_one(
    loaded: LoadedModel, chat: ChatFormat, prompts: list[Prompt], new_tokens: int
) -> list[tuple[str, int]]:
    """The peer: text and number of tokens of each answer."""
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=sorted(stop_ids(loaded, chat)) or None,
        pad_token_id=pad_id(loaded),
    )
    model: Any = loaded.model
    answers = []
    for prompt in prompts:
        ids = torch.tensor([chat.ids(prompt.user_text)], device=loaded.device)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain)
        made = out[0, ids.shape[1] :]
        answers.append((loaded.tokenizer.decode(made, skip_special_tokens=True).strip(), len(made)))
    return answers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="`embedded`, a model folder or a .gguf file.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--prompts-per-suite", type=int, help=f"At most so many of each; {CPU_PROMPTS}, on CUDA all."
    )
    parser.add_argument("--max-new-tokens", type=int, help=f"{CPU_TOKENS}, on CUDA {TOKENS}.")
    parser.add_argument("--batch-rows", type=int, help="Rows per batch; default: planned for the device.")
    parser.add_argument("--out", type=Path, help="JSON file; default: in results/ beside this script.")
    return parser.parse_args()


def main() -> None:
    options = parse()
    loaded = load_model(options.model, dtype=options.dtype, device=options.device)
    on_cuda = loaded.device.type == "cuda"
    chat = ChatFormat(loaded.tokenizer)
    asked = suites(options.prompts_per_suite or (None if on_cuda else CPU_PROMPTS))
    new_tokens = options.max_new_tokens or (TOKENS if on_cuda else CPU_TOKENS)
    rows = options.batch_rows or plan_batch_sizes(loaded, PROMPT_TOKENS + new_tokens).generate
    judge = RefusalRules()

    def ours(named: dict[str, list[Prompt]], limit: int) -> list[AnswerRow]:
        asked = [Asked(suite, "none", prompts) for suite, prompts in named.items()]
        return [row for one in asked for row in run_suites(loaded, [one], Asking(limit, rows), judge=judge)]

    every = [prompt for prompts in asked.values() for prompt in prompts]
    spread = [every[i * len(every) // PEER_PROMPTS] for i in range(PEER_PROMPTS)]
    ours({"utility": asked["utility"][:4]}, WARM_UP_TOKENS)
    one_by_one(loaded, chat, spread[:2], WARM_UP_TOKENS)

    answers, seconds, memory = timed(loaded.device, lambda: ours(asked, new_tokens))
    _, judging, _ = timed(loaded.device, lambda: rejudge(answers, judge))
    theirs, peer_seconds, peer_memory = timed(
        loaded.device, lambda: one_by_one(loaded, chat, spread, new_tokens)
    )

    tokens, peer_tokens = sum(row.n_tokens for row in answers), sum(count for _, count in theirs)
    text_of = {row.prompt_id: row.text for row in answers}
    same = sum(text_of[prompt.id] == text for prompt, (text, _) in zip(spread, theirs, strict=True))
    result = {
        "claim": "answers to whole suites, beside one prompt at a time on a spread of the same prompts",
        "device": torch.cuda.get_device_name(loaded.device)
        if on_cuda
        else platform.processor() or platform.machine(),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": options.model,
        "prompts": {suite: len(prompts) for suite, prompts in asked.items()},
        "max_new_tokens": new_tokens,
        "batch_rows": rows,
        "seconds": round(seconds, 2),
        "of_which_refusal_judge": round(judging, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_prompt": round(seconds / len(every), 4),
        "peer_prompts": len(spread),
        "peer_seconds": round(peer_seconds, 2),
        "peer_tokens": peer_tokens,
        "peer_tokens_per_second": round(peer_tokens / peer_seconds, 1),
        "peer_seconds_per_prompt": round(peer_seconds / len(spread), 4),
        "ratio_per_prompt": round(peer_seconds / len(spread) / (seconds / len(every)), 2),
        "ratio_per_token": round(peer_seconds / peer_tokens / (seconds / tokens), 2),
        "same_texts": same,
    }
    if on_cuda:
        result |= {"extra_memory_mib": round(memory), "peer_extra_memory_mib": round(peer_memory)}
    suffix = {"float32": "", "bfloat16": "-bf16", "float16": "-fp16"}[options.dtype]
    out = (
        options.out or Path(__file__).parent / "results" / f"bench_generate-{loaded.device.type}{suffix}.json"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
