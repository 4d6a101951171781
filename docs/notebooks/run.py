"""Run the notebooks of this directory, and write them with what their cells put out.

    python docs/notebooks/run.py                  all of them, where they are
    python docs/notebooks/run.py inside_a_mixer   one

Each runs from its first cell to its last in a new kernel and an empty directory, with the minimixer
that this Python imports. What is written does not tell when, where or how fast it ran: no times in
the metadata, and of a progress bar its last state alone. An error in a cell ends it, and leaves the
file as it was. It needs `pip install -e '.[test]' matplotlib`.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path, directory: str | Path) -> nbformat.NotebookNode:
    """The notebook after all its cells ran in `directory`; nbclient's CellExecutionError if one
    failed."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,  # what "\r" overwrote is gone
        extra_arguments=["--log-level=ERROR"],  # else the kernel warns of its own connections
        resources={"metadata": {"path": str(directory)}},
    ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel has added its version
    for cell in notebook.cells:
        cell.metadata.clear()
    return notebook


def main(names: list[str]) -> None:
    paths = [HERE / f"{name}.ipynb" for name in names] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as directory:
            notebook = run(path, directory)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main([name.removesuffix(".ipynb") for name in sys.argv[1:]])
