"""On Colab the set-up cell installs the course once and keeps torch; elsewhere it does nothing."""

import json
import subprocess
import sys
from importlib.metadata import version

import nbformat
import pytest

from notebooks import ROOT, find_notebooks, fold, stamp

# Instead of installing anything, this pip appends its arguments to a file.
PIP = """
import json, os, sys
with open(os.environ["PIP_LOG"], "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
"""
# This imitates a Colab on which the course is installed once pip has been called.
COLAB = """
import importlib.util, os, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
real = importlib.util.find_spec
def find_spec(name):
    missing = name == "maevit_course" and not os.path.exists(os.environ["PIP_LOG"])
    return None if missing else real(name)
importlib.util.find_spec = find_spec
"""


@pytest.fixture
def run_setup(tmp_path):
    "Run the set-up cell in a process with the pip above, and return the arguments of each call."
    cell = next(
        c
        for c in nbformat.read(ROOT / "nbs/12_masking.ipynb", as_version=4).cells
        if c.id == "colab-setup"
    )
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__init__.py").touch()
    (tmp_path / "pip/__main__.py").write_text(PIP)
    log = tmp_path / "log"

    def run(before, times):
        source = before + "\n".join([cell.source] * times)
        subprocess.run(
            [sys.executable, "-c", source],
            check=True,
            cwd=tmp_path,
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PIP_LOG": str(log), "PATH": ""},
        )
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return run


def test_on_colab_it_installs_once_and_keeps_torch(run_setup):
    (request,) = run_setup(COLAB, times=2)
    assert request[:2] == ["install", "--quiet"]
    assert (
        f"torch=={version('torch')}" in request
        and f"torchvision=={version('torchvision')}" in request
    )
    assert request[-1].startswith("git+https://github.com/") and not {
        "-U",
        "--upgrade",
        "--force-reinstall",
    } & set(request)


def test_elsewhere_it_does_nothing(run_setup):
    assert run_setup("", times=1) == []


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_badge_and_setup_are_those_of_settings_ini(path):
    nb = nbformat.read(path, as_version=4)
    cells = list(nb.cells)
    stamp(nb, path)
    fold(nb)
    assert nb.cells == cells, "run `make notebooks`"
