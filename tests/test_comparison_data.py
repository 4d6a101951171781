"""Data that compare.py can have offline: letters drawn from fonts, clip art in classes."""

import contextlib
import csv
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comparison import clipart, data, glyphs, letters
from comparison.glyphs import CLASSES, FORMS, SIDE

pillow = pytest.importorskip("PIL.Image", reason="pip install pillow")
TEXTS = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf", "cmr10.ttf",
         "cmss10.ttf", "cmtt10.ttf"]  # fmt: skip


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """A folder of seven fonts, one of which is there twice, of symbols, and of what is no font."""
    matplotlib = pytest.importorskip("matplotlib", reason="pip install matplotlib, for its fonts")
    there, folder = (
        Path(matplotlib.get_data_path(), "fonts", "ttf"),
        tmp_path_factory.mktemp("fonts"),
    )
    for name in TEXTS:
        shutil.copy(there / name, folder)
    (folder / "deeper").mkdir()
    shutil.copy(there / TEXTS[0], folder / "deeper" / "again.ttf")
    shutil.copy(there / "cmex10.ttf", folder)
    (folder / "damaged.ttf").write_bytes((there / TEXTS[0]).read_bytes()[:5000])
    (folder / "text.otf").write_text("not a font", encoding="utf-8")
    with contextlib.suppress(OSError):  # where names are UTF-8
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.ttf"))).write_bytes(
            (there / TEXTS[0]).read_bytes() + b"\0"
        )
    return folder


@pytest.fixture(scope="module")
def found(fonts):
    return glyphs.find_fonts(fonts)


# ---- glyphs -------------------------------------------------------------------------------------


def test_every_letter_fills_its_image(found):
    assert len(found) == len({font.sha256 for font in found}) >= len(TEXTS)
    assert [font.sha256 for font in found] == sorted(font.sha256 for font in found)
    for font in found:
        for image in font.letters:
            rows, columns = np.nonzero(image)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 == SIDE - 2
            low, high = min(rows.min(), columns.min()), max(rows.max(), columns.max())
            assert low >= 1 and high <= SIDE - 2


def test_one_design_is_one_group(found):
    groups = glyphs.group(found)
    by_family = {}
    for font, number in zip(found, groups, strict=True):
        by_family.setdefault(font.family, set()).add(number)
    assert all(len(numbers) == 1 for numbers in by_family.values())
    assert len(set(groups)) >= 4  # but not everything is one
    twin = found[0]._replace(family="another name", sha256="f" * 16)
    assert glyphs.group([*found, twin])[-1] == glyphs.group(found)[0]


def test_a_group_keeps_its_part_whatever_else_there_is(found):
    groups = glyphs.group(found)
    parts = glyphs.split(found, groups)
    for left_out in set(groups):
        rest = [font for font, number in zip(found, groups, strict=True) if number != left_out]
        fewer = glyphs.split(rest, glyphs.group(rest))
        assert fewer.tolist() == [p for p, g in zip(parts, groups, strict=True) if g != left_out]


def test_symbols_in_the_places_of_letters_are_not_legible(found):
    """Those of every letter turned to the next: no neighbour elsewhere is of its class."""
    turned = found[0]._replace(family="turned", letters=np.roll(found[0].letters, 2, axis=0))
    different = [font._replace(family=font.sha256) for font in found[1:]]
    share = glyphs.legible([turned, *different], np.arange(len(found)))
    assert share[0] < 0.1 and share[1:].max() > glyphs.LEGIBLE


