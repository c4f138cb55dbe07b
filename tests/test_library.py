"""The library, the README and the notebooks agree, and the package installs on its own."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from common import QUICK, SECONDS
from notebooks import (
    MAX_BYTES,
    ROOT,
    SETTINGS,
    find_notebooks,
    is_skipped,
    make_readme,
)

LIB = ROOT / "maevit_course"


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_library_is_the_export_of_the_notebooks(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True)

    def sources(lib):
        return {str(p.relative_to(lib)): p.read_bytes() for p in lib.rglob("*.py")}

    exported, committed = sources(tmp_path / LIB.name), sources(LIB)
    differ = sorted(f for f in exported | committed if exported.get(f) != committed.get(f))
    assert not differ, f"run `make export`: {differ}"


def test_readme_is_the_index():
    text, images = make_readme()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run `make readme`"
    assert {str(p.relative_to(ROOT)): p.read_bytes() for p in ROOT.glob("images/index_*")} == images


def layers():
    "The layers that CONTRIBUTING.md draws, from the top to the bottom, as lists of modules."
    drawing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = drawing.split("## Layers")[1].split("```")[1]
    lines = [line for line in drawing.splitlines() if line.strip() not in ("", "text", "↓")]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def imported_modules(source, name):
    "The modules of this library that the source of the module `name` imports, anywhere in it."
    package = ["maevit_course", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [base] if node.module else [f"{base}.{a.name}" for a in node.names]
        else:
            continue
        yield from (
            n.removeprefix("maevit_course.") for n in names if n.startswith("maevit_course.")
        )


def test_imports_point_down():
    "A module imports only modules of lower layers; the lessons' own ring is imported by none."
    drawn = layers()
    height = {name: -n for n, layer in enumerate(drawn) for name in layer}
    assert len(height) == sum(map(len, drawn)), "a module is drawn twice"
    found = {
        ".".join(p.relative_to(LIB).with_suffix("").parts)
        for p in LIB.rglob("*.py")
        if p.name not in ("__init__.py", "_modidx.py")
    }
    checks = {name for name in found if name.startswith("course.checks.")}
    assert found - checks == set(height), "CONTRIBUTING.md draws other modules"
    wrong = []
    for name in height:
        source = (LIB / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        for other in imported_modules(source, name):
            lower = height.get(other, 1) < height[name]
            if not lower or other.startswith("course"):
                wrong.append(f"{name} imports {other}")
    assert not wrong


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: p.stem)
def test_committed_outputs(path):
    cells = code_cells(path)
    outputs = [o for c in cells for o in c.outputs]
    assert not [o.evalue for o in outputs if o.output_type == "error"]
    assert all(x.get("execution_count") is None for x in [*cells, *outputs]), "run nbdev_clean"
    assert path.stat().st_size <= MAX_BYTES
    own = [c for c in cells if c.id != "colab-setup"]
    runs = any(c.source.strip() and not is_skipped(c) for c in own)
    assert outputs or not runs, "run `make notebooks`"


def test_no_paths_of_one_machine():
    git = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if git.returncode:
        pytest.skip("not a git checkout")
    local = re.compile("/" + "(work/|tmp/v|root/)")
    found = []
    for name in filter(None, git.stdout.split("\0")):
        try:
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found += [f"{name}:{i}" for i, line in enumerate(lines, 1) if local.search(line)]
    assert not found


IMPORT_ALL = """
import importlib, importlib.util, pkgutil
import maevit_course
for m in pkgutil.walk_packages(maevit_course.__path__, 'maevit_course.'):
    importlib.import_module(m.name)
for tool in 'nbdev', 'fastcore', 'execnb', 'IPython', 'jupyter', 'jupyter_core', 'ipykernel':
    assert importlib.util.find_spec(tool) is None, f'{tool} is installed'
from maevit_course.paper.tables import read_records, results_folder
from maevit_course.weights import bundled_weights
assert read_records('small') and bundled_weights(), 'records or weights were left behind'
assert not [*results_folder().rglob('*.safetensors')], 'weights that only a clone should have'
"""


#: Tests of the library that need no notebook tools and little time.
QUICK_TESTS = ["model", "properties", "data", "saved", "cli"]


def lowest_versions():
    "The requirements in settings.ini with each lower bound as the version."
    requirements = SETTINGS["requirements"].split()
    assert all(">=" in requirement for requirement in requirements)
    return [requirement.split(",")[0].replace(">=", "==") for requirement in requirements]


@pytest.mark.skipif("CI" not in os.environ, reason="downloads several GB; set CI=1 to run it")
def test_the_lowest_versions_install_and_pass_the_quick_tests(tmp_path):
    "The library is installed without its development tools, as a user would install it."
    source, bin = tmp_path / "source", tmp_path / "venv/bin"
    shutil.copytree(LIB, source / LIB.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results", source / "results")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    for name in ("pyproject.toml", "setup.py", "settings.ini", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def run(*args):
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        subprocess.run(args, cwd=tmp_path, check=True, env=environment, timeout=SECONDS)

    run(sys.executable, "-m", "venv", "venv")
    run(bin / "python", "-m", "pip", "install", "--quiet", "./source", *lowest_versions())
    run(bin / "python", "-c", IMPORT_ALL)
    command = ["pretrain", *QUICK, "--epochs", "1", "--out", "run"]
    run(bin / "maevit", *command)
    assert (tmp_path / "run/model.safetensors").is_file()
    run(bin / "python", "-m", "pip", "install", "--quiet", "pytest", "pytest-timeout", "hypothesis")
    run(bin / "pytest", "-q", *[f"tests/test_{name}.py" for name in QUICK_TESTS])
