"""What happens at home: before and after a slot.

    python tools/gpu/home.py prepare SETTINGS cifar10.npz cifar100.npz   # once
    python tools/gpu/home.py load SETTINGS                               # before a slot
    python tools/gpu/home.py unload SETTINGS FOLDER                      # for each call, in order
    python tools/gpu/home.py records SETTINGS                            # after a slot

`gpu/`, which Git ignores, holds `stock/` (the pieces that can travel), `in1/`, `in2/` and so on
(one load for each of the first calls) and `home/` (returned reports, records and weights, and the
unfinished run's checkpoint).
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pieces
import sheets

ROOT = Path(__file__).resolve().parent.parent.parent
GPU = ROOT / "gpu"
STOCK, HOME = GPU / "stock", GPU / "home"
SPARE_BYTES = 1 << 19  # for lists and the overhead of the transfer
RECORD_FILES = ("config.json", "metrics.jsonl", "environment.json", "*.jpg", "summary.json")


def read_settings(file: Path) -> dict[str, str]:
    'Read the lines NAME="VALUE" of a settings file.'
    words = (line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    return {
        name: shlex.split(value, comments=True)[0] for name, value in words if name.isidentifier()
    }


def data_of(run: str) -> str:
    "Return the name of the data set that a run needs."
    return "cifar100" if run == "c100" or run.endswith("-to-c100") else "cifar10"


def unfinished(settings: dict[str, str]) -> list[str]:
    "List the runs that are still to be done, in order."
    done = {path.parent.name for path in HOME.glob("runs/*/summary.json")}
    return [run for run in settings["RUNS"].split() if run not in done]


def git(*words: str) -> str:
    "Return the output of a Git command in the project."
    return subprocess.check_output(["git", *words], cwd=ROOT, text=True)


def tree_bytes() -> int:
    "Return the size of the files that travel with every call: those that Git does not ignore."
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = (ROOT / name for name in listed if name)
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def stock(content: bytes, name: str, piece_bytes: int) -> None:
    "Replace the pieces of a file in the stock."
    for old in STOCK.glob(f"{name}.*"):
        old.unlink()
    made = pieces.split(content, name, STOCK, piece_bytes)
    print(f"{name}: {len(made)} pieces, {len(content) / 2**20:.1f} MiB")


def prepare(settings: dict[str, str], data: list[Path], wheels: Path | None) -> None:
    "Put the wheels and the data sets into the stock, cut into pieces."
    size = int(settings["CARRY_PIECE_BYTES"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wheels:
            shutil.copytree(wheels, folder / "wheels")
        else:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            any_machine = "--only-binary=:all: --platform any --implementation py --abi none"
            to = ["--dest", str(folder / "wheels")]
            subprocess.run(
                [*pip, *any_machine.split(), *to, *shlex.split(settings["WHEELS"])], check=True
            )
        found = sorted(path.name for path in (folder / "wheels").glob("*.whl"))
        if impure := [wheel for wheel in found if not wheel.endswith("-none-any.whl")]:
            sys.exit(f"{impure[0]} is not pure Python, so it cannot be unpacked anywhere")
        stock(pieces.pack(folder, [f"wheels/{wheel}" for wheel in found]), "wheels.tar", size)
        for file in data:
            sheets.encode(file, folder / file.stem)
            files = sorted(
                path.relative_to(folder).as_posix() for path in (folder / file.stem).iterdir()
            )
            stock(pieces.pack(folder, files, compress=False), f"{file.stem}.tar", size)


def settle_finished(settings: dict[str, str]) -> None:
    "Delete checkpoints that no run needs; forget a finished run whose weights others still need."
    starts = {run.split("-to-")[0] for run in unfinished(settings) if "-to-" in run}
    for summary in sorted(HOME.glob("runs/*/summary.json")):
        run = summary.parent
        if run.name not in starts or (run / pieces.WEIGHTS).exists():
            (run / pieces.CHECKPOINT).unlink(missing_ok=True)
            continue
        print(f"{run.name}: its weights did not come back, so it is trained again")
        if (run / pieces.CHECKPOINT).exists():
            summary.unlink()
        else:
            shutil.rmtree(run)


def stock_state(settings: dict[str, str]) -> None:
    "Put logs, weights and the checkpoint that the remaining runs need into the stock."
    starts = {run.split("-to-")[0] for run in unfinished(settings) if "-to-" in run}
    files = []
    for path in sorted(path for path in HOME.glob("runs/*/*") if path.is_file()):
        if path.name != pieces.WEIGHTS or path.parent.name in starts:
            files.append(path.relative_to(HOME).as_posix())
    for old in STOCK.glob("state.tar.*"):
        old.unlink()
    if files:
        stock(pieces.pack(HOME, files), "state.tar", int(settings["CARRY_PIECE_BYTES"]))


def needed(settings: dict[str, str]) -> list[Path]:
    "List the pieces that the machine needs now: wheels, state, and the data of the next run."
    names = ["wheels", "state", *(data_of(run) for run in unfinished(settings)[:1])]
    found = []
    for name in names:
        of_one = list(STOCK.glob(f"{name}.tar.*"))
        if not of_one and name != "state":
            sys.exit(f"the stock has no {name}: run `home.py prepare` with it")
        found += sorted(of_one, key=lambda path: int(path.name.split(".")[-1].split("-")[0]))
    return found


def load(settings: dict[str, str]) -> None:
    "Fill `gpu/in1`, `gpu/in2` and so on with the pieces of a slot, as many as a call can carry."
    for old in GPU.glob("in*"):
        shutil.rmtree(old)
    HOME.mkdir(parents=True, exist_ok=True)
    settle_finished(settings)
    stock_state(settings)
    commit = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if "dirty" in commit:
        print("warning: there are changes without a commit, and the records will say so")
    wanted = needed(settings)
    most = int(settings["IN_BYTES"]) - tree_bytes() - SPARE_BYTES
    most = min(most, int(settings["CARRY_BYTES"]))
    loads: list[list[Path]] = [[]]
    room = most
    for path in wanted:
        if (size := path.stat().st_size) > most:
            sys.exit(f"{path.name} has {size} bytes, but a call has room for {most}")
        if size > room:
            loads.append([])
            room = most
        loads[-1].append(path)
        room -= size
    for n, carried in enumerate(loads, 1):
        (folder := GPU / f"in{n}").mkdir()
        (folder / "commit.txt").write_text(commit)
        (folder / "home.json").write_text(json.dumps(pieces.checksums(HOME)))
        (folder / "pieces.txt").write_text("\n".join(path.name for path in wanted))
        for path in carried:
            shutil.copy(path, folder)
        print(f"gpu/in{n}: {len(carried)} pieces")
    print(f"next run: {', '.join(unfinished(settings)[:1]) or 'none, all is done'}")


def unload(folder: Path) -> None:
    "Take in the files that a call has returned."
    whole = {piece.name for of_one in pieces.complete_sets(folder) for piece in of_one}
    if {path.name for path in folder.glob("*-of-*")} - whole:
        print(f"warning: pieces are missing in {folder}: repeat a call with one of the loads")
    for pieces_of_one in pieces.complete_sets(folder):
        pieces.unpack(pieces_of_one, HOME)
    for run in sorted(path for path in HOME.glob("runs/*") if path.is_dir()):
        files = {path.name for path in run.iterdir()}
        state = "finished" if "summary.json" in files else "not finished"
        for name in (pieces.WEIGHTS, pieces.CHECKPOINT):
            state += f", with {name}" if name in files else ""
        print(f"{run.name}: {state}")


def keep_records(settings: dict[str, str]) -> None:
    "Copy the records of finished runs to where the project keeps them."
    for summary in sorted(HOME.glob("runs/*/summary.json")):
        target = ROOT / settings["RECORDS"] / summary.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for pattern in RECORD_FILES:
            for file in summary.parent.glob(pattern):
                shutil.copy(file, target)
        print(f"{settings['RECORDS']}/{summary.parent.name}")


def main() -> None:
    "Read the command line and carry out a command."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "load", "unload", "records"):
        commands.add_parser(name).add_argument("settings", type=Path)
    choices = commands.choices
    choices["prepare"].add_argument("data", nargs="*", type=Path, help="cifar10.npz, cifar100.npz")
    choices["prepare"].add_argument("--wheels", type=Path, help="folder that already holds them")
    choices["unload"].add_argument("folder", type=Path, help="what the call has returned")
    args = parser.parse_args()
    settings = read_settings(args.settings)
    if args.command == "prepare":
        prepare(settings, args.data, args.wheels)
    elif args.command == "load":
        load(settings)
    elif args.command == "unload":
        unload(args.folder)
    else:
        keep_records(settings)


if __name__ == "__main__":
    main()
