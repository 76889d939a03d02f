"""Scoring candidate directions: caryatid beside one candidate at a time with hooks.

    python benchmarks/bench_candidates.py                 # a spread of 6 of the 150 candidates of the embedded backbone
    python benchmarks/bench_candidates.py --every 1       # all 30 layers × 5 positions
    python benchmarks/bench_candidates.py --every 1 --device cuda --no-peer --model FOLDER_OR_GGUF

The peer is the published loop (arXiv 2406.11717, its release): for each candidate, hooks on every block input,
attention output and MLP output; bypass, KL and induce each over all prompts in batches, full-length forwards, the
logits of all positions, of which the last is used. Both score the same candidates on the same 32 + 32 prompts in
float32, early discard off, KL at the last position only, and must agree (rtol 1e-4). Without the peer, equality is not
checked and bfloat16 is possible. Extra memory is the peak above the loaded model: resident memory on a CPU, allocated
device memory on CUDA. Each side is timed once; caryatid goes first, after one small forward.
"""

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from caryatid.causal.scores import CandidateDirections, ScoringSettings, SelectionPrompts, score_candidates
from caryatid.data.embedded_sets import embedded_fields
from caryatid.data.prompts import Role
from caryatid.geometry.directions import candidate_directions
from caryatid.models.forward import block_inputs
from caryatid.models.layout import decoder_layers, num_layers
from caryatid.models.load import load_model
from caryatid.models.template import ChatFormat

PROMPTS, POSITIONS, BATCH = 32, 5, 32
CUDA_BATCH = 512  # rows per forward of ours


