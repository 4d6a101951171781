"""The page of `python -m minimixer draw` in a browser: Debian's Chromium, driven by playwright.

    pip install playwright; apt install chromium
    pytest -m slow tests/test_draw_in_browser.py

Python for the browser comes from npm, whose package has no NumPy, and no other registry has it for
WebAssembly: so it is tested up to there. A folder that holds all files of the release that
page/ask.js names, in the variable MINIMIXER_PYODIDE, lets minimixer itself run in the browser.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from help import redraw, small_mixer

from minimixer.app import draw
from minimixer.app.draw import example, static
from minimixer.app.draw.look import ready
from minimixer.app.draw.server import Server

CHROMIUM = Path("/usr/bin/chromium")
ASK = static.page_file("ask.js").decode()
PYODIDE = os.environ.get("MINIMIXER_PYODIDE", "")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a browser: {CHROMIUM}"),
]
DIGITS = {  # strokes, in thousandths of the pad
    "7": [[(250, 220), (740, 210), (430, 850)]],
    "1": [[(500, 150), (500, 850)]],
    "3": [[(290, 220), (640, 170), (720, 340), (470, 480), (740, 650), (600, 850), (270, 790)]],
    "4": [[(350, 150), (280, 520), (720, 520)], [(640, 180), (620, 880)]],
}
SIZES = {390: 844, 900: 1000, 1400: 900}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def address():
    with Server(draw.load_models(["digits"])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


class Visit:
    """A page that was opened, what it complained of, and whom it asked."""

    def __init__(self, browser, address, width=1400, **options):
        size = {"width": width, "height": SIZES.get(width, 900)}
        self.page = browser.new_page(viewport=size, **options)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def answered(self):
        """When nothing is asked any more: the number of answers stays."""
        self.page.wait_for_selector("body[data-answers]")
        before = None
        while before != (before := self.page.get_attribute("body", "data-answers")):
            self.page.wait_for_timeout(250)
        return self

    def draw(self, digit):
        self.page.click("#clear")
        pad, mouse = self.page.locator("#pad").bounding_box(), self.page.mouse
        for stroke in DIGITS[digit]:
            places = [(pad["x"] + pad["width"] * x / 1000, pad["y"] + pad["height"] * y / 1000)
                      for x, y in stroke]  # fmt: skip
            mouse.move(*places[0])
            mouse.down()
            for place in places[1:]:
                mouse.move(*place, steps=12)
            mouse.up()
        return self.answered()

    @property
    def best(self):
        return self.page.inner_text("#best")

    def shares(self):
        return self.page.locator(".class span").all_inner_texts()

    def drawn(self, number):
        """What one of the pictures shows: its pixels, as a text."""
        return self.page.evaluate("n => document.querySelectorAll('canvas')[n].toDataURL()", number)


@pytest.fixture
def visit(browser, address):
    visits = []

    def open_page(*others, **options):
        visits.append(Visit(browser, *(others or [address]), **options))
        return visits[-1].answered()

    yield open_page
    for one in visits:
        assert one.said == [] and all(url.startswith(address) for url in one.asked), one.said
        one.page.close()


def test_digits_drawn_with_the_mouse_are_read(visit):
    seen = visit()
    assert seen.best == "3"  # its example
    ink = np.frombuffer(base64.b64decode(seen.page.evaluate("ink().ink")), np.uint8)
    assert abs(ink.reshape(140, 140) - example.ink(140).astype(float)).mean() < 1
    for digit in DIGITS:
        assert seen.draw(digit).best == digit
    seen.page.click("#undo")
    assert seen.answered().best != "4" or seen.shares()[4] != "100.0%"
    assert re.fullmatch(r"answered in \d+ ms", seen.page.inner_text("#state"))


@pytest.mark.parametrize("by", ["finger", "pen"])
def test_with_finger_and_pen(visit, by):
    seen = visit(has_touch=True)
    seen.page.click("#clear")
    pad, tell = (
        seen.page.locator("#pad").bounding_box(),
        seen.page.context.new_cdp_session(seen.page),
    )

    def act(kind, y=None):
        place = {} if y is None else {"x": pad["x"] + pad["width"] / 2, "y": pad["y"] + y}
        if by == "finger":
            points = [place] if place else []
            tell.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        else:
            kind = {"Start": "mousePressed", "Move": "mouseMoved", "End": "mouseReleased"}[kind]
            more = {"pointerType": "pen", "button": "left", "buttons": 1, "clickCount": 1}
            place = place or {"x": pad["x"], "y": pad["y"]}
            tell.send("Input.dispatchMouseEvent", {"type": kind, **place, **more})

    act("Start", 50)
    for y in range(60, 230, 10):
        act("Move", y)
    act("End")
    assert seen.answered().best == "1"
    assert seen.page.evaluate("scrollY") == 0 and not seen.page.is_visible("#hint")


def test_with_the_keyboard(visit):
    seen = visit()
    seen.page.click("#clear")
    seen.page.focus("#pad")
    for key in ["Space", *["ArrowDown"] * 14, "Space", "ArrowRight"]:
        seen.page.keyboard.press(key)
    assert seen.answered().best == "1"
    patches = seen.page.locator(".grid button")
    patches.first.focus()
    for key in ("ArrowRight", "ArrowDown", "Space"):
        seen.page.keyboard.press(key)
    seen.answered()
    assert patches.nth(5).get_attribute("aria-label") == "patch 5, hidden"
    assert seen.page.locator(".grid button[tabindex='0']").count() == 1


def test_a_class_is_chosen_for_its_gradient(visit):
    seen = visit().draw("7")
    title = seen.page.locator("#first figure").nth(1).locator("b")
    assert title.inner_text() == "gradient of 7's score"
    before, button = seen.drawn(2), seen.page.locator(".class").nth(1)
    button.click()
    seen.answered()
    assert title.inner_text() == "gradient of 1's score" and seen.drawn(2) != before
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    seen.answered()
    assert title.inner_text() == "gradient of 7's score" and seen.drawn(2) == before


def test_patches_are_hidden_shuffled_and_put_back(visit):
    seen = visit().draw("3")
    before, shares = [seen.drawn(n) for n in range(1, 8)], seen.shares()
    for number in (5, 6, 9):
        seen.page.locator(".grid button").nth(number).click()
    seen.answered()
    hidden = [seen.drawn(n) for n in range(1, 8)]
    assert seen.shares() != shares and all(a != b for a, b in zip(hidden, before, strict=True))
    seen.page.click("#shuffle")
    seen.answered()
    assert seen.page.locator(".grid button[aria-pressed='true']").count() == 3
    assert seen.drawn(1) != hidden[0]
    seen.page.click("#back")
    seen.answered()
    assert [seen.drawn(n) for n in range(1, 8)] == hidden
    seen.page.click("#show")
    seen.answered()
    assert [seen.drawn(n) for n in range(1, 8)] == before and seen.shares() == shares
    assert seen.page.locator("#back:disabled, #show:disabled").count() == 2


def test_numbers_are_read_by_pointing(visit):
    seen = visit()
    seen.page.hover("#blocks canvas >> nth=1", position={"x": 2, "y": 2})
    read = seen.page.inner_text("#reading")
    assert re.fullmatch(r"blocks\.0\.token_mixing\.hidden\[0, \d+\] = -?[\d.e-]+", read)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_it_fits_and_everything_has_a_name(visit, tmp_path, width, scheme):
    """Screenshots are left in pytest's folder for this test, to be looked at."""
    seen = visit(width=width, color_scheme=scheme, reduced_motion="reduce")
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    picture = seen.page.screenshot(path=tmp_path / f"{width}_{scheme}.png", full_page=True)
    assert len(picture) > 50_000
    colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 22, 30)")
    for canvas in seen.page.locator("canvas").all():
        assert canvas.get_attribute("aria-label") and canvas.get_attribute("role")
    captions = seen.page.locator("figcaption").all_inner_texts()
    assert len(captions) == 7 + 4 * 7 and all(re.search(r"\(\d+.*\)", one) for one in captions)
    for button in seen.page.locator("button:visible").all():
        assert button.get_attribute("aria-label") or button.inner_text().strip()
    duration = "getComputedStyle(document.querySelector('.class i')).transitionDuration"
    assert seen.page.evaluate(duration) == "0s"  # as the reader asked for less motion


