"""What a decoding step takes longer behind a long context: it reads, and copies, all keys and values before it."""

import time

import torch

from ..models.generate import Decoding, generate_ids
from ..models.load import LoadedModel

SHORT, LONG = 16, 512  # tokens of the prompts; where the model takes fewer, half of what it takes
STEPS = 8  # decoding steps that are timed behind each
ROWS = 32  # decoded together at most: what a token takes does not depend on it
RUNS = 2  # of each length; the faster one counts


def seconds_per_attended(loaded: LoadedModel, rows: int) -> float:
    """Seconds that a decoding step takes for each token before it, of one row of `rows` that are decoded together.

    From steps behind prompts of two lengths; what it takes to read the prompts is timed alone and taken off.
    """
    rows = min(rows, ROWS)
    config = loaded.model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or 2 * LONG
    longest = max(SHORT + 1, min(LONG, most // 2))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(int(config.vocab_size), (rows, longest), generator=generator).tolist()

    def seconds(length: int, new_tokens: int) -> float:
        started = time.perf_counter()
        generate_ids(loaded, [row[:length] for row in prompts], Decoding(new_tokens, rows), stop=())
        if loaded.device.type == "cuda":
            torch.cuda.synchronize(loaded.device)
        return time.perf_counter() - started

    def step(length: int) -> float:
        seconds(length, 1 + STEPS)  # what happens once only
        whole, reading = (min(seconds(length, new) for _ in range(RUNS)) for new in (1 + STEPS, 1))
        return (whole - reading) / STEPS

    return max(step(longest) - step(SHORT), 0.0) / (rows * (longest - SHORT))
