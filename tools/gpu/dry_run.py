"""Rehearse the slots on this computer, from an empty folder, with a bare Python and tiny settings.

    python tools/gpu/dry_run.py FOLDER [--wheels WHEELS]

The scripts are those of a real slot, byte by byte; only the settings file differs. FOLDER gets:

    home/      a copy of the project in a Git repository of its own
    python/    a new virtual environment that sees only the packages that the machine has
    machine/   on the machine: a copy of the tree, replaced before each call
    slot/      on the machine: where slot.sh works, deleted after a slot
    back/      the files that each call has returned

It checks the limits of every call, and at the end that there are records and weights, and that a
run that was stopped in two slots has the bits of one that was never stopped.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pieces
from home import read_settings
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS, STOP = "tools/gpu/settings-dry.sh", "tools/gpu/settings-stop.sh"
TOOL = "tools/gpu/home.py"
MIB = 1 << 20
OUT_FILES, OUT_FILE_BYTES, TOTAL_BYTES, OUT_DEPTH = 8, 16 * MIB, 64 * MIB, 2
CALL_SECONDS, SLOT_SECONDS = 600, 1200
NAME = re.compile(r"[A-Za-z0-9._-]+")
SPLIT_RUN = "c10"  # the run that is stopped
MOST_CALLS = 8  # of a slot, after its last load


def check(condition: bool, message: str) -> None:
    "End the dry run with a message unless a condition holds."
    if not condition:
        sys.exit(f"the dry run failed: {message}")


def normalised(name: str) -> str:
    "Return the name of a package as package indexes compare it."
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names: list[str]) -> dict[str, Distribution]:
    "Find the installed packages among `names`, and what they need."
    found: dict[str, Distribution] = {}
    queue = [normalised(name) for name in names]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            print(f"this computer has no {name}, so the rehearsal lacks it")
            continue
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(normalised(requirement.name))
    return found


def bare_python(folder: Path, settings: dict[str, str]) -> Path:
    "Create a virtual environment that sees only what the machine has; return its `bin`."
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    (packages := folder / "packages").mkdir()
    for package in with_dependencies(settings["MACHINE"].split()).values():
        tops = {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(package.locate_file(top))).resolve())
    (site,) = (folder / "python/lib").glob("python*/site-packages")
    (site / "machine.pth").write_text(str(packages))
    python = folder / "python/bin/python3"
    words = [python, "-c", "import torch, pytest, tyro"]
    done = subprocess.run(words, env={}, capture_output=True, text=True)
    check("No module named 'tyro'" in done.stderr, f"the machine is not bare: {done.stderr}")
    return folder / "python/bin"


def listed(tree: Path) -> list[str]:
    "List the files that travel with every call: those that Git does not ignore."
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(words, cwd=tree, text=True).split("\0")
    return [name for name in names if name and (tree / name).is_file()]


def copy_files(names: list[str], source: Path, target: Path) -> int:
    "Copy some files and return the number of their bytes."
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)
    return sum((target / name).stat().st_size for name in names)


def copy_project(home: Path) -> None:
    "Copy the project as it is now into a Git repository of its own."
    names = [name for name in listed(ROOT) if not (ROOT / name).is_symlink()]
    copy_files(names, ROOT, home)
    author = ["-c", "user.name=dry run", "-c", "user.email=dry-run@example.org"]
    for words in (["init", "-b", "main"], ["add", "--all"], [*author, "commit", "-m", "Rehearse"]):
        subprocess.run(["git", *words], cwd=home, check=True, stdout=subprocess.DEVNULL)


def draw_data(folder: Path) -> list[Path]:
    "Write two small data sets of drawn images in the form of CIFAR."
    from maevit_course.data import load_data

    files = []
    for name, first in (("cifar10", 0), ("cifar100", 1200)):
        arrays = {}
        for split, data in zip(("train", "test"), load_data("shapes", limit=2400)):
            part = data[first : first + 1200] if split == "train" else data[:200]
            arrays["class_names"] = np.array(data.classes)
            arrays[f"{split}_images"] = part.images.permute(0, 2, 3, 1).numpy()
            arrays[f"{split}_labels"] = part.labels.numpy()
        np.savez(folder / f"{name}.npz", **arrays)
        files.append(folder / f"{name}.npz")
    return files


def check_returned(out: Path) -> None:
    "Check the limits on what a call may return."
    files = [path for path in out.rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    check(len(files) <= OUT_FILES, f"{len(files)} files came back, not at most {OUT_FILES}")
    check(max(sizes, default=0) <= OUT_FILE_BYTES, f"a file of {max(sizes, default=0)} bytes")
    check(sum(sizes) <= TOTAL_BYTES, f"{sum(sizes)} bytes came back")
    for path in files:
        parts = path.relative_to(out).parts
        check(len(parts) <= OUT_DEPTH + 1, f"{path.name} is too deep")
        check(all(NAME.fullmatch(part) for part in parts), f"a name cannot travel: {path.name}")


class Lender:
    "Acts the machine: the limits, the copies, and the loss of everything between the slots."

    def __init__(self, folder: Path, bin_folder: Path):
        self.home, self.tree, self.back = folder / "home", folder / "machine", folder / "back"
        self.slot_folder = folder / "slot"
        self.calls = 0
        path = f"{bin_folder}:/usr/local/bin:/usr/bin:/bin"
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        self.env = {"PATH": path, "HOME": str(folder), "OMP_NUM_THREADS": threads}
        self.env |= {"LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}

    def at_home(self, *words: str) -> None:
        "Run home.py in the copy of the project."
        environment = {**os.environ, "PYTHONPATH": str(self.home)}
        subprocess.run([sys.executable, TOOL, *words], cwd=self.home, env=environment, check=True)

    def slot(self, settings: str) -> None:
        "Rehearse a slot on a machine that has nothing, until all its work is done and returned."
        for folder in (self.tree, self.slot_folder):
            shutil.rmtree(folder, ignore_errors=True)
        self.at_home("load", SETTINGS)
        for folder in sorted((self.home / "gpu").glob("in*"), key=lambda x: int(x.name[2:])):
            self.call(settings, f"gpu/{folder.name}", 1)
        for _ in range(MOST_CALLS):
            said = self.call(settings, "none", CALL_SECONDS // 2)
            if "finished" in said and "left for later" not in said:
                return
        check(False, f"the slot did not end within {MOST_CALLS} further calls")

    def call(self, settings: str, load: str, wait: int) -> str:
        "Carry a load to the machine, run slot.sh, unload; return what it printed."
        self.calls += 1
        print(f"\n=== call {self.calls}: {settings} {load}", flush=True)
        self.carry(load)
        out = self.back / str(self.calls)
        out.mkdir(parents=True)
        done = subprocess.run(
            ["bash", "tools/gpu/slot.sh", settings, load, str(SLOT_SECONDS), str(wait)],
            cwd=self.tree,
            env={**self.env, "OUT": str(out)},
            timeout=CALL_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout, flush=True)
        check(done.returncode == 0, f"the call ended with status {done.returncode}")
        check_returned(out)
        self.at_home("unload", SETTINGS, str(out))
        return done.stdout

    def carry(self, load: str) -> None:
        "Replace the files that Git does not ignore, and the load, within the limit."
        shutil.rmtree(self.tree, ignore_errors=True)
        size = copy_files(listed(self.home), self.home, self.tree)
        if (self.home / load).exists():
            shutil.copytree(self.home / load, self.tree / load)
            size += sum(path.stat().st_size for path in (self.tree / load).iterdir())
        check(size <= TOTAL_BYTES, f"a call carries {size} bytes, more than {TOTAL_BYTES}")
        print(f"carried {size / MIB:.1f} MiB", flush=True)


def stopped_at(home: Path) -> tuple[int, int]:
    "Return the epoch and the step of the checkpoint that came back."
    from maevit_course.weights import from_bytes

    file = home / "gpu/home/runs" / SPLIT_RUN / pieces.CHECKPOINT
    check(file.exists(), f"no checkpoint of {SPLIT_RUN} came back")
    about = from_bytes(file.read_bytes())[1]
    return about["epoch"], about["step"]


def without_clock(log: Path) -> list[dict]:
    "Return the lines of a log without what depends on the clock."
    lines = map(json.loads, log.read_text().splitlines())
    return [{k: v for k, v in x.items() if k not in ("seconds", "images_per_s")} for x in lines]


def check_results(
    lender: Lender, settings: dict[str, str], runs: list[str], data: list[Path]
) -> None:
    "Check that all runs have left records and weights, and compare a run with one without stops."
    home, records = lender.home / "gpu/home/runs", lender.home / settings["RECORDS"]
    for run in runs:
        check((records / run / "summary.json").exists(), f"no record of {run}")
        check((home / run / "model.safetensors").exists(), f"no weights of {run}")
    reports = {path.stem: path for path in (lender.home / "gpu/home/reports").glob("*.txt")}
    wanted = {
        "machine",
        "background",
        "phases",
        "peers",
        "phases-ours",
        "phases-pytorch",
        "attention",
    }
    check(reports.keys() >= wanted, f"there are only the reports {sorted(reports)}")
    said = re.findall(r"^\[\d+ s\] .*", reports["background"].read_text(), re.MULTILINE)
    bad = [
        line
        for line in said
        if re.search("failed|could not|damaged|no attention|did not arrive", line)
    ]
    check(bool(said) and not bad, f"the last slot says {bad}")

    print(f"\n=== {SPLIT_RUN} without a stop", flush=True)
    whole = lender.home.parent / "whole"
    words = ["-m", "maevit_course.cli", "reproduce", SPLIT_RUN, "--scale", settings["SCALE"]]
    words += ["--cifar10", str(data[0]), "--device", settings["DEVICE"]]
    words += ["--out", str(whole), "--results", str(whole), *settings["OPTIONS"].split()]
    packages = f"{lender.tree}:{lender.slot_folder / settings['WORK'] / 'packages'}"
    environment = {**lender.env, "PYTHONPATH": packages, "MAEVIT_COMMIT": "dry run"}
    subprocess.run(["python3", *words], cwd=lender.tree, env=environment, check=True)
    digests = {
        hashlib.sha256((folder / SPLIT_RUN / "model.safetensors").read_bytes()).hexdigest()
        for folder in (whole, home)
    }
    check(len(digests) == 1, f"{SPLIT_RUN} ended with other weights than the run without stops")
    logs = [without_clock(folder / SPLIT_RUN / "metrics.jsonl") for folder in (whole, records)]
    check(logs[0] == logs[1], f"{SPLIT_RUN} has another log than the run without stops")
    print(f"{SPLIT_RUN}: {len(logs[0])} epochs, bit-identical: {digests.pop()[:16]}")


def main() -> None:
    "Rehearse four slots."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="empty, or not there yet")
    parser.add_argument("--wheels", type=Path, help="folder with the wheels; else pip fetches them")
    args = parser.parse_args()
    began, folder = time.monotonic(), args.folder.resolve()
    check(not folder.exists() or not any(folder.iterdir()), f"{str(folder)!r} is not empty")
    settings = read_settings(ROOT / SETTINGS)
    runs = settings["RUNS"].split()
    (folder / "home").mkdir(parents=True)
    copy_project(folder / "home")
    lender = Lender(folder, bare_python(folder, settings))
    data = draw_data(folder)
    wheels = ["--wheels", str(args.wheels.resolve())] if args.wheels else []
    lender.at_home("prepare", SETTINGS, *map(str, data), *wheels)

    # The first run is stopped after a step in each of two slots, and finished in the third one,
    # with all others on the same data. The last slot trains on the other data set.
    places = []
    for settings_file in (STOP, STOP, SETTINGS, SETTINGS):
        lender.slot(settings_file)
        if settings_file == STOP:
            places.append(stopped_at(folder / "home"))
    check(places[0] < places[1], f"{SPLIT_RUN} did not go on: {places}")
    lender.at_home("records", SETTINGS)
    check_results(lender, settings, runs, data)
    print(f"\nthe dry run passed: {lender.calls} calls, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
