"""Published solutions pass, stubs and typical mistakes are told what is wrong."""

import os
import re
from itertools import pairwise

import nbformat
import pytest

from maevit_course.course.checks.core import NOT_YET, Check
from notebooks import ROOT

CHECKED = re.compile(r"^(?:if )?check\.(\w+)\((\w+)\)", re.MULTILINE)
SOLUTION = re.compile(r"<details><summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
NOTEBOOKS = sorted((ROOT / "nbs/exercises").glob("[0-9]*.ipynb"))


def exercises(path):
    "Run a notebook's imports and stubs; yield (check, name, namespace, solution) per exercise."
    names, pending = {}, None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and (called := CHECKED.search(cell.source)):
            pending = called.groups()
        elif cell.cell_type == "code":
            exec(cell.source, names)
        elif pending and (solution := SOLUTION.search(cell.source)):
            yield getattr(names["check"], pending[0]), pending[1], names, solution[1]
            pending = None
    assert pending is None, f"exercise {pending} has no solution"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_exercises(path):
    found = list(exercises(path))
    assert 3 <= len(found) <= 5
    for check, name, names, solution in found:
        assert isinstance(check, Check) and check.name == name
        assert check.diagnose(names[name]) == NOT_YET, f"the stub of {name}"
        answer = dict(names)
        exec(solution, answer)
        assert check.diagnose(answer[name]) is None, f"the published solution of {name}"
        assert len(check.mistakes) >= 2, f"{name} knows fewer than two mistakes"
        for sentence, wrong in check.mistakes:
            assert check.diagnose(wrong) == sentence


def test_lessons_with_exercises():
    "All lessons of parts 1 to 3 but 25, and lessons 41 and 50."
    lessons = {p.name for p in (ROOT / "nbs").glob("*.ipynb") if "10" <= p.name[:2] < "40"}
    expected = lessons - {"25_hooks.ipynb"} | {"41_beyond.ipynb", "50_your_images.ipynb"}
    assert expected == {p.name for p in NOTEBOOKS}


def experiments(path):
    "Yield the name, the cell and the solution of each exercise that measures something."
    cells = nbformat.read(path, as_version=4).cells
    for cell, after in pairwise(cells):
        called = CHECKED.search(cell.source)
        if cell.cell_type == "code" and called and cell.source.startswith("if "):
            yield called[2], cell.source, SOLUTION.search(after.source)[1]


def test_lessons_with_experiments():
    "From lesson 16 on, each set has an experiment whose result is explained."
    for path in NOTEBOOKS:
        found = list(experiments(path))
        assert bool(found) == (path.name >= "16"), path.name
    assert sum(len(list(experiments(path))) for path in NOTEBOOKS) >= 12


@pytest.mark.skipif("EXPERIMENTS" not in os.environ, reason="set EXPERIMENTS=1; takes half an hour")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_experiments(path, tmp_path, monkeypatch, capsys):
    "The experiment of each published solution runs; its output can be read with `pytest -s`."
    monkeypatch.chdir(tmp_path)
    names = next(exercises(path))[2]
    for name, source, solution in experiments(path):
        exec(solution, names)
        with capsys.disabled():
            print(f"\n{path.stem}: {name}")
            exec(source, names)
