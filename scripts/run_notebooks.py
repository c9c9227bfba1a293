"""Execute the tutorials: `make notebooks` writes their outputs back, `--check` runs two at once and keeps nothing.

python scripts/run_notebooks.py [--check]
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 900
"""Seconds that one cell may take; on two quiet cores a notebook takes less than 90."""


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, executed, without the outputs that differ from run to run.

    Raises:
        CellExecutionError: a cell raised an exception.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=LONGEST, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    return notebook


def run(path: Path, *, write: bool) -> bool:
    """Execute the notebook at `path`, print how long it took or its error, and return whether it ran."""
    start = time.perf_counter()
    try:
        notebook = execute(path)
    except CellExecutionError as error:
        print(f"{path.name}: failed\n{error}", file=sys.stderr)
        return False
    if write:
        nbformat.write(notebook, path)
    print(f"{path.name}: executed in {time.perf_counter() - start:.0f} s", flush=True)
    return True


def main() -> int:
    """Execute every notebook of docs/tutorials; 1 if one fails."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check = "--check" in sys.argv[1:]
    if check:  # two processes share the cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    with ThreadPoolExecutor(2 if check else 1) as pool:
        return 0 if all(list(pool.map(lambda path: run(path, write=not check), paths))) else 1


if __name__ == "__main__":
    sys.exit(main())
