"""Draw a digit in your browser, and watch every layer of a Mixer as you draw.

    python -m minimixer draw                              the model that comes with us
    python -m minimixer draw --weights runs/mnist/checkpoint.npz
    python -m minimixer draw --weights runs/epochs        several: a slider goes through training
    python -m minimixer draw --out site/draw              the page as files, without a server

The page shows patches, tokens, the hidden units of both MLPs, what each block adds, what the head
would say if it came right after it, and the gradient of any class with respect to the pixels. A
patch can be hidden and the patches shuffled. The server is for this machine alone; Ctrl-C ends it.

A directory stands for the checkpoints in it and in its directories, by their steps. One run keeps
one checkpoint. Runs of different length, each a prefix of the next, make a history of training:

    for n in 1 2 3 4 5 6; do python examples/train_mnist.py --schedule constant --warmup 0 \\
        --epochs $n --out runs/epochs/$n; done

With --out nothing is served: the page can be opened from disk or put on any web server, and runs
minimixer in the browser once the reader asks for it. Python for the browser comes from a public
address then.
"""

import threading
import webbrowser
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from ...model.mixer import Mixer
from ...training.checkpoint import BUILT_IN, find_weights, read_checkpoint
from ...training.names import distinct, printable
from ..options import Parser
from .look import ready


def main(words: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = Parser(description=__doc__, prog=prog)
    parser.add_argument("--weights", nargs="+", default=["digits"], metavar="FILE",
                        help="checkpoints, or directories of them (default: minimixer's own "
                        "digits)")  # fmt: skip
    parser.add_argument("--port", type=_port, default=0, help="of 127.0.0.1 (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="only say the address")
    parser.add_argument("--out", metavar="DIR", help="write the page there as files, and end")
    options = parser.parse_args(words)
    models = load_models(options.weights)
    if options.out is not None:
        from .static import write_page

        size = write_page(Path(options.out), models)
        print(f"wrote {printable(options.out)}: {size / 1e6:.1f} MB; open index.html in it")
        return 0
    serve(models, options.port, not options.no_browser)
    return 0


def serve(models: dict[str, Mixer], port: int, open_browser: bool) -> None:
    """Until Ctrl-C."""
    from .server import Server

    try:
        server = Server(models, port)
    except OSError as error:
        raise ValueError(
            f"port {port} can't be had ({error.strerror}); --port 0 takes a free one"
        ) from None
    with server:
        print(f"draw: {server.address} (Ctrl-C ends it)", flush=True)
        if open_browser:  # some browsers return when they are closed
            threading.Thread(target=webbrowser.open, args=[server.address], daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\ndraw: ended")


def load_models(given: Sequence[str]) -> dict[str, Mixer]:
    """The models in files and directories, by what a slider calls them; those of a directory from
    the earliest step on. ValueError or OSError if one can't be read, or not be shown."""
    paths = [path for word in given for path in _files(word)]
    names = distinct([_name(path, len(paths)) for path in paths])
    return ready({name: Mixer.load(path) for name, path in zip(names, paths, strict=True)})


def _files(word: str) -> list[str]:
    if word in BUILT_IN or not word or not Path(word).is_dir():  # Path("") is where we are
        return [word]
    found = [str(path) for pattern in ("*.npz", "*/*.npz") for path in Path(word).glob(pattern)]
    if not found:
        raise ValueError(f"{word} has no checkpoint (.npz), nor has a directory in it")
    return sorted(found, key=lambda path: (_step(path), path))


def _step(path: str) -> int:
    """How many steps its optimizer had made; 0 if it holds none."""
    return (read_checkpoint(find_weights(path))[0]["optimizer"] or {"step": 0})["step"]


def _name(path: str, of: int) -> str:
    step = _step(path) if of > 1 else 0
    return f"step {step:,}" if step else path


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) < 6 else -1
    if not 0 <= number < 1 << 16:
        raise ArgumentTypeError(f"must be a whole number from 0 to 65535, not {text}")
    return number
