"""The page of `python -m minimixer draw` in a browser: Debian's Chromium, driven by playwright.

    pip install playwright; apt install chromium
    pytest -m slow tests/test_draw_in_browser.py tests/test_draw_from_disk.py
The page without a server is in test_draw_from_disk.py.
"""

import base64
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from help import redraw, small_mixer

from minimixer.app import draw
from minimixer.app.draw import example
from minimixer.app.draw.look import ready
from minimixer.app.draw.server import Server

CHROMIUM = Path("/usr/bin/chromium")
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


def test_a_stroke_leaves_the_pad_or_is_undone_as_it_grows(visit):
    seen = visit().draw("1")
    pad, mouse = seen.page.locator("#pad").bounding_box(), seen.page.mouse
    before = seen.page.evaluate("strokes")
    mouse.move(pad["x"] + 20, pad["y"] + 20)
    mouse.down()
    seen.page.evaluate("$('undo').click()")
    mouse.move(pad["x"] + 200, pad["y"] + 200, steps=5)
    mouse.up()
    assert seen.page.evaluate("strokes") == before
    mouse.down()
    mouse.move(pad["x"] + 2000, pad["y"] - 500, steps=5)  # and is let go there
    mouse.up()
    mouse.move(pad["x"] + 20, pad["y"] + 20, steps=5)
    outside = "strokes.at(-1).filter(([x, y]) => x > 1 || y < 0).length"
    assert seen.page.evaluate("strokes.length") == 2 and seen.page.evaluate(outside)
    assert seen.page.evaluate("strokes.at(-1).at(-1)[0] > 1")
    seen.answered()


def test_a_dark_page_is_printed_on_white(visit):
    light, dark = (visit(color_scheme=scheme) for scheme in ("light", "dark"))
    expected = [light.drawn(n) for n in (0, 1)]
    assert all(dark.drawn(n) != expected[n] for n in (0, 1))
    dark.page.emulate_media(media="print", color_scheme="dark")
    dark.page.wait_for_timeout(200)
    assert [dark.drawn(n) for n in (0, 1)] == expected
    ink = dark.page.evaluate("getComputedStyle(document.body).color")
    assert ink == light.page.evaluate("getComputedStyle(document.body).color")


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
        assert re.match("[A-Za-z]", canvas.get_attribute("aria-label"))
        assert canvas.get_attribute("role")
    captions = seen.page.locator("figcaption").all_inner_texts()
    assert len(captions) == 7 + 4 * 7 and all(re.search(r"\(\d+.*\)", one) for one in captions)
    for button in seen.page.locator("button:visible").all():
        assert button.get_attribute("aria-label") or button.inner_text().strip()
    duration = "getComputedStyle(document.querySelector('.class i')).transitionDuration"
    assert seen.page.evaluate(duration) == "0s"  # as the reader asked for less motion


@pytest.mark.parametrize("width", SIZES)
def test_names_of_any_length_have_room(browser, width):
    names = ["n" * 5000, "Ankle boot", "<i>T-shirt</i>"]
    with Server(ready({"a": redraw(small_mixer(class_names=names))})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = Visit(browser, server.address, width=width).answered()
        for row in seen.page.locator(".class").all():
            row.click()  # its name is in the gradient's title, too
        assert seen.answered().page.evaluate("document.documentElement.scrollWidth") == width
        bars = "new Set([...$('classes').children].map(c => c.children[1].offsetLeft)).size"
        assert seen.page.evaluate(bars) == 1
        room = "[...$('classes').children].every(c => c.scrollWidth <= c.clientWidth)"
        assert seen.page.evaluate(room) and seen.said == []
        seen.page.close()
        server.shutdown()


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
        seen.page.evaluate(SLOWLY)
        told = set()
        for key in ["End", "Home", "ArrowRight", *[None] * 8]:
            if key:
                seen.page.keyboard.press(key)
            for _ in range(2):  # while what was asked differs from what is shown
                told.add(tuple(seen.page.evaluate(WHICH)))
                seen.page.wait_for_timeout(60)
        assert told <= {(f"step {n}", n) for n in (1, 2, 3)} and len(told) > 1
        assert seen.page.evaluate(WHICH) == ["step 2", 2]
        seen.page.route("**/look", lambda route: route.abort())  # as if nobody were there
        seen.page.click("#clear")
        seen.page.wait_for_selector("#state:has-text('the server has ended')")
        assert f"draw --port {server.server_port} starts" in seen.page.inner_text("#state")
        seen.page.unroute("**/look")  # it came back
        seen.page.click("#shuffle")
        seen.page.wait_for_selector("#state:has-text('answered in')")
        seen.page.close()
        server.shutdown()


SLOWLY = """() => {
  const { answer } = source;
  source.answer = (asked) => new Promise((next) => setTimeout(next, 200)).then(() => answer(asked));
}"""
WHICH = "[$('trained').textContent, $('blocks').childElementCount]"
