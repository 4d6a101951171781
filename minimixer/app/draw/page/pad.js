// The drawing pad: strokes of a pen, kept as points, so that one can be undone and all be drawn
// again in another colour. ink() is what the model is sent: bytes, 0 for paper and 255 for ink.

"use strict";

const pad = document.getElementById("pad");
const PEN = 24 / 280; // of the pad's side: about as wide as MNIST's strokes; example.py has it too
const SENT = 140; // pixels of the drawing that is sent, each way
let strokes = []; // of points [x, y], from 0 to 1
let growing; // the stroke that is being drawn: undone meanwhile, it grows unseen
let changed = () => {}; // draw.js says what follows

function trace(canvas, colour) {
  const pen = canvas.getContext("2d", { willReadFrequently: true }), side = canvas.width;
  pen.lineWidth = PEN * side;
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = colour;
  for (const points of strokes) {
    const [first, ...others] = points.map(([x, y]) => [x * side, y * side]);
    pen.beginPath();
    pen.moveTo(...first);
    let before = first;
    for (const point of others) { // curves from the middle of one line to that of the next
      pen.quadraticCurveTo(...before, (before[0] + point[0]) / 2, (before[1] + point[1]) / 2);
      before = point;
    }
    pen.lineTo(before[0] + 0.01, before[1]);
    pen.stroke();
  }
}

function showPad() {
  pad.getContext("2d").clearRect(0, 0, pad.width, pad.height);
  trace(pad, getComputedStyle(pad).color);
  if (keys.shown) {
    const pen = pad.getContext("2d"), [x, y] = keys.at.map((v) => v * pad.width);
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, (PEN * pad.width) / 2, 0, 7);
    pen.stroke();
  }
  document.getElementById("hint").hidden = strokes.length > 0;
}

function ink() {
  const small = document.createElement("canvas");
  small.width = small.height = SENT;
  const context = small.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, SENT, SENT);
  trace(small, "#fff");
  const pixels = context.getImageData(0, 0, SENT, SENT).data;
  let bytes = "";
  for (let i = 0; i < pixels.length; i += 4) bytes += String.fromCharCode(pixels[i]);
  return { side: SENT, ink: btoa(bytes) };
}

function draw(points) {
  strokes = points;
  showPad();
  changed();
}

// ---- mouse, pen and finger ---------------------------------------------------------------------

function place(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button || !event.isPrimary) return; // one finger draws
  pad.setPointerCapture(event.pointerId);
  keys.shown = keys.down = false;
  draw([...strokes, (growing = [place(event)])]);
});
pad.addEventListener("pointermove", (event) => {
  if (!pad.hasPointerCapture(event.pointerId)) return;
  growing.push(...(event.getCoalescedEvents?.() ?? []).map(place), place(event));
  showPad();
  changed();
});

// ---- keys --------------------------------------------------------------------------------------

const keys = { at: [0.5, 0.25], down: false, shown: false };
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

pad.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  keys.shown = true;
  if (move) {
    keys.at = keys.at.map((v, i) => Math.min(0.95, Math.max(0.05, v + move[i] / 28)));
    if (keys.down) growing.push([...keys.at]);
  } else if ((keys.down = !keys.down)) strokes = [...strokes, (growing = [[...keys.at]])];
  showPad();
  if (keys.down) changed();
});
pad.addEventListener("blur", () => {
  keys.shown = keys.down = false;
  showPad();
});

document.getElementById("clear").addEventListener("click", () => draw([]));
document.getElementById("undo").addEventListener("click", () => draw(strokes.slice(0, -1)));
for (const which of ["(prefers-color-scheme: dark)", "print"])
  matchMedia(which).addEventListener("change", showPad);
