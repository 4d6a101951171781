"""Image folders: pictures of every kind, hostile files, crops and mixup, and worker processes."""

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from help import close, each_dtype, same
from hypothesis import given
from hypothesis import strategies as st
from processes import ENVIRONMENT, forked, needs_fork

from minimixer.backend import to_device, to_numpy
from minimixer.pictures import augment, folders
from minimixer.pictures.augment import crop_box, mixup, mixup_share, one_hot
from minimixer.pictures.folders import BadPicture, decode, find_images, find_splits
from minimixer.pictures.loader import Loader, LoaderError
from minimixer.pictures.tiff import _pixel_bytes

try:
    from PIL import Image, ImageFilter
except ImportError:
    Image = None
pillow = pytest.mark.skipif(Image is None, reason="needs Pillow: pip install -e '.[images]'")

SMOOTH = np.full((30, 40, 3), 90, "uint8")
SMOOTH[..., 0], SMOOTH[..., 1] = np.meshgrid(np.arange(40) * 6, np.arange(30) * 8)


def encoded(array=SMOOTH, format="PNG", mode=None, **options):
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def decoded(path, data, shortest=None):
    path.write_bytes(data)
    return np.asarray(decode(path, shortest))


@pytest.fixture
def folder(tmp_path):
    """Three classes of four pictures; red says the class, green the number."""
    for label, number in itertools.product(range(3), range(4)):
        (tmp_path / "abc"[label]).mkdir(exist_ok=True)
        colour = np.broadcast_to(np.array([label * 100, number * 60, 30], "uint8"), (24, 20, 3))
        (tmp_path / "abc"[label] / f"{number}.png").write_bytes(encoded(colour))
    return tmp_path


# ---- finding ------------------------------------------------------------------------------------


