"""What tests of the command line share."""

import hashlib
import json
import os
import sys

#: A recipe of seconds: 5 steps an epoch, exact on any CPU.
QUICK = ["--data", "shapes", "--limit", "640", "--recipe", "small", "--precision", "fp32"]
EPOCHS = 6
#: For processes that must end with the same bits, or share a machine with one GPU or none.
ON_CPU = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def maevit(*words):
    return [sys.executable, "-m", "maevit_course.cli", *map(str, words)]


def digest(run):
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
