"""Token mixing through a tile of columns, and how many bytes that saves."""

from picture import Picture

from minimixer import Mixer

BATCH, TILE, CHUNK, ITEMSIZE = 256, 128, 64, 2


def draw() -> dict[str, str]:
    sizes = Mixer.summary_of("mixer_b16").config
    side, patch = sizes["image_size"][0], sizes["patch_size"]
    tokens, hidden = (side // patch) ** 2, sizes["tokens_mlp_dim"]
    columns = BATCH * sizes["hidden_dim"]
    x, between = (rows * columns * ITEMSIZE / 1e6 for rows in (tokens, hidden))
    picture = Picture(
        506,
        f"A tile of {TILE} of the {columns} columns of x goes through {CHUNK} of {hidden} hidden "
        f"units at a time, and is added up to the same columns of y. Two kernels move {x:.0f} MB "
        f"of x and of y, and {between:.0f} MB of the hidden array twice, thrice in training; one "
        "kernel not at all, once in training.",
    )
    picture.text(220, 28, "what is there at a time", "bold")
    top, tall = 64, tokens / 2
    for left, name in ((16, "x"), (324, "y")):
        picture.rect(left, top, 100, tall, "box")
        picture.rect(left + 40, top, 20, tall, "kind5")
        picture.text(left + 50, top - 10, name)
    picture.text(66, top + tall + 22, f"{TILE} columns", "small")
    picture.text(374, top + tall + 22, "added up", "small")
    for left, name in ((148, "W1"), (268, "W2")):
        picture.rect(left, top, 24, tall, "box")
        picture.rect(left + 8, top, 8, tall, "kind5")
        picture.text(left + 12, top - 10, name)
    picture.rect(204, top + tall / 2 - 16, 32, 32, "kind5")
    picture.text(220, top + tall / 2 - 26, "hidden", "small")
    picture.text(220, top + tall + 22, f"{CHUNK} units of {TILE} columns", "small")
    for start, end in ((120, 144), (176, 200), (240, 264), (296, 320)):
        picture.arrow(start, top + tall / 2, end, top + tall / 2)

    picture.path("M20 212 H420", "thin")
    picture.text(220, 240, "what goes through memory, MB", "bold")
    scale = 400 / (2 * x + 3 * between)
    read, write = "kind1", "kind3"
    u, back = (between, write), (between, read)  # what goes into GELU, what comes out
    rows = (
        ("forward in training, two kernels", [(x, read), u, u, back, (x, write)]),
        ("forward in training, one", [(x, read), u, (x, write)]),
        ("inference, two kernels", [(x, read), u, back, (x, write)]),
        ("inference, one", [(x, read), (x, write)]),
    )
    for number, (name, parts) in enumerate(rows):
        top, left = 258 + 54 * number, 20.0
        picture.text(20, top + 14, f"{name}: {sum(mb for mb, _ in parts):.0f}", "small left")
        for mb, kind in parts:
            picture.rect(left, top + 20, mb * scale, 22, kind)
            picture.text(left + mb * scale / 2, top + 36, f"{mb:.0f}", "in")
            left += mb * scale
    for left, kind, name in ((120, read, "read"), (240, write, "written")):
        picture.rect(left, 478, 16, 16, kind)
        picture.text(left + 24, 491, name, "small left")
    return {"hidden.svg": picture.svg()}
