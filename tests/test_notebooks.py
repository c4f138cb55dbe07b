"""Every notebook runs from top to bottom, in a process and a folder of its own."""
import re

import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from notebooks import find_notebooks, run_notebook

SECONDS = 180
ANSI = re.compile(r'\x1b\[[0-9;]*m')


@pytest.mark.parametrize('path', find_notebooks(), ids=lambda p: p.stem)
def test_notebook(path, tmp_path):
    error = None
    try: run_notebook(path, cwd=tmp_path, seconds=SECONDS)
    except CellTimeoutError as e: error = f'not done after {SECONDS} s. {e}'
    except (CellExecutionError, DeadKernelError) as e: error = str(e)
    # Outside of `except`, or pytest would show the same error twice.
    if error: pytest.fail(f'{path.name}: {ANSI.sub("", error)}', pytrace=False)