@contextmanager
def hooked(hooks: Sequence[tuple[torch.nn.Module, bool, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks, or pre-hooks where the flag is set, taken off at the end."""
    handles = [
        module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        for module, before, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Peer:
    """The published loop."""

    def __init__(self, loaded: Any, chat: ChatFormat, tokens: Sequence[int]) -> None:
        self.model, self.tokenizer, self.chat = loaded.model, loaded.tokenizer, chat
        self.blocks = decoder_layers(loaded.model)
        self.tokens = torch.tensor(tokens, device=loaded.device)

    @torch.no_grad()
    def last_logits(self, texts: Sequence[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), BATCH):
            rendered = [self.chat.text(text) for text in texts[start : start + BATCH]]
            rows = self.tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
            rows = rows.to(self.model.device)
            found.append(self.model(**rows).logits[:, -1].double())
        return torch.cat(found)

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        p = logits.softmax(-1)[:, self.tokens].sum(-1)
        return p.log() - (1 - p).log()

    def ablation(self, unit: torch.Tensor) -> list[tuple[torch.nn.Module, bool, Callable[..., Any]]]:
        def before(_module: Any, inputs: Any) -> Any:
            return (inputs[0] - (inputs[0] @ unit)[..., None] * unit, *inputs[1:])

        def after(_module: Any, _inputs: Any, out: Any) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            changed = hidden - (hidden @ unit)[..., None] * unit
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        hooks: list[tuple[torch.nn.Module, bool, Callable[..., Any]]] = []
        for block in self.blocks:
            hooks += [(block, True, before), (block.self_attn, False, after), (block.mlp, False, after)]  # type: ignore[list-item]
        return hooks

    def addition(
        self, vector: torch.Tensor, layer: int
    ) -> list[tuple[torch.nn.Module, bool, Callable[..., Any]]]:
        def before(_module: Any, inputs: Any) -> Any:
            return (inputs[0] + vector, *inputs[1:])

        return [(self.blocks[layer], True, before)]

    def candidates(
        self, directions: torch.Tensor, layers: Sequence[int], harmful: Sequence[str], harmless: Sequence[str]
    ) -> dict[str, np.ndarray]:
        base = self.last_logits(harmless).log_softmax(-1)
        directions = directions.float().to(self.model.device)
        rows: dict[str, list[np.ndarray]] = {"bypass": [], "induce": [], "kl": []}
        for at_position in directions:
            for layer, vector in zip(layers, at_position, strict=True):
                if not vector.norm():
                    continue  # the template's own tokens, before the first block: no candidate
                with hooked(self.ablation(vector / vector.norm())):
                    rows["bypass"].append(self.score(self.last_logits(harmful)).cpu().numpy())
                    changed = self.last_logits(harmless).log_softmax(-1)
                    rows["kl"].append((base.exp() * (base - changed)).sum(-1).cpu().numpy())
                with hooked(self.addition(vector, layer)):
                    rows["induce"].append(self.score(self.last_logits(harmless)).cpu().numpy())
        return {name: np.array(found) for name, found in rows.items()}


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The call's value, its seconds, and how far it raised the peak of memory, MiB."""

    def peak() -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before, started = peak(), time.perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return value, time.perf_counter() - started, peak() - before


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="`embedded`, a model folder or a .gguf file.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--batch-size", type=int, help=f"Rows per forward of ours; {BATCH}, on CUDA {CUDA_BATCH}."
    )
    parser.add_argument("--no-peer", action="store_true", help="Run caryatid only.")
    parser.add_argument("--out", type=Path, help="JSON file; default: in results/ beside this script.")
    parser.add_argument(
        "--every", type=int, default=0, help="Score every so many layers at all positions; 0: a spread."
    )
    options = parser.parse_args()
    if options.dtype != "float32" and not options.no_peer:
        parser.error("scores are compared with the peer's in float32 only: add --no-peer")
    return options


def main() -> None:
    options = parse()
    loaded = load_model(options.model, dtype=options.dtype, device=options.device)
    on_cuda = loaded.device.type == "cuda"
    batch_size = options.batch_size or (CUDA_BATCH if on_cuda else BATCH)
    chat = ChatFormat(loaded.tokenizer)
    sets = embedded_fields({"extraction_harmful": Role.EXTRACTION, "extraction_harmless": Role.EXTRACTION})
    harmful, harmless = (
        [row.user_text for row in sets[f"extraction_{side}"]][:PROMPTS] for side in ("harmful", "harmless")
    )
    total, depth = num_layers(loaded.model), POSITIONS
    layers = (
        list(range(options.every - 1, total, options.every))
        if options.every
        else [total // 6, total // 2, 5 * total // 6]
    )
    positions = list(range(-depth, 0)) if options.every else [-depth, -1]
    at = {
        name: block_inputs(loaded, chat.ids_many(texts), layers=layers, n_positions=depth, batch_size=BATCH)
        for name, texts in (("harmful", harmful), ("harmless", harmless))
    }
    directions = candidate_directions(at["harmful"], at["harmless"])[[depth + p for p in positions]]
    tokens = [chat.answer_ids("Sorry")[0], chat.answer_ids("I")[0]]
    answers = [chat.answer_ids("The")[:1]] * len(harmless)

    def ours() -> Any:
        return score_candidates(
            loaded,
            CandidateDirections.of_grid(directions, positions=positions, layers=layers),
            SelectionPrompts(chat.ids_many(harmful), chat.ids_many(harmless), answers, tokens),
            ScoringSettings(batch_size, answer_tokens=1),
        )

    peer = Peer(loaded, chat, tokens)
    peer.last_logits(harmful[:2])  # warm-up
    scores, own_seconds, own_memory = timed(loaded.device, ours)
    compared: dict[str, object] = {}
    if not options.no_peer:
        theirs, seconds, memory = timed(
            loaded.device, lambda: peer.candidates(directions, layers, harmful, harmless)
        )
        for name, values in theirs.items():
            np.testing.assert_allclose(getattr(scores, name), values, rtol=1e-4, atol=1e-4, err_msg=name)
        compared = {
            "peer_seconds": round(seconds, 2),
            "ratio": round(seconds / own_seconds, 2),
            "peer_extra_memory_mib": round(memory),
        }
    claim = "scores of candidate directions"
    result = {
        "claim": claim + (", equal to one candidate at a time (rtol 1e-4)" if compared else ""),
        "device": torch.cuda.get_device_name() if on_cuda else platform.processor() or platform.machine(),
        "dtype": options.dtype,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": options.model,
        "candidates": len(scores),
        "of": total * depth,
        "prompts": [len(harmful), len(harmless)],
        "seconds": round(own_seconds, 2),
        "extra_memory_mib": round(own_memory),
        **compared,
    }
    name = f"bench_candidates-{loaded.device.type}" + ("-bf16" if options.dtype == "bfloat16" else "")
    out = options.out or Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
