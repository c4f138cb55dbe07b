"""A learner opens a lesson in JupyterLab, runs all cells and sees its pictures."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from browsers import BROWSER, FLAGS
from notebooks import ROOT

LESSON = "10_patches.ipynb"


@pytest.fixture
def lab(tmp_path):
    "The address of a JupyterLab that shows a copy of the lesson without its outputs."
    nb = json.loads((ROOT / "nbs" / LESSON).read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / LESSON).write_text(json.dumps(nb), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME")}
    home["JUPYTERLAB_WORKSPACES_DIR"] = str(tmp_path / "workspaces")
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={tmp_path / 'nbs'}",
    ]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **home})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address + "/api", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("JupyterLab did not start:\n" + (tmp_path / "log").read_text())
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_lesson_runs_in_jupyterlab(lab, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=BROWSER,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 900},
        )
        try:
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto(f"{lab}/lab/tree/{LESSON}?reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell")
            page.wait_for_function("""() => {
                const session = window.jupyterapp?.shell.currentWidget?.sessionContext?.session;
                return session?.kernel?.status === 'idle';
            }""")
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            # Cells out of sight are not in the page, so the notebook's model is asked.
            done = page.wait_for_function("""() => {
                const cells = window.jupyterapp?.shell.currentWidget?.content?.model?.cells;
                if (!cells) return false;
                const hasCode = c => c.type === 'code' && c.sharedModel.getSource().trim();
                const numbers = c => [...Array(c.outputs.length).keys()];
                const types = c => numbers(c).map(i => c.outputs.get(i).type);
                const code = [...cells].filter(hasCode);
                if (code.some(c => types(c).includes('error'))) return 'failed';
                return code.every(c => c.executionCount) && 'done';
            }""")
            assert done.json_value() == "done"
            figure = page.locator(".jp-OutputArea-output img").first
            figure.scroll_into_view_if_needed()
            assert figure.evaluate("image => image.complete && image.naturalWidth") > 200
            page.screenshot(path=tmp_path / "lab.png")
        finally:
            browser.close()
