"""Drawings of digits as people might make them, from a seed: fonts and strokes of a pen, of any
size and place, on light or dark paper, under uneven light, with specks, frames and JPEG's traces.

    python tests/make_digits.py                        tests/digits/, the twenty that the tests read
    python tests/make_digits.py --count 200 --seed 3 --most 900 --out DIR    200 others

Prints how many the shipped model reads, and which not.

Fonts are matplotlib's DejaVu, and whatever further .ttf or .otf files --fonts names.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minimixer import Mixer
from minimixer.pictures.digits import read_digit
from minimixer.pictures.folders import BadPicture

# One stroke after another, points in a unit square, y downwards; curves go smoothly through them.
CURVES = {
    0: [[(0.5, 0.0), (0.12, 0.25), (0.1, 0.7), (0.5, 1.0), (0.88, 0.7), (0.88, 0.25), (0.5, 0.0)]],
    2: [[(0.1, 0.25), (0.35, 0.0), (0.75, 0.05), (0.85, 0.3), (0.55, 0.65), (0.1, 1.0)],
        [(0.1, 1.0), (0.9, 0.98)]],
    3: [[(0.12, 0.12), (0.5, 0.0), (0.82, 0.2), (0.45, 0.47)],
        [(0.45, 0.47), (0.88, 0.68), (0.6, 0.98), (0.1, 0.9)]],
    5: [[(0.2, 0.0), (0.16, 0.45)], [(0.16, 0.45), (0.6, 0.4), (0.88, 0.7), (0.55, 1.0),
        (0.1, 0.92)], [(0.2, 0.0), (0.82, 0.0)]],
    6: [[(0.7, 0.0), (0.3, 0.3), (0.12, 0.7), (0.45, 1.0), (0.82, 0.78), (0.55, 0.52),
         (0.16, 0.72)]],
    8: [[(0.5, 0.48), (0.18, 0.25), (0.5, 0.0), (0.82, 0.25), (0.5, 0.48), (0.12, 0.75),
         (0.5, 1.0), (0.88, 0.75), (0.5, 0.48)]],
    9: [[(0.84, 0.22), (0.5, 0.0), (0.16, 0.25), (0.45, 0.5), (0.84, 0.22)],
        [(0.84, 0.22), (0.82, 0.6), (0.7, 1.0)]],
}  # fmt: skip
LINES = {
    1: [[[(0.5, 0.0), (0.5, 1.0)]], [[(0.3, 0.2), (0.55, 0.0), (0.52, 1.0)]]],
    4: [[[(0.55, 0.0), (0.08, 0.65), (0.95, 0.65)], [(0.7, 0.35), (0.68, 1.0)]],
        [[(0.2, 0.0), (0.15, 0.5), (0.85, 0.48)], [(0.8, 0.0), (0.74, 1.0)]]],
    7: [[[(0.1, 0.02), (0.88, 0.0), (0.4, 1.0)]],
        [[(0.1, 0.02), (0.88, 0.0), (0.4, 1.0)], [(0.35, 0.5), (0.8, 0.48)]]],
}  # fmt: skip


def smooth(points: np.ndarray) -> np.ndarray:
    """A Catmull-Rom curve through the points."""
    p = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    if np.allclose(points[0], points[-1]):
        p[0], p[-1] = points[-2], points[1]
    t = np.linspace(0, 1, 16)[:, None]
    parts = [
        ((2 * b) + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
         + (3 * b - a - 3 * c + d) * t**3) / 2
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]  # fmt: skip
    return np.concatenate(parts)


def draw_strokes(digit: int, height: int, random: np.random.Generator) -> Image.Image:
    """The digit as a pen draws it: 255 where there is ink."""
    variants = LINES.get(digit) or [CURVES[digit]]
    strokes = [np.array(stroke) for stroke in variants[random.integers(len(variants))]]
    width, big = random.uniform(0.5, 0.75), 4  # of the box; drawn four times larger
    slant, turn = random.uniform(-0.1, 0.25), random.uniform(-0.1, 0.1)
    shake = random.normal(0, 0.02, (4, 2))
    pen = max(1.0, height * random.choice([0.02, 0.05, 0.08, 0.12])) * big
    margin = int(pen + 0.2 * height * big)
    size = (int(1.4 * height * big + 2 * margin), int(height * big + 2 * margin))
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        moved = stroke + shake[(stroke[:, 0] * 2).astype(int) + 2 * (stroke[:, 1] > 0.5) - 1]
        points = smooth(moved) if digit in CURVES else moved
        x = points[:, 0] * width + (1 - points[:, 1]) * slant * 0.8 + 0.3
        y = points[:, 1] + turn * (points[:, 0] - 0.5) * width
        line = [
            (margin + u * height * big, margin + v * height * big)
            for u, v in zip(x, y, strict=True)
        ]
        draw.line(line, fill=255, width=round(pen), joint="curve")
        for u, v in line:
            draw.ellipse((u - pen / 2, v - pen / 2, u + pen / 2, v + pen / 2), fill=255)
    image = image.crop(image.getbbox())
    return image.resize((max(1, image.width // big), max(1, image.height // big)), Image.BOX)


def draw_font(digit: int, height: int, font: str, random: np.random.Generator) -> Image.Image:
    letters = ImageFont.truetype(font, max(8, round(height * 1.4)))
    box = letters.getbbox(str(digit))
    image = Image.new("L", (box[2] + 8, box[3] + 8))
    ImageDraw.Draw(image).text((4, 4), str(digit), fill=255, font=letters)
    image = image.rotate(random.uniform(-8, 8), Image.BICUBIC, expand=True)
    return image.crop(image.getbbox())


def draw_picture(digit: int, fonts: list[str], random: np.random.Generator, most: int = 900):
    """A picture (RGB, RGBA, L, P, 1 or 16 bits) and the ending of the file that would hold it."""
    width, height = (int(np.exp(random.uniform(np.log(40), np.log(most)))) for _ in range(2))
    width, height = max(width, height // 2), max(height, width // 2)
    tall = max(16, int(min(height, 1.2 * width) * random.uniform(0.3, 0.85)))
    if random.random() < 0.5:
        ink = draw_strokes(digit, tall, random)
    else:
        ink = draw_font(digit, tall, str(random.choice(fonts)), random)
    width, height = max(width, ink.width + 4), max(height, ink.height + 4)
    mask = Image.new("L", (width, height))
    mask.paste(ink, (int(random.integers(0, width - ink.width + 1)),
                     int(random.integers(0, height - ink.height + 1))))  # fmt: skip
    amount = np.asarray(mask, dtype=np.float64)[..., None] / 255

    while True:  # two colours that a reader tells apart
        paper, colour = random.integers(0, 256, (2, 3)).astype(float)
        if random.random() < 0.5:
            paper, colour = random.choice([235.0, 250, 20]), random.choice([10.0, 60, 245])
        if abs(np.mean(paper) - np.mean(colour)) > 80:
            break
    y, x = np.mgrid[0:height, 0:width]
    light = np.ones((height, width, 1))
    if random.random() < 0.4:  # a lamp at one side
        a, b = random.uniform(-0.2, 0.2, 2)
        light += (a * (x / width - 0.5) + b * (y / height - 0.5))[..., None]
    pixels = (paper * (1 - amount) + colour * amount) * light
    pixels = pixels + np.zeros(3)
    if random.random() < 0.5:
        pixels += random.normal(0, random.uniform(1, 10), pixels.shape)
    if random.random() < 0.3:  # specks of dust, none larger than a hundredth of the picture
        for _ in range(random.integers(1, 8)):
            side = max(1, int(min(width, height) * random.uniform(0.003, 0.012)))
            top, left = random.integers(0, height - side), random.integers(0, width - side)
            pixels[top : top + side, left : left + side] = colour
    if random.random() < 0.1 and min(width, height) > ink.height * 1.3:
        edge = max(1, min(width, height) // 60)
        for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            pixels[side] = colour
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    kind = random.choice(["png", "png", "jpg", "grey", "palette", "alpha", "16"])
    if kind == "jpg":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(random.integers(30, 95)))
        return Image.open(file), "jpg"
    if kind == "alpha" and np.mean(paper) > np.mean(colour):  # else white would be on white
        ink = Image.new("RGBA", image.size, tuple(int(c) for c in np.broadcast_to(colour, 3)))
        ink.putalpha(mask)
        return ink, "png"
    if kind == "grey":
        image = image.convert("L")
    if kind == "palette":
        image = image.quantize(16)
    if kind == "16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image, "png"


def find_fonts(more: list[str]) -> list[str]:
    import matplotlib

    own = Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuS*.ttf")
    return more or sorted(str(path) for path in own if "Display" not in path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "digits"))
    parser.add_argument("--most", type=int, default=160, help="pixels of a side, or a few more")
    parser.add_argument("--fonts", nargs="*", default=[])
    options = parser.parse_args()
    out, fonts, wrong = Path(options.out), find_fonts(options.fonts), []
    out.mkdir(exist_ok=True)
    model = Mixer.load("digits")
    for number in range(options.count):
        random = np.random.default_rng([options.seed, number])
        image, ending = draw_picture(number % 10, fonts, random, options.most)
        path = out / f"{number % 10}_{number:03}.{ending}"
        image.save(path)
        try:
            found = int(model.predict(read_digit(path)[None, ..., None])[0])
        except BadPicture as error:
            found = str(error)
        if found != number % 10:
            wrong.append(f"{path}: {found}")
    print("\n".join([*wrong, f"{options.count - len(wrong)} of {options.count} right"]))
