"""The page of `draw --out` as a reader opens it: from disk, in test_draw_in_browser.py's browser.

Python for the browser comes from npm, whose package has no NumPy, and no other registry has it for
WebAssembly: so it is tested up to there. A folder that holds all files of the release that
page/ask.js names, in the variable MINIMIXER_PYODIDE, lets minimixer itself run in the browser.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_draw_in_browser import Visit, address, browser, pytestmark, visit  # noqa: F401

from minimixer.app import draw
from minimixer.app.draw import static

ASK = static.page_file("ask.js").decode()
PYODIDE = os.environ.get("MINIMIXER_PYODIDE", "")


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
def offered(browser, tmp_path):  # noqa: F811
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
    before = seen.drawn(1)
    waiting = seen.page.locator("button:not(#run)")
    assert waiting.count() > 25 and all(button.is_disabled() for button in waiting.all())
    assert seen.page.locator(".why:visible").count() == 2  # which say why
    assert seen.page.locator("#paper").evaluate("(paper) => paper.inert")
    for scheme in ("dark", "light"):
        seen.page.emulate_media(color_scheme=scheme)
        seen.page.wait_for_timeout(100)
    assert seen.drawn(1) == before and not seen.page.locator("[aria-pressed='true']").count()
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
def test_minimixer_answers_alike_in_the_browser(offered, visit):  # noqa: F811
    seen = offered(Path(PYODIDE))
    seen.page.click("#run")
    seen.page.wait_for_selector("body[data-answers]", timeout=120_000)
    for digit in ("7", "3"):
        assert seen.draw(digit).best == digit
        assert seen.shares() == visit().draw(digit).shares()
