"use strict";
// The state as of one moment, then every change after it. Whatever a record holds only ever becomes text, never markup.

const MOST_ROWS = 1000;
const topic = decodeURIComponent(location.pathname.split("/").pop());
const path = (kind) => `/${kind}/${encodeURIComponent(topic)}`;
const at = (id) => document.getElementById(id);
const rows = new Map(); // key -> its row
const columns = ["key"];
let source = null;
let cursor = "";
let records = 0;

at("topic").textContent = topic;
document.title = `${topic}, live`;

function say(text, away = false) {
  at("status").textContent = text;
  at("status").className = away ? "away" : "live";
}

function count() {
  const shown = rows.size >= MOST_ROWS ? `the first ${MOST_ROWS} keys` : `${rows.size} keys`;
  say(`live: ${shown}, ${records} changes since this page was opened`);
}

function text(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function fields(key, value) {
  const object = value !== null && typeof value === "object" && !Array.isArray(value);
  const found = new Map(object ? Object.entries(value).map(([name, item]) => [`.${name}`, item]) : [["value", value]]);
  return found.set("key", key);
}

function column(name) {
  if (!columns.includes(name)) columns.push(name);
  if (at("columns").children.length === columns.length) return;
  at("columns").replaceChildren(...columns.map((each) => {
    const cell = document.createElement("th");
    cell.textContent = each.replace(/^\./, "");
    return cell;
  }));
}

function show(key, value, changed) {
  let row = rows.get(key);
  if (!row) {
    if (rows.size >= MOST_ROWS) return;
    row = document.createElement("tr");
    row.dataset.key = key;
    const next = [...rows.keys()].filter((other) => other > key).sort()[0];
    at("rows").insertBefore(row, next === undefined ? null : rows.get(next));
    rows.set(key, row);
  }
  const found = fields(key, value);
  found.forEach((_, name) => column(name));
  columns.forEach((name, position) => {
    const cell = row.children[position] ?? row.appendChild(document.createElement("td"));
    cell.textContent = found.has(name) ? text(found.get(name)) : "";
  });
  if (changed) {
    row.classList.remove("changed");
    void row.offsetWidth; // begins the animation anew
    row.classList.add("changed");
  }
}

function remove(key) {
  rows.get(key)?.remove();
  rows.delete(key);
}

async function load() {
  source?.close();
  try {
    const answer = await fetch(path("state"));
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.message);
    // else what the sink writes until the stream begins would be in neither
    if (!found.cursor) throw new Error("the sink has not begun with this topic yet");
    cursor = found.cursor;
    rows.clear();
    at("rows").replaceChildren();
    for (const key of Object.keys(found.records).sort().slice(0, MOST_ROWS)) show(key, found.records[key], false);
    follow();
  } catch (error) {
    say(`away: ${error.message}`, true);
    setTimeout(load, 2000);
  }
}

function follow() {
  source = new EventSource(`${path("stream")}?from=${encodeURIComponent(cursor)}`);
  source.onopen = count;
  source.onmessage = (message) => {
    const record = JSON.parse(message.data);
    cursor = message.lastEventId;
    records += 1;
    if (record.key !== null && record.value === null) remove(record.key);
    else if (record.key !== null) show(record.key, record.value, true);
    count();
  };
  source.addEventListener("gap", load); // what was missed is in the state
  source.onerror = () => {
    say("away: connecting again", true);
    // a browser tries again by itself, but not after an answer such as 503
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  };
}

load();
