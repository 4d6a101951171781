"""Data for compare.py from Debian's packages: letters of fonts, and clip art in 20 classes.

    python examples/make_data.py letters FONTS --out letters
    python examples/make_data.py clipart /usr/share/openclipart/png --out clipart

docs/comparison-plan.md says which packages, and what comes out. The same files give the same bytes
with the same Pillow and FreeType, whose versions are printed. comparison/glyphs.py and clipart.py
beside it tell how pictures are made and split. Nothing of what is read is kept but small images.
"""

from support import begin  # noqa: F401  isort: skip

import hashlib
from pathlib import Path

import numpy as np

from comparison import clipart, glyphs
from minimixer.pictures.folders import import_pillow
from minimixer.training.names import printable
from support.options import Parser, run_script


def letters(folder: Path, out: Path) -> None:
    images, rows = glyphs.make(folder)
    glyphs.write(out, images, rows)
    different = len(np.unique(images.reshape(-1, glyphs.SIDE**2), axis=0))
    print(f"{len(rows):,} fonts; of {len(rows) * len(glyphs.FORMS):,} letters {different:,} differ")
    for part in glyphs.PARTS:
        designs = [row["group"] for row in rows if row["part"] == part]
        print(f"{part:10} {len(designs):5,} fonts of {len(set(designs)):,} designs")
    parts = np.array([row["part"] for row in rows])
    known, tested = ({letter.tobytes() for font in images[parts == part] for letter in font}
                     for part in ("train", "test"))  # fmt: skip
    print(f"{len(known & tested):,} of {len(tested):,} letters to test on equal one to train on")


def pictures(folder: Path, out: Path) -> None:
    made = clipart.make(folder)
    clipart.write(out, made)
    print(f"{len(made.train_labels):,} pictures to train on and {len(made.test_labels):,} to test, "
          f"of {len(clipart.CLASSES)} classes\nleft out: {made.equal:,} equal to another, "
          f"{made.near:,} of the test that hardly differ from one to train on")  # fmt: skip


KINDS = {  # what makes them, and the files that they are
    "letters": (letters, (glyphs.LIST, glyphs.LETTERS)),
    "clipart": (pictures, clipart.FILES),
}


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("folder", help="with fonts, or with clip art")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the data set goes")
    options = parser.parse_args()
    folder, out = Path(options.folder), Path(options.out)
    if not folder.is_dir():
        raise NotADirectoryError(f"{printable(folder)} is no folder")
    import_pillow()
    from PIL import __version__, features

    make, names = KINDS[options.kind]
    paths = [out / name for name in names]
    for path in paths:  # found out before minutes of work
        if path.exists():
            raise FileExistsError(f"{printable(path)} is there already; remove it, or name another "
                                  "--out")  # fmt: skip
    make(folder, out)
    print(f"Pillow {__version__}, FreeType {features.version('freetype2')}")
    for path in paths:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {printable(path)}")
    return 0


if __name__ == "__main__":
    run_script(main, "make_data")
