"""`python -m minimixer draw`: what is shown is what the model computes, and how it is asked for.
The server is in test_draw_server.py, the page itself in test_draw_in_browser.py and
test_draw_from_disk.py."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import zipfile

import numpy as np
import pytest
from help import close, redraw, small_mixer
from scripts import Runner, killed_at_last
from test_rooms import COPY_ALONE

from minimixer import SGD, Mixer, Tensor, no_grad
from minimixer.app import draw
from minimixer.app.draw import example, server, static
from minimixer.app.draw import look as looks
from minimixer.app.draw.look import answer, look, pack, prepare, ready, rearrange
from minimixer.app.folder import mark
from minimixer.nn.more_loss import softmax
from minimixer.pictures.digits import box
from minimixer.training.checkpoint import save_checkpoint


def model_of(seed=0, **changes):
    """8 x 8 pixels, patches of 2: 16 tokens; every parameter at random."""
    return redraw(small_mixer(patch_size=2, **changes), seed)


def image_of(model, seed=0):
    return np.random.default_rng(seed).integers(0, 256, model.size).astype("uint8")


def stroke(side=140, top=20, left=60, height=100, width=14):
    """A drawing of a 1."""
    ink = np.zeros((side, side), np.uint8)
    ink[top : top + height, left : left + width] = 255
    return ink


def question(ink=None, **more):
    ink = stroke() if ink is None else ink
    return {"ink": base64.b64encode(ink.tobytes()).decode(), "side": len(ink), **more}


def unpack(packed):
    whole = np.frombuffer(base64.b64decode(packed["data"]), "<i2")
    return whole.reshape(packed["shape"]) * packed["unit"]


@pytest.fixture(scope="module")
def digits():
    return draw.load_models(["digits"])


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path, "minimixer")


# ---- what is shown ------------------------------------------------------------------------------


def test_it_is_what_inspect_says():
    model = model_of()
    image = image_of(model)
    seen, inspected = look(model, image), model.inspect(image[None])
    assert seen.keys() - inspected.keys() == {
        "image", "probabilities", "target", "gradient", "readout"
    }  # fmt: skip
    for name, expected in inspected.items():
        np.testing.assert_array_equal(seen[name], expected.numpy()[0], err_msg=name)
    np.testing.assert_array_equal(seen["image"], image)
    np.testing.assert_allclose(seen["probabilities"], model.predict_proba(image[None])[0], 1e-6)
    assert seen["target"] == seen["probabilities"].argmax()


def test_readouts_are_the_heads_own_words():
    """After the last block it says what the model says; after none, what a model of none would."""
    model = model_of()
    seen = look(model, image_of(model))
    assert seen["readout"].shape == (3, 3) and abs(np.diff(seen["readout"], axis=0)).max() > 0.01
    np.testing.assert_allclose(seen["readout"].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(seen["readout"][-1], seen["probabilities"], rtol=1e-5)
    with no_grad():
        logits = model.head(model.norm(Tensor(seen["tokens"])).mean(axis=0))
    np.testing.assert_allclose(seen["readout"][0], softmax(logits.numpy()), rtol=1e-5)


@pytest.mark.parametrize("target", [None, 0, 2])
def test_the_gradient_is_the_difference_that_a_pixel_makes(target):
    model = model_of(dtype="float64")
    image = image_of(model)
    seen = look(model, image, target, order=[*range(8, 16), *range(8)], hidden=[3])
    pixels, step = model.convert(seen["image"][None]).data, 1e-5
    each = np.eye(pixels.size).reshape(-1, *pixels.shape[1:]) * step
    with no_grad():
        more, less = (model(Tensor(pixels + change)).numpy() for change in (each, -each))
    slopes = ((more - less) / (2 * step))[:, seen["target"]].reshape(model.size)
    assert target in (None, seen["target"]) and abs(slopes).max() > 1e-3
    np.testing.assert_allclose(seen["gradient"], slopes, rtol=1e-6, atol=1e-9)


def test_patches_that_are_hidden_and_shuffled():
    model = model_of()
    image, order = image_of(model), np.random.default_rng(1).permutation(16)
    plain, zeroed = look(model, image), image.copy()
    zeroed[2:4, 2:4], zeroed[:2, 6:] = 0, 0  # the sixth patch and the fourth
    hidden = look(model, image, hidden=[5, 3])
    np.testing.assert_array_equal(hidden["image"], zeroed)
    close(hidden["logits"], model.predict_logits(zeroed[None])[0])
    shuffled = look(model, image, order=order)
    np.testing.assert_array_equal(shuffled["patches"], plain["patches"][order])
    assert abs(shuffled["logits"] - plain["logits"]).max() > 1e-3
    undone = rearrange(shuffled["image"], 2, np.argsort(order), [])
    np.testing.assert_array_equal(undone, image)
    both = rearrange(image, 2, order, [5])  # what is hidden is a piece, wherever it lies
    np.testing.assert_array_equal(rearrange(both, 2, np.argsort(order), []),
                                  rearrange(image, 2, None, [5]))  # fmt: skip


# ---- from a drawing to a picture ----------------------------------------------------------------


@pytest.mark.parametrize("place", [dict(top=2, left=5), dict(side=280, top=150, left=260),
                                   dict(height=60, width=9)])  # fmt: skip
def test_a_drawing_is_made_like_mnists(digits, place):
    """Of any size and anywhere: 20 pixels, with its mass in the middle."""
    (model,) = digits.values()
    image = prepare(stroke(**place), model)
    assert image.shape == (28, 28, 1) and image.dtype == np.uint8
    top, bottom, left, right = box(image[..., 0] > 0)
    assert bottom - top == 20 and right - left < 8
    mass = image[..., 0].sum(axis=0)
    assert 14 <= (mass * (np.arange(28) + 0.5)).sum() / mass.sum() < 15
    assert model.predict(image[None]) == [1]


def test_paper_and_a_dot(digits):
    (model,) = digits.values()
    assert not prepare(np.zeros((50, 50), np.uint8), model).any()
    top, bottom, *_ = box(prepare(stroke(height=12, width=12), model)[..., 0] > 0)
    assert bottom - top < 10


def test_for_other_models_it_is_only_made_smaller():
    ink = np.zeros((16, 16), np.uint8)
    ink[2:4, 4:6] = 200
    image = prepare(ink, model_of())
    assert image.shape == (8, 8, 1) and image[1, 2] == 200 and image.sum() == 200


def test_the_example_is_what_it_is_taken_for(digits):
    (model,) = digits.values()
    assert model.predict(prepare(example.ink(140), model)[None]) == [3]
    small, large = ((np.argwhere(example.ink(n) > 127).mean(axis=0) + 0.5) / n for n in (35, 280))
    assert abs(small - large).max() < 0.01


# ---- questions and answers ----------------------------------------------------------------------


def test_an_answer_holds_all_that_was_seen(digits):
    (model,) = digits.values()
    order = [*range(1, 16), 0]
    found = json.loads(json.dumps(answer(digits, question(target=4, order=order, hidden=[7]))))
    seen = look(model, prepare(stroke(), model), 4, order, [7])
    assert found["blocks"] == 4 and found["milliseconds"] > 0
    assert found["seen"].keys() == seen.keys() and found["seen"]["target"] == 4
    for name, array in seen.items():
        if name != "target":
            squeezed = array[..., 0] if name in ("image", "gradient") else array
            most = abs(squeezed.astype(float)).max()
            close(unpack(found["seen"][name]), squeezed, 0, most / 60_000)
    assert looks.about(digits)["classes"] == [*"0123456789"]


def test_an_answer_changes_nothing(digits):
    (model,) = digits.values()
    before = model.state_dict()
    first, again = (answer(digits, question()) for _ in range(2))
    assert first["seen"] == again["seen"]
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.array([1e-30, -3e30])])
def test_packing(array):
    packed = pack(array)
    assert packed["full"] > 0 and packed["unit"] > 0
    np.testing.assert_allclose(unpack(packed), array, rtol=1e-4, atol=1e26)


WRONG = [
    ([], "object"), (None, "object"), ({}, "object"), ({"ink": ""}, "object"),
    (question(more=1), "object"), (question(side=0), "side"), (question(side=281), "side"),
    (question(side=True), "side"), (question(side=139), "139 x 139 bytes, not 19600"),
    (question(side="140"), "side"),
    (question() | {"ink": "*" * 8}, "base64"), (question() | {"ink": 5}, "base64"),
    (question() | {"ink": "ä"}, "base64"), (question(target=10), "target.* 0 to 9"),
    (question(target=-1), "target"), (question(target=1.5), "target"),
    (question(model=2), "model"), (question(hidden=[16]), "hidden"),
    (question(hidden=7), "hidden"), (question(hidden=0), "hidden"), (question(hidden={}), "hidden"),
    (question(order=0), "order"), (question(order=False), "order"),
    (question(hidden=[[0]]), "hidden"),
    (question(order=[0] * 16), "each of the 16 patches once"), (question(order=[0]), "once"),
    (question(order="0123"), "order"), (question(order=[]), "once"),
]  # fmt: skip


@pytest.mark.parametrize("asked, match", WRONG)
def test_what_is_no_question(digits, asked, match):
    with pytest.raises(ValueError, match=match) as refused:
        answer(digits, asked)
    assert "\n" not in str(refused.value)


def test_models_that_no_page_can_show():
    for wrong, match in (
        (dict(in_channels=3), "3 channels"), (dict(num_classes=0), "no head"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            ready({"b": small_mixer(**wrong)})
    for other in (dict(image_size=4), dict(patch_size=8), dict(num_classes=4)):
        with pytest.raises(ValueError, match=r"^b has"):
            ready({"a": small_mixer(), "b": small_mixer(**other)})
    deeper = ready({"a": model_of(), "b": model_of(num_blocks=3)})
    assert answer(deeper, question(model=1))["blocks"] == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["logits", "gradient"])
def test_nothing_is_shown_that_is_not_finite(where):
    """Nor does the terminal say more than the page, whichever thread asks."""
    model = model_of()
    if where == "logits":
        model.head.bias.data = np.array([np.nan, 0, 0], "f4")
    else:  # on white paper each pixel's large weight has its opposite, so that all tokens are small
        model.stem.weight.data = np.float32([[1e6], [-1e6]] * 2) * np.ones((1, 8), "f4")
        model.head.weight.data = model.head.weight.data * np.float32(1e34)
        with np.errstate(all="ignore"):
            seen = look(model, np.zeros(model.size, "uint8"))
        assert np.isfinite(seen["logits"]).all() and not np.isfinite(seen["gradient"]).all()
    with pytest.raises(ValueError, match="NaN or infinity"):
        answer(ready({"a": model}), question(np.zeros((8, 8), np.uint8)))


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_it_serves_until_ctrl_c(run):
    with run.start("draw", "--no-browser") as process, killed_at_last(process):
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"Draw a digit" in page.read()
        taken = run("draw", f"--port={address[:-1].rpartition(':')[2]}", status=2).stderr
        assert taken.count("\n") == 1 and "--port 0 takes a free one" in taken
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "\ndraw: ended\n" and not err


def test_it_opens_a_browser_where_it_may(monkeypatch, capsys):
    opened, told = [], threading.Event()
    monkeypatch.setattr(draw.webbrowser, "open", lambda at: opened.append(at) or told.set())

    def serve_forever(self):
        told.wait(wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(server.Server, "serve_forever", serve_forever)
    for words, wait in (["--no-browser"], 0.2), ([], 30):  # noqa: B007
        assert draw.main(words) == 0
    (address,) = opened
    assert f"draw: {address} (" in capsys.readouterr().out


def test_a_directory_is_a_history(tmp_path, run):
    """In the order of their steps, not of their names."""
    model = small_mixer()
    for name, steps in ("a/checkpoint.npz", 12), ("b/checkpoint.npz", 3), ("c.npz", 7):
        optimizer = SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.step()
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_checkpoint(tmp_path / name, model, optimizer)
    assert list(draw.load_models([str(tmp_path)])) == ["step 3", "step 7", "step 12"]
    model.save(tmp_path / "d.npz")
    assert len(draw.load_models([str(tmp_path / "d.npz"), str(tmp_path / "c.npz")])) == 2
    (tmp_path / "none").mkdir()
    for words, said in ((["none"], "no checkpoint"), (["missing.npz"], "missing.npz"),
                        ([""], "No such file"),
                        (["digits", "d.npz"], "d.npz has size")):  # fmt: skip
        assert said in run("draw", "--weights", *words, status=2).stderr
    for port in ("65536", "-1", "no"):
        said = run("draw", f"--port={port}", status=2).stderr
        assert f"--port: must be a whole number from 0 to 65535, not {port}" in said


# ---- the page as files --------------------------------------------------------------------------


def test_the_archive_alone_answers_alike(tmp_path, run, digits):
    """What runs in the browser, here without the rest of the package and without Pillow."""
    said = run("draw", "--out=page").stdout
    assert re.fullmatch(r"wrote page: 1\.\d MB; open index.html in it\n", said)
    page = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "page").iterdir()}
    names = {name for name, _ in static.FILES.values()}
    assert page.keys() == names | {"package.js", "example.js", mark("draw")}
    assert 'data-where="browser"' in page["index.html"]
    code = base64.b64decode(re.fullmatch(r'var MINIMIXER_ZIP = "(.*)";\n', page["package.js"])[1])
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone.zip").write_bytes(code)
    (tmp_path / "question.json").write_text(json.dumps(question(hidden=[2])), encoding="utf-8")
    program = f"""{COPY_ALONE}
