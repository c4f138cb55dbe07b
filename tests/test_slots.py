"""The scripts for short slots on a GPU fit together, and fit the plan.

`python tools/gpu/dry_run.py FOLDER` rehearses the whole chain, in minutes.
"""

import itertools
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from packaging.requirements import Requirement

from conftest import ROOT
from maevit_course.paper.experiments import PLANS, list_runs
from notebooks import SETTINGS as PACKAGE

TOOLS = ROOT / "tools/gpu"
sys.path.insert(0, str(TOOLS))
import home  # noqa: E402
import pieces  # noqa: E402
import sheets  # noqa: E402

SETTINGS = {name: home.read_settings(TOOLS / f"{name}.sh") for name in ("settings", "settings-dry")}
MOST_TRACKED_BYTES = 44 << 20


def runs_of(settings):
    return settings["RUNS"].split()


@pytest.mark.parametrize("script", sorted(path.name for path in TOOLS.glob("*.sh")))
def test_bash_can_read_a_script(script):
    subprocess.run(["bash", "-n", TOOLS / script], check=True)


def test_settings_files_define_the_same_names_and_bash_reads_what_python_reads():
    assert SETTINGS["settings"].keys() == SETTINGS["settings-dry"].keys()
    for name, settings in SETTINGS.items():
        words = " ".join(f'"${key}"' for key in settings)
        command = f"source tools/gpu/{name}.sh; printf '%s\\n' {words}"
        said = subprocess.check_output(["bash", "-uc", command], cwd=ROOT, text=True)
        assert said.splitlines() == list(settings.values())


def test_scripts_use_no_setting_that_is_not_defined():
    used = set()
    for path in (path for path in TOOLS.glob("*.sh") if not path.name.startswith("settings")):
        used |= set(re.findall(r"\$\{?([A-Z_]{4,})\b", path.read_text()))
    own = {"SECONDS", "PYTHONPATH"}
    assert used - own <= SETTINGS["settings"].keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_run_is_in_the_plan_and_comes_after_the_one_it_starts_from(name):
    settings = SETTINGS[name]
    plan = {run.name: run for run in list_runs(PLANS[settings["SCALE"]])}
    names = runs_of(settings)
    for i, run in enumerate(names):
        experiment = plan[run]
        assert home.data_of(run) == {"c10": "cifar10", "c100": "cifar100"}[experiment.data]
        if experiment.start:
            assert run.split("-to-")[0] == experiment.start.name in names[:i]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tasks_of_a_slot_exist(name):
    tasks = re.findall(r"^run_(\w+)\(\)", (TOOLS / "background.sh").read_text(), re.MULTILINE)
    assert set(SETTINGS[name]["TASKS"].split()) <= set(tasks) == {"speed", "tests", "attention"}


def test_bash_and_python_agree_on_the_data_of_a_run():
    source = (TOOLS / "background.sh").read_text()
    (function,) = re.findall(r"^data_of\(\) \{.*?^\}", source, flags=re.DOTALL | re.MULTILINE)
    for run in runs_of(SETTINGS["settings"]):
        said = subprocess.check_output(["bash", "-c", f"{function}\ndata_of {run}"], text=True)
        assert said.strip() == home.data_of(run)


