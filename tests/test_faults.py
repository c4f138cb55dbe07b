"""Whatever happens to a run, `--resume` completes it, bit-identical to an undisturbed one."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch

from common import EPOCHS, FP16, ON_CPU, QUICK, SECONDS, digest, log, losses, maevit, run, wait_for
from maevit_course.cli import main
from maevit_course.data import load_data
from maevit_course.reports import report
from maevit_course.runs import RunRecord
from maevit_course.weights import from_bytes

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"

KILLS = int(os.environ.get("MAEVIT_KILLS", 1))
#: A fine-tuning epoch has 20 steps here: one whole block of augmented images and part of another.
FINETUNE = "--batch-size 32 --dropout 0.1 --attention-dropout 0.1 --test-every 2".split()


def command(phase, out, pretrained, *more):
    words = [phase, *QUICK, "--epochs", EPOCHS, "--out", out, "--checkpoint-minutes", 0]
    if phase == "finetune":
        words += [*FINETUNE, "--weights", pretrained]
    return maevit(*words, *more)


def start(words, **options):
    return subprocess.Popen(words, env=ON_CPU, stdout=subprocess.DEVNULL, **options)


def begun(out):
    return (out / "metrics.jsonl").exists() and bool(losses(out))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pretrained):
    "A function from a phase to its run in one process with one thread, and the seconds it took."
    done = {}

    def of(phase):
        if phase not in done:
            out = tmp_path_factory.mktemp("undisturbed") / phase
            begin = time.monotonic()
            run(command(phase, out, pretrained), check=True, stdout=subprocess.DEVNULL)
            done[phase] = out, time.monotonic() - begin
        return done[phase]

    return of


def same(out, other):
    return digest(out) == digest(other) and log(out) == log(other)


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(phase, seed, undisturbed, pretrained, tmp_path):
    "kill -9 at any time between the start of the process and its end; again while it resumes."
    whole, seconds = undisturbed(phase)
    words = command(phase, tmp_path / "run", pretrained, "--resume")
    for chance in (random.Random(seed).random(), random.Random(-seed - 1).random()):
        process = start(words)
        time.sleep(chance * seconds)
        process.kill()
        process.wait(SECONDS)
    run(words, check=True, stdout=subprocess.DEVNULL)
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_killed_in_the_middle_of_an_epoch(phase, undisturbed, pretrained, tmp_path):
    "There is a checkpoint after every step; the process is killed soon after the first epoch."
    out = tmp_path / "run"
    process = start(command(phase, out, pretrained))
    try:
        wait_for(lambda: begun(out), process)
    finally:
        process.kill()
        process.wait(SECONDS)
    run(command(phase, out, pretrained, "--resume"), check=True, stdout=subprocess.DEVNULL)
    assert same(out, undisturbed(phase)[0])


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_says_how_to_go_on(kind, undisturbed, tmp_path):
    out = tmp_path / "mae"
    process = start([*command("pretrain", out, None)[:-1], "60"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: begun(out), process)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and "--resume" in errors and errors.count("\n") == 1
    assert resume(out).returncode == 0 and same(out, undisturbed("pretrain")[0])


def resume(out, **options):
    words = command("pretrain", out, None, "--resume")
    return run(words, capture_output=True, text=True, **options)


@pytest.fixture
def stopped(tmp_path):
    "A run that was stopped after some steps, with two checkpoints."
    out = tmp_path / "mae"
    process = start(command("pretrain", out, None), stderr=subprocess.DEVNULL)
    wait_for(lambda: begun(out), process)
    process.send_signal(signal.SIGTERM)
    process.wait(SECONDS)
    return out


DAMAGES = {
    "cut": lambda content: content[:-100],
    "changed": lambda content: content[:5000] + b"\0\1\2\3" + content[5004:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(damage, stopped, undisturbed):
    (stopped / CHECKPOINT).write_bytes(DAMAGES[damage]((stopped / CHECKPOINT).read_bytes()))
    done = resume(stopped)
    assert done.returncode == 0 and "is corrupt" in done.stderr and done.stderr.count("\n") == 1
    assert same(stopped, undisturbed("pretrain")[0])


def test_two_damaged_checkpoints_are_an_error_and_stay_as_they_are(stopped):
    for name in (CHECKPOINT, PREVIOUS):
        (stopped / name).write_bytes(b"rubbish")
    before = (stopped / "metrics.jsonl").read_text()
    done = resume(stopped)
    assert done.returncode == 2 and "checkpoints" in done.stderr and "are corrupt" in done.stderr
    assert (stopped / "metrics.jsonl").read_text() == before


def test_a_full_disk_keeps_the_last_checkpoint(stopped, undisturbed):
    "Files may grow no larger than 1 MB; a checkpoint has 8."
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    done = resume(stopped, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr and "last checkpoint is intact" in done.stderr
    assert resume(stopped).returncode == 0 and same(stopped, undisturbed("pretrain")[0])


def test_a_folder_in_use_is_refused(tmp_path):
    process = start(command("pretrain", tmp_path / "mae", None))
    try:
        wait_for((tmp_path / "mae/metrics.jsonl").exists, process)
        second = resume(tmp_path / "mae")
    finally:
        process.kill()
        process.wait(SECONDS)
    assert second.returncode == 2 and "in use by another process" in second.stderr


def test_a_log_whose_last_line_was_cut_off_is_still_a_log(pretrained, tmp_path):
    "The machine can stop while a line is being written."
    out = shutil.copytree(pretrained, tmp_path / "mae")
    text = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(text[: text.rindex("{") + 20])
    assert RunRecord.load(out).epochs == EPOCHS - 1
    assert report(out, load_data("shapes", limit=40)[1]).exists()


def test_a_run_is_neither_overwritten_nor_resumed_as_another(pretrained, capsys):
    before = digest(pretrained)
    words = ["pretrain", *QUICK, "--epochs", str(EPOCHS), "--out", str(pretrained)]
    assert main(words) == 2
    assert main([*words, "--resume", "--base-lr", "0.5", "--seed", "3"]) == 2
    assert main([*words, "--resume", "--limit", "650"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("base_lr", "seed", "fingerprint"))
    assert digest(pretrained) == before


def test_a_mistake_does_not_use_up_the_folder(tmp_path, monkeypatch):
    words = ["pretrain", *QUICK, "--epochs", "1", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        too_large = mock.Mock(side_effect=torch.OutOfMemoryError)
        patch.setattr("maevit_course.pretraining.reconstruction_loss", too_large)
        assert main(words) == 2
    assert main(words) == 0


#: `maevit`, with a loss scale that makes the first fp16 steps overflow; it kills itself after the
#: n-th step of the process, n being the environment's KILL_AT.
OVERFLOW = """
import os, signal, sys, torch

