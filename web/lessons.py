"""Pages from notebooks: no directives, alternative texts, and links that stay on the site."""

import posixpath
import re
import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from notebooks import (
    COLAB,
    DIRECTIVE,
    FIG_ALT,
    RELATIVE_LINK,
    ROOT,
    SETTINGS,
    directives,
    find_notebooks,
    without_hint,
)

BLOB = "{user}/{repo}/blob/{branch}".format(**SETTINGS)
REPOSITORY = "https://github.com/{user}/{repo}".format(**SETTINGS)
#: Numbers of the lessons on the shortest path through the course.
ESSENTIAL = "00 01 10 11 12 13 14 15 16 20 22 23 24 30 31".split()
PART = re.compile(r"^\| \*\*([^*[|]+)\*\* \|", re.MULTILINE)
LESSON = re.compile(r"^\| (?:\*\*)?\[([^]]*)\]\((\w+)\.ipynb\)", re.MULTILINE)
#: Files of the repository that are pages under a different name.
RENAMED = {"results/README.md": "results/index.md", "README.md": "course/index.ipynb"}


def page_of(path: str) -> str | None:
    "Return the page for a file of the repository, or None if the site has no such page."
    if path.startswith("nbs/") and path.endswith(".ipynb"):
        return "course/" + path.removeprefix("nbs/")
    return path if path in ("CONTRIBUTING.md", "CHANGELOG.md") else RENAMED.get(path)


def relink(
    text: str,  # Markdown
    path: str,  # the text's file in the repository
    page: str,  # the page that shows it
) -> str:
    "Let the relative links of a text lead to pages of the site, and all others to the repository."

    def replace(link: re.Match) -> str:
        file, hash_sign, anchor = link[2].partition("#")
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        target = page_of(linked)
        if target:
            target = posixpath.relpath(target, posixpath.dirname(page) or ".")
        else:
            kind = "tree" if (ROOT / linked).is_dir() else "blob"
            target = f"{REPOSITORY}/{kind}/{SETTINGS['branch']}/{linked}"
        return f"{link[1]}{target}{hash_sign}{anchor}"

    return RELATIVE_LINK.sub(replace, text)


def toctree(
    entries: list[str],  # pages, or "title <page>"
    caption: str = "",
) -> str:
    "Return a hidden table of contents: Sphinx makes the sidebar and the order of pages from it."
    head = [":hidden:", *([f":caption: {caption}"] if caption else []), ""]
    return "\n".join(["```{toctree}", *head, *entries, "```"])


def notebook_links(path: str) -> str:
    "Return links to Colab, to a copy of the notebook on the site and to the repository, as HTML."
    name = path.removeprefix("nbs/")
    copy = "../" * (1 + name.count("/")) + f"notebooks/{name}"
    links = {
        "Open in Colab": f'"{COLAB}/github/{BLOB}/{path}"',
        "Download the notebook": f'"{copy}" download',
        "View on GitHub": f'"https://github.com/{BLOB}/{path}"',
    }
    items = "".join(f"<a href={link}>{text}</a>" for text, link in links.items())
    return f'<p class="notebook-links">{items}</p>'


def prepare_code(cell: NotebookNode) -> None:
    "Remove the directives of a code cell and hand their meaning over to MyST-NB."
    flags = directives(cell)
    tags = list(cell.metadata.get("tags", []))
    tags += ["export"] * bool(flags & {"export", "exporti"})
    tags += ["remove-input"] * ("echo:false" in flags)
    cell.metadata["tags"] = tags
    if alt := FIG_ALT.search(cell.source):
        cell.metadata["mystnb"] = {"image": {"alt": alt[1]}}
    cell.source = DIRECTIVE.sub("", cell.source).strip()
    cell.outputs = without_hint(cell.outputs)


