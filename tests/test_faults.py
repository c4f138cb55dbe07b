"""Whatever happens to a run, `--resume` goes on and ends with the bits of an undisturbed one."""

import os
import random
import resource
import signal
import subprocess
import time

import pytest

from common import EPOCHS, ON_CPU, QUICK, digest, losses, maevit
from maevit_course.cli import main
from maevit_course.runs import CHECKPOINT, PREVIOUS

KILLS = int(os.environ.get("MAEVIT_KILLS", 3))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A run in a process of its own, one thread; its folder and the seconds it took."
    out = tmp_path_factory.mktemp("undisturbed") / "mae"
    start = time.monotonic()
    subprocess.run(command(out), check=True, env=ON_CPU, stdout=subprocess.DEVNULL)
    return out, time.monotonic() - start


def command(out, *more):
    return maevit(
        "pretrain", *QUICK, "--epochs", EPOCHS, "--out", out, "--checkpoint-minutes", 0, *more
    )


def resume(out):
    return subprocess.run(command(out, "--resume"), env=ON_CPU, capture_output=True, text=True)


def same(out, undisturbed):
    return digest(out) == digest(undisturbed[0]) and losses(out) == losses(undisturbed[0])


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(seed, undisturbed, tmp_path):
    "kill -9 at any time between the start of the process and its end; again while it resumes."
    out = tmp_path / "mae"
    for chance in (random.Random(seed).random(), random.Random(-seed - 1).random()):
        process = subprocess.Popen(command(out, "--resume"), env=ON_CPU, stdout=subprocess.DEVNULL)
        time.sleep(chance * undisturbed[1])
        process.kill()
        process.wait()
    assert resume(out).returncode == 0
    assert same(out, undisturbed)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_says_how_to_go_on(kind, undisturbed, tmp_path):
    out = tmp_path / "mae"
    process = subprocess.Popen(
        command(out)[:-1] + ["60"], env=ON_CPU, stderr=subprocess.PIPE, text=True
    )
    while not (out / "metrics.jsonl").exists() or not losses(out):
        time.sleep(0.02)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in errors and errors.count("\n") == 1
    assert resume(out).returncode == 0 and same(out, undisturbed)


@pytest.fixture
def stopped(tmp_path):
    "A run that was stopped after some steps, with two checkpoints."
    out = tmp_path / "mae"
    process = subprocess.Popen(
        command(out), env=ON_CPU, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (out / "metrics.jsonl").exists() or not losses(out):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return out


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:5000] + b"\0\1\2\3" + content[5004:],
        lambda content: b"",
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(damage, stopped, undisturbed):
    (stopped / CHECKPOINT).write_bytes(damage((stopped / CHECKPOINT).read_bytes()))
    done = resume(stopped)
    assert done.returncode == 0 and "damaged" in done.stderr and done.stderr.count("\n") == 1
    assert same(stopped, undisturbed)


def test_two_damaged_checkpoints_are_an_error_and_stay_as_they_are(stopped):
    for name in (CHECKPOINT, PREVIOUS):
        (stopped / name).write_bytes(b"rubbish")
    before = (stopped / "metrics.jsonl").read_text()
    done = resume(stopped)
    assert (
        done.returncode == 2
        and "no checkpoint" in done.stderr
        and (stopped / "metrics.jsonl").read_text() == before
    )


def test_a_full_disk_keeps_the_last_checkpoint(stopped, undisturbed):
    "Files may grow no larger than 1 MB; a checkpoint has 8."
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    done = subprocess.run(
        command(stopped, "--resume"), env=ON_CPU, preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr and "last checkpoint is whole" in done.stderr
    assert resume(stopped).returncode == 0 and same(stopped, undisturbed)


def test_a_folder_in_use_is_refused(tmp_path):
    process = subprocess.Popen(command(tmp_path / "mae"), env=ON_CPU, stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "mae/metrics.jsonl").exists():
            time.sleep(0.02)
        second = resume(tmp_path / "mae")
    finally:
        process.kill()
        process.wait()
    assert second.returncode == 2 and "in use by another process" in second.stderr


def test_a_run_is_neither_overwritten_nor_resumed_as_another(pretrained, capsys):
    before = digest(pretrained)
    words = ["pretrain", *QUICK, "--epochs", str(EPOCHS), "--out", str(pretrained)]
    assert main(words) == 2
    assert main([*words, "--resume", "--base-lr", "0.5", "--seed", "3"]) == 2
    assert main([*words, "--resume", "--limit", "650"]) == 2
    error = capsys.readouterr().err
    assert (
        all(name in error for name in ("base_lr", "seed", "fingerprint"))
        and digest(pretrained) == before
    )


def test_a_mistake_does_not_use_up_the_folder(tmp_path):
    words = [
        "pretrain",
        "--data",
        "shapes",
        "--limit",
        "100",
        "--recipe",
        "small",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(words) == 2  # fewer images than a batch
    assert main([*words, "--batch-size", "50"]) == 0


def test_divergence_names_step_and_learning_rate(tmp_path, capsys):
    assert (
        main(
            [
                "pretrain",
                *QUICK,
                "--epochs",
                "3",
                "--base-lr",
                "1e30",
                "--out",
                str(tmp_path / "mae"),
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "epoch 1, step " in error and "learning rate" in error and "lower base_lr" in error
    assert not (tmp_path / "mae/model.safetensors").exists()