class Scaler(torch.amp.GradScaler):
    steps = 0

    def __init__(self, *args, **settings):
        super().__init__(*args, init_scale=2.0**24, **settings)

    def update(self):
        super().update()
        self.steps += 1
        if self.steps == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)

torch.amp.GradScaler = Scaler
from maevit_course.cli import main
sys.exit(main())
"""


def test_killed_among_steps_that_overflow(tmp_path):
    "Of 16 steps in fp16 the first ones are skipped; after the kills there are fewer checkpoints."

    def train(out, kill_at=0):
        words = ["pretrain", *FP16, "--epochs", 4, "--warmup-epochs", 0, "--out", out, "--resume"]
        words = [sys.executable, "-c", OVERFLOW, *map(str, words), "--checkpoint-minutes", "0"]
        environment = ON_CPU | {"KILL_AT": str(kill_at)}
        done = subprocess.run(words, env=environment, timeout=SECONDS, stdout=subprocess.DEVNULL)
        return done.returncode

    assert train(tmp_path / "whole") == 0
    assert [train(tmp_path / "parts", n) for n in (3, 2)] == [-signal.SIGKILL] * 2
    tensors, about = from_bytes((tmp_path / "parts" / CHECKPOINT).read_bytes())
    assert about["step"] == 3 and tensors["scaler.scale"] == 2.0**21  # 2 + 1 steps are saved
    assert train(tmp_path / "parts") == 0
    assert same(tmp_path / "parts", tmp_path / "whole")
    scales = [line["loss_scale"] for line in log(tmp_path / "whole")]
    assert scales[0] == 2.0**20 and scales[-1] < scales[0]
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


def test_divergence_names_step_and_learning_rate(tmp_path, capsys):
    words = ["pretrain", *QUICK, "--epochs", "3", "--base-lr", "1e30"]
    assert main([*words, "--out", str(tmp_path / "mae")]) == 1
    error = capsys.readouterr().err
    assert "epoch 1, step " in error and "learning rate" in error and "lower base_lr" in error
    assert not (tmp_path / "mae/model.safetensors").exists()
