"""Settings of Sphinx for the website; `build.py` writes the pages."""

import re
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

from notebooks import SETTINGS

WEB = Path(__file__).parent

project = "maevit_course"
author = SETTINGS["author"]
copyright = f"the {author}"
version = release = SETTINGS["version"]
language = "en-GB"

extensions = ["myst_nb", "sphinx_copybutton"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
add_module_names = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "maevit_course"
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
templates_path = ["templates"]
html_context = {"explorer": (WEB / "explorer").exists()}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/explorer.html",
        "sidebar/scroll-end.html",
    ]
}


def write_formula(translator, node):
    "Write a formula as MathML, which browsers show without any script."
    display = "block" if node.tagname == "math_block" else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise SkipNode


SIGNATURE = re.compile(r'<dl>\s*(<dd><em class="sig-param">.*?)</dl>', re.DOTALL)


def mend_roles(app, page, template, context, doctree):
    "Mend passages of Sphinx and MyST-NB that screen readers misunderstand."
    for name in ("body", "furo_navigation_tree"):
        text = context.get(name) or ""
        # A heading needs a level, and a list of parameters is not a list of definitions.
        text = text.replace('role="heading">', 'role="heading" aria-level="2">')
        # The label of a folded cell must be the text that it shows.
        text = text.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        context[name] = SIGNATURE.sub(lambda lines: re.sub("(</?)dd>", r"\1span>", lines[1]), text)


def setup(app):
    "Let `write_formula` show all formulas, and `mend_roles` see all pages last."
    app.connect("html-page-context", mend_roles, priority=900)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
