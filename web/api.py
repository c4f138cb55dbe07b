"""Pages from the library's source: signatures, docstrings and the comments on parameters."""

import ast
import io
import tokenize
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from lessons import page_of, title_of, toctree
from notebooks import ROOT

PACKAGE = ROOT / "maevit_course"
Parameter = tuple[str, str, int]  # name, source, line on which it ends


def comments_of(source: str) -> dict[int, str]:
    'Return the comments of a module by line, without their "#".'
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#: ") for t in tokens if t.type == tokenize.COMMENT}


def parameters(function: ast.FunctionDef) -> Iterator[Parameter]:
    "Yield the parameters of a function, with `*` where keyword-only parameters begin."
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    yield from map(parameter, positional, defaults)
    if a.vararg:
        yield parameter(a.vararg, None, "*")
    elif a.kwonlyargs:
        yield "*", "*", 0
    yield from map(parameter, a.kwonlyargs, a.kw_defaults)
    if a.kwarg:
        yield parameter(a.kwarg, None, "**")


def parameter(arg: ast.arg, default: ast.expr | None, stars: str = "") -> Parameter:
    "Return a parameter as it is written, with its default value."
    text = stars + ast.unparse(arg)
    if default is None:
        return stars + arg.arg, text, arg.end_lineno or 0
    equals = " = " if arg.annotation else "="
    return arg.arg, f"{text}{equals}{ast.unparse(default)}", default.end_lineno or 0


def fields(node: ast.ClassDef) -> Iterator[Parameter]:
    "Yield the fields of a dataclass as parameters."
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and not ast.unparse(line.annotation).startswith("Class"):
            yield ast.unparse(line.target), ast.unparse(line), line.end_lineno or 0


def described(found: list[Parameter], comments: dict[int, str]) -> list[str]:
    "Return the comments on parameters as a field list."
    return [f":param {name}: {comments[end]}" for name, _, end in found if end in comments]


def directive(kind: str, head: str, body: list[str], colons: str = "::::") -> str:
    "Return a directive of Sphinx's Python domain."
    return "\n".join([f"{colons}{{py:{kind}}} {head}", "", *body, colons, ""])


def docstring(node: ast.FunctionDef | ast.ClassDef) -> str:
    return cleandoc(ast.get_docstring(node) or "")


def function_entry(
    function: ast.FunctionDef, comments: dict[int, str], method: bool = False
) -> str:
    "Return the entry of a function or of a method."
    decorators = {ast.unparse(decorator) for decorator in function.decorator_list}
    found = [*parameters(function)]
    if method and "staticmethod" not in decorators:
        found = found[1:]  # self or cls
    body = [docstring(function), "", *described(found, comments)]
    head, returns = function.name, function.returns
    if is_property := "property" in decorators:
        body += [f":type: {ast.unparse(returns)}"] if returns else []
    else:
        head += f"({', '.join(source for _, source, _ in found)})"
        head += f" -> {ast.unparse(returns)}" if returns else ""
    if returns and returns.end_lineno in comments:
        body.append(f":returns: {comments[returns.end_lineno]}")
    if not method:
        return directive("function", head, body)
    kinds = {"classmethod": "classmethod", "staticmethod": "staticmethod"}
    kind = "property" if is_property else next((kinds[d] for d in decorators & {*kinds}), "method")
    return directive(kind, head, body, ":::")


def class_entry(node: ast.ClassDef, comments: dict[int, str]) -> str:
    "Return the entry of a class with its fields or arguments and its documented methods."
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    start = next((m for m in methods if m.name == "__init__"), None)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        found = [*fields(node)]
    else:
        found = [*parameters(start)][1:] if start else []
    bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
    body = [docstring(node), "", f"Based on {bases}." if bases else "", ""]
    body += [*described(found, comments), ""]
    shown = [m for m in methods if docstring(m) and (m.name[0] != "_" or m.name == "__call__")]
    body += [function_entry(method, comments, method=True) for method in shown]
    return directive("class", f"{node.name}({', '.join(source for _, source, _ in found)})", body)


def entries(tree: ast.Module, comments: dict[int, str], public: set[str]) -> Iterator[str]:
    "Yield the entries of all public names of a module, in the order of its source."
    for node in tree.body:
        if isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])) in public:
            yield directive("data", name, [comments.get(node.lineno - 1, "")])
        elif isinstance(node, ast.FunctionDef) and node.name in public:
            yield function_entry(node, comments)
        elif isinstance(node, ast.ClassDef) and node.name in public:
            yield class_entry(node, comments)


def public_names(tree: ast.Module) -> set[str]:
    "Return the names in the `__all__` of a module."
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {name.value for name in node.value.elts}
    return set()


def module_page(path: Path) -> tuple[str, str]:  # its name and, in Markdown, its page
    "Return the page of a module."
    source = path.read_text(encoding="utf-8")
    tree, comments = ast.parse(source), comments_of(source)
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    notebook = next(text for text in comments.values() if "File to edit:" in text)
    stem = Path(notebook).name.partition(".")[0]
    lesson = f"../{page_of(f'nbs/{stem}.ipynb')}"
    parts = [
        f"# {name}",
        f"```{{py:module}} maevit_course.{name}\n```",
        ast.get_docstring(tree) or "",
        f"The code is explained in lesson {stem[:2]}, [{title_of(stem)}]({lesson}).",
        *entries(tree, comments, public_names(tree)),
    ]
    return name, "\n\n".join(parts)


def write_api(pages: Path) -> None:
    "Write a page for each module with public names, and one that lists them."
    (pages / "api").mkdir(parents=True)
    rows = ["| module | what it does |", "| :-- | :-- |"]
    names = []
    for path in [*sorted(PACKAGE.glob("*.py")), *sorted(PACKAGE.glob("paper/*.py"))]:
        source = path.read_text(encoding="utf-8")
        if path.name[0] == "_" or not public_names(ast.parse(source)):
            continue
        name, page = module_page(path)
        (pages / f"api/{name}.md").write_text(page, encoding="utf-8")
        names.append(name)
        rows.append(f"| [{name}]({name}.md) | {ast.get_docstring(ast.parse(source))} |")
    text = (ROOT / "web/library.md").read_text(encoding="utf-8")
    table, tree = "\n".join(rows), toctree(names)
    (pages / "api/index.md").write_text(f"{text}\n{table}\n\n{tree}\n", encoding="utf-8")