def test_the_timetable_lists_the_runs_with_their_epochs_and_minutes():
    rows = re.findall(
        r"^\| `(\S+)` \| (\d+) \| (\S+) \| (\S+) \|$",
        (TOOLS / "README.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert [row[0] for row in rows] == runs_of(SETTINGS["settings"])
    plan = {run.name: run for run in list_runs(PLANS["paper"])}
    for name, *numbers in rows:
        epochs = plan[name].recipe.epochs
        minutes = epochs * 50_000 / (52_000 if plan[name].pretrains else 28_000) / 60
        assert numbers == [str(epochs), f"{minutes:.1f}", f"{1.5 * minutes:.1f}"]


def test_what_the_library_needs_is_on_the_machine_or_travels_as_a_wheel():
    settings = SETTINGS["settings"]
    there = {*settings["MACHINE"].split(), *settings["WHEELS"].split()}
    names = {Requirement(text).name for text in there}
    needed = {Requirement(text).name for text in PACKAGE["requirements"].split()}
    assert needed <= names


def test_tracked_files_leave_room_in_a_call():
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    sizes = [(ROOT / name).lstat().st_size for name in names if name and (ROOT / name).exists()]
    assert 0 < sum(sizes) <= MOST_TRACKED_BYTES


def test_images_and_pieces_survive_the_journey(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (1001, 8, 8, 3), dtype=np.uint8),
        "train_labels": rng.integers(0, 10, (1001, 1)),
        "class_names": np.array(["a", "b"]),
    }
    np.savez(tmp_path / "toy.npz", **arrays)
    sheets.encode(tmp_path / "toy.npz", tmp_path / "toy")
    files = [f"toy/{path.name}" for path in (tmp_path / "toy").iterdir()]
    seconds = itertools.count(1e9)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    assert pieces.pack(tmp_path, files) == pieces.pack(tmp_path, files)  # has the same name again
    made = pieces.split(pieces.pack(tmp_path, files), "toy.tar", tmp_path / "in", 10_000)
    assert len(made) > 10 and max(path.stat().st_size for path in made) == 10_000
    (tmp_path / "in/pieces.txt").write_text("\n".join(path.name for path in made))

    late = made[3].read_bytes()
    made[3].unlink()
    work = tmp_path / "work"
    pieces.receive(tmp_path / "in", work)
    assert pieces.missing(tmp_path / "in", work) == [made[3].name]
    made[3].write_bytes(late)
    pieces.receive(tmp_path / "in", work)
    assert not pieces.missing(tmp_path / "in", work)

    sheets.decode(work / "toy", tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        assert again.files == list(arrays)
        assert all((again[name] == array).all() for name, array in arrays.items())


def test_damaged_pieces_are_refused_and_asked_for_again(tmp_path):
    (tmp_path / "file.txt").write_text("content")
    content = pieces.pack(tmp_path, ["file.txt"])
    made = pieces.split(content, "file.tar", tmp_path / "in", 40)
    made[1].write_bytes(b"x" * len(made[1].read_bytes()))
    (tmp_path / "in/pieces.txt").write_text("\n".join(path.name for path in made))
    with pytest.raises(ValueError, match="damaged"):
        pieces.receive(tmp_path / "in", tmp_path / "work")
    assert len(pieces.missing(tmp_path / "in", tmp_path / "work")) == len(made) > 1


def test_a_call_returns_what_is_new_and_leaves_what_has_no_room(tmp_path, capsys):
    work, arrived, at_home = tmp_path / "work", tmp_path / "in", tmp_path / "home"
    arrived.mkdir()
    contents = {
        "reports/tests.txt": b"12 passed",
        "runs/trial/summary.json": b"{}",
        "runs/trial/model.safetensors": b"w" * 30_000,
        "runs/c10/metrics.jsonl": b"{}",
        "runs/c10/checkpoint.safetensors": b"c" * 80_000,
        "runs/c10/checkpoint.previous.safetensors": b"p" * 80_000,
    }
    for name, content in contents.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    last, previous = list(contents)[-2:]
    expected = [set(contents) - {last, previous}, {last}, set()]
    for call, names in enumerate(expected):
        before = pieces.checksums(at_home)
        (arrived / "home.json").write_text(json.dumps(before))
        (out := tmp_path / f"out-{call}").mkdir()
        pieces.send(arrived, work, out, 50, 100_000)
        assert ("left for later" in capsys.readouterr().out) == (call == 0)
        for found in pieces.complete_sets(out):
            pieces.unpack(found, at_home)
        assert pieces.checksums(at_home).keys() - before.keys() == names
    assert all((at_home / name).read_bytes() == contents[name] for name in set().union(*expected))


def test_a_finished_run_without_the_weights_that_others_need_is_trained_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(home, "HOME", tmp_path)
    files = {
        "c10": ("summary.json", "model.safetensors", "checkpoint.safetensors"),
        "c10-to-c10": ("summary.json",),  # nothing starts from it
        "trial": ("summary.json", "metrics.jsonl"),
        "c100": ("summary.json", "metrics.jsonl", "checkpoint.safetensors"),
    }
    for run, names in files.items():
        (tmp_path / "runs" / run).mkdir(parents=True)
        for name in names:
            (tmp_path / "runs" / run / name).touch()
    runs = "c10 c10-to-c10 c10-to-c100 trial trial-to-c10 c100 c100-to-c10"
    home.settle_finished({"RUNS": runs})
    left = {path.relative_to(tmp_path / "runs").as_posix() for path in tmp_path.rglob("*.*")}
    kept = {"c10/summary.json", "c10/model.safetensors", "c10-to-c10/summary.json"}
    assert left == kept | {"c100/metrics.jsonl", "c100/checkpoint.safetensors"}
    again = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert again == ["c100", "trial"] == sorted(home.unfinished({"RUNS": "c10 trial c100"}))
