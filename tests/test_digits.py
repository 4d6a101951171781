"""The model that comes with the package, and pictures of digits prepared as MNIST's were."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import Runner, make_data

from minimixer import Mixer, data
from minimixer.pictures.folders import BadPicture
from minimixer.training.checkpoint import BUILT_IN, read_checkpoint, save_checkpoint

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")
ImageDraw = pytest.importorskip("PIL.ImageDraw")
ImageFilter = pytest.importorskip("PIL.ImageFilter")

from minimixer.pictures.digits import prepare_digit, read_digit, resample  # noqa: E402

DRAWN = sorted((Path(__file__).parent / "digits").iterdir())
SMALL = {"patch_size": 14, "num_blocks": 1, "hidden_dim": 4, "tokens_mlp_dim": 2,
         "channels_mlp_dim": 4, "in_channels": 1, "num_classes": 10}  # fmt: skip
NAMES = [str(k) for k in range(10)]


@pytest.fixture(scope="module")
def model():
    return Mixer.load("digits")


@pytest.fixture(scope="module")
def mnist():
    *_, images, labels = data.load_mnist()
    return images, labels


def answer(model, digit):
    return int(model.predict(digit[None, ..., None])[0])


# ---- the model ----------------------------------------------------------------------------------


def test_the_shipped_model_is_as_good_as_it_is_said_to_be(model, mnist):
    images, labels = mnist
    accuracy = (model.predict(images) == labels).mean()
    assert accuracy == pytest.approx(0.9912, abs=2e-4)  # an image or two, on another BLAS
    assert "99.1%" in Mixer.load.__doc__ and f"{accuracy:.1%}" == "99.1%"
    assert model.class_names == NAMES and model.preparation == "digit" and not model.training
    meta, arrays = read_checkpoint(BUILT_IN["digits"])  # weights alone
    assert all(name.startswith("weights/") for name in arrays) and meta["progress"] is None
    assert BUILT_IN["digits"].stat().st_size < 1 << 20


def test_a_file_goes_before_a_name(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # of pictures, say: no file
    assert Mixer.load("digits").num_parameters() == model.num_parameters()
    assert Mixer.from_pretrained("digits").preparation == "digit"
    (tmp_path / "digits").rmdir()
    with pytest.raises(FileNotFoundError):
        Mixer.load(Path("digits"))
    Mixer(28, **SMALL).save("digits")
    assert Mixer.load("digits").num_parameters() < model.num_parameters()
    assert Mixer.from_pretrained("digits").preparation is None
    for load in (Mixer.load, Mixer.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"digit: no such file.*there is: digits"):
            load("digit")
        with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
            load("gone.npz")


def test_a_checkpoint_records_the_preparation(tmp_path):
    for preparation in (None, "digit"):
        Mixer(28, **SMALL, class_names=NAMES, preparation=preparation).save(tmp_path / "m.npz")
        for load in (Mixer.load, Mixer.from_pretrained):
            assert load(tmp_path / "m.npz").preparation == preparation
    with pytest.raises(ValueError, match="preparation must be None or 'digit', got 'dogit'"):
        Mixer(28, **SMALL, preparation="dogit")
    with pytest.raises(ValueError, match="28 x 28 with 1 channel"):
        Mixer(56, **SMALL, preparation="digit")


@pytest.mark.parametrize(("names", "size", "guessed"), [
    (NAMES, 28, "digit"), (NAMES, 56, None), (None, 28, None), ([*NAMES[:9], "shoe"], 28, None),
])  # fmt: skip
def test_files_from_before_it_was_recorded(tmp_path, names, size, guessed):
    new, old = tmp_path / "new.npz", tmp_path / "old.npz"
    save_checkpoint(new, Mixer(size, **SMALL, class_names=names))
    with np.load(new) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    assert meta.pop("preparation", "absent") is None and Mixer.load(new).preparation is None

    def load(**more):
        text = np.frombuffer(json.dumps(meta | more).encode(), np.uint8)
        np.savez(old, meta=text, **arrays)
        return Mixer.load(old)

    assert load().preparation == guessed
    with pytest.raises(ValueError, match="preparation is not what minimixer writes"):
        load(preparation=7)


@pytest.mark.slow
def test_train_mnist_records_it_for_the_embedded_mnist_alone(tmp_path):
    folder = make_data(tmp_path / "other", 40, 20, (28, 28), 10, rows=range(10))
    small = ["--epochs=1", "--num-blocks=1", "--hidden-dim=8", "--limit-train=40"]
    for given, expected in (([], "digit"), ([f"--data-dir={folder}"], None)):
        Runner(tmp_path)(*small, f"--out={expected}", *given)
        trained = Mixer.load(tmp_path / str(expected) / "checkpoint.npz")
        assert trained.class_names == NAMES and trained.preparation == expected


# ---- preparing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_drawings(model, path):
    assert answer(model, read_digit(path)) == int(path.name[0])


def test_printed_digits_black_on_white(model):
    """MNIST itself is written by hand: in some fonts 1 is a flag and a foot that nobody writes."""
    matplotlib = pytest.importorskip("matplotlib")
    from PIL import ImageFont

    wrong = 0
    for font in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono"):
        file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
        for digit in range(10):
            image = Image.new("L", (150, 200), 255)
            letters = ImageFont.truetype(str(file), 120)
            ImageDraw.Draw(image).text((20, 30), str(digit), font=letters, fill=0)
            wrong += answer(model, prepare_digit(np.asarray(image))) != digit
    assert wrong <= 1


@pytest.mark.slow
def test_what_is_prepared_already_stays(model, mnist):
    images, labels = (array[:1000] for array in mnist)
    prepared = np.stack([prepare_digit(image[..., 0]) for image in images])[..., None]
    differs = abs(prepared.astype(int) - images).mean(axis=(1, 2, 3))
    assert np.median(differs) < 1 and np.quantile(differs, 0.95) < 12
    before, after = ((model.predict(x) == labels).mean() for x in (images, prepared))
    assert abs(before - after) < 0.003


def test_size_and_place_are_mnists(mnist):
    def middle(image):
        return [(image.sum(axis=1 - a) * (np.arange(28) + 0.5)).sum() / image.sum() for a in (0, 1)]

    for image in mnist[0][:50, ..., 0]:
        photo = np.asarray(Image.fromarray(255 - image).resize((300, 300), Image.BICUBIC))
        photo = np.pad(photo, ((0, 200), (100, 0)), constant_values=255)
        for digit in (image.astype(float), prepare_digit(photo).astype(float)):
            rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
            assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
            assert all(14 <= place < 15 for place in middle(digit))


@pytest.mark.parametrize("shape, size", [((280, 90), (200, 64)), ((19, 20), (190, 200)),
                                         ((7, 300), (10, 201)), ((13, 5), (200, 77))])  # fmt: skip
def test_resampling_is_pillows(shape, size):
    array = np.random.default_rng(0).random(shape).astype("f4")
    expected = np.asarray(Image.fromarray(array).resize(size[::-1], Image.BOX))
    found = resample(resample(array, size[0]).T, size[1]).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def draw(width, height, pen=12, paper=(245,) * 3, ink=(20,) * 3):
    """A 2, a third of the width to the right, and half of the height."""
    image = Image.new("RGB", (width, height), paper)
    curve = [(0.1, 0.25), (0.2, 0.08), (0.45, 0.0), (0.75, 0.06), (0.82, 0.25), (0.7, 0.5),
             (0.4, 0.75), (0.05, 1.0), (0.95, 0.98)]  # fmt: skip
    points = [(width * 0.5 + x * height * 0.35, height * (0.25 + y * 0.5)) for x, y in curve]
    ImageDraw.Draw(image).line(points, fill=ink, width=pen, joint="curve")
    return image


def ghost(colour):
    image = Image.new("RGBA", (240, 200), colour)
    image.putalpha(draw(240, 200, paper=(0,) * 3, ink=(255,) * 3).convert("L"))
    return image


def noise(array, amount=8):
    return array + np.random.default_rng(0).normal(0, amount, array.shape)


def array_of(change):
    """The drawing after change(its array, x, y), which may work on it in place."""

    def changed():
        array = np.asarray(draw(240, 200)).astype(float)
        y, x = np.mgrid[0:200, 0:240] / 200
        new = change(array, x[..., None], y[..., None])
        return Image.fromarray((array if new is None else new).clip(0, 255).astype("u1"))

    return changed


def lines(array, x, y):
    array[np.arange(200) % 30 == 4], array[:, np.arange(240) % 30 == 9] = (90, 130, 220), 40


def thick_lines(array, x, y):
    array[np.isin(np.arange(200) % 50, (20, 21, 22, 23))] = 60


def box_around(array, x, y):
    array[8:192, 8:232] = np.pad(array[10:190, 10:230], ((2, 2), (2, 2), (0, 0)))


def specks(array, x, y):
    for top, left in np.random.default_rng(0).integers(0, 195, (15, 2)):
        array[top : top + 3, left : left + 3] = 20


def framed(array, x, y):
    array[:15], array[-15:], array[:, :15], array[:, -15:] = 20, 20, 20, 20


def grey(times):
    """16 bits, of which so many are used."""
    return lambda: Image.fromarray(np.asarray(draw(240, 200).convert("L")) * np.uint16(times))


KINDS = {
    "black on white": lambda: draw(240, 200),
    "white on black": lambda: draw(240, 200, paper=(0,) * 3, ink=(255,) * 3),
    "red on blue": lambda: draw(240, 200, paper=(40, 128, 200), ink=(230, 60, 60)),  # as bright
    "grey": lambda: draw(240, 200).convert("L"), "16 bits": grey(257), "12 of 16 bits": grey(16),
    "one bit": lambda: draw(240, 200).convert("1"),  # with dither
    "palette": lambda: draw(240, 200).quantize(8), "black on nothing": lambda: ghost((0, 0, 0)),
    "white on nothing": lambda: ghost((255, 255, 255)),
    "faint": lambda: draw(240, 200, paper=(200,) * 3, ink=(175,) * 3),
    "large": lambda: draw(4000, 3000, pen=160),
    "a pencil's": lambda: draw(4000, 3000, pen=12, ink=(120,) * 3),
    "tiny": lambda: draw(240, 200, pen=20).resize((24, 20), Image.BOX),
    "blurred": lambda: draw(240, 200).filter(ImageFilter.GaussianBlur(4)),
    "noisy": array_of(lambda a, x, y: noise(a, 15)),
    "lit from aside": array_of(lambda a, x, y: noise(a * (0.35 + 0.5 * x))),
    "in a corner's light": array_of(lambda a, x, y: a * (0.4 + 0.7 * np.exp(-3 * (x * x + y * y)))),
    "half in shadow": array_of(lambda a, x, y: noise(a * (1 - 0.35 * (x + 0.4 * y > 1)), 2)),
    "ruled": array_of(lines), "ruled with a broad pen": array_of(thick_lines),
    "with a box around": array_of(box_around), "with specks": array_of(specks),
    "in a frame": array_of(framed),
    "on a desk": lambda: draw(240, 200).rotate(5, fillcolor=(90, 60, 40)).resize((240, 200)),
    "cut to the ink": lambda: draw(240, 200).crop((125, 44, 194, 158)),
    "bold, cut to the ink": lambda: draw(600, 500, pen=70).crop((290, 95, 500, 400)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pictures(model, tmp_path, kind):
    KINDS[kind]().save(tmp_path / "2.png")
    digit, plain = read_digit(tmp_path / "2.png"), prepare_digit(np.asarray(draw(240, 200)))
    assert answer(model, digit) == 2
    differs = abs(digit.astype(int) - plain).mean()
    assert differs < (30 if "bold" in kind else 17)  # blurred: 14; of another shape: 40 and more


@pytest.mark.parametrize("quality", [8, 90])
def test_a_turned_jpeg(model, tmp_path, quality):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = draw(240, 200).transpose(Image.Transpose.ROTATE_90)
    image.save(tmp_path / "2.jpg", quality=quality, exif=turned)
    assert answer(model, read_digit(tmp_path / "2.jpg")) == 2


def test_what_shows_no_digit(tmp_path):
    blank = draw(240, 200, ink=(245,) * 3)
    for image, text in (
        (blank, "no ink"), (np.hstack([draw(240, 200), draw(240, 200)]), "more than one digit"),
        (noise(np.full((300, 400, 3), 200.0)).astype("uint8"), "no ink|only specks"),
        (np.zeros((0, 5), "uint8"), "no pixels"),
    ):  # fmt: skip
        with pytest.raises(BadPicture, match=text):
            prepare_digit(np.asarray(image))
    blank.save(tmp_path / "blank.png")
    with pytest.raises(BadPicture, match="no ink"):
        read_digit(tmp_path / "blank.png")
    for wrong in (np.zeros((5, 5)), np.zeros(5, "uint8"), np.zeros((5, 5, 4), "uint8")):
        with pytest.raises(TypeError, match="uint8"):
            prepare_digit(wrong)
    random = np.random.default_rng(0)  # any array is prepared or refused
    for shape in [(1, 1), (1, 9), (2, 900), (1000, 3), (20, 20, 3), (90, 200)]:
        for share in (0.01, 0.5, 0.97):
            for array in (random.random(shape) < share, np.arange(np.prod(shape)) % 256):
                with contextlib.suppress(BadPicture):
                    digit = prepare_digit((array.reshape(shape) * 255).astype("uint8"))
                    assert digit.shape == (28, 28) and digit.dtype == np.uint8


def test_the_drawing_of_the_steps_reads_digits_as_predict_does(tmp_path, capsys, monkeypatch):
    """White ink on nothing, too; and a picture without a digit is named."""
    pytest.importorskip("matplotlib")
    import draw_digit

    ghost((255, 255, 255)).save(tmp_path / "white.png")
    steps = []
    digit = read_digit(tmp_path / "white.png", steps)
    assert steps[0][0] == "the picture" and len(steps) == 6 and (steps[-1][1] == digit).all()
    words = ["draw_digit.py", str(tmp_path / "white.png"), "--out", str(tmp_path / "steps.png")]
    monkeypatch.setattr(sys, "argv", words)
    assert draw_digit.main() == 0 and (tmp_path / "steps.png").exists()
    (tmp_path / "none.png").write_bytes(b"")
    words[1] = str(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"none\.png: the file is empty"):
        draw_digit.main()


def test_a_bold_digit_that_touches_a_thin_frame(model):
    array = np.asarray(draw(240, 200, pen=40).crop((80, 34, 240, 190))).copy()
    plain = prepare_digit(array)
    array[:2], array[-2:], array[:, :2], array[:, -2:] = 20, 20, 20, 20
    digit = prepare_digit(array)
    assert answer(model, digit) == 2 and abs(digit.astype(int) - plain).mean() < 10


@pytest.mark.parametrize("size", [440, 520, 900])  # the sheet is 61%, 44% and 15% of the picture
def test_a_sheet_on_a_desk(model, size):
    picture = np.full((size, size, 3), (90, 60, 40), np.uint8)
    top, start = (size - 400) // 2, (size - 300) // 2
    picture[top : top + 400, start : start + 300] = np.asarray(draw(300, 400).convert("RGB"))
    assert answer(model, prepare_digit(picture)) == 2
