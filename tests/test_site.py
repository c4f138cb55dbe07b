"""The website: complete, usable by everybody, and without requests to other hosts."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from filelock import FileLock

from browsers import opened_browser, served
from notebooks import ROOT, find_notebooks, folding

NEEDED = ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "latex2mathml")
AXE = ROOT / "web/node_modules/axe-core/axe.min.js"
LESSON = "course/13_encoder.html"
PAGES = [
    "index.html",
    "essential.html",
    LESSON,
    "course/exercises/10_patches.html",
    "course/32_ablations.html",
    "results/index.html",
    "results/small/c10.html",
    "api/masking.html",
]

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, NEEDED)), reason="the website's packages are not installed: '.[site]'"
)


class Page(HTMLParser):
    "Links, anchors, pictures, foldable parts and code of a page."

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors, self.pictures = [], [], {"", "top"}, []
        self.folded, self.folded_code, self.unfolded = 0, 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "src" in found or (tag == "link" and found.get("rel") not in ("canonical", "author")):
            self.loaded.append(found.get("src") or found["href"])
        if tag == "img":
            self.pictures.append(found)
        if tag == "details":
            self.folded_code += "hide" in (found.get("class") or "")
            self.folded += "class" not in found
            self.unfolded += "open" in found


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The built website; processes that run tests at the same time share it."
    folder = tmp_path_factory.getbasetemp().parent / "website"
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            words = [sys.executable, ROOT / "web/build.py", folder]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "built").touch()
    return folder


@pytest.fixture(scope="session")
def parsed(site):
    "All pages by their path."
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_links_lead_somewhere(site, parsed):
    broken = []
    for path, page in parsed.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = target.exists() and target.is_relative_to(site.resolve())
            anchors = parsed[target].anchors if found and target in parsed else {parts.fragment}
            if not found or unquote(parts.fragment) not in anchors | {""}:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_nothing_is_loaded_from_other_hosts(site, parsed):
    foreign = re.compile(r"(?:https?:)?//")
    loaded = {link for page in parsed.values() for link in page.loaded if foreign.match(link)}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    loaded |= {
        url for text in styles for url in re.findall(r"url\([\"']?((?:https?:)?//[^)]*)", text)
    }
    assert not loaded


def test_pictures_have_alternative_texts(site, parsed):
    silent = [
        f"{path.relative_to(site)}: {picture.get('src')}"
        for path, page in parsed.items()
        for picture in page.pictures
        if not (picture.get("alt") or "").strip() or "/" in picture["alt"].split()[0]
    ]
    assert not silent


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_notebook_becomes_a_page(path, site, parsed):
    "Its figures are shown, folded cells and answers are folded, and no directive is left."
    file = site / "course" / path.relative_to(ROOT / "nbs").with_suffix(".html")
    page, nb = parsed[file], nbformat.read(path, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code" and "#| hide\n" not in c.source]
    figures = [o for c in code for o in c.outputs if any("image/" in k for k in o.get("data", {}))]
    answers = sum(c.source.count("<details>") for c in nb.cells if c.cell_type == "markdown")
    hidden = [kind for c in code if c.id != "colab-setup" for kind in folding(c).get("tags", [])]
    assert len(page.pictures) >= len(figures)
    assert (page.folded, page.folded_code, page.unfolded) == (answers, len(hidden), 0)
    text = re.sub(r"<[^>]*>", "", file.read_text(encoding="utf-8"))
    assert not re.search(
        r"^#\| *(?:export|fig-alt|default_exp|fold|answer|varies)", text, re.MULTILINE
    )
    assert (site / "notebooks" / path.relative_to(ROOT / "nbs")).read_bytes() == path.read_bytes()


@pytest.fixture(scope="session")
def address(site):
    "The address of a plain file server."
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    "A tab in which nothing may fail; all hosts but the file server are blocked."
    context = browser.new_context(base_url=address, viewport={"width": 1440, "height": 900})
    page, problems = context.new_page(), []
    page.set_default_timeout(120_000)
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))

    def failed(request):  # leaving a page aborts what it still loads, which is no failure
        if request.failure != "net::ERR_ABORTED":
            problems.append(request.url)

    page.on("requestfailed", failed)

    def guard(route):
        ours = route.request.url.startswith((address, "data:"))
        return route.continue_() if ours else route.abort()

    context.route("**/*", guard)
    yield page
    context.close()
    assert not problems


def test_pages_load_and_fit_a_phone(page):
    "Without errors, with all pictures, and without scrolling sideways."
    for name in PAGES:
        page.goto(f"/{name}")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.set_viewport_size({"width": 1440, "height": 900})


def test_answers_are_shown_on_request(page):
    page.goto("/course/exercises/10_patches.html")
    solution = page.locator("details", has_text="Solution").last
    code = solution.locator("pre").first
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible()


def test_search_finds_a_term_and_a_function(page):
    for words, target in (("mask token", "course/glossary"), ("random_masking", "api/masking")):
        page.goto(f"/search.html?q={words}")
        page.locator(f"#search-results a[href*='{target}']").first.wait_for()


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm ci in web/")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_the_pages(page, theme):
    "axe-core finds nothing serious."
    page.emulate_media(color_scheme=theme)
    for name in ("index.html", LESSON, "api/masking.html"):
        page.goto(f"/{name}")
        page.add_script_tag(path=AXE)
        found = page.evaluate("axe.run().then(result => result.violations)")
        serious = [
            f"{rule['id']}: {node['html']}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]
        assert not serious, f"{name}, {theme}"
