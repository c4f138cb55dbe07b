"""Measure what a pre-training step of each variant costs, for trials of equal cost.

    OMP_NUM_THREADS=1 python tools/ablation_costs.py --data data/cifar10.npz

The cost is the processor time of one thread, augmentation included. It depends less on other
programs than the time on the clock, but an idle machine is still better. A round takes one step of
each variant, so that a drift of the machine's speed meets all of them. The medians go to
results/ablations/costs.json. Factors that leave the computation alone, such as α, are left out.
"""

import argparse
import json
import statistics
import time
from itertools import count
from pathlib import Path

import torch

from maevit_course.benchmark import recipe_step
from maevit_course.data import load_data
from maevit_course.paper.ablations import FACTORS, Trial
from maevit_course.runs import processor
from maevit_course.training import Batches

#: Factors that change the computation of a pre-training step.
MEASURED = ("mask ratio", "decoder depth", "target", "positions", "norm", "activation", "MLP ratio")


def endless_steps(recipe, data):
    "Train, and yield the milliseconds of processor time of each step."
    step = recipe_step(recipe, "cpu", data)
    batches = Batches(data, recipe, recipe.task(data).transform)
    for epoch in count():
        began = time.process_time()
        for images, labels in batches.epoch(epoch):
            step(images, labels)
            yield 1000 * (time.process_time() - began)
            began = time.process_time()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--note", default="measured on an idle machine")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, _ = load_data(args.data)
    trials = {"base": Trial("base", "small", seed=0)}
    for factor in MEASURED:
        for value, settings in FACTORS[factor][1].items():
            trials[f"{factor} {value}"] = Trial(factor, value, 0, settings)
    runs = {name: endless_steps(trial.pretrain, train) for name, trial in trials.items()}
    rounds = [{name: next(run) for name, run in runs.items()} for _ in range(args.rounds + 5)]
    times = {name: [row[name] for row in rounds[5:]] for name in runs}  # the first ones warm up
    found = {name: round(statistics.median(values), 1) for name, values in times.items()}
    about = {"processor": processor(), "threads": 1, "torch": torch.__version__}
    about |= {"note": args.note, "rounds": args.rounds, "milliseconds": found}
    text = json.dumps(about, ensure_ascii=False, indent=1) + "\n"
    Path("results/ablations").mkdir(parents=True, exist_ok=True)
    Path("results/ablations/costs.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
