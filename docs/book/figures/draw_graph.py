"""A small graph with the numbers on its arrows: forward, then back.

h = w x is used twice, by u = h - 4 and by v = h u. The numbers on the way back are those that the
engine's walk hands from node to node: every node's backward is listened to while it runs.
"""

from typing import Any

from picture import Picture, minus

from minimixer import Tensor

PLACES = {"w": (100, 54), "x": (340, 54), "h": (220, 132), "u": (110, 210), "v": (220, 288)}


def run() -> tuple[dict[str, float], list[tuple[str, float, list[float]]], dict[str, float]]:
    """(values, [(name, what arrived, what it sent to each input)] in the order of firing, grads)"""
    w, x = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
    h = w * x
    u = h - 4.0
    v = h * u
    fired: list[tuple[str, float, list[float]]] = []
    for name, result in {"h": h, "u": u, "v": v}.items():
        vars(result.node)["backward"] = _listening(name, result.node.backward, fired)
    v.backward()
    values = {"w": w, "x": x, "h": h, "u": u, "v": v}
    return (
        {name: t.item() for name, t in values.items()},
        fired,
        {"w": float(w.grad), "x": float(x.grad)},
    )


def _listening(name: str, backward: Any, fired: list) -> Any:
    def listen(dy):
        sent = backward(dy)
        fired.append((name, float(dy), [float(g) for g in sent if g is not None]))
        return sent

    return listen


def draw() -> dict[str, str]:
    values, fired, grads = run()
    arrived = {name: dy for name, dy, _ in fired}
    sent = {name: gradients for name, _, gradients in fired}
    forward = Picture(
        324,
        "Forward: w is 2 and x is 3; h = w x is 6; u = h - 4 is 2; v = h u is 12. "
        "Arrows lead from each value to those that are made of it; h has two.",
    )
    forward.text(220, 24, "forward: values", "bold")
    _arrows(forward, "forth", back=False)
    formulas = {
        "w": "w", "x": "x", "h": "h = w x", "u": "u = h \N{MINUS SIGN} 4", "v": "L = h u",
    }  # fmt: skip
    for name, formula in formulas.items():
        _box(forward, name, formula, minus(values[name]), "forth")

    back = Picture(
        324,
        f"Back: L sends {sent['v'][0]:g} to h directly and {sent['v'][1]:g} to u, which sends "
        f"{sent['u'][0]:g} on to h. h adds both, {arrived['h']:g}, and only then sends "
        f"{grads['w']:g} to w and {grads['x']:g} to x.",
    )
    back.text(220, 24, "back: gradients of L", "bold")
    _arrows(back, "back", back=True)
    order = {name: place for place, (name, _, _) in enumerate(fired, 1)}
    for name in formulas:
        gradient = grads[name] if name in grads else arrived[name]
        fires = f"fires {('first', 'second', 'third')[order[name] - 1]}" if name in order else ""
        formula = "dL/dL" if name == "v" else f"dL/d{name}"
        value = minus(gradient)
        if name == "h":
            value = f"{sent['v'][0]:g} + {sent['u'][0]:g} = {value}"
        _box(back, name, formula, value, "back", fires)
    back.text(296, 218, f"{sent['v'][0]:g}", "bold back left")
    back.text(146, 174, f"{sent['u'][0]:g}", "bold back right")
    back.text(146, 258, f"{sent['v'][1]:g}", "bold back right")
    back.text(148, 106, f"{sent['h'][0]:g}", "bold back right")
    back.text(292, 106, f"{sent['h'][1]:g}", "bold back left")
    forward.text(296, 218, minus(values["h"]), "bold forth left")
    forward.text(146, 174, minus(values["h"]), "bold forth right")
    forward.text(146, 258, minus(values["u"]), "bold forth right")
    forward.text(148, 106, minus(values["w"]), "bold forth right")
    forward.text(292, 106, minus(values["x"]), "bold forth left")
    return {"graph_forward.svg": forward.svg(), "graph_back.svg": back.svg()}


def _arrows(picture: Picture, kind: str, back: bool) -> None:
    """From each value to what is made of it, or the other way."""
    lines = ["112 72 202 114", "328 72 238 114", "204 150 134 192", "134 228 204 270"]
    for line in lines:
        x1, y1, x2, y2 = map(float, line.split())
        ends = (x2, y2, x1, y1) if back else (x1, y1, x2, y2)
        picture.arrow(*ends, kind)
    bend = ("M244 150 C 306 184 306 236 244 270", "M244 270 C 306 236 306 184 244 150")[back]
    picture.path(bend, kind, tip=True)


def _box(picture: Picture, name: str, formula: str, value: str, kind: str, more: str = "") -> None:
    x, y = PLACES[name]
    picture.rect(x - 68, y - 18, 136, 36, "box", 7)
    picture.text(x - 60, y + 5, formula, "left")
    picture.text(x + 60, y + 5, value, f"bold {kind} right")
    if more:
        picture.text(x + 78, y + 5, more, "small left")
