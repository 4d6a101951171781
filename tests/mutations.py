"""Damaged and hostile files by the thousand: does each reader load or refuse, and nothing else?

    python tests/mutations.py --count 4000            all kinds, and a table
    python tests/mutations.py --kind npz --only 17    one mutant again, with its traceback

A kind is a whole file and the function that reads it. A mutant of it has bytes flipped, cut,
inserted, repeated or overwritten with extreme numbers; or it is written anew, checksums and all,
with other entries: a text of JSON in which something is missing, doubled, huge or nested 200,000
deep, an array with another header. Each must load, and if only what a checksum guards was changed
mean the same; or be refused with a ValueError or an OSError that names the file. 2 seconds of
processor time and 300 MB are the limits. A mutant is a pure function of (kind, seed, number). Each
kind runs in a process of its own.
"""

import argparse
import gzip
import io
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from files_help import members, npy, pack
from help import redraw, small_mixer
from minimixer.data import load_directory
from processes import ENVIRONMENT

from minimixer import AdamW, Mixer
from minimixer.pictures.folders import FORMATS, BadPicture, decode
from minimixer.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from minimixer.training.idx import read_idx, write_idx

sys.path.append(str(Path(__file__).parents[1] / "examples"))

MOST_SECONDS, MOST_MEGABYTES, HANG = 2.0, 300, 60
EXTREME = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 1 << 20, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, (1 << 64) - 1]  # fmt: skip
ODD = ["null", "true", "[]", "{}", '""', "0", "-1", "2", "1.5", "1e999", "-Infinity", "NaN",
       str(10**30), "9" * 5000, '"\\ud800"', '"\\u0000"', '"x"', "[[[]]]", "[null]", '{"a": 1}',
       "[" * 200_000, "[" * 90 + "]" * 90, '{"a":' * 200_000, "[1e9, 1]", "[4, 36]", '["a", 5]',
       "0.5", "[0.5, NaN, 0.5]", '"' + "x" * 100_000 + '"', "1" * 41]  # fmt: skip
NAMES = ["../a.npy", "/a", "a" * 60_000, "\x1b[31m.npy", "data.pkl", "a/"]  # of members


class Kind(NamedTuple):
    """make() -> the whole file; read(path) -> what it means; again(whole, rng) -> a mutant that is
    written anew, or None; `sealed`: every bit that matters is under a checksum."""

    make: Callable[[], bytes]
    read: Callable[[Path], Any]
    again: Callable[[bytes, random.Random], bytes | None] = lambda whole, rng: None
    sealed: bool = False


# ---- mutants ------------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed in one of many ways, one to three times."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = _mutate(bytearray(data), rng)
    return bytes(data)


def _mutate(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data) + 1) if rng.random() < 0.6 else rng.randrange(
        min(len(data), 128) + 1
    )  # fmt: skip
    length = rng.choice([1, 2, 4, 8, 16, 100])
    how = rng.randrange(9)
    if how <= 1:  # bits
        for _ in range(rng.choice([1, 1, 2, 8])):
            if data:
                data[rng.randrange(len(data)) if how else min(place, len(data) - 1)] ^= (
                    1 << rng.randrange(8)
                )
    elif how == 2:
        del data[place:]
    elif how == 3:
        del data[place : place + length]
    elif how == 4:
        data[place:place] = rng.randbytes(length)
    elif how == 5:  # repeated, perhaps many times
        data[place:place] = bytes(data[place : place + length]) * rng.choice([1, 2, 1000])
    elif how == 6:  # a number
        size = rng.choice([1, 2, 4, 8])
        number = rng.choice(EXTREME) % (1 << (8 * size))
        data[place : place + size] = number.to_bytes(size, rng.choice(["little", "big"]))
    elif how == 7:
        data[place : place + length] = bytes([rng.choice([0, 255, 32, 123, 91])]) * length
    else:  # a part from elsewhere
        other = rng.randrange(len(data) + 1)
        data[place : place + length] = data[other : other + length]
    return data


