"""One of several runners of the small study in one run directory; a script with two arguments: model folder, out."""

import os
import sys
from pathlib import Path

from small import small_config

from caryatid.study.flow import run_study
from caryatid.study.stages.train import Train

OVERRIDES = ("seeds=[0, 1]", "attacks.adaptive.enabled=true")

if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    if (
        "die" in sys.argv
    ):  # as if it were killed at the start of its first training; this process ends with it
        Train.run = lambda *_: os._exit(9)  # type: ignore[method-assign]
    result = run_study(small_config(folder, *OVERRIDES), out, announce=lambda line: print(line, flush=True))
    print("executed", result.executed, flush=True)