def prepare(nb: NotebookNode, path: str, page: str) -> None:
    "Turn a notebook into the source of a page."
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    nb.cells = [c for c in nb.cells if "hide" not in directives(c) and c.id != "colab-setup"]
    for cell in nb.cells:
        if cell.id == "colab-badge":
            cell.source = notebook_links(path)
        elif cell.cell_type == "code":
            prepare_code(cell)
        else:
            cell.source = relink(cell.source, path, page)
    nb.cells = [c for c in nb.cells if c.source or c.get("outputs")]


def children(path: str) -> list[str]:
    "Return the contents below a notebook: a lesson's exercises, and all checks below the first."
    stem = Path(path).stem
    if path == "nbs/checks/00_check.ipynb":
        others = sorted(p.stem for p in (ROOT / "nbs/checks").glob("[1-9]*.ipynb"))
        lessons = [f"Lesson {name.replace('_', ': ', 1)} <{name}>" for name in others]
        return ["Fill-in cells of the lessons <01_lessons>", *lessons]
    has_exercises = (ROOT / f"nbs/exercises/{stem}.ipynb").exists() and path.count("/") == 1
    return [f"Exercises <exercises/{stem}>"] if has_exercises else []


def write_lessons(pages: Path, html: Path) -> None:
    "Write the pages of all notebooks, and copies of the notebooks themselves to download."
    for file in find_notebooks():
        path = file.relative_to(ROOT).as_posix()
        page = page_of(path)
        nb = nbformat.read(file, as_version=4)
        prepare(nb, path, page)
        if entries := children(path):
            nb.cells.append(nbformat.v4.new_markdown_cell(toctree(entries)))
        (pages / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, pages / page)
        copy = html / "notebooks" / path.removeprefix("nbs/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def first_cell(stem: str) -> str:
    "Return the text with which a lesson opens."
    return nbformat.read(ROOT / f"nbs/{stem}.ipynb", as_version=4).cells[0].source


def title_of(stem: str) -> str:
    "Return the title of a lesson without its subtitle."
    return re.search(r"^# ([^:\n]*)", first_cell(stem))[1]


def lessons_by_part() -> dict[str, list[str]]:
    'Return the entries "title <page>" of all numbered lessons by part, as the index lists them.'
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in nb.cells)
    _, *pieces = PART.split(text)
    return {
        part.strip(): [f"{name} <course/{stem}>" for name, stem in LESSON.findall(rows)]
        for part, rows in zip(pieces[::2], pieces[1::2])
    }


def contents() -> str:
    "Return the table of contents of the site."
    opening = sorted(p.stem for p in (ROOT / "nbs").glob("0*.ipynb"))
    start = ["Overview <course/index>", "The essential path <essential>"]
    start += [f"{title_of(stem)} <course/{stem}>" for stem in opening]
    start += ["Glossary <course/glossary>", "For teachers <course/teaching>"]
    start += ["Capstone project <course/exercises/capstone>"]
    reference = [
        "Results <results/index>",
        "Library <api/index>",
        "Checks of the exercises <course/checks/00_check>",
        "Contributing <CONTRIBUTING>",
        "Changes <CHANGELOG>",
    ]
    trees = {"Start": start, **lessons_by_part(), "Reference": reference}
    return "\n\n".join(toctree(entries, caption) for caption, entries in trees.items())


def essential_rows() -> tuple[str, float]:  # a Markdown list, hours
    "Return the lessons of the essential path with their subtitles, and the hours that they take."
    items, minutes = [], 0
    for number in ESSENTIAL:
        for file in sorted((ROOT / "nbs").glob(f"{number}_*.ipynb")):
            text = first_cell(file.stem)
            subtitle = re.search(r"^> (.*)", text, re.MULTILINE)[1]
            time = re.search(r"\*\*Time:\*\* (\d+) minutes", text)
            minutes += int(time[1]) if time else 5
            items.append(
                f"- **[{number} · {title_of(file.stem)}](course/{file.name})** "
                f"({time[1] if time else 5} minutes). {subtitle}"
            )
    return "\n".join(items), minutes / 60