def touch(top, *names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()


def below(top, paths):
    return [os.path.relpath(path, top) for path in paths]


def test_classes_and_labels_are_sorted(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/10.jpg", "a/x.png", "a/.hidden.png", "a/x.txt", ".git/x.png",
          "readme.png")  # fmt: skip
    paths, labels, names = find_images(tmp_path)
    assert below(tmp_path, paths) == ["a/x.png", "b/10.jpg", "b/2.JPG"]
    assert labels.tolist() == [0, 1, 1] and labels.dtype == np.int64 and names == ["a", "b"]
    assert find_splits(tmp_path)[1] is None and find_splits(tmp_path)[0][0] == paths


def test_splits(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png")
    train, val = find_splits(tmp_path)
    assert val[2] == train[2] == ["a", "b"] and all("val" in path for path in val[0])
    with pytest.raises(ValueError, match="find_splits"):
        find_images(tmp_path)
    touch(tmp_path, "train/d/1.png", "val/e/notes.txt", "val/d/notes.txt")
    train, val = find_splits(tmp_path)  # train decides; val may have fewer
    assert val[2] == train[2] == ["a", "b", "d"] and val[1].tolist() == [0, 1]
    touch(tmp_path, "val/c/1.png")
    with pytest.raises(ValueError, match=r"val has pictures of c, .* the classes: a, b, d; move"):
        find_splits(tmp_path)


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("val", ["val", "valid", "VALIDATION", "test", "Testing"])
def test_splits_under_other_names(tmp_path, train, val):
    touch(tmp_path, f"{train}/a/1.png", f"{val}/a/2.png", "notes/readme.txt")
    assert folders.find_split(tmp_path) == (tmp_path / train, tmp_path / val)
    assert find_splits(tmp_path)[1][0] == [str(tmp_path / val / "a" / "2.png")]
    if val != "val":
        touch(tmp_path, "val/a/3.png")
        if "t" in val[0].lower():  # test/ only if there is no other
            assert folders.find_split(tmp_path)[1] == tmp_path / "val"
        else:
            with pytest.raises(ValueError, match=rf"holds both .*{val}"):
                folders.find_split(tmp_path)


def test_classes_that_are_given(tmp_path):
    """Those of a model: in its order, and some without pictures."""
    touch(tmp_path, "b/1.png", "a/1.png", "c/notes.txt")
    paths, labels, names = find_images(tmp_path, ["d", "c", "b", "a"])
    assert names == ["d", "c", "b", "a"] and labels.tolist() == [2, 3]
    assert below(tmp_path, paths) == ["b/1.png", "a/1.png"]
    with pytest.raises(ValueError, match="has pictures of b, which is not among the classes: a"):
        find_images(tmp_path, ["a"])
    for path in paths:
        Path(path).unlink()
    with pytest.raises(ValueError, match="has no pictures; they end in"):
        find_images(tmp_path, ["a"])


def test_folders_within_a_class_are_searched(tmp_path, monkeypatch):
    expected = ["a/1.png", "a/deep/er/2.png", "a/x.png/4.jpg", "b/in/5.png",
                "elsewhere/link/6.png"]  # fmt: skip
    touch(tmp_path, *expected[:4], "a/.hidden/3.png", ".elsewhere/6.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / ".elsewhere")
    paths, labels, names = find_images(tmp_path)
    assert below(tmp_path, paths) == expected
    assert labels.tolist() == [0, 0, 0, 1, 2] and names == ["a", "b", "elsewhere"]
    walk = os.walk

    def interrupted(top, **options):  # somebody deletes a folder meanwhile
        for entry in walk(top, **options):
            yield entry
            shutil.rmtree(tmp_path / "a" / "deep", ignore_errors=True)

    monkeypatch.setattr(os, "walk", interrupted)
    expected.remove("a/deep/er/2.png")
    assert below(tmp_path, find_images(tmp_path)[0]) == expected


def test_a_picture_astray_makes_no_class_of_train(tmp_path):
    touch(tmp_path, *(f"{part}/{name}.png" for part in ("train", "val")
                      for name in ("a/1", "a/2", "b/1", "b/2")))  # fmt: skip
    expected = find_splits(tmp_path)
    touch(tmp_path, "train/1.png", "val/2.png", "val/3.jpg.txt")
    assert str(find_splits(tmp_path)) == str(expected)
    assert folders.pictures_beside(tmp_path / "train") == ["1.png"]
    assert folders.pictures_beside(tmp_path) == []
    touch(tmp_path / "x", "train/1.png", "train/old/2.png", "tram/1.png")
    assert find_splits(tmp_path / "x")[0][2] == ["train", "tram"]  # a class may be called train


@pytest.mark.parametrize("names, match", [
    (["x.png"], "has no classes"), (["a/x.png", "b/x.txt"], r"has no pictures of b; delete"),
    (["a/x.png", "b/x.txt", *(f"{n}/x" for n in range(5))], "of 0, 1, 2 and 3 more; delete"),
    (["train/a/x.png"], "holds train but no val"), (["val/a/x.png"], "holds val but no train"),
    (["train/a/x.png", "val/x.png"], "holds train but no val"),
])  # fmt: skip
def test_what_is_wrong_with_a_directory_is_said(tmp_path, names, match):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=match) as caught:
        find_splits(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(NotADirectoryError, match="missing"):
        find_images(tmp_path / "missing")


def test_what_its_first_bytes_give_away_is_not_counted(tmp_path):
    touch(tmp_path, "a/empty.png", "a/good.png", "b/cut.jpg", "b/page.jpg")
    (tmp_path / "a" / "good.png").write_bytes(png(bytes(13), b""))
    (tmp_path / "b" / "cut.jpg").write_bytes(b"\xff\xd8\xff and no more")  # known when decoded
    (tmp_path / "b" / "page.jpg").write_bytes(b"<html>")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    paths, labels, names = find_images(tmp_path)
    found = ["gone.png", *paths], np.append(0, labels), names
    (paths, labels, names), skipped = folders.without_others(found)
    assert below(tmp_path, paths) == ["a/good.png", "b/cut.jpg"]
    assert labels.tolist() == [0, 1] and names == ["a", "b"]
    skipped = [Path(path).name for path, _ in skipped]
    assert skipped == ["gone.png", "empty.png", "page.jpg", "pipe.png"]


def test_one_sentence_for_what_was_skipped():
    skipped = [(f"c/{n}.heic", f"it is none of X, or damaged; it begins {n}") for n in range(5)]
    skipped += [("a\x1b", "damaged (OSError: cut)"), ("e", "the file is empty"),
                ("b\n", "damaged (SyntaxError: \x1b)")]  # fmt: skip
    assert folders.tell_skipped(skipped) == (
        r"skipped 8 files: 5 files (c/0.heic, c/1.heic, c/2.heic and 2 more): it is none of X, or "
        r"damaged; 2 files (a\x1b, b\n): damaged; e: the file is empty"
    )
    assert folders.tell_skipped(skipped[5:6]) == r"skipped a\x1b: damaged (OSError: cut)"


# ---- pictures of every kind ---------------------------------------------------------------------


@pillow
@pytest.mark.parametrize("format", folders.FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA"])
def test_every_mode_becomes_rgb(tmp_path, format, mode):
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    try:
        data = encoded(format=format, mode=mode, **options)
    except (OSError, ValueError):
        pytest.skip(f"{format} has no {mode}")
    (tmp_path / "x").write_bytes(data)
    image = decode(tmp_path / "x")
    expected = np.asarray(Image.fromarray(SMOOTH).convert(mode).convert("RGB")).astype(int)
    assert image.mode == "RGB" and image.size == (40, 30)
    assert abs(np.asarray(image) - expected).mean() < (12 if format == "GIF" else 5)


@pillow
def test_16_bits(tmp_path):
    grey = np.arange(30 * 40, dtype="uint16").reshape(30, 40) * 54
    for data in (encoded(grey), *[encoded(grey.astype(f"{o}u2"), "TIFF") for o in "<>"]):
        same(decoded(tmp_path / "x", data), np.repeat((grey >> 8)[..., None], 3, axis=2))
    rows = np.zeros((2, 1 + 2 * 6), "uint8")  # RGB, which Pillow can't write
    rows[:, 1::2] = np.arange(12).reshape(2, 6)
    data = png(png_header(2, 2, 16), zlib.compress(rows.tobytes()))
    same(decoded(tmp_path / "x", data), np.arange(12).reshape(2, 2, 3))


@pillow
def test_what_is_transparent_is_white(tmp_path):
    rgba = np.concatenate([SMOOTH, np.full((30, 40, 1), 255, "uint8")], axis=2)
    rgba[:10, :, 3] = 0
    result = decoded(tmp_path / "x", encoded(rgba))
    assert (result[:10] == 255).all() and (result[10:] == SMOOTH[10:]).all()
    palette = Image.fromarray(np.repeat([[0, 1]], 2, axis=0).astype("uint8"), "L").convert("P")
    for format in ("PNG", "GIF"):
        palette.save(tmp_path / "p", format, transparency=0)
        assert np.asarray(decode(tmp_path / "p"))[0].tolist() == [[255] * 3, [1] * 3]


@pillow
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    a = SMOOTH
    turned = [a, a, a[:, ::-1], a[::-1, ::-1], a[::-1], a.swapaxes(0, 1), np.rot90(a, -1),
              a[::-1, ::-1].swapaxes(0, 1), np.rot90(a), a]  # fmt: skip
    options = {"quality": 95} if format == "JPEG" else {}
    result = decoded(tmp_path / "x", encoded(format=format, exif=exif, **options))
    assert result.shape == turned[orientation].shape
    assert abs(result - turned[orientation].astype(int)).mean() < (5 if format == "JPEG" else 0.5)


@pillow
def test_a_large_jpeg_comes_smaller_but_not_too_small(tmp_path):
    data = encoded(SMOOTH.repeat(20, 0).repeat(20, 1), "JPEG")  # 600 x 800
    for shortest, height in [(None, 600), (601, 600), (300, 300), (299, 300), (76, 150), (3, 75)]:
        result = decoded(tmp_path / "x", data, shortest)
        assert result.shape == (height, height * 4 // 3, 3) and min(result.shape[:2])


@pillow
def test_previews_and_further_pictures_in_a_jpeg(tmp_path):
    preview = encoded(format="JPEG", progressive=True)
    comment = b"\xff\xfe" + struct.pack(">H", len(preview) + 2) + preview
    data = encoded(format="JPEG")
    assert folders._count_scans(data) == folders._count_scans(data[:2] + comment + data[2:]) == 1
    assert folders._count_scans(preview) > 5 and folders._count_scans(b"\xff\xd8\xff") == 0
    # a filling byte, after which a false length would lead past all scans
    assert folders._count_scans(preview[:2] + b"\xff" + preview[2:]) > 5
    image = Image.fromarray(SMOOTH.repeat(20, 0).repeat(20, 1))
    image.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[image.rotate(90)])
    with Image.open(tmp_path / "x.jpg") as opened:
        assert opened.format == "MPO"
    result = np.asarray(decode(tmp_path / "x.jpg", 300))
    assert result.shape == (300, 400, 3) and abs(result[::10, ::10] - SMOOTH.astype(int)).max() < 30


@pillow
@pytest.mark.parametrize("method", ["raw", "tiff_lzw", "packbits", "tiff_deflate", "group4"])
@pytest.mark.parametrize("more", [{}, {"big_tiff": True}, {"tiffinfo": {322: 16, 323: 32}}])
def test_tiffs_of_every_kind(tmp_path, method, more):
    pixels, mode = SMOOTH, None
    if method == "group4":
        pixels, mode = (SMOOTH[..., :1] > 99).repeat(3, 2) * np.uint8(255), "1"
    try:
        data = encoded(pixels, "TIFF", mode, compression=method, **more)
    except (OSError, ValueError) as error:
        pytest.skip(f"Pillow does not write it: {error}")
    same(decoded(tmp_path / "x", data), pixels)


def test_what_a_tiff_does_not_say_is_one():
    """Of height, bits and samples; what it says of all else is looked at by Pillow."""
    assert _pixel_bytes({256: [80]}) == 10
    assert _pixel_bytes({256: [80], 257: [3], 258: [8], 277: [3]}) == 720


@pillow
@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_counts(tmp_path, format):
    first, second = (Image.new("RGB", (20, 10), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    first.save(tmp_path / "x", format, save_all=True, append_images=[second] * 3, **options)
    assert (np.asarray(decode(tmp_path / "x")) == [255, 0, 0]).all()


# ---- hostile files ------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, data):
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width, height, bits=8):
    return struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)


def png_bomb(width, height):
    return png(png_header(width, height), zlib.compress(bytes(1 << 20)))


def scans(count):
    data = encoded(np.full((3000, 3000, 3), 7, "uint8"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def too_many_headers():
    data = encoded(format="JPEG")
    return data[:2] + b"\xff\xfe\0\2" * 100_000 + data[2:]


def tiff(*entries, data=b"", order="<", after=0):
    """A TIFF with these tags (number, type, count, value), then `data`, at 8 + 6 + 12 per tag."""
    table = struct.pack(order + "H", len(entries))
    table += b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + table + struct.pack(order + "I", after) + data


def tiff_picture(width, height, method=1, more=(), data=b"", **options):
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, method),
            (262, 3, 1, 1), (277, 3, 1, 1), *more]  # fmt: skip
    if not any(tag[0] == 324 for tag in more):  # one strip
        tags += [(273, 4, 1, None), (278, 4, 1, height), (279, 4, 1, len(data))]
    place = 14 + 12 * len(tags)  # of the data
    tags = sorted((n, t, c, place if v is None else v) for n, t, c, v in tags)
    return tiff(*tags, data=data, **options)


def tiles(width, height, wide, high, packed):
    count = -(-width // wide) * -(-height // high)
    more = [(322, 4, 1, wide), (323, 4, 1, high), (324, 4, count, None), (325, 4, count, None)]
    return tiff_picture(width, height, 8, more, bytes(8 * count) + packed)


def chain(length):
    """Pages, each with tags of 8 MB, all of them the same."""
    tables = b"".join(
        struct.pack("<HHHIII", 1, 40000, 7, 8 << 20, 1000, 8 + (k + 1) * 18) for k in range(length)
    )
    return b"II*\0\x08\0\0\0" + tables + bytes(8 << 20)


def gif_comments(count):
    data = encoded(format="GIF")
    begin = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    return data[:begin] + b"!\xfe" + (b"\xff" + bytes(255)) * count + b"\0" + data[begin:]


def gif_frame(width, height):
    return b"GIF89a\2\0\2\0\0\0\0,\0\0\0\0" + struct.pack("<HH", width, height) + b"\0\x08\x02\0"


def overlapping(order):
    many = [(40000 + k, 7, 9 << 20, 100) for k in range(400)]
    return tiff(*many, data=bytes(10 << 20), order=order)


HOSTILE = {
    "tiff tags over each other": (lambda: overlapping("<"), "damaged: its tags claim"),
    "tiff of Motorola's": (lambda: overlapping(">"), "damaged: its tags claim"),
    "tiff of no order": (lambda: b"MM*\0" + overlapping("<")[4:], "damaged|none of"),
    "tiff tags": (lambda: tiff(*[(k, 3, 1, 1) for k in range(9000)]), "9000 tags"),
    "tiff strips": (lambda: tiff_picture(64, 64, more=[(340, 4, 1 << 20, 200)],
                                         data=bytes(5 << 20)), "tag of 1048576 numbers"),
    "tiff table outside": (lambda: b"II*\0\xff\xff\xff\x7f" + bytes(99), "outside of the file"),
    "tiff of nothing": (lambda: tiff(), "damaged|none of"),
    "tiff bomb": (lambda: tiff_picture(30000, 30000, 8, data=zlib.compress(bytes(9))), "too large"),
    "tiff strip": (lambda: tiff_picture(2, 2**31, 8, data=b"x"), "too large|damaged"),
    "tiff tile": (lambda: tiles(16, 16, 1 << 15, 1 << 14, zlib.compress(bytes(1 << 29), 1)),
                  "too large"),
    "tiff small tiles": (lambda: tiles(2, 32000, 1 << 14, 16, b""), "too large"),
    "tiff with a jpeg": (lambda: encoded(format="TIFF", compression="jpeg"), "packed by method 7"),
    "tiff pages": (lambda: chain(1000), "too much work|damaged"),
    "tiff floats": (lambda: encoded(np.ones((4, 4), "float32"), "TIFF"), "range of their own"),
    "gif comments": (lambda: gif_comments(120_000), "too much work"),
    "gif frame": (lambda: gif_frame(65535, 65535), "too large"),
    "gif 5000": (lambda: gif_frame(5000, 5000), "too large"),
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"<html>not found</html>", "none of JPEG, PNG.*<html>"),
    "ppm": (lambda: encoded(format="PPM"), "none of JPEG"),
    "postscript": (lambda: encoded(format="EPS"), "none of JPEG"),
    "truncated": (lambda: encoded(format="JPEG")[:-200], "(?i)damaged.*truncated"),
    "truncated header": (lambda: encoded()[:20], "none of|damaged"),
    "1x1": (lambda: encoded(SMOOTH[:1, :1]), "1 x 1 pixels"),
    "1x40": (lambda: encoded(SMOOTH[:1]), "40 x 1 pixels"),
    "bomb 30000": (lambda: png_bomb(30000, 30000), "exceeds limit|too large"),
    "bomb 12000": (lambda: png_bomb(12000, 12000), "too large"),
    "bomb 5000": (lambda: png_bomb(5000, 5000), "too large"),
    "bomb strip": (lambda: png_bomb(2**31 - 1, 2), "too large|exceeds limit"),
    "scans": (lambda: scans(100), "too much work: 9000000 pixels in 1.. scans"),
    "headers": (too_many_headers, "too much work: it has more parts"),
    "long": (lambda: b"\xff\xd8\xff" + bytes(1 << 25), "over 33554432"),
}  # fmt: skip


@pillow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path, name):
    path = tmp_path / "x.jpg"
    path.write_bytes(HOSTILE[name][0]())
    begin = time.perf_counter()
    with pytest.raises(BadPicture, match=HOSTILE[name][1]):
        decode(path)
    assert time.perf_counter() - begin < 1


@pillow
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "directory.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name, match in [("directory", "a directory"), ("loop", "can't be read"),
                        ("pipe", "it is a pipe"), ("zero", "it is a device"),
                        ("gone", "can't be read")]:  # fmt: skip
        with pytest.raises(BadPicture, match=match):
            decode(tmp_path / f"{name}.jpg")
    data = encoded()
    monkeypatch.setattr(folders, "_MOST_FILE_BYTES", len(data))  # at the very limit it is read
    same(decoded(tmp_path / "x", data), SMOOTH)
    with pytest.raises(BadPicture, match=f"too large: a file of {len(data) + 1} bytes"):
        decoded(tmp_path / "x", data + b"x")


@pillow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
@pytest.mark.parametrize("mode, format, side, options", [
    ("CMYK", "JPEG", 3500, {"progressive": True}),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("RGBA", "PNG", 4090, {"compress_level": 1}),
        ("RGBA", "WEBP", 2900, {"lossless": True, "quality": 0, "method": 0}),
        ("RGB", "GIF", 4090, {}), ("RGB", "TIFF", 3200, {}),
        ("CMYK", "TIFF", 3300, {"compression": "tiff_deflate"}),
        ("1", "TIFF", 4090, {"compression": "group4"}),
    )),
], ids=str)  # fmt: skip
def test_the_largest_pictures_take_less_than_200_mb(tmp_path, mode, format, side, options):
    Image.new(mode, (side, side), "red").save(tmp_path / "x", format, **options)
    code = """if True:
        import sys
        from mutations import peak_megabytes
        from minimixer.pictures.folders import decode, import_pillow
        import_pillow().init()
        before = peak_megabytes()
        decode(sys.argv[1])
        print(peak_megabytes() - before)
    """
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path / "x"],
                         capture_output=True, encoding="utf-8", check=True, env=ENVIRONMENT,
                         cwd=Path(__file__).parent)  # fmt: skip
    assert 50 < float(run.stdout) < 200


