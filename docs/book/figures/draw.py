"""Draw all figures of the book again, or those named.

    python docs/book/figures/draw.py [name ...]          such as: gradients graph

Each draw_NAME.py beside this file has a function `draw` that returns its pictures by file name. All
numbers come from runs of the package in float64, so they are the same everywhere; but for the times
in launches.svg, which lie in launches.json with their machine and date.
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("draw_") for path in HERE.glob("draw_*.py"))


def pictures(name: str) -> dict[str, str]:
    """The pictures of draw_NAME.py: {file name: SVG}."""
    return importlib.import_module(f"draw_{name}").draw()


def main(names: list[str]) -> None:
    unknown = sorted({*names} - {*NAMES})
    if unknown:
        sys.exit(f"no figures called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in names or NAMES:
        for file, svg in pictures(name).items():
            (HERE / file).write_text(svg, encoding="utf-8", newline="\n")
            print(f"{HERE / file}: {len(svg) / 1000:.1f} kB")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[2] / "examples"))  # the baselines
    main(sys.argv[1:])
