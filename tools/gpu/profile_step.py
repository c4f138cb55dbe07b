"""Print the operations that take most of a training step's time on the device.

python3 tools/gpu/profile_step.py --phase pretrain --recipe paper --device cuda
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from maevit_course.benchmark import recipe_step
from maevit_course.finetuning import FINETUNE_RECIPES
from maevit_course.pretraining import PRETRAIN_RECIPES


def profile_step(phase: str, recipe: str, device: str, batch_size: int, steps: int) -> profile:
    "Profile some training steps on random images, after three steps to warm up."
    settings = (PRETRAIN_RECIPES if phase == "pretrain" else FINETUNE_RECIPES)[recipe]
    step, size = recipe_step(settings, device), settings.model.image_size
    images = torch.rand(batch_size, 3, size, size, device=device) * 2 - 1
    labels = torch.arange(batch_size, device=device) % 10
    cuda = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(3):
        step(images, labels)
    wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as result:
        for _ in range(steps):
            step(images, labels)
        wait()
    return result


def main() -> None:
    "Read the command line and print the table."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--recipe", choices=sorted(PRETRAIN_RECIPES), default="paper")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=1408)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=25)
    args = parser.parse_args()
    result = profile_step(args.phase, args.recipe, args.device, args.batch_size, args.steps)
    cpu = torch.device(args.device).type == "cpu"
    column = "self_cpu_time_total" if cpu else "self_device_time_total"
    table = result.key_averages().table(
        sort_by=column, row_limit=args.rows, max_name_column_width=60
    )
    print(f"{args.steps} steps of {args.batch_size} images, {args.phase}, on {args.device}")
    print(table)


if __name__ == "__main__":
    main()