@pillow
@pytest.mark.parametrize("format", folders.FORMATS)
def test_every_truncation_is_refused_or_whole(tmp_path, format):
    data = encoded(format=format)
    whole = decoded(tmp_path / "x", data)
    for length in range(0, len(data), 7):
        try:
            result = decoded(tmp_path / "x", data[:length])
        except BadPicture:
            continue
        assert length > len(data) - 40
        same(result, whole)


def test_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "PIL", None)
    loader = Loader([tmp_path / "x.png"], [0], 8, 1)
    for work in (lambda: decode(tmp_path / "x.png"), lambda: loader.epoch(0)):
        with pytest.raises(ImportError, match="pip install pillow"):
            work()


# ---- crops, RandAugment, targets ----------------------------------------------------------------


@given(*[st.integers(1, 70000)] * 2, *[st.integers(0, 2**64 - 2)] * 3)
def test_crops_are_inside(width, height, seed, epoch, example):
    left, top, w, h = box = crop_box(width, height, seed, epoch, example)
    assert left >= 0 and top >= 0 and w > 0 and h > 0
    assert left + w <= width and top + h <= height
    assert box == crop_box(width, height, seed, epoch, example)
    if min(width, height) > 100 and max(width, height) < 2 * min(width, height):
        assert 0.72 < w / h < 1.38 and w * h / (width * height) > 0.049


