"""The book as a reader opens it: from disk, in Chromium, at three widths, and printed.

It needs playwright (pip install playwright) and a browser of the system's; it is skipped where
either is missing. Pictures of what was seen go to the folder that BOOK_SCREENSHOTS names.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from minimixer.app.book.pages import Site
from minimixer.app.folder import write_folder

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytest.importorskip("latex2mathml", reason="pip install latex2mathml, for the book")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WIDTHS = (390, 900, 1400)
LOOKED_AT = (
    "index.html", "docs.book.README.html", "docs.tasks.README.html", "docs.book.gradients.html",
    "examples.mixer_by_hand.html", "nn.layer_norm.html",
    "nn.functional.html", "model.mixer.html", "training.loop.html", "kernels.cpu.blocks.html",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(where it is, the addresses in the order of reading)"""
    made, out = Site(), tmp_path_factory.mktemp("book")
    write_folder(out, "book", made.build())
    return out, ["index.html", *(page.href for page in made.pages)]


@pytest.fixture(scope="module")
def browser():
    if not BROWSER:
        pytest.skip("needs a browser of the system's: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page whose errors and requests to elsewhere fail the test."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    wrong = []
    opened.on("console", lambda message: wrong.append(message.text)
              if message.type in ("error", "warning") else None)  # fmt: skip
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    opened.on("request", lambda request: None if request.url.startswith(("file:", "data:"))
              else wrong.append(request.url))  # fmt: skip
    yield opened
    opened.close()
    assert wrong == []


def test_next_leads_from_the_start_to_the_end(page, site):
    """By clicks through the path, and on the last page; test_book_pages.py has them all."""
    out, order = site
    page.goto((out / order[0]).as_uri())
    for after in order[1:45]:
        page.click("nav a[rel=next]")
        assert page.url.endswith(f"/{after}")
    page.goto((out / order[-1]).as_uri())
    assert page.locator("nav a[rel=next]").count() == 0


def test_the_page_for_drawing_opens_and_asks_nobody(page, site):
    out, _ = site
    page.goto((out / "index.html").as_uri())
    page.click("a:text-is('A digit that you draw')")
    assert page.url.endswith("/draw/index.html") and page.locator("#pad").is_visible()
    assert page.locator("button:text-is('Run in this browser')").is_visible()
    page.click("a:has-text('the book')")
    assert page.url.endswith("/index.html") and "/draw/" not in page.url


def test_a_task_leads_to_the_pages_that_it_rests_on_and_back(page, site):
    out, _ = site
    page.goto((out / "nn.loss.html").as_uri())
    page.click(".tasks a:has-text('logsumexp')")
    assert page.url.endswith("/docs.tasks.README.html#task5")
    assert 40 < page.locator("#task5").bounding_box()["y"] < 800
    page.click("#task5 ~ p a:has-text('nn/loss.py')")
    assert page.url.endswith("/nn.loss.html")


def test_formulas_are_drawn_in_the_font_that_comes_with_it(page, site):
    out, _ = site
    page.goto((out / "nn.layer_norm.html").as_uri())
    page.evaluate("() => document.fonts.ready.then(() => true)")
    assert page.evaluate("() => document.fonts.check('16px \"Minimixer Book Math\"')")
    loaded = "() => [...document.fonts].map((font) => font.status)"
    assert page.evaluate(loaded) == ["loaded"]
    height = "() => document.querySelector('.formulas mfrac').getBoundingClientRect().height"
    assert page.evaluate(height) > 25  # above and below a line, not in a row


def test_search_finds_by_keyboard_and_goes_there(page, site):
    out, _ = site
    page.goto((out / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("layernorm gradient")
    hits = page.locator("#hits a")
    assert 1 <= hits.count() <= 12
    page.fill(".search input", "")
    page.keyboard.type("MixerBlock")
    assert "model/block.py: MixerBlock" in hits.first.inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/model.block.html#MixerBlock")
    assert page.locator("[id=MixerBlock]").is_visible()
    page.fill(".search input", "no such words anywhere")
    assert page.locator("#hits").inner_text() == "Nothing found"
    page.fill(".search input", "<img src=x>")
    assert page.locator("#hits img").count() == 0
    page.keyboard.press("Escape")
    assert page.locator("#hits").is_hidden()


def test_search_finds_words_side_by_side_and_other_forms(page, site):
    out, _ = site
    page.goto((out / "index.html").as_uri())

    def found(words):
        page.fill(".search input", words)
        return page.locator("#hits a").all_inner_texts()

    hits = found("weight decay")[:3]
    assert all(re.search("weight[ _]decay", hit, re.IGNORECASE) for hit in hits)
    assert any(hit.startswith("training/optimizer.py") for hit in hits)
    for words, title in {
        "aliasing": "A graph with numbers on its arrows", "permute patches": "model/mixer.py",
        "shuffled patch": "model/mixer.py", "permute": "engine/rearrange.py",
    }.items():  # fmt: skip
        assert any(hit.startswith(title) for hit in found(words)), words
    texts = page.evaluate("() => INDEX.map(([, , text]) => text)")
    for hit in found("gradient") + found("permute") + found("loss"):
        shown = hit.partition("\n")[2].strip("…")  # and no word of it is cut
        assert any(f" {shown} " in f" {text} " for text in texts), shown


def test_a_name_leads_to_its_definition_and_back(page, site):
    out, _ = site
    page.goto((out / "nn.layer_norm.html").as_uri())
    page.click("pre.code a:text-is('Function')")
    assert page.url.endswith("/engine.autograd.html#Function")
    top = page.locator("[id=Function]").bounding_box()["y"]
    assert 40 < top < 800  # below the bar, and to be seen
    page.go_back()
    assert page.url.endswith("/nn.layer_norm.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_at_every_width(page, site, width, dark):
    """Only what has a bar of its own is wider than the screen; notes stand beside code where there
    is room, else above it."""
    out, order = site
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if dark else "light")
    for name in order if width == 390 and not dark else LOOKED_AT:
        page.goto((out / name).as_uri())
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, name
        page_is = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert page_is == ("rgb(15, 22, 30)" if dark else "rgb(255, 255, 255)")
        if name in LOOKED_AT and (folder := os.environ.get("BOOK_SCREENSHOTS")):
            kind = "dark" if dark else "light"
            path = Path(folder) / f"{name.removesuffix('.html')}-{width}-{kind}.png"
            page.screenshot(path=path)
    page.goto((out / "nn.layer_norm.html").as_uri())
    row = page.locator(".row", has=page.locator("[id=LayerNorm]"))
    note, code = (row.locator(part).bounding_box() for part in (".note", ".beside"))
    assert (note["y"] == code["y"]) == (width >= 1100)
    assert (note["x"] == code["x"]) == (width < 1100)


def test_nothing_is_clipped_on_a_wide_screen(page, site):
    """No code, formula or table has to be moved sideways to be read."""
    out, order = site
    page.set_viewport_size({"width": 1400, "height": 900})
    for name in order:
        page.goto((out / name).as_uri())
        page.evaluate("() => document.fonts.ready.then(() => true)")
        assert page.evaluate(CLIPPED) == [], name


CLIPPED = """() => [...document.querySelectorAll("pre, table, .formulas, .table")]
  .filter((found) => found.scrollWidth > found.clientWidth)
  .map((found) => found.textContent.slice(0, 60))"""


def test_a_long_opening_stands_above_its_code_in_two_columns(page, site):
    out, _ = site
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto((out / "nn.loss.html").as_uri())
    first, *_, last = page.locator(".opening > *").all()
    first, last, code = (
        found.bounding_box() for found in (first, last, page.locator(".beside").first)
    )
    assert last["x"] > first["x"] + first["width"] and code["y"] > last["y"] + last["height"]
    page.set_viewport_size({"width": 1150, "height": 900})
    first, last = (page.locator(f".opening > :{which}-child").bounding_box()
                   for which in ("first", "last"))  # fmt: skip
    assert first["x"] == last["x"]
    page.goto((out / "engine.tensor.html").as_uri())  # a short one, beside it
    assert page.locator(".opening").count() == 0


def test_it_can_be_printed(page, site, tmp_path):
    out, _ = site
    page.goto((out / "nn.layer_norm.html").as_uri())
    page.emulate_media(media="print")
    assert page.locator("nav.bar").is_hidden()
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