def mutate_json(text: str, rng: random.Random) -> str:
    """A JSON text with one to three entries replaced, dropped, doubled, added or renamed."""
    value = json.loads(text)
    odd: list[str] = []

    def strange() -> str:
        odd.append(rng.choice(ODD))
        return f"@{len(odd) - 1}@"  # what json can't write is put in afterwards

    for _ in range(rng.choice([1, 1, 2, 3])):
        nodes: list[Any] = [value]
        for node in nodes:  # grows as it goes
            inner = node.values() if isinstance(node, dict) else node
            nodes += [v for v in inner if isinstance(v, dict | list)]
        node = rng.choice([n for n in nodes if n] or nodes)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        how = rng.randrange(5)
        if not keys or how == 0:
            if isinstance(node, dict):
                node[strange()] = strange()
            else:
                node.append(strange())
        elif how == 1:
            del node[rng.choice(keys)]
        elif how == 2 and isinstance(node, dict):  # the same name twice
            key = rng.choice(keys)
            odd.append(f"1, {json.dumps(key)}: 2")
            node[key] = f"@{len(odd) - 1}@"
        elif how == 3:
            a, b = rng.choice(keys), rng.choice(keys)
            node[a], node[b] = node[b], node[a]
        else:
            node[rng.choice(keys)] = strange()
    text = json.dumps(value)
    for number, strange_text in enumerate(odd):
        key = strange_text if strange_text.startswith('"') else '"odd"'
        text = text.replace(f'"@{number}@":', f"{key}:").replace(f'"@{number}@"', strange_text)
    return text


def zip_again(whole: bytes, rng: random.Random, compression: int) -> bytes:
    """An archive written anew, its checksums right, with one member changed."""
    content = members(io.BytesIO(whole))
    name = rng.choice(list(content))
    if "meta.npy" in content and rng.random() < 0.7:
        name = "meta.npy"
        text = mutate_json(np.load(io.BytesIO(content[name])).tobytes().decode(), rng)
        if rng.random() < 0.1:
            text = mutate(text.encode(), rng).decode("latin1")
        content[name] = npy(np.frombuffer(text.encode(), np.uint8))
    else:
        content[name] = mutate_npy(content[name], rng)
    names = list(content)
    how = rng.randrange(8)
    if how == 0:
        rng.shuffle(names)
    elif how == 1:
        names.remove(rng.choice(names))
    elif how == 2:
        names.append(rng.choice(names))
    renamed = {name: name for name in names}
    if how == 3:
        renamed[name] = rng.choice(NAMES)
    file = io.BytesIO()
    method = rng.choice([compression] * 6 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                                             zipfile.ZIP_LZMA])  # fmt: skip
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name in names:
            archive.writestr(renamed[name], content[name])
    return file.getvalue()