def test_crops_cover_the_scale_evenly():
    boxes = np.array([crop_box(1000, 1000, 0, 0, n) for n in range(2000)])
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    assert abs(np.mean(area < 0.4) - 0.39) < 0.05 and area.min() < 0.07 and area.max() > 0.95
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    assert abs(centre.mean(axis=0) - 500).max() < 15
    for scale in [(0, 1), (0.5, 0.1), (0.5, 1.1)]:
        with pytest.raises(ValueError, match="scale"):
            crop_box(10, 10, 0, 0, 0, scale)


@pytest.mark.parametrize("size, box", [
    ((1000, 12), (492, 0, 16, 12)), ((12, 1000), (0, 492, 12, 16)), ((1000, 2), (498, 0, 3, 2)),
    ((3, 999), (0, 497, 3, 4)), ((1, 999), (0, 499, 1, 1)), ((1000, 10), (493, 0, 13, 10)),
])  # fmt: skip
def test_narrow_crops(size, box):
    """Where no crop of a permitted shape fits, the largest centre that has one: 3:4 to 4:3."""
    assert crop_box(*size, 0, 0, 0, scale=(1, 1)) == box


@pillow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size, box", [
    ((256, 256), (16, 16, 240, 240)), ((512, 256), (144, 16, 368, 240)),
    ((256, 1000), (16, 388, 240, 612)), ((64, 64), (4, 4, 60, 60)), ((40, 41), (2.5, 3, 37.5, 38)),
    ((2, 5000), (0.125, 2499.125, 1.875, 2500.875)),
])  # fmt: skip
def test_the_centre_crop_by_value(size, box, interpolation):
    """224 of 256: the middle 7/8 of the shorter side."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    how = getattr(Image.Resampling, interpolation.upper())
    for most in (224, 28):
        met = augment.resize_crop(image, most, interpolation)
        assert met.tobytes() == image.resize((most, most), how, box=box).tobytes()
    assert (augment.resize_crop(image, 28) == met) == (interpolation == "bilinear")
    with pytest.raises(ValueError, match="bilinear or bicubic, not 'nearest'"):
        augment.resize_crop(image, 28, "nearest")


@pytest.mark.parametrize("size, count, ranks", [(8, 20, 2), (7, 20, 3), (4, 9, 4), (5, 5, 7)])
def test_which_rank_takes_which_examples(size, count, ranks):
    whole, *parts = [
        augment.Recipe(8, size, 0, True, (1, 1), 0, 0, rank=rank, ranks=n)
        for n in (1, ranks) for rank in range(n)
    ]  # fmt: skip
    for batch in range(-(-count // size)):
        rows, (begin, end) = [part.rows(batch, count) for part in parts], whole.rows(batch, count)
        assert (begin, end) == (batch * size, min(count, (batch + 1) * size))
        assert [number for row in rows for number in range(*row)] == list(range(begin, end))
        sizes = [end - begin for begin, end in rows]
        assert max(sizes) - min(sizes) <= 1


def moved(pixels, x_of, y_of):
    """The pixel at (x, y) is the one that was at (x_of, y_of), or grey."""
    rows, columns = pixels.shape[:2]
    y, x = np.mgrid[:rows, :columns] + 0.5  # centres of pixels
    from_x, from_y = np.floor(x_of(x, y)).astype(int), np.floor(y_of(x, y)).astype(int)
    inside = (from_x >= 0) & (from_x < columns) & (from_y >= 0) & (from_y < rows)
    found = pixels[from_y.clip(0, rows - 1), from_x.clip(0, columns - 1)]
    return np.where(inside[..., None], found, np.uint8(128))


def blended(image, other, level):
    """Pillow's blend: from `other` at 0 over the image at 1 and beyond; cut off, not rounded."""
    a, b = np.asarray(other).astype(np.float32), np.asarray(image).astype(np.float32)
    return np.clip(a + np.float32(level * 1.8 + 0.1) * (b - a), 0, 255).astype(np.uint8)


