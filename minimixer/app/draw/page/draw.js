// The page: asks what the model makes of the drawing, and shows each layer of the answer.

"use strict";

const $ = (id) => document.getElementById(id);
let source, about; // who answers; which models there are
let shown, asked; // the last answer, and what it is an answer to: what is to be asked may differ
let target = null, order = null, hidden = new Set(); // hidden: patches as they were drawn

// ---- asking: one question at a time, and after it the newest ----------------------------------

let asking = false, again = false;

async function ask() {
  if (!source) return;
  if (asking) return void (again = true);
  asking = true;
  do {
    again = false;
    const question = { target, order, hidden: [...hidden], model: +$("checkpoint").value };
    try {
      show(await source.answer({ ...ink(), ...question }), question);
      $("state").textContent = `answered in ${shown.milliseconds.toFixed(0)} ms`;
      document.body.dataset.answers = +(document.body.dataset.answers ?? 0) + 1;
    } catch (error) {
      $("state").textContent = String(error.message).split("\n").filter(Boolean).at(-1);
    }
  } while (again);
  asking = false;
}

async function start(from) {
  const found = await from;
  if (!about) lay(found.about);
  source = found;
  wait(false);
  $("offer").hidden = true;
  await ask();
}

// Until somebody answers: nothing that would have to be asked can be used, and the page says why.
function wait(waits) {
  document.body.classList.toggle("waits", waits);
  $("paper").inert = waits;
  for (const button of document.querySelectorAll("#clear, #undo, #shuffle, .class, .grid button"))
    button.disabled = waits;
}

// ---- what stays ---------------------------------------------------------------------------------

let pictures, readouts, classes, patches;

function lay(found) {
  about = found;
  $("pictures").hidden = false;
  draw(about.example);
  const several = about.models.length > 1;
  $("training").hidden = !several;
  $("checkpoint").max = about.models.length - 1;
  $("checkpoint").value = about.models.length - 1;
  classes = about.classes.map((label, k) => {
    const row = element("button", "class"), bar = element("i"), share = element("span");
    row.append(element("b", "", label), bar, share);
    row.addEventListener("click", () => {
      target = target === k ? null : k;
      ask();
    });
    return { row, bar, share };
  });
  $("classes").replaceChildren(...classes.map((c) => c.row));
  const image = picture("picture", "image", "pixels");
  const gradient = picture("gradient", "gradient", "pixels");
  pictures = {
    image, gradient, patches: picture("patches", "patches"), tokens: picture("tokens", "tokens"),
    norm: picture("LayerNorm", "norm"), pooled: picture("mean over tokens", "pooled", "strip"),
    logits: picture("scores", "logits", "scores"),
  };
  patches = patchButtons(image.frame);
  readouts = [readout(about.classes)];
  $("first").replaceChildren(image.figure, gradient.figure, arrow("cut"), pictures.patches.figure,
    arrow("stem"), pictures.tokens.figure);
  $("stem").querySelector(".readout")?.remove();
  $("stem").append(readouts[0].whole);
  $("last").replaceChildren(pictures.norm.figure, arrow("mean"), pictures.pooled.figure,
    arrow("head"), pictures.logits.figure);
  $("blocks").replaceChildren();
}

const PARTS = [
  ["LayerNorm", "norm1"], ["hidden units", "token_mixing.hidden"], ["it adds", "token_mixing"],
  ["LayerNorm", "norm2"], ["hidden units", "channel_mixing.hidden"], ["it adds", "channel_mixing"],
];

// Of as many blocks as the model has: checkpoints may differ in it.
function layBlocks(count) {
  if ($("blocks").childElementCount === count) return;
  readouts.length = 1;
  $("blocks").replaceChildren(...Array.from({ length: count }, (_, i) => {
    const block = element("article", "layer");
    const title = element("header"), flow = element("div", "flow");
    const sides = ["token mixing", "channel mixing", "with both skips"].map((name) => {
      const side = element("div", "mixing");
      side.append(element("h3", "", name));
      return side;
    });
    PARTS.forEach(([what, part], n) => {
      const found = (pictures[`blocks.${i}.${part}`] = picture(what, `blocks.${i}.${part}`));
      sides[n < 3 ? 0 : 1].append(found.figure);
    });
    const output = (pictures[`blocks.${i}`] = picture("output", `blocks.${i}`));
    sides[2].append(output.figure);
    const after = readout(about.classes);
    readouts.push(after);
    title.append(element("h2", "", `Block ${i + 1}`), after.whole);
    flow.append(...sides);
    block.append(title, flow);
    return block;
  }));
}

function arrow(word) {
  const whole = element("span", "arrow", word);
  whole.setAttribute("aria-hidden", "true");
  return whole;
}

// ---- patches: a button over each; arrow keys go from one to the next --------------------------