def test_what_was_written_is_read(found, tmp_path):
    parts = np.arange(len(found)) % 3
    rows = [{"file": font.file, "part": glyphs.PARTS[p]}
            for font, p in zip(found, parts, strict=True)]  # fmt: skip
    images = np.stack([font.letters for font in found])
    glyphs.write(tmp_path, images, rows)
    for number, part in enumerate(glyphs.read(tmp_path)):
        np.testing.assert_array_equal(part, images[parts == number])
    rows[0]["part"] = "none"
    glyphs.write(tmp_path, images[:2], rows[:2])
    with pytest.raises(ValueError, match="needs fonts of each"):
        glyphs.read(tmp_path)
    glyphs.write(tmp_path, images[:2], rows[:1])
    with pytest.raises(ValueError, match=r"\(2, 50, 32, 32\).*1 fonts"):
        glyphs.read(tmp_path)
    for damaged in (b"\xff", b"file,part\n" + b"a" * 200_000 + b",train\n"):
        (tmp_path / glyphs.LIST).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{glyphs.LIST} is no list of fonts .* make it again"):
            glyphs.read(tmp_path)


def test_a_list_of_fonts_is_written_whole_or_not_at_all(tmp_path):
    glyphs.write(tmp_path, squares(), [{"file": "a", "part": part} for part in glyphs.PARTS])
    before = (tmp_path / glyphs.LIST).read_bytes()
    with pytest.raises(ValueError, match="surrogates"):
        glyphs.write(tmp_path, squares(), [{"file": "\udcff", "part": p} for p in glyphs.PARTS])
    assert (tmp_path / glyphs.LIST).read_bytes() == before


# ---- letters ------------------------------------------------------------------------------------


def squares(fonts=3):
    """An atlas whose letters are all ink, in 30 x 30 of 32 x 32."""
    atlas = np.zeros((fonts, len(FORMS), SIDE, SIDE), np.uint8)
    atlas[:, :, 1:-1, 1:-1] = 255
    return atlas


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 2**40), min_size=1, max_size=6))
def test_a_picture_is_a_function_of_seed_and_number(seed, numbers):
    atlas = squares()
    images, labels = letters.draw(atlas, seed, np.array(numbers))
    for i, number in enumerate(numbers):
        alone = letters.draw(atlas, seed, np.array([number]))
        assert (alone[0][0] == images[i]).all() and alone[1][0] == labels[i]
    others = letters.draw(atlas, seed + 1, np.array(numbers))[0]
    assert (others != images).any(axis=(1, 2, 3)).all()


def test_these_very_bytes():
    """So that another machine's numbers can be compared."""
    images, labels = letters.draw(squares(), 0, np.arange(64))
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("5868f84ada0d47f0")


def test_all_letters_and_fonts_come_up_alike():
    atlas = squares(5) // 5 * np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    images, labels = letters.draw_many(atlas, 3, 5200)
    expected = 5200 * np.bincount(CLASSES) / len(FORMS)
    spread = abs(np.bincount(labels) - expected) / np.sqrt(expected)
    assert spread.max() < 4.5  # standard deviations, of 26
    assert images.mean() == pytest.approx(127, abs=8)


def test_a_letter_stands_out_and_stays_inside():
    """Beside the same picture without ink: 14 to 28 pixels of 30 / 32, all of which are seen."""
    numbers = np.arange(400)
    with_ink, blank = (letters.draw(atlas, 1, numbers)[0].astype(int)
                       for atlas in (squares(), 0 * squares()))  # fmt: skip
    # Behind it, too, there is a letter, in a colour that is at most a third of the way to another.
    apart = abs(with_ink - blank).mean(axis=3)
    assert (np.quantile(apart.reshape(400, -1), 0.995, axis=1) > 25).all()
    area = (apart > 15).mean(axis=(1, 2)) * SIDE * SIDE
    assert area.min() > 90


@pytest.mark.parametrize("row, column", [(0, 0), (5, 17), (31, 31), (-1, 3), (40, 3)])
def test_sampling_at_a_pixel_gives_the_pixel(row, column):
    glyph = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE)).astype(np.uint8)
    place = np.full((1, 1), row * letters.ONE, np.int32), np.full((1, 1), column * letters.ONE)
    value = letters.sample(glyph, np.array([1]), *(p.astype(np.int32) for p in place))[0, 0]
    inside = 0 <= row < SIDE and 0 <= column < SIDE
    assert value == (glyph[1, row, column] if inside else 0)


