"""Run the notebooks in place, and write README.md from the index."""

import argparse
import copy
import os
import posixpath
import re
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import MarkdownExporter
from nbdev.clean import nbdev_clean

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 1_500_000

_settings = ConfigParser(delimiters=["="])
_settings.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = _settings["DEFAULT"]
SKIP_FLAGS = {"eval:false", *SETTINGS["tst_flags"].split()}

FIG_ALT = re.compile(r"^#\| fig-alt: (.*)", re.MULTILINE)
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*\|(.*)\n?", re.MULTILINE)
# Targets of Markdown links and of HTML attributes that are relative to the notebook.
RELATIVE_LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?![a-z]+:|[#/])([^)\s"]+)')


def find_notebooks():
    "All notebooks of the course, without checkpoints and files that nbdev leaves out too."
    nbs = ROOT / "nbs"
    return sorted(
        p
        for p in nbs.glob("**/*.ipynb")
        if not any(part[0] in "_." for part in p.relative_to(nbs).parts)
    )


def directives(cell):
    "The `#| ...` lines of a cell, without spaces: `#| eval: false` is 'eval:false'."
    return {"".join(d.split()) for d in DIRECTIVE.findall(cell.source)}


def is_skipped(cell, cifar=False, slow=False):
    """Must this code cell not be run?

    A cell with the flag `cifar` runs where CIFAR-10 is at hand, one with `slow` only on demand.
    """
    wanted = {name for name, value in (("cifar", cifar), ("slow", slow)) if value}
    return bool(directives(cell) & (SKIP_FLAGS - wanted))


class _Client(NotebookClient):
    cifar = slow = False

    async def async_execute_cell(self, cell, *args, **kwargs):
        if is_skipped(cell, self.cifar, self.slow):
            return cell
        try:
            return await super().async_execute_cell(cell, *args, **kwargs)
        except DeadKernelError:
            raise DeadKernelError(f"The kernel died in this cell:\n{cell.source}") from None


def run_notebook(path, cwd, seconds=None, cifar=None, slow=False):
    """Run a notebook in a fresh kernel and return it with new outputs; skipped cells keep theirs.

    `cifar` is an .npz file with CIFAR-10 for the cells that need it, or None if there is none.
    Slow cells run if `slow` is true.
    """
    nb = nbformat.read(path, as_version=4)
    if cifar and any("cifar" in directives(cell) for cell in nb.cells):
        file = Path(cwd) / "data" / "cifar10.npz"
        file.parent.mkdir(exist_ok=True)
        file.symlink_to(cifar)
    end = time.monotonic() + seconds if seconds else None
    # nbclient limits the time of a cell; giving each cell what is left limits the whole notebook.
    # The log level silences a warning of each kernel about connecting over TCP.
    client = _Client(
        nb,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        timeout_func=lambda cell: max(1, end - time.monotonic()) if end else None,
    )
    client.cifar, client.slow = cifar is not None, slow
    quiet = {"MAEVIT_PROGRESS": "0", "MAEVIT_CACHE": "0"}
    return client.execute(cwd=str(cwd), env={**os.environ, **quiet})


COLAB = "https://colab.research.google.com"
SETUP = """# @title Set up (installs the course on Colab and does nothing elsewhere)
import importlib.metadata
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and not importlib.util.find_spec("maevit_course"):
    keep = [f"{{name}}=={{importlib.metadata.version(name)}}" for name in ("torch", "torchvision")]
    source = "git+https://github.com/{user}/{repo}@{branch}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *keep, source]
    subprocess.run(pip, check=True)
    importlib.invalidate_caches()"""


def stamp(nb, path):
    "Put Colab's badge and set-up cell, made from settings.ini, below a notebook's title."
    repository = f"{SETTINGS['user']}/{SETTINGS['repo']}/blob/{SETTINGS['branch']}"
    place = f"{repository}/{path.relative_to(ROOT).as_posix()}"
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{place})"
    nb.cells = [c for c in nb.cells if not c.id.startswith("colab-")]
    nb.cells[1:1] = [
        nbformat.v4.new_markdown_cell(badge, id="colab-badge"),
        nbformat.v4.new_code_cell(SETUP.format(**SETTINGS), id="colab-setup"),
    ]


HINT = nbformat.v4.new_output("display_data", data={"text/plain": "Guess before you look."})
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "tags": ["hide-input"]}


def is_folded(cell):
    "Is the source of this code cell shown only on request?"
    return "fold" in directives(cell) or cell.id == "colab-setup"