def rotated(pixels, degrees):
    angle, (height, width) = -np.radians(degrees), pixels.shape[:2]
    c, s, x0, y0 = np.cos(angle), np.sin(angle), width / 2, height / 2
    return moved(pixels, lambda x, y: c * (x - x0) + s * (y - y0) + x0,
                 lambda x, y: c * (y - y0) - s * (x - x0) + y0)  # fmt: skip


def cut_out(pixels, level):
    half, result = level * 40 / 224 * min(pixels.shape[:2]), pixels.copy()
    rows, columns = (slice(int(n / 2 - half), int(n / 2 + half)) for n in pixels.shape[:2])
    result[rows, columns] = 128
    return result


BY_FORMULA = {  # of an image, its pixels, level and sign, as in the authors' code and in timm's
    "AutoContrast": lambda i, p, n, s: (
        (p - p.min((0, 1))) * (255.0 / np.ptp(p, axis=(0, 1)))).astype(np.uint8),
    "Invert": lambda i, p, n, s: 255 - p,
    "Posterize": lambda i, p, n, s: p & np.uint8(256 - 2 ** (8 - min(8, max(1, int(n * 4))))),
    "Solarize": lambda i, p, n, s: np.where(p < int(n * 256), p, 255 - p),
    "SolarizeAdd": lambda i, p, n, s: np.where(
        p < 128, np.minimum(p.astype(int) + int(n * 110), 255), p),
    "Color": lambda i, p, n, s: blended(i, i.convert("L").convert("RGB"), n),
    "Contrast": lambda i, p, n, s: blended(
        i, np.full_like(p, int(np.mean(i.convert("L")) + 0.5)), n),
    "Brightness": lambda i, p, n, s: blended(i, np.zeros_like(p), n),
    "Sharpness": lambda i, p, n, s: blended(i, i.filter(ImageFilter.SMOOTH), n),
    "Rotate": lambda i, p, n, s: rotated(p, s * n * 30),
    "ShearX": lambda i, p, n, s: moved(p, lambda x, y: x + s * n * 0.3 * y, lambda x, y: y),
    "ShearY": lambda i, p, n, s: moved(p, lambda x, y: x, lambda x, y: y + s * n * 0.3 * x),
    "TranslateX": lambda i, p, n, s: moved(  # 100 pixels of 224
        p, lambda x, y: x + s * n * i.width * 100 / 224, lambda x, y: y),
    "TranslateY": lambda i, p, n, s: moved(
        p, lambda x, y: x, lambda x, y: y + s * n * i.height * 100 / 224),
    "Cutout": lambda i, p, n, s: cut_out(p, n),
}  # fmt: skip


