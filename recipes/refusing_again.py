"""Measures the card of the adapter that ships again, at the sizes that the preset `quick` has now.

    python recipes/refusing_again.py              # 200 re-extractions; some minutes on a CPU
    python recipes/refusing_page.py               # then docs/embedded.md

Only what is measured at `quick`'s sizes is replaced, and says on which device; how the adapter was made stays.
"""

import argparse
import json

import torch

from caryatid.artifacts import write_json
from caryatid.config import load_config
from caryatid.data.sources import Lookup
from caryatid.data.study_prompts import build_study_prompts
from caryatid.models.load import load_model
from caryatid.models.resolve import REFUSING_FOLDER
from refusing_card import anatomy, behaviour, conditions_met, plain, quick_measuring


def main() -> None:
    """Measure, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--resamples", type=int, default=200, help="re-extractions at least")
    parser.add_argument("--device", help="cuda, cpu, …; default: the best there is")
    args = parser.parse_args()
    config, place = load_config(preset="quick"), REFUSING_FOLDER / "card.json"
    lookup = Lookup.from_environment(offline=True)
    sets = build_study_prompts(source="embedded", limits=config.prompts.limits, lookup=lookup)
    measuring = quick_measuring(config, sets, args.resamples)
    raw, refusing = (load_model(name, device=args.device) for name in ("embedded", "embedded-refusing"))
    card = json.loads(place.read_text(encoding="utf-8"))
    cuda = raw.device.type == "cuda"
    card["measured"]["quick"] = {
        "tokens": measuring.tokens,
        "raw_behaviour": behaviour(raw, measuring),
        "behaviour": behaviour(refusing, measuring),
        "carriers": anatomy(refusing, measuring, config.training.r2d2.toward_text),
        "device": torch.cuda.get_device_name(raw.device) if cuda else "a CPU",
    }
    card["conditions"]["quick"] = conditions_met(card["measured"]["quick"])
    card["passes"] = all(row["met"] for row in card["conditions"]["quick"]) and card["adapter"]["fits"]
    write_json(place, plain(card))
    for row in card["conditions"]["quick"]:
        print(f"{row['condition']}: {row['value']} (threshold {row['threshold']}, met: {row['met']})")


if __name__ == "__main__":
    main()