def test_a_slider_goes_through_checkpoints(browser):
    models = ready({f"step {n}": redraw(small_mixer(num_blocks=n), n) for n in (1, 2, 3)})
    with Server(models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = Visit(browser, server.address).answered()
        assert seen.page.inner_text("#trained") == "step 3"
        assert seen.page.locator("#blocks article").count() == 3
        seen.page.focus("#checkpoint")
        last = seen.shares()
        seen.page.keyboard.press("Home")
        seen.answered()
        assert seen.page.inner_text("#trained") == "step 1" and seen.shares() != last
        assert seen.page.locator("#blocks article").count() == 1 and seen.said == []
        seen.page.route("**/look", lambda route: route.abort())  # as if nobody were there
        seen.page.click("#clear")
        seen.page.wait_for_selector("#state:has-text('the server has ended')")
        seen.page.close()
        server.shutdown()


# ---- without a server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pyodide(tmp_path_factory):
    """A folder with Python for the browser, of the version that the page names."""
    if PYODIDE:
        return Path(PYODIDE)
    folder, (version,) = tmp_path_factory.mktemp("npm"), re.findall(r'VERSION = "(.*)"', ASK)
    if shutil.which("npm") is None:
        pytest.skip("needs npm, to fetch Python for the browser")
    command = ["npm", "install", "--prefix=.", "--ignore-scripts", f"pyodide@{version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip(f"npm has no pyodide {version} here: {done.stderr.splitlines()[:1]}")
    return folder / "node_modules" / "pyodide"


@pytest.fixture
def offered(browser, tmp_path):
    """offered(folder): the static page, opened from disk, for which the files in `folder` are the
    world outside."""
    visits = []

    def open_page(folder):
        def serve(route):
            file = folder / route.request.url.rpartition("/")[2] if folder else None
            if file is None or not file.is_file():
                return route.abort()
            kind = {".js": "text/javascript", ".wasm": "application/wasm"}.get(file.suffix)
            headers = {"Access-Control-Allow-Origin": "*"}
            route.fulfill(path=file, content_type=kind, headers=headers)

        static.write_page(tmp_path, draw.load_models(["digits"]))
        visits.append(seen := Visit(browser, "about:blank"))
        seen.page.route(re.compile("^https?:"), serve)
        seen.page.goto((tmp_path / "index.html").as_uri())
        seen.page.wait_for_selector("#run:visible")
        return seen

    yield open_page
    for one in visits:
        one.page.close()


def test_nothing_is_fetched_before_the_reader_asks(offered):
    """What is to be seen of the example is there, and is what the pad's ink would give."""
    seen = offered(None)
    seen.page.wait_for_timeout(500)
    assert seen.best == "3" and seen.page.locator("#blocks article").count() == 4
    seen.page.click("#clear")
    assert seen.page.inner_text("#state").startswith("run it")
    assert seen.asked and all(url.startswith(("file:", "about:")) for url in seen.asked)
    assert seen.said == [] and "package.js" not in str(seen.asked)


def test_without_python_it_says_so_and_can_be_asked_again(offered):
    seen = offered(None)
    for _ in range(2):
        seen.page.click("#run:enabled")
        seen.page.wait_for_selector("#state:has-text('pyodide.js can\\'t be had')")


def test_python_starts_in_the_browser_and_reads_the_package(offered, pyodide):
    """Its script has the hash that the page knows. All files compile there, and import nothing that
    it lacks but NumPy."""
    seen = offered(pyodide)
    seen.page.click("#run")
    if not any(pyodide.glob("numpy-*.whl")):
        seen.page.wait_for_selector("#state:has-text('NumPy can\\'t be had')", timeout=60_000)
    assert [url for url in seen.asked if url.startswith("http")]
    told = seen.page.evaluate(IN_PYTHON)
    files, missing = json.loads(told)
    assert files > 80 and missing in (["numpy"], [])


IN_PYTHON = """async () => {
  const python = await loadPyodide({ indexURL: PYODIDE, packageBaseUrl: PACKAGES });
  await load("package.js");
  const bytes = Uint8Array.from(atob(MINIMIXER_ZIP), (letter) => letter.charCodeAt(0));
  python.unpackArchive(bytes.buffer, "zip");
  return python.runPython(`
import ast, importlib.util, json, pathlib
import http.server, tempfile, threading, webbrowser, zipfile
files, missing = list(pathlib.Path("minimixer").rglob("*.py")), set()
for file in files:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    compile(tree, str(file), "exec")
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        tops = {name.partition(".")[0] for name in names}
        missing |= {top for top in tops if importlib.util.find_spec(top) is None}
json.dumps([len(files), sorted(missing)])`);
}"""


@pytest.mark.skipif(not PYODIDE, reason="MINIMIXER_PYODIDE names no folder with Pyodide and NumPy")
def test_minimixer_answers_alike_in_the_browser(offered, visit):
    seen = offered(Path(PYODIDE))
    seen.page.click("#run")
    seen.page.wait_for_selector("body[data-answers]", timeout=120_000)
    for digit in ("7", "3"):
        assert seen.draw(digit).best == digit
        assert seen.shares() == visit().draw(digit).shares()
