// Who answers: `python -m minimixer draw`, or minimixer itself in this browser. Either gives
// { about, answer }: what models there are, and a function from a question to what look.py says.

"use strict";

// Python 3.13 for the browser, as npm has it, and NumPy 2.2 from where its packages lie. The list of
// packages that comes with the first says what the second must hash to.
const VERSION = "0.29.4";
const PYODIDE = `https://cdn.jsdelivr.net/npm/pyodide@${VERSION}/`;
const PYODIDE_HASH = "sha384-wkkA2EvfjhI/Ka1xso+9XYjVf5am63bStLbKX4X5gkFcHcfY5QLUMsFf7AsnoXCU";
const PACKAGES = `https://cdn.jsdelivr.net/pyodide/v${VERSION}/full/`;

async function fromServer() {
  const get = async (path, options) => {
    let reply;
    try {
      reply = await fetch(path, options);
    } catch {
      const again = `python -m minimixer draw --port ${location.port || 80}`;
      throw new Error(`the server has ended: ${again} starts it again`);
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
  const python = await loadPyodide({ indexURL: PYODIDE, packageBaseUrl: PACKAGES });
  say("fetching NumPy");
  const wrong = [];
  const callbacks = { messageCallback: () => {}, errorCallback: (text) => wrong.push(text) };
  await python.loadPackage("numpy", callbacks);
  if (wrong.length) throw new Error(`NumPy can't be had from ${PACKAGES}`);
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
