"use strict";
// Search: all words must occur, or others that begin alike; where the title has them, or where they
// stand side by side, comes first. "/" goes to the box, arrows and Enter choose. INDEX is in
// index.js: [title, address, text].
const box = document.querySelector(".search input");
const hits = document.getElementById("hits");

// How the other forms of a word begin: permute, permuted and permutation with "permut".
function beginning(word) {
  const short = word.replace(/(?:ations?|ing|ions?|ed|es|e|s)$/, "");
  return short.length < 4 ? word : short;
}

// Where a word stands in a text; where another form of it does if it doesn't; -1.
function place(text, word) {
  const at = text.indexOf(word);
  return at < 0 ? ` ${text}`.replace(/[^\p{L}\d]/gu, " ").indexOf(` ${beginning(word)}`) : at;
}

function find(words) {
  const found = [], together = words.join(" ");
  for (const [title, address, text] of INDEX) {
    const name = title.toLowerCase(), said = text.toLowerCase(), all = name + " " + said;
    if (!words.every((word) => place(all, word) >= 0)) continue;
    let rank = 0;
    for (const word of words) {
      rank += name.endsWith(word) ? 4 : name.includes(word) ? 2 : 0;
      if (all.includes(word)) rank += 1; // itself, no other form
    }
    if (words.length > 1) {
      const times = said.replaceAll("_", " ").split(together).length - 1;
      rank += name.includes(together) ? 8 : times ? 3 + Math.min(times, 3) : 0;
    }
    found.push([rank, title, address, text]);
  }
  return found.sort((a, b) => b[0] - a[0]).slice(0, 12);
}

// Some words of a text around what was looked for; none is cut.
function excerpt(text, words) {
  const said = text.toLowerCase(), together = said.replaceAll("_", " ").indexOf(words.join(" "));
  const places = [together, ...words.map((word) => place(said, word)), 0];
  const from = Math.max(0, places.find((at) => at >= 0) - 30);
  const start = from && text.indexOf(" ", from) + 1;
  const end = text.length > start + 90 ? text.lastIndexOf(" ", start + 90) : text.length;
  return (start ? "…" : "") + text.slice(start, end) + (end < text.length ? "…" : "");
}

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = box.value.trim().length > 1 ? find(words) : [];
  hits.replaceChildren(...found.map(([, title, address, text]) => {
    const item = document.createElement("li"), link = document.createElement("a");
    const name = document.createElement("b"), words_ = document.createElement("span");
    link.href = address;
    name.textContent = title;
    words_.textContent = excerpt(text, words);
    link.append(name, words_);
    item.append(link);
    return item;
  }));
  if (box.value.trim().length > 1 && !found.length) {
    const item = document.createElement("li");
    item.className = "nothing";
    item.textContent = "Nothing found";
    hits.append(item);
  }
  hits.hidden = !hits.childElementCount;
}

function move(step) {
  const links = [...hits.querySelectorAll("a")];
  const to = links.indexOf(document.activeElement) + step;
  if (to < 0) box.focus();
  else if (links[to]) links[to].focus();
}

box.addEventListener("input", show);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== box) {
    event.preventDefault();
    box.focus();
  } else if (event.key === "Escape") {
    box.value = "";
    show();
  } else if (document.activeElement.closest(".search")) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter" && document.activeElement === box) {
      hits.querySelector("a")?.click();
    }
  }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".search") || event.target.closest("#hits a")) hits.hidden = true;
});
