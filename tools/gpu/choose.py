"""Print the runs of the longest complete comparison for which the time suffices.

python3 tools/gpu/choose.py phases.json SECONDS

A comparison pre-trains, fine-tunes, and trains from scratch for as many epochs as it fine-tunes.
"""

import json
import sys
from pathlib import Path

from maevit_course.paper.experiments import PLANS

START = 35  # seconds that a run takes in addition to its epochs
IMAGES = 50_000


def seconds(epochs: int, tuning_epochs: int, rates: dict) -> float:
    "Estimate the duration of a comparison from the measured images per second."
    pretraining = epochs * IMAGES / rates["pretrain"]["training"]
    # each epoch of fine-tuning ends with a test on 10,000 images
    tuning = tuning_epochs * (IMAGES + 4_000) / rates["finetune"]["training"]
    return pretraining + 2 * tuning + 3 * START


def main(file: str, left: str) -> None:
    "Print the names of the chosen runs."
    rates = json.loads(Path(file).read_text())
    choices = [(a, b) for a, b in PLANS["paper"].longer_epochs if b]
    fitting = [choice for choice in choices if seconds(*choice, rates) <= float(left)]
    epochs, tuning_epochs = max(fitting, default=min(choices))
    print(f"c10-{epochs} c10-{epochs}-to-c10 scratch-{tuning_epochs}-to-c10")


if __name__ == "__main__":
    main(*sys.argv[1:])
