"""What a device that was not timed may need for a study's work: a guess from the size of the model.

What matters is how kinds of work compare, which is what the embedded backbone showed on a CPU and Qwen2.5-0.5B on a
GPU; the scale is corrected by the first stages that are finished (`remaining`).
"""

import torch

from ..models.machine import threads
from .calibration import Rates
from .costs import TIMED
from .stage import Study

FLOPS = {"cpu": 5e10, "gpu": 4e13}  # a second; of one thread of a CPU, and of a GPU
TOKENS = {
    "cpu": {
        "tokens": 1.0, "decoded": 2.0, "trained": 3.5, "candidates": 25.0, "loaded": 110.0, "adapted": 110.0,
        "prepared": 75.0, "passes": 20.0, "steps": 11.0, "updates": 37.0, "attacks": 55.0, "attack_steps": 110.0,
        "angles": 6.0,
    },
    "gpu": {"tokens": 1.0, "decoded": 2.0, "trained": 3.5, "candidates": 10.0},
}  # fmt: skip
"""What grows with the model, in tokens run forward; a candidate is a suffix and its target, prefixes being shared."""
SECONDS = {
    "cpu": {},
    "gpu": {
        "loaded": 4.0, "adapted": 1.0, "prepared": 0.5, "passes": 0.05, "steps": 0.05, "updates": 0.2,
        "attacks": 0.1, "attack_steps": 0.02, "angles": 0.1,
    },
}  # fmt: skip
"""What is taken not to grow: launches, mostly."""


def nominal_rates(study: Study, parameters: int) -> Rates:
    """Seconds per unit of work of a model of so many parameters on the study's device, as far as can be guessed."""
    kind = "cpu" if torch.device(study.facts.device).type == "cpu" else "gpu"
    token = 2 * parameters / (FLOPS[kind] * (threads().used if kind == "cpu" else 1))
    grows, stays = TOKENS[kind], SECONDS[kind]
    seconds = {name: grows.get(name, 0.0) * token + stays.get(name, 0.0) for name in TIMED}
    return Rates(seconds)
