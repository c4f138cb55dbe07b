"""The fill-in cells of the lessons wait for an answer, and their published solutions pass."""

import re

import nbformat
import pytest

from maevit_course.course.checks import lessons
from maevit_course.course.checks.core import BLANK
from notebooks import ROOT
from test_exercises import SOLUTION

CHECKED = re.compile(r"^check\.(\w+)\((\w+)\);?$", re.MULTILINE)
IMPORT = re.compile(r"^(?:from|import) ", re.MULTILINE)
LESSONS = sorted((ROOT / "nbs").glob("1[0-6]_*.ipynb"))


def fill_ins(path):
    "Run the imports; yield names, cell, check, function and solution of each fill-in cell."
    names, pending = {}, None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            if pending and (solution := SOLUTION.search(cell.source)):
                yield names, *pending, solution[1]
                pending = None
        elif IMPORT.search(cell.source) and cell.id != "colab-setup":
            exec(cell.source, names)
        elif called := CHECKED.search(cell.source):
            assert pending is None, f"{pending} has no solution"
            pending = cell.source, *called.groups()
    assert pending is None, f"{pending} has no solution"


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_fill_ins(path, capsys):
    found = list(fill_ins(path))
    assert 2 <= len(found) <= 3
    for names, source, check_name, name, solution in found:
        check = getattr(lessons, check_name)
        answer = dict(names)
        exec(source, answer)
        assert BLANK in capsys.readouterr().out
        assert check.diagnose(answer[name]) == BLANK, f"the blanks of {name}"
        exec(solution, answer)
        assert check.diagnose(answer[name]) is None, f"the published solution of {name}"
        assert len(check.mistakes) >= 2, f"{name} knows fewer than two mistakes"
        for sentence, wrong in check.mistakes:
            assert check.diagnose(wrong) == sentence
