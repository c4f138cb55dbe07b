"""Published solutions pass, stubs and typical mistakes are told what is wrong."""

import re

import nbformat
import pytest

from maevit_course.course.checks.core import NOT_YET, Check
from notebooks import ROOT

CHECKED = re.compile(r"^check\.(\w+)\((\w+)\)", re.MULTILINE)
SOLUTION = re.compile(r"<details><summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
NOTEBOOKS = sorted((ROOT / "nbs/exercises").glob("*.ipynb"))


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


def test_every_lesson_has_exercises():
    "All of parts 1 and 2 except 15, which puts the model's parts together; and lessons 31, 33."
    lessons = {p.name for p in (ROOT / "nbs").glob("*.ipynb") if "10" <= p.name[:2] <= "24"}
    expected = lessons - {"15_models.ipynb"} | {"31_interpretation.ipynb", "33_rivals.ipynb"}
    assert expected == {p.name for p in NOTEBOOKS}