def test_sampling_between_pixels_is_bilinear():
    glyph = np.zeros((1, SIDE, SIDE), np.uint8)
    glyph[0, 4, 4:6] = 200, 100
    half = letters.ONE // 2
    rows, columns = np.array([[4 * letters.ONE, 4 * letters.ONE + half]]), np.array([[4, 4]])
    found = letters.sample(glyph, np.array([0]), rows.astype(np.int32),
                           (columns * letters.ONE + half).astype(np.int32))  # fmt: skip
    assert found.tolist() == [[150, 75]]


def test_letters_as_a_data_set(tmp_path, monkeypatch):
    rows = [{"file": str(i), "part": part} for i, part in enumerate(glyphs.PARTS)]
    atlas = squares()
    atlas[1:] //= 2
    glyphs.write(tmp_path, atlas, rows)
    small, again, large = (data.load(f"{tmp_path}@{n}") for n in ("60", "60:0", "2e2:1"))
    assert small.shape == (32, 32, 3) and small.classes == 26
    assert len(small.train_labels) == 60 and len(large.train_labels) == 200
    assert small.fingerprint == again.fingerprint != large.fingerprint
    assert np.array_equal(small.train_images, again.train_images)
    assert small.train_images[0].any() and np.shape(large.train_images) == (200, 32, 32, 3)
    assert (small.test_images == large.test_images).all()
    assert (small.held_images[:60] != small.test_images[:60]).any()
    assert data.load(f"{tmp_path}@{60.0:.0e}:0").fingerprint == small.fingerprint  # 6e+01
    for count in ("3", "1e9", "-1", "nan", "inf", "1e1e", "many"):
        with pytest.raises(ValueError, match=f"@{count}: from 22 to 1e8"):
            data.load(f"{tmp_path}@{count}")
    with pytest.raises(FileNotFoundError, match=r"mnist holds no .*make_data.py makes it"):
        data.load("mnist@60")
    shutil.copytree(tmp_path, tmp_path / "two@60")  # there is such a folder: it is meant
    with pytest.raises((ValueError, OSError), match=r"t10k|train-images|labels"):
        data.load(f"{tmp_path / 'two@60'}")
    monkeypatch.setattr(data, "draw_many", lambda *_: np.empty(1 << 62, np.uint8))
    with pytest.raises(ValueError, match=r"@70: Unable to allocate .*; draw fewer"):
        data.load(f"{tmp_path}@70").train_images[:10]


# ---- clip art -----------------------------------------------------------------------------------


def draw_clipart(folder, series=4, each=3):
    """For each class so many series of pictures, coloured patches on white."""
    from PIL import PngImagePlugin

    random = np.random.default_rng(0)
    for number, places in enumerate(clipart.CLASSES.values()):
        (folder / places[0]).mkdir(parents=True, exist_ok=True)
        for s in range(series):
            for picture in range(each):
                pixels = np.full((50, 70, 3), 255, np.uint8)
                pixels[10:40, 5:60] = random.integers(0, 200, (3, 5, 3), np.uint8).repeat(
                    10, axis=0).repeat(11, axis=1)  # fmt: skip
                told = PngImagePlugin.PngInfo()
                told.add_text("Author", f"author {s}")
                told.add_text("Title", f"{'abcd'[s] * 4} {picture}")
                pillow.fromarray(pixels).save(
                    folder / places[0] / f"{number}-{s}-{picture}.png", pnginfo=told
                )


@pytest.fixture
def drawings(tmp_path):
    draw_clipart(tmp_path / "png")
    return tmp_path / "png"


def test_series_are_not_split(drawings):
    made = clipart.make(drawings)
    assert len(made.train_labels) + len(made.test_labels) == 20 * 4 * 3 and made.equal == 0
    of = {p.pixels.tobytes(): p.series for p in clipart.find_pictures(drawings)}
    train, test = ({of[image.tobytes()] for image in images}
                   for images in (made.train_images, made.test_images))  # fmt: skip
    assert len(train) + len(test) == 20 * 4 and not train & test
    assert len(test) == 20 * 2  # every third of four, the first too
    assert (np.bincount(made.test_labels) == 6).all()


