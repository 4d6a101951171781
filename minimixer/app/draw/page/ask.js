// Who answers: `python -m minimixer draw`, or minimixer itself in this browser. Either gives
// { about, answer }: what models there are, and a function from a question to what look.py says.

"use strict";

const PYODIDE = "https://cdn.jsdelivr.net/pyodide/v0.29.4/full/"; // Python 3.13, NumPy 2.2
const PYODIDE_HASH = "sha384-wkkA2EvfjhI/Ka1xso+9XYjVf5am63bStLbKX4X5gkFcHcfY5QLUMsFf7AsnoXCU";

async function fromServer() {
  const get = async (path, options) => {
    let reply;
    try {
      reply = await fetch(path, options);
    } catch {
      throw new Error("the server has ended: python -m minimixer draw starts it again");
    }
    if (!reply.ok) throw new Error((await reply.text()).trim());
    return reply.json();
  };
  const headers = { "Content-Type": "application/json" };
  return {
    about: await get("about.json"),
    answer: (question) =>
      get("look", { method: "POST", headers, body: JSON.stringify(question) }),
  };
}

// The same functions, without the server between. package.js holds the package and the models.
async function inThisBrowser(say) {
  say("fetching Python");
  await load(PYODIDE + "pyodide.js", PYODIDE_HASH);
  const python = await loadPyodide({ indexURL: PYODIDE });
  say("fetching NumPy");
  const wrong = [];
  await python.loadPackage("numpy", { messageCallback: () => {}, errorCallback: (m) => wrong.push(m) });
  if (wrong.length) throw new Error(`NumPy can't be had: ${wrong[0]}`);
  say("starting minimixer");
  await load("package.js");
  const bytes = Uint8Array.from(atob(MINIMIXER_ZIP), (letter) => letter.charCodeAt(0));
  python.unpackArchive(bytes.buffer, "zip");
  const [about, answer] = python.runPython(`
import json
from minimixer.app.draw.look import about, answer
from minimixer.app.draw.static import read_models

models = read_models(".")
[json.dumps(about(models)), lambda text: json.dumps(answer(models, json.loads(text)))]
`);
  return {
    about: JSON.parse(about),
    answer: async (question) => {
      await new Promise((next) => setTimeout(next)); // the pad first
      return JSON.parse(answer(JSON.stringify(question)));
    },
  };
}

function load(address, integrity = "") {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    if (integrity) Object.assign(script, { integrity, crossOrigin: "anonymous" });
    script.onload = done;
    script.onerror = () => {
      script.remove();
      failed(new Error(`${address} can't be had`));
    };
    script.src = address;
    document.head.append(script);
  });
}
