"""Every notebook runs in a process and a folder of its own and prints its stored outputs."""

import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from notebooks import (
    HINT,
    directives,
    find_notebooks,
    folding,
    is_skipped,
    run_notebook,
    without_hint,
)

SECONDS = 1500  # for a busy machine; alone, each takes less than a minute
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def shown(output):
    "An output as text, tables included; pictures count by their kind."
    data = output.get("data", {})
    pictures = [kind for kind in data if kind.startswith("image/")]
    if pictures:  # the text beside a picture gives its size in pixels
        return " ".join(pictures)
    return output.get("text") or data.get("text/markdown") or data.get("text/plain", "")


def printed(cell):
    "All outputs of a cell as text, without warnings."
    parts = [shown(o) for o in without_hint(cell.outputs) if o.get("name") != "stderr"]
    return " ".join("".join(parts).split())


def agree(stored, now, varies):
    "Whether words agree and numbers too, up to rounding; in a cell that `varies`, only the words."
    if NUMBER.sub("#", stored) != NUMBER.sub("#", now):
        return False
    pairs = zip(
        *([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (stored, now))
    )
    return varies or all(abs(a - b) <= 2e-3 * max(1e-2, abs(a)) for a, b in pairs)


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebook(path, tmp_path, cifar10_or_none):
    stored, error = nbformat.read(path, as_version=4), None
    try:
        now = run_notebook(path, cwd=tmp_path, seconds=SECONDS, cifar=cifar10_or_none)
    except CellTimeoutError as e:
        error = f"not done after {SECONDS} s. {e}"
    except (CellExecutionError, DeadKernelError) as e:
        error = str(e)
    # Outside of `except`, or pytest would show the same error twice.
    if error:
        pytest.fail(f"{path.name}: {ANSI.sub('', error)}", pytrace=False)
    differ = [
        f"{b.source}\n--- stored ---\n{printed(a)}\n--- now ---\n{printed(b)}"
        for a, b in zip(stored.cells, now.cells)
        if b.cell_type == "code"
        and not is_skipped(b, cifar=cifar10_or_none is not None)
        and not agree(printed(a), printed(b), "varies" in directives(b))
    ]
    if differ:
        pytest.fail(
            "\n\n".join([f"{path.name}: stored outputs differ; run `make notebooks`", *differ]),
            pytrace=False,
        )


def test_comparison_of_outputs_sees_words_and_numbers():
    assert agree("loss 0.5000 after 3 steps", "loss 0.5004 after 3 steps", varies=False)
    assert not agree("loss 0.5 after 3 steps", "loss 0.52 after 3 steps", varies=False)
    assert not agree("loss 0.5", "cost 0.5", varies=True)
    assert agree("took 1,200 s", "took 7 s", varies=True)


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_cells_are_folded_as_they_say(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    wrong = [c.source for c in cells if dict(c.metadata) != folding(c)]
    wrong += [
        c.source
        for c in cells
        if (HINT in c.outputs) != ("answer" in directives(c) and bool(without_hint(c.outputs)))
    ]
    assert not wrong, f"{path.name}: run `make badges`; these cells differ:\n\n" + "\n\n".join(
        wrong
    )


def asked(nb):
    """Cells whose output a guess asks for, as pairs of the prompt's index and a list of cells.

    The folded answer follows these cells, or it is in the cell of the prompt before them.
    """
    for place, cell in enumerate(nb.cells):
        if cell.cell_type != "markdown" or "uess" not in cell.source.partition("<details>")[0]:
            continue
        end = place + 1
        while end < len(nb.cells) and nb.cells[end].cell_type == "code":
            end += 1
        outputs = [c for c in nb.cells[place + 1 : end] if without_hint(c.outputs)]
        after = nb.cells[end].source if end < len(nb.cells) else ""
        if outputs and "<summary>Answer</summary>" in cell.source + after[:40]:
            yield place, outputs


#: Cells that show pictures which belong to the question or do not answer it.
QUESTIONS = {"0107f923", "0a5c0011", "ed17dc43", "3c1a4748", "1c8e75cb", "01a33031", "f6897522"}


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_stored_output_does_not_give_an_answer_away(path):
    for place, cells in asked(nbformat.read(path, as_version=4)):
        open_ = [c.source for c in cells if "answer" not in directives(c) and c.id not in QUESTIONS]
        assert not open_, f"below cell {place}"
