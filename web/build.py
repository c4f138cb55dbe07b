"""Build the website from stored outputs, records and docstrings. No notebook is executed."""

import shutil
import sys
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from sphinx.cmd.build import build_main  # noqa: E402

from api import write_api  # noqa: E402
from lessons import contents, essential_rows, relink, write_lessons  # noqa: E402
from records import headline, write_records  # noqa: E402

WEB = ROOT / "web"


def write_texts(pages: Path) -> None:
    "Write the landing page, the essential path, and the texts at the top of the repository."
    rows, hours = essential_rows()
    values = {"contents": contents(), "lessons": rows, "hours": f"{hours:.0f}", **headline()}
    link = '<a href="explorer/index.html">Explorer</a>'
    values["explorer"] = link if (WEB / "explorer").exists() else ""
    for name in ("index.md", "essential.md"):
        template = Template((WEB / name).read_text(encoding="utf-8"))
        (pages / name).write_text(template.substitute(values), encoding="utf-8")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (pages / name).write_text(relink(text, name, name), encoding="utf-8")
    shutil.copy(ROOT / "results/hour/pretrain-0/gallery.jpg", pages / "gallery.jpg")


def build(
    site: Path,  # the finished website; replaced
    work: Path,  # the pages before Sphinx reads them, and other intermediate files; replaced
) -> int:  # exit status; 0 if there was no warning
    "Write all pages and let Sphinx turn them into the website."
    for folder in (site, work):
        shutil.rmtree(folder, ignore_errors=True)
    pages, html = work / "pages", work / "html"
    pages.mkdir(parents=True)
    write_lessons(pages, html)
    write_records(pages)
    write_api(pages)
    write_texts(pages)
    words = ["-b", "html", "-c", WEB, "-d", work / "doctrees", "-j", "2", "-q", "-W"]
    status = build_main([*map(str, words), "--keep-going", str(pages), str(html)])
    if (WEB / "explorer").exists():
        shutil.copytree(WEB / "explorer", html / "explorer")
    shutil.move(html, site)
    return status


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()
    sys.exit(build(out, out.parent / "build" / out.name))