@pillow
@pytest.mark.parametrize("level", [0, 0.3, 1, 1.7])
@pytest.mark.parametrize("name", BY_FORMULA)
def test_operations_by_value(name, level):
    pixels = np.random.default_rng(3).integers(20, 230, (50, 60, 3), np.uint8)
    pixels[0, :3] = [[126], [127], [128]]
    image = Image.fromarray(pixels)
    for sign in (1, -1):
        met = np.asarray(augment.apply_operation(image, name, level, sign)).astype(int)
        off = np.abs(met - BY_FORMULA[name](image, pixels, level, sign).astype(int))
        if name == "Rotate":  # Pillow works in fixed point: at the border of two pixels, either
            assert (off > 0).mean() < 0.005
        else:
            assert off.max() <= (name in ("Color", "Contrast", "Brightness", "Sharpness"))
    same(np.asarray(image), pixels)
    with pytest.raises(ValueError, match="has no 'Swirl'"):
        augment.apply_operation(image, "Swirl", 1)


@pillow
def test_equalize_makes_every_brightness_as_frequent():
    ramp = (np.linspace(0, 1, 4096) ** 3 * 255).astype(np.uint8).reshape(64, 64, 1).repeat(3, 2)
    met = np.asarray(augment.apply_operation(Image.fromarray(ramp), "Equalize", 1))
    shares = np.bincount(met[..., 0].ravel() // 64, minlength=4) / 4096
    assert abs(shares[1:] - 0.25).max() < 0.05 and met.max() == 255
    assert (np.diff(met[..., 0].ravel().astype(int)) >= 0).all()


@pillow
def test_which_operations_are_drawn_for_which_example():
    """The first of four numbers says which, the second which way, the others where."""
    image, results = Image.fromarray(SMOOTH), set()
    for example in range(40):
        draws = augment._draws(augment.RAND_AUGMENT, 1, 2, example, 8)
        wanted = image
        for which, sign, x, y in (draws[:4], draws[4:]):
            name = augment._OPERATIONS[int(which * 16)]
            wanted = augment.apply_operation(wanted, name, 1.5, -1 if sign < 0.5 else 1, (x, y))
        met = augment.rand_augment(image, 2, 15, 1, 2, example)
        assert met.tobytes() == wanted.tobytes()
        results.add(met.tobytes())
        (draw,) = augment._draws(augment.FLIP, 1, 2, example, 1)  # the upper half is turned
        met = np.asarray(augment.random_flip(image, 1, 2, example))
        same(met, SMOOTH[:, ::-1] if draw >= 0.5 else SMOOTH)
    assert len(results) > 30 and set(BY_FORMULA) | {"Equalize"} == set(augment._OPERATIONS)
    assert augment.rand_augment(image, 0, 15, 1, 2, 3).tobytes() == image.tobytes()
    flipped = sum(augment.random_flip(image, 0, 0, n) is not image for n in range(400))
    assert 160 < flipped < 240


@each_dtype
def test_mixup_adds_shares_of_neighbours(device, dtype):
    values = to_device(np.random.default_rng(0).random((6, 4, 4, 3)).astype(dtype), device)
    targets = one_hot(to_device(np.array([0, 1, 2, 2, 1, 0]), device), 3, 0.1, dtype)
    share = mixup_share(0.5, 3, 1)
    for array in (values, targets):
        before = to_numpy(array).copy()
        lent = array[np.array([5, 0, 1, 2, 3, 4, 5])]  # the last before the first
        lent_before = to_numpy(lent).copy()
        mixed = mixup(lent, share)
        same(lent, lent_before)
        assert mixed.dtype == dtype
        close(mixed, share * before + (1 - share) * np.roll(before, 1, 0), atol=0)
    close(mixed.sum(1), [1] * 6)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 1.0, 2.0])
