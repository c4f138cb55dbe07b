"""Spelling, links and terms of everything a learner reads."""

import re
import subprocess
import sys

import nbformat
import pytest

from notebooks import FIG_ALT, ROOT, find_notebooks, is_folded, is_skipped

PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tools/gpu/README.md")
]
LINK = re.compile(r'(?:\]\(|\b(?:src|href)=")([^)\s"]+)')
# A term → spellings of it that the glossary does not use.
TERMS = {
    "fine-tune, fine-tuning": r"\bfine ?tun(?:e|ing|ed)\b",
    "pre-train, pre-training": r"\bpre ?train(?:ing|ed)?\b",
    "data set": r"(?<!small )\bdatasets?\b",
    "mask token": r"\bmask(?:ing)? embeddings?\b",
    "positional embedding": r"\b(?:positional encoding|position embedding)s?\b",
    "epoch": r"\bepochen\b",
    "colour": r"\bcolors?\b",
    "normalise": r"\bnormali[z]e[sd]?\b(?!\()",
    # lesson 11 explains once what a transformer layer is usually called
    "transformer layer": r"(?<!is usually called a \*)\btransformer blocks?\b",
}


def prose(path):
    "The text of a page without code, so that `fine_tune` in a command is not taken for a word."
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
    else:
        text = "\n\n".join(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
    text = re.sub(r"```.*?```|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", text)


def anchors(path):
    "The anchors that JupyterLab and GitHub make from the headings of a page."
    text = (
        prose(path)
        if path.suffix == ".md"
        else "\n".join(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
    )
    headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    return (
        {h.strip().replace(" ", "-") for h in headings}
        | {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
        | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    )


def links(path):
    cells = nbformat.read(path, as_version=4).cells if path.suffix == ".ipynb" else None
    text = (
        path.read_text(encoding="utf-8")
        if cells is None
        else "\n".join(c.source for c in cells if c.cell_type == "markdown")
    )
    return [link for link in LINK.findall(text) if not re.match(r"https?:|data:|mailto:", link)]


@pytest.mark.parametrize(
    "path", [*find_notebooks(), *PAGES], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_links_and_terms(path):
    broken = []
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"links that lead nowhere: {broken}"
    text = prose(path)
    wrong = {
        term: found
        for term, pattern in TERMS.items()
        if (found := re.findall(pattern, text, flags=re.IGNORECASE))
    }
    assert not wrong, f"the course says {list(wrong)}: {wrong}"


def test_spelling(tmp_path):
    for path in [*find_notebooks(), *PAGES]:
        (tmp_path / f"{path.parent.name}_{path.stem}.txt").write_text(prose(path), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "codespell_lib",
            "--builtin",
            "clear,rare",
            str(tmp_path),
            str(ROOT / "maevit_course"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_picture_has_an_alternative_text(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not is_skipped(cell):
                    alt = FIG_ALT.search(cell.source)
                    assert alt and output.metadata.get(kind, {}).get("alt") == alt[1], (
                        f"`#| fig-alt:` is missing:\n{cell.source}"
                    )


def test_every_notebook_can_be_reached_from_the_index():
    seen, todo = set(), [ROOT / "nbs/index.ipynb"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".ipynb":
            continue
        seen.add(page)
        todo += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in links(page)
            if link.partition("#")[0]
        ]
    assert not set(find_notebooks()) - seen


def reading_minutes(nb):
    "The time to read a lesson: a minute for 200 words or 12 lines of visible code."
    words = sum(len(c.source.split()) for c in nb.cells if c.cell_type == "markdown")
    shown = [c.source for c in nb.cells if c.cell_type == "code" and not is_folded(c)]
    code = [line for line in "\n".join(shown).splitlines() if line and not line.startswith("#|")]
    return words / 200 + len(code) / 12


def test_the_index_states_the_time_that_each_lesson_states_and_marks_the_essential_path():
    index = "\n".join(c.source for c in nbformat.read(ROOT / "nbs/index.ipynb", as_version=4).cells)
    row = r"^\| \[[^]]*\]\((\w+)\.ipynb\)( ★)? \|[^|]*\| (\d+) \|"
    rows = re.findall(row, index, flags=re.MULTILINE)
    stated = {name: int(minutes) for name, _, minutes in rows}
    lessons = {
        p.stem: nbformat.read(p, as_version=4) for p in sorted((ROOT / "nbs").glob("[1-9]*.ipynb"))
    }
    assert set(stated) == set(lessons), "the index lists each lesson"
    for name, nb in lessons.items():
        text = "\n".join(c.source for c in nb.cells)
        assert f"**Time:** {stated[name]} minutes" in text, name
        extra = stated[name] - reading_minutes(nb)  # for guesses and runs
        assert -3 <= extra <= 12, f"{name} states the wrong time"
    path = re.search(r"## The essential path\n(.*?)\n\n[^|]", index, flags=re.DOTALL)[1]
    essential = set(re.findall(r"\((\w+)\.ipynb\)", path)) & set(lessons)
    assert essential == {name for name, star, _ in rows if star}
