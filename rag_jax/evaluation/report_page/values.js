"use strict";

// The data of the runs, and the state of the page, which its address holds.

const DATA = JSON.parse(document.getElementById("data").textContent);
const QUESTIONS = DATA.questions;
const COUNT = QUESTIONS.id ? QUESTIONS.id.length : 0;
const METHODS = listMethods();
const KEYS = listKeys();

/** Every method of every run, with the place of each question among the method's columns. */
function listMethods() {
  const methods = [];
  DATA.runs.forEach((run, number) => {
    const at = new Int32Array(COUNT).fill(-1);
    run.rows.forEach((place, row) => {
      at[place] = row;
    });
    for (const [name, columns] of Object.entries(run.methods)) {
      const label = DATA.runs.length > 1 ? `${run.label}: ${name}` : name;
      methods.push({ run, name, label, columns, at, key: `${number}.${name}` });
    }
  });
  return methods;
}

/** A name for each question in the page's address: its id, with a number where it is not alone. */
function listKeys() {
  const seen = new Map();
  return (QUESTIONS.id || []).map((id) => {
    const before = seen.get(id) || 0;
    seen.set(id, before + 1);
    return before ? `${id}~${before + 1}` : id;
  });
}

/** What a method's column has of a question; null if nothing. */
function read(method, column, question) {
  const row = method.at[question];
  const values = method.columns[column];
  return row < 0 || !values ? null : values[row];
}

function readNumber(method, name, question) {
  const row = method.at[question];
  const values = method.columns.numbers[name];
  return row < 0 || !values ? null : values[row];
}

/** The field of a run's predictions that rates an answer by a score; by the run's own if "". */
function findField(run, score) {
  return score === "" ? Object.values(run.scores)[0] : run.scores[score];
}

/** A method's score of a question, null if it has none; right from 0.5 on. */
function rate(method, question) {
  const field = findField(method.run, STATE.score);
  return field === undefined ? null : readNumber(method, field, question);
}

function isRight(score) {
  return score >= 0.5;
}

/** A number as a reader wants it: to four digits, whole ones with separators. */
function format(value) {
  if (value === null || value === undefined) return "-";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

const DEFAULTS = {
  view: "summary",
  q: "",
  search: "",
  right: "",
  wrong: "",
  source: "",
  set: "",
  type: "",
  third: "",
  score: "",
  sort: "",
  page: "",
  metric: "loss",
  theme: "",
};
const FILTERS = ["search", "right", "wrong", "source", "set", "type", "third", "score"];
const STATE = { ...DEFAULTS };

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(DEFAULTS)) {
    STATE[name] = given.has(name) ? given.get(name) : DEFAULTS[name];
  }
}

/** The page's address with some of its state changed. */
function link(changes) {
  const wanted = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...STATE, ...changes })) {
    if (value !== DEFAULTS[name]) wanted.set(name, value);
  }
  return `#${wanted}`;
}

/** Changes the state; as a step that the browser can go back from if `step`. */
function change(changes, step = false) {
  const address = link(changes);
  history[step ? "pushState" : "replaceState"](null, "", address);
  readState();
  render();
}
