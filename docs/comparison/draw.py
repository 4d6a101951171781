"""The tables and pictures of docs/comparison.md, from the numbers of each run beside this file.

    python docs/comparison/draw.py

runs.csv and decades.csv have a row for each run; what is made of them is written beside them. No
GPU is needed, nor the data.
"""

import csv
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))

from comparison import decades, table  # noqa: E402


def rows_of(path: Path) -> list[dict]:
    """The rows of a CSV file, numbers as numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def main(folder: Path = HERE) -> None:
    for tell, name in ((decades.tell, "decades.csv"), (table.tell, "runs.csv")):
        for path in sorted(folder.glob(f"*/{name}")):
            print(f"\n{path.parent.name}:")
            tell(path.parent, rows_of(path))


if __name__ == "__main__":
    main()
