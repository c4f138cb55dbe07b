"""Try one change to a training plan on held-out images, and note the result.

    python tools/ladder.py "Muon" --data data/cifar10.npz --seed 0 \\
        --pretrain epochs=8 optimizer=muon --finetune epochs=8 optimizer=muon --model width=192

Settings that are not given are those of the recipe `small-0.1`. In addition, `--pretrain` takes
`target`, which is "normalised", "raw" or "patch" as in lesson 32. The model trains on 45,000 of the
50,000 training images and is measured on the other 5,000; the test images are not used. Each trial
adds one line to results/<plan>/trials.jsonl. Trials with the same pre-training share it.

With `--labels-per-class`, the classifier learns from few labels, and the line goes to
results/<plan>/few-labels.jsonl. With `--weights`, it starts from given weights; their training may
have used the held-out images, but no labels.
"""

import argparse
import ast
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from maevit_course.core import InputError, fingerprint
from maevit_course.data import load_data
from maevit_course.finetuning import FINETUNE_RECIPES, finetune
from maevit_course.paper.ablations import CHOICES, set_target
from maevit_course.pretraining import PRETRAIN_RECIPES, PretrainRecipe, pretrain
from maevit_course.runs import RunRecord
from maevit_course.training import RunOptions
from maevit_course.weights import MODEL


@dataclass(frozen=True, kw_only=True)
class WithTarget(PretrainRecipe):
    "Settings for pre-training with another target; the weights fit the plain model."

    target: str

    def __post_init__(self):
        super().__post_init__()
        if self.target not in CHOICES["target"]:
            allowed = ", ".join(CHOICES["target"])
            raise InputError(f"target is {self.target!r} but must be one of {allowed}")

    def task(self, *arguments):
        task = super().task(*arguments)
        set_target(task.model, self.target)
        return task


def settings(pairs):
    "Read `name=value` pairs; a value that is no Python literal is a string."
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


def differing(recipe, base):
    "Return the settings in which a recipe differs from another one, with dots for nested ones."
    found = {}
    old = asdict(base)
    for name, value in asdict(recipe).items():
        if name == "model":
            changed = {f"model.{k}": v for k, v in value.items() if v != old[name][k]}
            found |= changed
        elif value != old.get(name) and name not in ("seed", "test_every"):
            found[name] = value
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("change", help="what is tried, in a few words")
    parser.add_argument("--plan", default="hour", help="folder of results/ for the line")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of this process")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ladder"), help="folder for the runs"
    )
    for part in ("pretrain", "finetune", "model"):
        parser.add_argument(f"--{part}", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--scratch", action="store_true", help="leave the pre-training out")
    parser.add_argument("--weights", help="start from these weights instead of pre-training")
    parser.add_argument("--labels-per-class", type=int, help="default: all labels")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    base, tuned = PRETRAIN_RECIPES["small-0.1"], FINETUNE_RECIPES["small-0.1"]
    model = replace(base.model, **settings(args.model))
    whole = replace(model, pool="dummy")  # pre-training does not pool
    values = vars(base) | {"model": whole, "seed": args.seed} | settings(args.pretrain)
    first = (WithTarget if "target" in values else PretrainRecipe)(**values)
    second = replace(
        tuned, model=model, seed=args.seed, **({"test_every": 5} | settings(args.finetune))
    )
    data, _ = load_data(args.data)
    train, held_out = data.split(0.1, seed=0)
    labelled = train
    if args.labels_per_class:
        labelled = train.few_labels(args.labels_per_class, args.seed)
    options = RunOptions(resume=True, device="cpu", progress=False)

    def folder(*parts):
        return args.runs / fingerprint(json.dumps([args.data, *parts], sort_keys=True))[:12]

    weights, pretraining = args.weights, []
    if not (args.scratch or args.weights):
        weights = folder(asdict(first))
        if not (weights / MODEL).exists():
            pretrain(train, first, weights, options)
        pretraining = RunRecord.load(weights).history
    start = args.weights or (asdict(first) if pretraining else None)
    out = folder(start, asdict(second), args.labels_per_class)
    finetune(labelled, held_out, second, out, weights, options)
    record = RunRecord.load(out)
    last = record.history[-1]
    line = {
        "change": args.change,
        "seed": args.seed,
        "pretrain": {"epochs": first.epochs} | differing(first, base) if pretraining else None,
        "finetune": {"epochs": second.epochs} | differing(second, tuned),
        "accuracy": round(last["test_accuracy"], 4),
        "cross_entropy": round(last["test_loss"], 4),
        "pretrain_loss": round(pretraining[-1]["loss"], 5) if pretraining else None,
        "minutes": round(sum(h[-1]["seconds"] for h in (record.history, pretraining) if h) / 60, 1),
        "processor": record.environment["cpu"],
    }
    name = "trials.jsonl"
    if args.weights:  # without it, a line that names no pre-training is one from scratch
        line["weights"] = args.weights
    if args.labels_per_class:
        line["labels_per_class"] = args.labels_per_class
        name = "few-labels.jsonl"
    log = Path("results") / args.plan / name
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
