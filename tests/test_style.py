"""The linter, the formatter and the type checker have nothing to say."""

import subprocess
import sys

import pytest

from notebooks import ROOT

COMMANDS = {
    "lint": ["ruff", "check", "--quiet", "."],
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "types": ["mypy", "--no-error-summary"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_style(name):
    words = [sys.executable, "-m", *COMMANDS[name]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_have_no_long_lines():
    "nbdev writes `__all__` and the list of symbols; their lines may be long."
    long = []
    for path in (ROOT / "maevit_course").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.name != "_modidx.py":
            body = source.partition("\n# %% ")[2].partition("\n# %% ")[2]
            long += [f"{path.name}: {line}" for line in body.splitlines() if len(line) > 100]
    assert not long
