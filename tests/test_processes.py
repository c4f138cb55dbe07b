"""Two processes train as one does, and resume what one has begun."""

import json
import socket
import subprocess
import sys

import pytest
import torch

from common import ON_CPU, QUICK, losses, maevit
from maevit_course.augmentation import AutoAugmentBatch, RandomResizedCropFlip
from maevit_course.core import InputError, World, pick_device
from maevit_course.data import load_data
from maevit_course.runs import RunRecord
from maevit_course.training import Batches, Recipe

EPOCHS = 3


def torchrun(processes, *words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            f"--master_port={port}",
            *words,
        ],
        env=ON_CPU,
        capture_output=True,
        text=True,
        timeout=300,
    )


def pretrain(out, *more):
    return [
        "-m",
        "maevit_course.cli",
        "pretrain",
        *QUICK,
        "--epochs",
        str(EPOCHS),
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_two_processes_give_the_loss_curve_of_one(phase, tmp_path):
    words = [phase, *QUICK, "--epochs", str(EPOCHS)]
    subprocess.run(
        maevit(*words, "--out", tmp_path / "one"), check=True, stdout=subprocess.DEVNULL, env=ON_CPU
    )
    done = torchrun(2, "-m", "maevit_course.cli", *words, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert done.stdout.count("report:") == 1  # only the first speaks


def test_begun_by_one_process_and_resumed_by_two(pretrained, tmp_path):
    out = tmp_path / "mae"
    stopped = subprocess.run(
        [sys.executable, *pretrain(out, "--minutes", "0.001")],
        env=ON_CPU,
        capture_output=True,
        text=True,
    )
    assert stopped.returncode == 130
    done = torchrun(2, *pretrain(out, "--resume"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    whole = subprocess.run(
        [sys.executable, *pretrain(tmp_path / "whole")], env=ON_CPU, capture_output=True
    )
    assert whole.returncode == 0 and losses(out) == pytest.approx(
        losses(tmp_path / "whole"), rel=1e-4
    )


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    done = torchrun(2, *pretrain(tmp_path / "mae", "--batch-size", "33"))
    assert (
        done.returncode != 0
        and "batch_size 33 cannot be shared equally by 2 processes" in done.stderr
    )
    assert not (tmp_path / "mae/model.safetensors").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="4 processes share this machine, but it has 2 GPUs"):
        pick_device("cuda", World(0, 4))


def test_shares_of_a_batch_do_not_overlap():
    """In an epoch with AutoAugment's blocks, each image is in one process only.

    All random numbers are those of a single process.
    """
    train, _ = load_data("shapes", limit=400)
    recipe = Recipe(epochs=1, warmup_epochs=0, batch_size=12, base_lr=1e-3)

    def batches(rank, size):
        world = World(rank, size)
        crop = RandomResizedCropFlip(32, world=world)
        shared = Batches(train, recipe, crop, AutoAugmentBatch(world), world)
        return [images for images, _ in shared.epoch(0)]

    alone = batches(0, 1)
    parts = zip(*[batches(rank, 3) for rank in range(3)])
    assert all(
        torch.equal(torch.stack(shares, 1).flatten(0, 1), whole)
        for shares, whole in zip(parts, alone, strict=True)
    )


TWO_PHASES = """
import sys
from dataclasses import replace
from maevit_course import FINETUNE_RECIPES, PRETRAIN_RECIPES, finetune, load_data, pretrain

train, test = load_data(sys.argv[1])
recipes = [table["small"].with_epochs(1) for table in (PRETRAIN_RECIPES, FINETUNE_RECIPES)]
first, second = (replace(recipe, precision="fp32") for recipe in recipes)
pretrain(train, first, sys.argv[2] + "/mae")
print(finetune(train, test, second, sys.argv[2] + "/classifier", sys.argv[2] + "/mae").classes[0])
"""


def test_processes_share_one_phase_after_the_other(tmp_path):
    "The second phase connects again, and finds the weights that the first process has written."
    (tmp_path / "phases.py").write_text(TWO_PHASES)
    done = torchrun(2, str(tmp_path / "phases.py"), QUICK[1], str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "classifier")) == 1


PLAN = """
import sys
from dataclasses import replace
from pathlib import Path
from maevit_course import FINETUNE_RECIPES, PRETRAIN_RECIPES, load_data
from maevit_course.paper.experiments import Experiment, reproduce
from maevit_course.training import RunOptions

train, test = load_data(sys.argv[1])
recipes = [table["small"].with_epochs(1) for table in (PRETRAIN_RECIPES, FINETUNE_RECIPES)]
first, second = (replace(recipe, precision="fp32") for recipe in recipes)
start = Experiment("mae", "toys", first)
runs = [start, Experiment("classifier", "toys", second, start)]
folders = [Path(sys.argv[2]) / name for name in ("runs", "results")]
reproduce(runs, {"toys": (train, test)}, *folders, RunOptions(device="cpu", progress=False))
"""


def test_processes_share_a_plan(tmp_path):
    "Each run has a record, which one process wrote, and a second launch has nothing to do."
    (tmp_path / "plan.py").write_text(PLAN)
    words = str(tmp_path / "plan.py"), QUICK[1], str(tmp_path)
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    for name in ("mae", "classifier"):
        record = RunRecord.load(tmp_path / "results" / name)
        assert record.environment["processes"] == 2 and record.summary["measured"]
    assert done.stdout.count("1/2 mae: 1 epochs") == 1  # only the first process reports
    again = torchrun(2, *words)
    assert again.returncode == 0 and again.stdout.count("done before") == 2, again.stderr