function patchButtons(frame) {
  const columns = about.width / about.patch, rows = about.height / about.patch;
  const grid = element("div", "grid");
  grid.style.setProperty("--across", columns);
  const buttons = Array.from({ length: rows * columns }, (_, i) => {
    const button = element("button");
    button.tabIndex = i ? -1 : 0;
    button.addEventListener("click", () => {
      const piece = asked.order ? asked.order[i] : i; // the one that is seen there
      if (!hidden.delete(piece)) hidden.add(piece);
      ask();
    });
    return button;
  });
  grid.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const from = buttons.indexOf(document.activeElement), to = buttons[from + steps[event.key]];
    if (!to) return;
    event.preventDefault();
    buttons[from].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
  grid.append(...buttons);
  frame.append(grid);
  return buttons;
}

function shuffled(count) {
  const places = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [places[i], places[j]] = [places[j], places[i]];
  }
  return places;
}

$("shuffle").addEventListener("click", () => (order = shuffled(patches.length), ask()));
$("back").addEventListener("click", () => (order = null, ask()));
$("show").addEventListener("click", () => (hidden.clear(), ask()));

// ---- an answer ----------------------------------------------------------------------------------

function show(answer, question) {
  [shown, asked] = [answer, question];
  layBlocks(answer.blocks);
  const seen = Object.fromEntries(Object.entries(answer.seen).map(
    ([name, packed]) => [name, packed?.data === undefined ? packed : unpack(packed)]));
  measure(seen);
  for (const [name, { figure, show: fill }] of Object.entries(pictures)) {
    figure.hidden = !seen[name];
    if (seen[name]) fill(seen[name], name === "image");
  }
  const probabilities = [...seen.probabilities.values], count = probabilities.length;
  const best = probabilities.indexOf(Math.max(...probabilities));
  readouts.forEach((after, i) =>
    after.show([...seen.readout.values.subarray(i * count, (i + 1) * count)]));
  $("best").textContent = about.classes[best];
  document.body.dataset.best = best;
  classes.forEach(({ row, bar, share }, k) => {
    bar.style.setProperty("--share", probabilities[k]);
    share.textContent = percent(probabilities[k]);
    row.classList.toggle("best", k === best);
    row.setAttribute("aria-pressed", k === asked.target);
    row.setAttribute("aria-label", `class ${about.classes[k]}, ${percent(probabilities[k])}`);
  });
  pictures.gradient.figure.querySelector("b").textContent =
    `gradient of ${about.classes[seen.target]}'s score`;
  patches.forEach((button, i) => {
    const isHidden = asked.hidden.includes(asked.order ? asked.order[i] : i);
    button.setAttribute("aria-pressed", isHidden);
    button.setAttribute("aria-label", `patch ${i}${isHidden ? ", hidden" : ""}`);
  });
  $("back").disabled = !asked.order;
  $("show").disabled = !asked.hidden.length;
  const model = asked.model;
  $("trained").textContent = about.models[model];
  $("about").textContent = `An MLP-Mixer of ${about.parameters[model].toLocaleString("en")} ` +
    `parameters, ${about.models[model]}: ${seen.tokens.shape[0]} tokens, ` +
    `${seen.tokens.shape[1]} channels, ${answer.blocks} block${answer.blocks > 1 ? "s" : ""}.`;
}

// How many columns of numbers stand side by side if a block is shown in one row, in two (the longer
// of them), or, on a phone, in more; and how high a picture is.
function measure(seen) {
  const [tokens, channels] = seen.tokens.shape;
  const most = Math.max(channels, ...Object.values(seen).map((a) => a?.shape?.at(-1) ?? 0));
  const style = $("pictures").style, one = 6 * channels + most;
  style.setProperty("--one", one);
  style.setProperty("--two", 3 * channels + most);
  style.setProperty("--three", Math.max(3 * channels, most));
  style.setProperty("--height", `${Math.max(88, tokens)}px`);
  $("pictures").classList.toggle("wide", one > 1000);
}

// ---- begin --------------------------------------------------------------------------------------

const failed = (error) => ($("state").textContent = error.message);

changed = ask;
$("checkpoint").addEventListener("input", ask);
for (const which of ["(prefers-color-scheme: dark)", "print"])
  matchMedia(which).addEventListener("change", () => shown && show(shown, asked));
if (document.body.dataset.where === "server") start(fromServer()).catch(failed);
else load("example.js").then(() => {
  lay(SHOWN.about);
  show(SHOWN.answer, { target, order, hidden: [], model: SHOWN.about.models.length - 1 });
  wait(true);
  $("offer").hidden = false;
  $("run").addEventListener("click", async () => {
    $("run").disabled = true;
    await start(inThisBrowser((words) => ($("state").textContent = words))).catch(failed);
    $("run").disabled = false;
  });
}, failed);