def mutate_npy(data: bytes, rng: random.Random) -> bytes:
    """An array with another header, or another number in it."""
    end = data.index(b"\n") + 1
    header, numbers = data[10:end], data[end:]
    how = rng.randrange(6)
    if how == 0:
        dtype = rng.choice([b"<f2", b"<f8", b">f4", b"|u1", b"<i8", b"|O", b"<c8", b"<U9", b"<f5"])
        header = header.replace(b"<f4", dtype)
    elif how == 1:
        shape = rng.choice([b"()", b"(1,)", b"(-1,)", b"(%d,)" % rng.choice(EXTREME),
                            b"(0, %d)" % rng.choice(EXTREME), b"(" + b"1, " * 70 + b")",
                            b"(%s)" % (b"9" * 200)])  # fmt: skip
        header = header[: header.index(b"(")] + shape + header[header.index(b")") + 1 :]
    elif how == 2:
        header = header.replace(b"False", b"True")
    elif how == 3:
        header = mutate(header, rng)
    elif how == 4:
        numbers = mutate(numbers, rng)
    else:
        place = rng.randrange(max(1, len(numbers) // 4)) * 4
        number = struct.pack("<f", rng.choice([np.nan, np.inf, 1e38, 1e-45, -0.0]))
        numbers = numbers[:place] + number + numbers[place + 4 :]
    length = len(header) if rng.random() < 0.9 else rng.choice(EXTREME)
    return data[:8] + struct.pack("<H", length % (1 << 16)) + header + numbers


# ---- kinds --------------------------------------------------------------------------------------


def small_model() -> Mixer:
    sizes = {"image_size": 12, "in_channels": 3, "num_classes": 5, "num_blocks": 1}
    return redraw(small_mixer(**sizes, class_names=list("abcde")))


def written(write: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def load_finite(path: Path, load: Callable[[Path], Mixer]) -> Mixer:
    model = load(path)
    assert all(np.isfinite(p.data).all() for p in model.parameters())
    return model


def of_model(path: Path) -> Any:
    model = load_finite(path, Mixer.from_pretrained)
    return plain(model.state_dict()), model.config, model.class_names, model.mean.tolist()


def plain(arrays: Any) -> dict[str, tuple]:
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


def make_npz() -> bytes:
    return written(lambda path: small_model().export(path, "npz"))


def deflated(whole: bytes) -> bytes:
    file = io.BytesIO()
    pack(file, members(io.BytesIO(whole)), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def make_checkpoint() -> bytes:
    model = small_model()
    optimizer = AdamW(model.parameters())
    progress = {"step": 3, "settings": {"lr": 0.1}, "rows": [{"epoch": 1, "loss": 0.5}]}
    return written(lambda path: save_checkpoint(path, model, optimizer, progress))


def may_be_refused(call: Callable[..., Any], path: Path, *more: Any) -> None:
    try:
        call(path, *more)
    except ValueError as error:
        assert str(path) in str(error)


def read_all_of_a_checkpoint(path: Path) -> Any:
    meta, arrays = read_checkpoint(path)
    may_be_refused(load_finite, path, Mixer.load)
    other = small_model()
    may_be_refused(load_checkpoint, path, other, AdamW(other.parameters()))
    return meta, plain(arrays)


def safetensors_again(whole: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(whole[:8], "little")
    text = whole[8:end].decode()
    if rng.random() < 0.5:  # what minimixer itself writes down
        header = json.loads(text)
        own = header["__metadata__"]
        own["minimixer"] = mutate_json(own["minimixer"], rng)
        text = json.dumps(header)
    else:
        text = mutate_json(text, rng)
    length = len(text.encode()) if rng.random() < 0.9 else rng.choice(EXTREME)
    return length.to_bytes(8, "little") + text.encode() + whole[end:]


def read_data_set(path: Path) -> Any:
    """The four files of a data set, one of which is the mutant."""
    folder = path.parent / "set"
    if not folder.exists():
        folder.mkdir()
        write_idx(folder / "train-labels-idx1-ubyte", np.arange(6, dtype="uint8"))
        write_idx(folder / "t10k-images-idx3-ubyte", np.zeros((2, 5, 4), "uint8"))
        write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(2, "uint8"))
        (folder / "train-images-idx3-ubyte").symlink_to(path)
    array = read_idx(path)
    may_be_refused(load_directory, folder)
    return plain({"": array})


def make_cifar() -> bytes:
    rng = np.random.default_rng(2)
    labels_and_pixels = rng.integers(0, 10, (3, 1)), rng.integers(0, 256, (3, 3072))
    return np.hstack(labels_and_pixels).astype("uint8").tobytes()


def read_cifar(path: Path) -> Any:
    from comparison import data as compare_data

    images, labels = compare_data.read_cifar(path, (10,))
    return images.tobytes(), labels.tolist()


def make_picture(format: str) -> bytes:
    import PIL.Image

    rng = np.random.default_rng(3)
    pixels = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((4, 4, 1))).astype("uint8")
    file = io.BytesIO()
    exif, options = PIL.Image.Exif(), {}
    exif[0x0112] = 6
    if format == "progressive":
        format, options = "JPEG", {"progressive": True}
    elif format in ("JPEG", "PNG", "WEBP"):
        options = {"exif": exif.tobytes()}
    PIL.Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def read_picture(path: Path) -> Any:
    try:
        return decode(path).tobytes()
    except BadPicture as error:  # whose callers name the file
        raise ValueError(f"{path}: {error}") from None


def read_names(path: Path) -> Any:
    from minimixer.app import predict

    return predict.class_names(small_model(), str(path))


def read_real(path: Path) -> Any:
    import evaluate

    return evaluate.read_real(str(path), [f"{n}.png" for n in range(6)], 10)


SPEC = {"kind": "final", "family": "mixer", "size": "s", "start": None, "keep": False}


def read_cell(path: Path) -> Any:
    """Damaged cells are computed anew."""
    from comparison import cells as compare_cells

    compare_cells.cell_path = lambda folder, spec: path
    return compare_cells.kept(path.parent, SPEC, lambda: {"accuracy": 0.5})


def small_vit() -> Any:
    from baselines import ViT

    return ViT(8, 4, 1, 3, num_blocks=1, hidden_dim=8, mlp_dim=8, num_heads=2)


def read_starting_weights(path: Path) -> Any:
    from comparison import cells as compare_cells

    return plain(compare_cells.starting_weights(path.parent, {"start": path.name}, small_vit()))


def json_again(whole: bytes, rng: random.Random) -> bytes:
    return mutate_json(whole.decode(), rng).encode()


def idx_again(whole: bytes, rng: random.Random) -> bytes | None:
    """Packed anew: the checksum is right, what is in it is not."""
    return gzip.compress(mutate(gzip.decompress(whole), rng), compresslevel=rng.randrange(1, 10))


def again_in(compression: int) -> Callable[[bytes, random.Random], bytes]:
    return lambda whole, rng: zip_again(whole, rng, compression)


IMAGES = (np.arange(6 * 20) % 251).astype("uint8").reshape(6, 5, 4)
KINDS = {
    "npz": Kind(make_npz, of_model, again_in(zipfile.ZIP_STORED), sealed=True),
    "npz deflated": Kind(
        lambda: deflated(make_npz()), of_model, again_in(zipfile.ZIP_DEFLATED), sealed=True
    ),
    "checkpoint": Kind(
        make_checkpoint, read_all_of_a_checkpoint, again_in(zipfile.ZIP_STORED), sealed=True
    ),
    "starting weights": Kind(
        lambda: written(lambda path: save_checkpoint(path, small_vit())), read_starting_weights,
        again_in(zipfile.ZIP_STORED), sealed=True,
    ),
    "safetensors": Kind(
        lambda: written(lambda path: small_model().export(path, "timm")), of_model,
        safetensors_again,
    ),
    "idx": Kind(lambda: written(lambda path: write_idx(path, IMAGES)), read_data_set),
    "idx gzip": Kind(
        lambda: gzip.compress(written(lambda path: write_idx(path, IMAGES)), mtime=0),
        read_data_set, idx_again, sealed=True,
    ),
    "cifar": Kind(make_cifar, read_cifar),
    **{f"{format} picture": Kind(lambda format=format: make_picture(format), read_picture)
       for format in (*FORMATS, "progressive")},
    "class names": Kind(lambda: "Aal\nKatze\n\nHünd\nx\n".encode(), read_names),
    "ReaL": Kind(lambda: b"[[1], [1, 2], [0], [], [9], [0, 3]]", read_real, json_again),
    "cell": Kind(
        lambda: json.dumps({"spec": SPEC, "result": {"accuracy": 0.25}}).encode(), read_cell,
        json_again,
    ),
}  # fmt: skip


# ---- running ------------------------------------------------------------------------------------


def peak_megabytes() -> float:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Hang(BaseException):
    pass


def _ring(*_: object) -> None:
    raise Hang


def mutant(kind: Kind, whole: bytes, name: str, seed: int, number: int) -> tuple[bytes, bool]:
    """(the bytes, whether they were written anew)"""
    rng = random.Random(f"{name} {seed} {number}")
    if rng.random() < 0.5 and (data := kind.again(whole, rng)) is not None:
        return data, True
    return mutate(whole, rng), False


def run_kind(name: str, count: int, seed: int, only: int | None = None) -> dict[str, Any]:
    """What happened to the mutants of one kind. In a process of theirs: it rings, and its peak of
    memory is that of all kinds so far."""
    kind = KINDS[name]
    whole = kind.make()
    found: dict[str, Any] = {"loaded": 0, "refused": 0, "slowest": 0.0, "failures": []}
    signal.signal(signal.SIGALRM, _ring)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*how images were prepared")
        path = Path(folder) / "mutant"
        path.write_bytes(whole)
        expected = kind.read(path)
        for number in range(count) if only is None else [only]:
            data, anew = mutant(kind, whole, name, seed, number)
            path.write_bytes(data)
            wrong, before, began = None, peak_megabytes(), time.process_time()
            signal.alarm(HANG)
            try:
                meaning = kind.read(path)
                found["loaded"] += 1
                if kind.sealed and not anew and meaning != expected:
                    wrong = "it means something else"
            except BaseException as error:
                if not isinstance(error, (ValueError, OSError)):
                    wrong = f"{type(error).__name__}: {error!s:.200}"
                else:
                    found["refused"] += 1
                    if str(path) not in str(error):
                        wrong = f"the file is not named: {error!r:.200}"
                if only is not None:
                    traceback.print_exc()
            signal.alarm(0)
            seconds, peak = time.process_time() - began, peak_megabytes()
            found["slowest"] = max(found["slowest"], seconds)
            if seconds > MOST_SECONDS:
                wrong = f"it took {seconds:.1f} s"
            if peak > MOST_MEGABYTES and peak > before:
                wrong = f"it took {peak:.0f} MB"
            if wrong:
                found["failures"].append((number, wrong))
    return found | {"peak": peak_megabytes()}


def in_a_process(names: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """What happened to the mutants of each kind, one kind after another."""
    numbers = "--count", str(count), "--seed", str(seed)
    command = [sys.executable, __file__, *numbers, "--kind", *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=ENVIRONMENT, timeout=3600)
    lines = done.stdout.splitlines()  # among them what the readers say
    found = [json.loads(line) for line in lines if line.startswith(b'{"loaded"')]
    if len(found) < len(names):
        ended = f"the process ended with status {done.returncode}"
        raise RuntimeError(f"{names[len(found)]}: {ended}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, nargs="+", help="these alone, in this process")
    parser.add_argument("--only", type=int, help="this mutant alone, with its traceback")
    options = parser.parse_args()
    if options.kind:
        failed = 0
        for name in options.kind:
            found = run_kind(name, options.count, options.seed, options.only)
            print(json.dumps(found), flush=True)
            failed += len(found["failures"])
        return bool(failed)
    print(f"{'kind':18}{'mutants':>8}{'loaded':>8}{'refused':>9}{'failed':>8}{'slowest':>10}"
          f"{'peak':>9}   (seed {options.seed})")  # fmt: skip
    failed = 0
    for name in KINDS:
        (found,) = in_a_process([name], options.count, options.seed)
        failed += len(found["failures"])
        print(f"{name:18}{options.count:8}{found['loaded']:8}{found['refused']:9}"
              f"{len(found['failures']):8}{1000 * found['slowest']:7.0f} ms"
              f"{found['peak']:6.0f} MB", flush=True)  # fmt: skip
        for number, wrong in found["failures"][:5]:
            print(f"    --only {number}: {wrong}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