def folding(cell):
    """The metadata of a code cell: source and output may be shown only on request.

    `#| fold` hides the source and `#| answer` the stored output, which answers a prompt to guess.
    JupyterLab shows the output as soon as the cell is run, and before that its first line, which
    is why the stored output begins with `HINT`.
    """
    metadata = copy.deepcopy(FOLDED) if is_folded(cell) else {}
    if "answer" in directives(cell):
        metadata.setdefault("jupyter", {})["outputs_hidden"] = True
        metadata.setdefault("tags", []).append("hide-output")
    return metadata


def without_hint(outputs):
    "Outputs of a cell without the line that asks to guess first."
    return [output for output in outputs if output != HINT]


def fold(nb):
    "Hide sources and outputs for JupyterLab, Colab and the website as `folding` says."
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.metadata = {k: v for k, v in cell.metadata.items() if k not in FOLDED}
            cell.metadata |= folding(cell)
            outputs = without_hint(cell.outputs)
            hint = [copy.deepcopy(HINT)] if outputs and "answer" in directives(cell) else []
            cell.outputs = hint + outputs


def badges():
    "Stamp and fold all notebooks; run nothing."
    for path in find_notebooks():
        nb = nbformat.read(path, as_version=4)
        stamp(nb, path)
        fold(nb)
        nbformat.write(nb, path)


def describe_pictures(nb):
    "Give each picture the alternative text that its cell states as `#| fig-alt: ...`."
    for cell in nb.cells:
        alt = FIG_ALT.search(cell.source)
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/") and alt:
                    output.metadata[kind] = {"alt": alt[1]}


def render(paths, slow=False):
    "Run notebooks in place and clean them the way `nbdev_clean` does."
    too_big = []
    cifar = ROOT / "data/cifar10.npz"
    cifar = cifar if cifar.exists() else None
    for path in paths:
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as cwd:
                nb = run_notebook(path, cwd, cifar=cifar, slow=slow)
        except (CellExecutionError, DeadKernelError) as e:
            sys.exit(f"{path.name}: {e}")
        stamp(nb, path)
        fold(nb)
        describe_pictures(nb)
        nbformat.write(nb, path)
        nbdev_clean(fname=str(path))
        size = path.stat().st_size
        print(f"{time.monotonic() - start:6.1f} s {size / 1e3:8.1f} kB  {path.name}", flush=True)
        if size > MAX_BYTES:
            too_big.append(path.name)
    if too_big:
        sys.exit(f"over {MAX_BYTES / 1e6} MB: {' '.join(too_big)}")


def _from_root(link):
    return link[1] + posixpath.normpath(posixpath.join("nbs", link[2]))


def make_readme():
    "The text of README.md, and its images as a dictionary from relative path to bytes."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if "hide" not in directives(c) and c.id != "colab-setup"]
    alts = FIG_ALT.findall("\n".join(c.source for c in nb.cells))
    for cell in nb.cells:
        if "echo:false" in directives(cell):
            cell.metadata["transient"] = {"remove_source": True}
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source)
        else:
            cell.source = RELATIVE_LINK.sub(_from_root, cell.source)
    nb.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(
        nb, resources={"unique_key": "index", "output_files_dir": "images"}
    )
    for alt in alts:
        text = re.sub(r"!\[(png|jpeg)\]\(", lambda _, alt=alt: f"![{alt}](", text, count=1)
    text = re.sub(r"\n(?:[ \t]*\n)+", "\n\n", text)  # the exporter leaves gaps around pictures
    return text.strip() + "\n", resources["outputs"]


def readme():
    "Write README.md and its images."
    text, images = make_readme()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    for old in ROOT.glob("images/index_*"):
        old.unlink()
    for name, data in images.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cmd = commands.add_parser("render", help="run notebooks in place")
    cmd.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")
    cmd.add_argument("--slow", action="store_true", help="run the cells flagged slow, too")
    commands.add_parser("badges", help="write badges, set-up cells and the folding of cells anew")
    commands.add_parser("readme", help="write README.md from nbs/index.ipynb")
    args = parser.parse_args()
    if args.command == "badges":
        return badges()
    if args.command == "readme":
        return readme()
    paths = [p.resolve() for p in args.notebooks] or find_notebooks()
    os.chdir(ROOT)  # nbdev_clean looks for settings.ini from here
    render(paths, args.slow)


if __name__ == "__main__":
    main()
