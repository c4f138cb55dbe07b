"""Measure training on a device: `phases` or `peers`.

    python3 tools/gpu/measure.py phases --device cuda
    python3 tools/gpu/measure.py peers --device cuda

`phases` measures the images per second of both phases and the speed of copying, and profiles both.
`peers` compares our pre-training step with that of Hugging Face. Everything is compiled first. With
`--wait FILE`, the measurements begin once that file exists, so that several processes can compile
at the same time and measure one after the other. With `--attention NAME`, the model computes
attention in one of the ways of attention.py.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import peers
import torch
from attention import WAYS
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from maevit_course import transformer
from maevit_course.benchmark import calls_per_second, workloads
from maevit_course.data import ImageData
from maevit_course.finetuning import FINETUNE_RECIPES, FinetuneRecipe
from maevit_course.pretraining import PRETRAIN_RECIPES, PretrainRecipe
from maevit_course.training import Batches


class Phase:
    "The training of a recipe on random images."

    def __init__(self, recipe: PretrainRecipe | FinetuneRecipe, device: torch.device):
        self.recipe, self.device = recipe, device
        n = recipe.batch_size * Batches.block
        images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
        data = ImageData(images, torch.arange(n) % 10, tuple("0123456789"), "noise").to(device)
        self.works, self.repeats = workloads(data, recipe, device)

    def train(self, steps: int) -> None:
        "Train for some steps, and wait for the device."
        for _ in range(steps):
            self.works["training"]()
        torch.get_device_module(self.device).synchronize()

    def rates(self, seconds: float) -> dict[str, float]:
        "Return the images per second of the data alone, the step alone, and both together."
        size = self.recipe.batch_size
        return {
            name: round(size * calls_per_second(work, self.device, seconds, self.repeats), 1)
            for name, work in self.works.items()
        }

    def profile(self, steps: int, rows: int) -> str:
        "Return a table of the operations that take most of the time on the device."
        cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as result:
            self.train(steps)
        column = "self_device_time_total" if cuda else "self_cpu_time_total"
        return result.key_averages().table(sort_by=column, row_limit=rows, max_name_column_width=60)


def copied_bytes_per_second(device: torch.device, gigabytes: float) -> float:
    "Copy a large tensor on the device, and count the bytes read and written."
    source = torch.rand(round(gigabytes * 2**28), device=device)
    target = torch.empty_like(source)
    rate = calls_per_second(lambda: target.copy_(source), device, 0.5, 5)
    return 2 * source.numel() * source.element_size() * rate


def time_peers(steps: dict[str, peers.Step], images: Tensor, args: argparse.Namespace) -> dict:
    "Return the images per second of each step, the median of interleaved rounds."
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(peers.seconds(step, images, args.steps))
    work = args.steps * len(images)
    return {name: round(work / statistics.median(values), 1) for name, values in times.items()}


def measure_phases(args: argparse.Namespace, device: torch.device) -> None:
    "Measure the rates of both phases and the copying speed, and print the profiles."
    phases = {}
    for name, choices in {"pretrain": PRETRAIN_RECIPES, "finetune": FINETUNE_RECIPES}.items():
        recipe = choices[args.recipe]
        size = args.batch_size or recipe.batch_size
        phases[name] = Phase(replace(recipe, batch_size=size).resolve(device, size), device)
    for name, phase in phases.items():
        began = time.perf_counter()
        phase.train(2)
        print(f"{name}: compiled in {time.perf_counter() - began:.0f} s", flush=True)
    wait_for(args.wait)
    results: dict = {"torch": torch.__version__, "device": args.device}
    results["attention"] = args.attention or "the model's own"
    if device.type == "cuda":
        results["device"] = torch.cuda.get_device_name()
    for name, phase in phases.items():
        results[name] = phase.rates(args.seconds) | {"batch": phase.recipe.batch_size}
    results["copy, GB/s"] = round(copied_bytes_per_second(device, args.gigabytes) / 1e9, 1)
    print(json.dumps(results, indent=1), flush=True)
    for name, phase in phases.items():
        print(f"{args.steps} steps of {phase.recipe.batch_size} images, {name}")
        print(phase.profile(args.steps, args.rows), flush=True)


def measure_peers(args: argparse.Namespace, device: torch.device) -> None:
    "Measure our step and that of Hugging Face, both without dropout."
    steps, size = peers.all_steps(args.device), peers.CONFIG.image_size
    n = args.batch_size or PRETRAIN_RECIPES["paper"].batch_size
    images = torch.rand(n, 3, size, size, device=device) * 2 - 1
    for name, step in steps.items():
        began = time.perf_counter()
        peers.seconds(step, images, 2)
        print(f"{name}: compiled in {time.perf_counter() - began:.0f} s", flush=True)
    wait_for(args.wait)
    results = {"batch": n, "images per second": time_peers(steps, images, args)}
    print(json.dumps(results, indent=1), flush=True)


def wait_for(file: Path | None) -> None:
    "Say that everything is compiled, and wait until a file exists."
    print("all is compiled", flush=True)
    while file and not file.exists():
        time.sleep(0.1)


def main() -> None:
    "Read the command line and measure."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["phases", "peers"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--recipe", choices=sorted(PRETRAIN_RECIPES), default="paper")
    parser.add_argument("--batch-size", type=int, help="instead of the recipes' own")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each rate")
    parser.add_argument("--rounds", type=int, default=5, help="of the peers")
    parser.add_argument(
        "--steps",
        type=int,
        default=16,
        help="of each round and each profile; 16 make a whole block",
    )
    parser.add_argument("--rows", type=int, default=25, help="of each profile")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="to copy")
    parser.add_argument("--attention", choices=sorted(WAYS), help="instead of the model's own")
    parser.add_argument("--wait", type=Path, help="file that starts the measurements")
    args = parser.parse_args()
    if args.attention:
        transformer.attention = WAYS[args.attention]
    {"phases": measure_phases, "peers": measure_peers}[args.what](args, torch.device(args.device))


if __name__ == "__main__":
    main()