def test_shares_have_the_moments_of_beta(p):
    shares = np.array([mixup_share(p, 5, step) for step in range(2000)])
    assert shares.min() >= 0.5 and shares.max() <= 1
    # E[(a - 1/2)^2] of Beta(p, p) is its variance, 1 / (4 (2p + 1)), of max(a, 1 - a) as well
    assert abs(np.mean((shares - 0.5) ** 2) - 1 / (4 * (2 * p + 1))) < 0.012


def test_what_mixup_and_one_hot_refuse():
    for p in (0, -1, 3, float("nan")):
        with pytest.raises(ValueError, match="p must be"):
            mixup_share(p, 0, 0)
    with pytest.raises(TypeError, match="uint8"):
        mixup(np.ones((2, 3), "uint8"), 0.5)
    for labels, smoothing in [([0, 3], 0), ([-1], 0), ([[0]], 0), ([0.5], 0), ([0], 1.0)]:
        with pytest.raises(ValueError, match="one_hot"):
            one_hot(np.array(labels), 3, smoothing)


# ---- the loader ---------------------------------------------------------------------------------


def all_of(loader, epoch=0, start=0):
    return [(images.copy(), labels) for images, labels in loader.epoch(epoch, start)]


def assert_same(a, b):
    for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True):
        assert x.dtype == y.dtype
        same(x, y)


@pillow
@pytest.mark.parametrize("train", [True, False])
def test_any_number_of_workers_gives_the_same_bits(folder, train):
    (folder / "b" / "0.png").write_bytes(b"")
    (folder / "c" / "loop.jpg").symlink_to("loop.jpg")
    paths, labels, _ = find_images(folder)
    results, skipped = [], []
    for workers in (0, 1, 2):
        with Loader(paths, labels, 16, 5, seed=3, train=train, layers=2 * train,
                    workers=workers) as pictures:  # fmt: skip
            results.append(all_of(pictures, 0) + all_of(pictures, 1) + all_of(pictures, 1, 2))
            skipped.append(pictures.skipped)
            assert len(pictures) == 3
    assert not multiprocessing.active_children()
    for other in (1, 2):
        assert_same(results[0], results[other])
        assert skipped[0] == skipped[other]
    names = {os.path.basename(path): reason for path, reason in skipped[0]}
    assert set(names) == {"0.png", "loop.jpg"} and "can't be read" in names["loop.jpg"]
    assert sum(len(met) for _, met in results[0][:3]) == len(paths) - 2
    images = results[0][0][0]
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)


@pillow
def test_labels_go_with_pictures(folder):
    """And a picture does not depend on the batch size."""
    paths, labels, _ = find_images(folder)
    for train in (True, False):
        pictures = Loader(paths, labels, 8, 5, seed=1, train=train)
        for images, met in all_of(pictures):
            same(images[:, 4, 4, 0] // 100, met)
    same(np.concatenate([met for _, met in all_of(pictures)]), labels)
    one, many = (all_of(Loader(paths, labels, 8, size, seed=1)) for size in (1, 100))
    same(np.concatenate([images for images, _ in one]), many[0][0])
    assert len(one) == 12 and len(many) == 1
    for path in paths:
        Path(path).write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"no picture could be decoded.*empty"):
        all_of(pictures)


@pillow
def test_the_rest_is_left_out_and_batches_of_nothing_are_empty(folder):
    paths, labels, _ = find_images(folder)
    every = Loader(paths, labels, 8, 5, seed=1)
    full = Loader(paths, labels, 8, 5, seed=1, drop_last=True)
    assert (len(every), len(full)) == (3, 2)
    assert_same(all_of(full), all_of(every)[:2])
    assert_same(all_of(full, 0, 1), all_of(every)[1:2])
    assert len(Loader(paths, labels, 8, 100, drop_last=True)) == 1  # all of them are a batch
    assert len(every.epoch(2**64 - 1)) == 3
    with pytest.raises(ValueError, match="epoch"):
        every.epoch(2**64)
    Path(paths[every.order(0)[2]]).write_bytes(b"")
    single = Loader(paths, labels, 8, 1, seed=1)
    sizes = [len(labels) for _, labels in single.epoch(0)]
    assert sizes == [1, 1, 0] + [1] * 9
    Path(paths[every.order(0)[11]]).write_bytes(b"")
    assert [len(labels) for _, labels in single.epoch(0, 11)] == [0]  # the others can be decoded


