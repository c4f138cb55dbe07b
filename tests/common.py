"""What tests of the command line share."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from maevit_course.data import load_data

_folder = tempfile.TemporaryDirectory()  # deleted when this process ends


def _few_shapes():
    "Write 640 training and 160 test images of the toy world to a file."
    train, test = load_data("shapes", limit=640)
    arrays = {"class_names": np.array(train.classes)}
    for split, data in (("train", train), ("test", test[:160])):
        arrays[f"{split}_images"] = data.images.permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = data.labels.numpy()
    np.savez(Path(_folder.name) / "toys.npz", **arrays)
    return str(Path(_folder.name) / "toys.npz")


#: A recipe that takes seconds: 5 steps per epoch, the same on any CPU.
DATA = ["--data", _few_shapes()]
QUICK = [*DATA, "--recipe", "small", "--precision", "fp32"]
EPOCHS = 6
#: A recipe in fp16, which is slow on a CPU: 4 steps per epoch of a tiny model.
SIZES = "--image-size 12 --patch-size 3 --width 24 --depth 1 --heads 3".split()
SIZES += "--decoder-width 24 --decoder-depth 1 --decoder-heads 3".split()
FP16 = [*DATA, "--limit", "60", "--batch-size", "15", *SIZES, "--precision", "fp16"]
#: For processes that must end with the same bits, or share a machine with one GPU or none.
ON_CPU = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
#: No child process may take longer; a busy machine needs a small part of it.
SECONDS = 900


def maevit(*words):
    return [sys.executable, "-m", "maevit_course.cli", *map(str, words)]


def run(words, **options):
    "Run a command to its end and return the finished process."
    return subprocess.run(words, timeout=SECONDS, env=ON_CPU, **options)


def wait_for(condition, process):
    "Wait until `condition()` is true. Fails if the process ends first or the time is up."
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, f"the process ended with status {process.returncode}"
        assert time.monotonic() < end, f"not after {SECONDS} s"
        time.sleep(0.02)


def digest(run):
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def log(run):
    "The lines of a run's log without what depends on the clock."
    clock = ("seconds", "images_per_s")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def losses(run):
    return [line["loss"] for line in log(run)]