import json, sys, zipfile
sys.modules["PIL"] = None
zipfile.ZipFile("../alone.zip").extractall()
{re.search("runPython.`(.*?)`", page["ask.js"], re.S)[1].replace("[json", "told, ask = [json")}
assert "alone" in sys.modules["minimixer"].__file__ and "minimixer.kernels" not in sys.modules
print(told, ask(open("../question.json").read()), sep="\\n")
"""
    (tmp_path / "alone" / "run.py").write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path / "alone", capture_output=True,
                          encoding="utf-8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    about, found = map(json.loads, done.stdout.splitlines())
    assert about == json.loads(json.dumps(looks.about(digits)))
    expected = answer(digits, question(hidden=[2]))
    for name in ("logits", "gradient", "blocks.3.channel_mixing", "readout"):
        np.testing.assert_allclose(unpack(found["seen"][name]), unpack(expected["seen"][name]),
                                   atol=1e-3 * expected["seen"][name]["full"])  # fmt: skip


def test_the_page_names_no_other_address():
    """But those of Python for the browser, with its version and what its script must hash to."""
    text = "".join(static.page_file(name).decode() for name, _ in static.FILES.values())
    assert set(re.findall(r"\w+://[^/]+/\w+/", text)) == {
        "https://cdn.jsdelivr.net/npm/", "https://cdn.jsdelivr.net/pyodide/",
    }  # fmt: skip
    assert re.search(r'VERSION = "\d+\.\d+\.\d+"', text)
    assert re.search(r'"sha384-[\w+/]{64}"', text)


def test_a_model_of_ones_own_goes_along(tmp_path):
    models = {"first ": model_of(), "second": model_of(1)}
    written = static.write_page(tmp_path / "deep" / "page", models)
    there = [p for p in (tmp_path / "deep" / "page").iterdir() if p.name != mark("draw")]
    assert written == sum(p.stat().st_size for p in there)
    zipfile.ZipFile(io.BytesIO(static.archive(models))).extractall(tmp_path)
    again = static.read_models(str(tmp_path))
    assert list(again) == list(models) and isinstance(again["second"], Mixer)
    image = image_of(models["second"])[None]
    np.testing.assert_array_equal(again["second"].predict_proba(image),
                                  models["second"].predict_proba(image))  # fmt: skip
