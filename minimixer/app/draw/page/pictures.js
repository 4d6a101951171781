// Arrays as pictures: orange above 0, blue below, clear at 0, and a caption with name and shape.
// All numbers come from look.py; a picture only gives them colours.

"use strict";

const ORANGE = [221, 119, 34], BLUE = [52, 120, 200];
const reading = document.getElementById("reading");

// { shape, unit, full, data } of look.pack -> the same with `values`, numbers in reading order.
function unpack(packed) {
  const text = atob(packed.data), values = new Float32Array(text.length / 2);
  for (let i = 0; i < values.length; i++) {
    const whole = text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8);
    values[i] = ((whole << 16) >> 16) * packed.unit;
  }
  return { ...packed, values };
}

const element = (name, className = "", text = "") =>
  Object.assign(document.createElement(name), { className, textContent: text });
const number = (x) => (x === 0 ? "0" : Math.abs(x) < 0.001 || Math.abs(x) >= 1e5
  ? x.toExponential(1) : String(+x.toPrecision(3)));

// A figure that show(array) fills. `what` it is called, and `name` of its numbers when read.
function picture(what, name, kind = "table") {
  const figure = element("figure", kind), caption = element("figcaption");
  const canvas = element("canvas"), size = element("small"), frame = element("div", "frame");
  canvas.setAttribute("role", "img");
  caption.append(element("b", "", what), " ", size);
  frame.append(canvas);
  figure.append(caption, frame);
  let array;
  const show = (next, ink) => {
    array = next;
    const columns = array.shape.at(-1), rows = array.values.length / columns;
    const about = `(${array.shape.join(", ")})` + (ink ? "" : ` ±${number(array.full)}`);
    size.textContent = about;
    canvas.setAttribute("aria-label", `${what}, ${about.replace("±", "full colour at ")}`);
    figure.style.setProperty("--columns", columns);
    figure.style.setProperty("--rows", rows);
    if (canvas.width !== columns || canvas.height !== rows) {
      canvas.width = columns;
      canvas.height = rows;
    }
    colour(canvas, array, ink);
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!array) return;
    const box = canvas.getBoundingClientRect(), columns = canvas.width;
    const at = (place, length, n) => Math.min(n - 1, Math.max(0, Math.floor((place / length) * n)));
    const row = at(event.clientY - box.top, box.height, canvas.height);
    const column = at(event.clientX - box.left, box.width, columns);
    const places = array.shape.length === 1 ? column : `${row}, ${column}`;
    reading.textContent = `${name}[${places}] = ${number(array.values[row * columns + column])}`;
    reading.hidden = false;
  });
  canvas.addEventListener("pointerleave", () => (reading.hidden = true));
  return { figure, frame, canvas, show };
}

function colour(canvas, { values, full }, ink) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const black = ink && getComputedStyle(canvas).color.match(/\d+/g).slice(0, 3).map(Number);
  for (let i = 0; i < values.length; i++) {
    const [r, g, b] = black || (values[i] > 0 ? ORANGE : BLUE);
    const strength = Math.abs(values[i]) / (ink ? 255 : full);
    pixels.data.set([r, g, b, 255 * Math.min(1, strength)], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
}

// Bars for probabilities, small, beside a title: "read out here, it says 7 (93%)".
function readout(classes) {
  const whole = element("div", "readout"), words = element("span"), bars = element("span", "bars");
  bars.setAttribute("aria-hidden", "true");
  bars.append(...classes.map((label) => {
    const bar = element("i");
    bar.title = label;
    return bar;
  }));
  whole.append(words, bars);
  const show = (probabilities) => {
    const best = probabilities.indexOf(Math.max(...probabilities));
    words.replaceChildren("read out here: ", element("b", "", classes[best]),
      ` (${percent(probabilities[best])})`);
    [...bars.children].forEach((bar, k) => {
      bar.style.setProperty("--share", probabilities[k]);
      bar.className = k === best ? "best" : "";
    });
  };
  return { whole, show };
}

const percent = (p) => `${(100 * p).toFixed(p > 0.9995 || p < 0.0995 ? 1 : 0)}%`;
