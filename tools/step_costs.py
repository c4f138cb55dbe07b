"""Measure what a training step of each variant or model costs, for trials of equal cost.

    OMP_NUM_THREADS=1 python tools/step_costs.py ablations --data data/cifar10.npz

The cost is the processor time of one thread, augmentation included. It depends less on other
programs than the time on the clock, but an idle machine is still better. A round takes some steps
of each variant, so that a drift of the machine's speed meets all of them. The medians go to
results/<plan>/costs.json. Factors that leave the computation alone, such as α, are left out.
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
from maevit_course.paper.miniature import COMPARISONS, MINIATURES, OURS, plan_run
from maevit_course.runs import processor
from maevit_course.training import Batches

#: Factors that change the computation of a pre-training step.
MEASURED = ("mask ratio", "decoder depth", "target", "positions", "norm", "activation", "MLP ratio")


def ablations():
    "Return the recipes of pre-training by name: the base, and each value of each factor."
    trials = {"base": Trial("base", "small", seed=0)}
    for factor in MEASURED:
        for value, settings in FACTORS[factor][1].items():
            trials[f"{factor} {value}"] = Trial(factor, value, 0, settings)
    return {name: trial.pretrain for name, trial in trials.items()}


def miniature():
    "Return the recipes of supervised training by model, and that of our model's pre-training."
    any_cost = dict.fromkeys([*MINIATURES, OURS, "pre-training"], 100.0)
    comparison = next(iter(COMPARISONS))
    runs = {model: plan_run(comparison, model, 8e-3, any_cost) for model in [*MINIATURES, OURS]}
    recipes = {model: run.finetune for model, run in runs.items()}
    return recipes | {"pre-training": runs[OURS].pretrain}


def endless_steps(recipe, data):
    "Train, and yield the milliseconds of processor time of each step."
    step, task = recipe_step(recipe, "cpu", data), recipe.task(data)
    batches = Batches(data, recipe, task.transform, task.block_transform)
    for epoch in count():
        began = time.process_time()
        for images, labels in batches.epoch(epoch):
            step(images, labels)
            yield 1000 * (time.process_time() - began)
            began = time.process_time()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plan", choices=("ablations", "miniature"))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--note", default="measured on an idle machine")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, _ = load_data(args.data)
    recipes = {"ablations": ablations, "miniature": miniature}[args.plan]()
    # AutoAugment changes the images of a whole block of steps at once
    steps = {"ablations": 1, "miniature": Batches.block}[args.plan]
    runs = {name: endless_steps(recipe, train) for name, recipe in recipes.items()}
    for run in runs.values():  # warm up
        for _ in range(max(5, steps)):
            next(run)
    rounds = [
        {name: sum(next(run) for _ in range(steps)) / steps for name, run in runs.items()}
        for _ in range(args.rounds)
    ]
    found = {name: round(statistics.median(row[name] for row in rounds), 1) for name in runs}
    about = {"processor": processor(), "threads": 1, "torch": torch.__version__}
    about |= {"note": args.note, "rounds": args.rounds, "milliseconds": found}
    text = json.dumps(about, ensure_ascii=False, indent=1) + "\n"
    file = Path("results", args.plan, "costs.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
