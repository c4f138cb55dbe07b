"""Cut files into pieces that are small enough to travel, and put them together again.

Everything travels as a tar file in pieces. The name of a piece, such as `state.tar.0f3c….2-of-4`,
holds the start of the whole file's SHA-256, so pieces of different states cannot be mixed.
A machine keeps what it has received in a work folder:

    python3 tools/gpu/pieces.py receive IN WORK                           # take in the load
    python3 tools/gpu/pieces.py waiting IN WORK                           # status 1 if some lack
    python3 tools/gpu/pieces.py send IN WORK OUT PIECE_BYTES OUT_BYTES    # return new files
"""

import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

#: Files of a run, in addition to its weights or checkpoint.
SMALL_FILES = ("*.json", "*.jsonl", "*.jpg")
WEIGHTS, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"


def checksum(content: bytes) -> str:
    "Return the first 16 digits of the SHA-256."
    return hashlib.sha256(content).hexdigest()[:16]


def checksums(folder: Path) -> dict[str, str]:
    "Return the checksum of each file in a folder, by its path in the folder."
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): checksum(path.read_bytes()) for path in files}


def pack(root: Path, files: list[str], compress: bool = True) -> bytes:
    "Return a tar file of some files below `root`, with the same bytes while they are unchanged."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            tar.add(root / file, file)
    return gzip.compress(buffer.getvalue(), 1, mtime=0) if compress else buffer.getvalue()


def split(content: bytes, name: str, folder: Path, piece_bytes: int) -> list[Path]:
    "Write the pieces of a file called `name` into a folder and return their paths."
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-len(content) // piece_bytes))
    paths = [folder / f"{name}.{checksum(content)}.{i}-of-{count}" for i in range(1, count + 1)]
    for i, path in enumerate(paths):
        path.write_bytes(content[i * piece_bytes : (i + 1) * piece_bytes])
    return paths


def complete_sets(folder: Path) -> list[list[Path]]:
    "Return the pieces of each file of which all pieces are there, in order."
    sets = []
    for first in sorted(folder.glob("*.1-of-*")):
        stem, count = first.name.rsplit(".", 1)[0], int(first.name.rsplit("-", 1)[1])
        pieces = [folder / f"{stem}.{i}-of-{count}" for i in range(1, count + 1)]
        if all(piece.exists() for piece in pieces):
            sets.append(pieces)
    return sets


def join(pieces: list[Path]) -> bytes:
    "Put the pieces of a file together. Raises `ValueError` if they are damaged."
    content = b"".join(piece.read_bytes() for piece in pieces)
    if checksum(content) != pieces[0].name.split(".")[-2]:
        raise ValueError(f"{pieces[0].name} and its other pieces are damaged: send them again")
    return content


def unpack(pieces: list[Path], folder: Path) -> None:
    "Put the pieces of a tar file together and extract it. Raises `ValueError` for damaged pieces."
    with tarfile.open(fileobj=io.BytesIO(join(pieces))) as tar:
        tar.extractall(folder, filter="data")


def read_names(file: Path) -> list[str]:
    "Return the lines of a text file, or an empty list if the file is missing."
    return file.read_text().splitlines() if file.exists() else []


def receive(arrived: Path, work: Path) -> None:
    "Move new pieces into the work folder, and extract complete files."
    waiting, done = work / "pieces", work / "received.txt"
    waiting.mkdir(parents=True, exist_ok=True)
    known = read_names(done)
    for piece in sorted(arrived.glob("*-of-*")):
        if piece.name not in known:
            shutil.move(piece, waiting / piece.name)
            known.append(piece.name)
    for pieces in complete_sets(waiting):
        try:
            unpack(pieces, work)
        except ValueError:
            known = [name for name in known if name not in {piece.name for piece in pieces}]
            done.write_text("\n".join(known))
            raise
        finally:
            for piece in pieces:
                piece.unlink()
        print(f"received {pieces[0].name.split('.')[0]}", flush=True)
    done.write_text("\n".join(known))
    if wanted := missing(arrived, work):
        print(f"still missing: {len(wanted)} pieces", flush=True)


def missing(arrived: Path, work: Path) -> list[str]:
    "Return the names of the pieces that this slot needs and that have not arrived yet."
    known = read_names(work / "received.txt")
    return [name for name in read_names(arrived / "pieces.txt") if name not in known]


def files_to_keep(work: Path) -> list[str]:
    "List the files to return: reports and logs first, then weights, then checkpoints."
    small = [f"reports/{path.name}" for path in sorted((work / "reports").glob("*.txt"))]
    weights, checkpoints = [], []
    for run in sorted(path for path in (work / "runs").glob("*") if path.is_dir()):
        for pattern in SMALL_FILES:
            small += [f"runs/{run.name}/{path.name}" for path in sorted(run.glob(pattern))]
        finished = (run / "summary.json").exists()
        name, group = (WEIGHTS, weights) if finished else (CHECKPOINT, checkpoints)
        if (run / name).exists():
            group.append(f"runs/{run.name}/{name}")
    return small + weights + checkpoints


def send(arrived: Path, work: Path, out: Path, piece_bytes: int, out_bytes: int) -> None:
    "Write the files that are not at home yet into the returned folder, as far as they fit."
    at_home = json.loads((arrived / "home.json").read_text())
    chosen, left, room, sums = [], [], out_bytes, {}
    for file in files_to_keep(work):
        content = (work / file).read_bytes()
        sums[file] = checksum(content)
        if at_home.get(file) == sums[file]:
            continue
        # The archive adds less than 2 kB to each file.
        fits = len(content) + 2048 <= room
        (chosen if fits else left).append(file)
        room -= len(content) + 2048 if fits else 0
    if chosen:
        # A log may be newer than its checkpoint, but not older, so checkpoints are read first.
        split(pack(work, chosen[::-1]), "state.tar", out, piece_bytes)
    sent = {file: sums[file] for file in chosen}
    (work / "at-home.json").write_text(json.dumps(at_home | sent))
    print(
        f"returned {len(chosen)} files" + (f", left for later: {', '.join(left)}" if left else "")
    )


def main(command: str, *arguments: str) -> int:
    "Carry out one of the commands in this file's description, and return the exit status."
    if command == "receive":
        receive(Path(arguments[0]), Path(arguments[1]))
    elif command == "waiting":
        arrived, work = map(Path, arguments)
        listed = read_names(arrived / "pieces.txt")  # empty while it is being copied
        return 1 if not listed or missing(arrived, work) else 0
    elif command == "send":
        arrived, work, out = map(Path, arguments[:3])
        send(arrived, work, out, int(arguments[3]), int(arguments[4]))
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
