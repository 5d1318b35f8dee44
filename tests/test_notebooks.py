"Every notebook runs from top to bottom, its asserts included."
import multiprocessing
import os
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MINUTES = 20
# Each notebook gets a process of its own, forked from one that has the heavy libraries in it: to import them anew 137 times took a fifth of the whole suite.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["IPython", "pandas", "altair", "torch", "transformers", "trl", "datasets", "peft", "sklearn.linear_model", "scipy.optimize", "lightgbm"])


def execute(path, cells, said):
    "Run cells like a kernel; send what went wrong, or nothing."
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config
    os.chdir(path.parent)
    os.environ["PYTHONPATH"] = str(ROOT)                     # for what a notebook starts; itself it reads sys.path
    sys.path.insert(0, str(ROOT))
    shell = InteractiveShell.instance(config=Config(HistoryManager=dict(enabled=False)))
    for k, cell in enumerate(cells):
        with capture_output(): done = shell.run_cell(cell)
        error = done.error_before_exec or done.error_in_exec
        if error: return said.send(f"{path.name}, code cell {k}:\n{cell}\n\n" + "".join(traceback.format_exception(error)))
    said.send(None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    import nbformat
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and not c.source.startswith(("#| live", "#| slow", "#| gpu"))]
    heard, said = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=execute, args=(path, cells, said))
    process.start()
    said.close()
    try:
        if not heard.poll(60 * MINUTES): pytest.fail(f"{path.name} takes more than {MINUTES} minutes")
        try: error = heard.recv()
        except EOFError: pytest.fail(f"{path.name}: its process died (exit code {process.join() or process.exitcode})")
        if error: pytest.fail(error, pytrace=False)
    finally:
        process.kill()
        process.join()
