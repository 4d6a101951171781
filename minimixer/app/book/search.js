"use strict";
// Search: all words must occur; where the title has them comes first. "/" goes to the box, arrows
// and Enter choose. INDEX is in index.js: [title, address, text].
const box = document.querySelector(".search input");
const hits = document.getElementById("hits");

function find(words) {
  const found = [];
  for (const [title, address, text] of INDEX) {
    const name = title.toLowerCase(), all = name + " " + text.toLowerCase();
    if (!words.every((word) => all.includes(word))) continue;
    let rank = 0;
    for (const word of words) rank += name.endsWith(word) ? 4 : name.includes(word) ? 2 : 0;
    found.push([rank, title, address, text]);
  }
  return found.sort((a, b) => b[0] - a[0]).slice(0, 12);
}

function excerpt(text, word) {
  const at = Math.max(0, text.toLowerCase().indexOf(word) - 30);
  return (at ? "…" : "") + text.slice(at, at + 90) + (text.length > at + 90 ? "…" : "");
}

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = box.value.trim().length > 1 ? find(words) : [];
  hits.replaceChildren(...found.map(([, title, address, text]) => {
    const item = document.createElement("li"), link = document.createElement("a");
    const name = document.createElement("b"), words_ = document.createElement("span");
    link.href = address;
    name.textContent = title;
    words_.textContent = excerpt(text, words[0]);
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
