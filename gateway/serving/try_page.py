"""`/v2/docs`: one page to read what the port answers and to try it; script and style are in it, nothing is fetched
from elsewhere."""

from __future__ import annotations

import base64
import hashlib

__all__ = ("HEADERS", "PAGE")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 500; }
input, textarea { box-sizing: border-box; max-width: 100%; }
textarea { width: 100%; height: 16rem; }
textarea, pre, code { font: 13px/1.4 ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .6rem; }
#call { display: flex; gap: .4rem; } #path { flex: 1; min-width: 0; }
#token { width: 28rem; } .dim { color: var(--dim); }
@media (max-width: 46rem) {
  tr:first-child { display: none; }
  table, tbody { display: block; }
  tr { border-bottom: 1px solid var(--line); display: grid; gap: .1rem .6rem; padding: .4rem 0; }
  td { border: 0; grid-column: 1; overflow-wrap: anywhere; padding: 0; }
  td:last-child:not(:nth-child(2)) { grid-column: -2; grid-row: 1 / span 3; }
  #models tr { grid-template-columns: 1fr auto; }
  #models td:not(:last-child)::before { color: var(--dim); }
  #models td:nth-child(2):not(:last-child)::before { content: "inputs "; }
  #models td:nth-child(3)::before { content: "outputs "; }
  #endpoints tr { grid-template-columns: 2.8rem 1fr auto; }
  #endpoints td:nth-child(2), #endpoints td:nth-child(3) { grid-column: 2; }
  #endpoints td:nth-child(2) { grid-row: 1; }
}
"""

_SCRIPT = """
"use strict";
const at = (id) => document.getElementById(id);
const tables = { BYTES: "text", BOOL: true };
const samples = {};
const predicted = {};
let names = [];
let model;

function sample(spec) {
  const shape = spec.shape.map((axis) => (axis === -1 ? 1 : axis));
  const size = shape.reduce((product, axis) => product * axis, 1);
  return { name: spec.name, shape: shape, datatype: spec.datatype,
           data: new Array(size).fill(tables[spec.datatype] ?? 0) };
}

function named(path) {
  const found = path.match("/models/([^/]+)");
  return found && names.includes(found[1]) ? found[1] : undefined;
}

async function call(method, path, body) {
  at("answer").textContent = "...";
  const options = { method: method, headers: {} };
  if (body) { options.body = body; options.headers["content-type"] = "application/json"; }
  if (at("token").value) { options.headers.authorization = "Bearer " + at("token").value; }
  try {
    const response = await fetch(path, options);
    const text = await response.text();
    const id = response.headers.get("gateway-prediction-id");
    if (id) { predicted[named(path)] = id; }
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* shown as it came */ }
    const head = [...response.headers].filter(([name]) => name.startsWith("gateway-"));
    at("answer").textContent =
      [response.status + " " + response.statusText, ...head.map((pair) => pair.join(": ")), "", shown].join("\\n");
  } catch (error) { at("answer").textContent = String(error); }
}

function cell(row, text, tag = "td") {
  const made = document.createElement(tag);
  made.textContent = text;
  return row.appendChild(made);
}

function broken(path) {
  return path.split(/(?=[/])/).flatMap((part) => [document.createElement("wbr"), part]);
}

function choose(method, path, body) {
  at("method").value = method;
  at("path").value = path;
  // Numbers side by side, not one a line.
  const lines = body ? JSON.stringify(body, null, 1) : "";
  at("body").value = lines.replace(/\\[[^[\\]{}]*\\]/g, (numbers) => numbers.replace(/\\s+/g, " "));
}

function take(method, path, body) {
  choose(method, path, body);
  at("request").scrollIntoView();
}

async function start() {
  names = (await (await fetch("/v2/models")).json()).models;
  for (const name of names) {
    const row = at("models").insertRow();
    cell(row, name);
    const answered = await fetch("/v2/models/" + encodeURIComponent(name));
    const model = await answered.json();
    if (!answered.ok) { cell(row, model.error); continue; }
    const shown = (specs) => specs.map((spec) => `${spec.name}\u00a0${spec.datatype}\u00a0[${spec.shape}]`).join(", ");
    cell(row, shown(model.inputs));
    cell(row, shown(model.outputs));
    const button = document.createElement("button");
    button.textContent = "sample";
    const path = `/v2/models/${name}/infer`;
    samples[path] = { inputs: model.inputs.map(sample) };
    button.onclick = () => take("POST", path, samples[path]);
    cell(row, "").appendChild(button);
    if (name === names[0]) choose("POST", path, samples[path]);
  }
  const paths = (await (await fetch("/openapi.json")).json()).paths;
  for (const [path, operations] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const row = at("endpoints").insertRow();
      cell(row, method.toUpperCase());
      const button = document.createElement("button");
      button.textContent = "take";
      const values = operation.parameters.map(({ name, schema }) => [`{${name}}`, schema.enum?.[0] ?? "1"]);
      const example = operation.requestBody?.content["application/json"].example;
      button.onclick = () => {
        model = named(at("path").value) ?? model;
        const known = path.replace("{model}", model ?? "{model}");
        const concrete = values.reduce((made, [name, value]) => made.replace(name, value), known);
        const id = predicted[named(concrete)];
        const own = example?.prediction_id && id ? { ...example, prediction_id: id } : example;
        take(method.toUpperCase(), concrete, samples[concrete.replace("/versions/1", "")] ?? own);
      };
      cell(row, "").append(...broken(path));
      cell(row, operation.summary);
      cell(row, "").appendChild(button);
    }
  }
}

at("send").onclick = () => call(at("method").value, at("path").value, at("body").value.trim());
start().catch((error) => { at("answer").textContent = String(error); });
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Inference gateway: try it</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>Inference gateway</h1>
<p class="dim">The Open Inference Protocol on this port; <a href="/openapi.json">/openapi.json</a> describes it, and
<code>/v2/models/{{model}}/openapi.json</code> one model.</p>
<h2>Models</h2>
<div class="wide"><table id="models"><tr><th>model</th><th>inputs</th><th>outputs</th><th></th></tr></table></div>
<h2 id="request">Request</h2>
<p id="call"><select id="method"><option>GET</option><option>POST</option></select> <input id="path" value="/v2">
<button id="send">send</button></p>
<textarea id="body" spellcheck="false" aria-label="body"></textarea>
<p><input id="token" type="password" placeholder="admin token, where one is needed" autocomplete="off"></p>
<h2>Answer</h2>
<pre id="answer"></pre>
<h2>Endpoints</h2>
<div class="wide"><table id="endpoints"><tr><th>method</th><th>path</th><th>what</th><th></th></tr></table></div>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self'; "
        "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Only the script and the style of `PAGE` itself run, and they speak to this port only."""