@pillow
def test_flips_are_an_option(folder):
    slope = np.tile(np.arange(20, dtype="uint8")[None, :, None] * 12, (24, 1, 3))
    paths, labels, _ = find_images(folder)
    for path in paths:
        Path(path).write_bytes(encoded(slope))
    turned, plain = (all_of(Loader(paths, labels, 8, 12, 1, flip=flip))[0][0] for flip in (1, 0))
    falling = turned[:, 0, 0, 0] > turned[:, 0, -1, 0]
    assert falling.any() and (plain[:, 0, 0, 0] < plain[:, 0, -1, 0]).all()
    same((turned == plain).all(axis=(1, 2, 3)), ~falling)


def test_what_the_loader_refuses():
    good = dict(paths=["x"], labels=[0], size=8, batch_size=1, layers=1, magnitude=0)
    assert Loader(**good).recipe.magnitude == 0
    for name, wrong in dict(paths=[], labels=[0, 1], size=0, batch_size=0, workers=-1, seed=-1,
                            scale=(0, 1), magnitude=-1,
                            interpolation="lanczos").items():  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Loader(**{**good, name: wrong})
    for name, wrong, said in (("size", 8.0, "size must be a whole"), ("labels", [0.5], "labels")):
        with pytest.raises(TypeError, match=said):
            Loader(**{**good, name: wrong})


def gone(pids, orphans=False):
    """Have all ended, within seconds? Orphans are for the system to collect; ours may not stay."""
    for _ in range(100):
        states = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
                states.add(text.rpartition(")")[2].split()[0])
        if states <= ({"Z"} if orphans else set()):
            return True
        time.sleep(0.05)
    return False


def pids_of(pictures):
    return [process.pid for process, _ in pictures._team._members]


@pillow
def test_a_killed_worker_is_an_error_and_the_next_epoch_works(folder):
    pictures = Loader(*find_images(folder)[:2], 8, 1, seed=1, workers=2)
    epoch = pictures.epoch(0)
    next(epoch)
    pids = pids_of(pictures)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exit code -9"):
        for _ in epoch:
            pass
    assert gone(pids) and not multiprocessing.active_children()
    for _ in pictures.epoch(1):  # new workers; and leaving early ends them
        pids = pids_of(pictures)
        with pytest.raises(RuntimeError, match="under way"):
            next(pictures.epoch(2))
        break
    assert gone(pids)


@pillow
def test_a_mistake_in_a_worker_is_shown_and_forgotten_loaders_end_theirs(folder):
    pictures = Loader(*find_images(folder)[:2], 8, 4, workers=1, layers=9)
    pictures.recipe = dataclasses.replace(pictures.recipe, magnitude=None)
    with pytest.raises(RuntimeError, match=r"(?s)a worker failed.*rand_augment.*TypeError"):
        all_of(pictures)
    pictures = Loader(*find_images(folder)[:2], 8, 4, workers=1)
    all_of(pictures)
    pids = pids_of(pictures)
    del pictures
    assert gone(pids)


@pillow
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no memory is reserved here")
def test_too_little_memory_to_share_is_an_error(folder, monkeypatch):
    """Not "Bus error" at the first picture."""

    def full(descriptor, start, size):
        assert (start, size) == (0, os.fstat(descriptor).st_size)  # all of it is asked for
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LoaderError, match=r"no 0\.\d MiB.*left on device.*--shm-size.*workers"):
        next(Loader(*find_images(folder)[:2], 100, 4, workers=2).epoch(0))
    assert not multiprocessing.active_children()


@pillow
@needs_fork
def test_a_forked_process_has_its_own_workers(folder):
    """And leaves its parent's alone, when it ends."""
    pictures = Loader(*find_images(folder)[:2], 8, 1, seed=1, workers=1)
    expected, pids = all_of(pictures), pids_of(pictures)

    def child():
        again = all_of(pictures)
        pictures.close()
        return len(again) == len(expected) and pictures._team is None

    assert forked(child) == 1 and pids_of(pictures) == pids
    assert len(all_of(pictures, 1)) == len(expected) and pids_of(pictures) == pids
    pictures.close()


SCRIPT = """
import sys
from minimixer.pictures.folders import find_images
from minimixer.pictures.loader import Loader
if __name__ == "__main__":
    pictures = Loader(*find_images(sys.argv[1])[:2], 8, 2, workers=2)
    for n in range(10**6):
        for _ in pictures.epoch(n):
            if n == 0:
                print(*[process.pid for process, _ in pictures._team._members], flush=True)
"""


@pillow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_program(folder, tmp_path_factory, number):
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    program = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=ENVIRONMENT, encoding="utf-8",
                               start_new_session=True)  # fmt: skip
    pids = program.stdout.readline().split()
    for pid in pids:  # Ctrl-C reaches them too, and is for the one that reads
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        blocked = int(re.search(r"SigBlk:\s*(\w+)", text)[1], 16)
        assert blocked & 1 << (signal.SIGINT - 1)
    if number == signal.SIGINT:
        os.killpg(program.pid, number)  # as a terminal does
    else:
        program.send_signal(number)
    _, errors = program.communicate(timeout=20)
    assert len(pids) == 2 and gone(pids, orphans=True)
    interrupted = errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
    assert interrupted if number == signal.SIGINT else not errors