def test_equal_and_near_pictures_are_left_out(drawings):
    first, second = (drawings / places[0] for places in list(clipart.CLASSES.values())[:2])
    shutil.copy(first / "0-0-0.png", first / "again.png")  # of one class: one stays
    shutil.copy(first / "0-1-0.png", second / "other.png")  # of two: none
    made = clipart.make(drawings)
    assert made.equal == 3
    assert len(made.train_labels) + len(made.test_labels) == 20 * 4 * 3 - 1
    pictures = list(clipart.find_pictures(drawings))
    near = pictures[0]._replace(pixels=pictures[0].pixels ^ 1)
    assert clipart.far_from([near, pictures[5]], pictures[:1]) == [pictures[5]]


def test_what_is_drawn_is_in_the_middle():
    image = np.full((40, 90, 3), 255, np.uint8)
    image[5:15, 10:80] = 0
    small = clipart.reduce(image, pillow).astype(int)
    dark = np.flatnonzero((small < 128).any(axis=(1, 2)))
    assert (small[dark] < 128).all() and abs(dark.mean() - 15.5) < 1
    assert (clipart.reduce(np.full((9, 9, 3), 255, np.uint8), pillow) == 255).all()


def test_a_class_is_of_the_longest_folder():
    names = list(clipart.CLASSES)
    for folder, name in (("people", "people"), ("people/clothing/hats", "clothing"),
                         ("transportation/roadsigns", "road signs")):  # fmt: skip
        assert names[clipart.label_of(folder)] == name
    assert clipart.label_of("peoples") is None and clipart.label_of("") is None


def test_the_files_are_cifars(drawings, tmp_path):
    made = clipart.make(drawings)
    clipart.write(tmp_path / "out", made)
    read = data.load_cifar(data.find_cifar(tmp_path / "out"))
    for found, expected in zip(read, made, strict=False):
        np.testing.assert_array_equal(found, expected)
    names = (tmp_path / "out" / "classes.txt").read_text(encoding="utf-8").split("\n")
    assert names[:20] == list(clipart.CLASSES)


def test_other_folders_are_told_from_it(tmp_path):
    draw_clipart(tmp_path, series=2)
    with pytest.raises(ValueError, match=r"too few pictures of mammals.*openclipart"):
        clipart.make(tmp_path)
    with pytest.raises(ValueError, match="no font"):
        glyphs.find_fonts(tmp_path)


# ---- the script ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["letters", "clipart"])
def test_the_same_files_give_the_same_bytes(kind, request, tmp_path, capsys, monkeypatch):
    import make_data

    said = []
    for out in ("one", "two"):
        folder = request.getfixturevalue("fonts" if kind == "letters" else "drawings")
        words = ["make_data.py", kind, str(folder), "--out", str(tmp_path / out)]
        monkeypatch.setattr("sys.argv", words)
        assert make_data.main() == 0
        said.append(capsys.readouterr().out.replace(str(tmp_path / out), ""))
    assert said[0] == said[1] and "FreeType" in said[0]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert hashlib.sha256(path.read_bytes()).hexdigest() in said[0]
    (tmp_path / "one" / "folder").mkdir()
    before = [path.stat() for path in sorted((tmp_path / "one").iterdir())]
    monkeypatch.setattr("sys.argv", [*words[:-1], str(tmp_path / "one")])
    with pytest.raises(FileExistsError, match="is there already; remove it, or name another --out"):
        make_data.main()
    assert [path.stat() for path in sorted((tmp_path / "one").iterdir())] == before
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "two" / "stranger").mkdir(parents=True)  # what else is there is let be
    monkeypatch.setattr("sys.argv", words)
    assert make_data.main() == 0 and "stranger" not in capsys.readouterr().out
    if kind == "letters":
        with (tmp_path / "one" / glyphs.LIST).open(encoding="utf-8", newline="") as file:
            assert {row["part"] for row in csv.DictReader(file)} <= set(glyphs.PARTS)
