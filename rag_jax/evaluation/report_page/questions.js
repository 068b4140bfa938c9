// The view of questions: what is asked for is found, listed, and opened.

const NONE = -1;
const ANY = "any method";
const haystacks = [];
let found = [];
let opened = "";

function at(id) {
  return document.getElementById(id);
}

/** The text of a question that a search looks through. */
function readHaystack(question) {
  if (haystacks[question] === undefined) {
    const parts = [
      QUESTIONS.id[question],
      QUESTIONS.question[question],
      ...QUESTIONS.answers[question],
    ];
    for (const method of METHODS) parts.push(read(method, "prediction", question) || "");
    haystacks[question] = parts.join("\n").toLowerCase();
  }
  return haystacks[question];
}

function findMethods(key) {
  return key === "*" ? METHODS : METHODS.filter((method) => method.key === key);
}

/** Whether a question passes the filters. */
function passes(question, words) {
  if (words.length && !words.every((word) => readHaystack(question).includes(word))) return false;
  for (const [field, column] of [
    ["set", "dataset"],
    ["type", "type"],
    ["third", "third"],
  ]) {
    if (STATE[field] !== "" && QUESTIONS[column][question] !== STATE[field]) return false;
  }
  for (const [key, wanted] of [
    [STATE.right, true],
    [STATE.wrong, false],
  ]) {
    if (key === "") continue;
    const scores = findMethods(key).map((method) => rate(method, question));
    if (!scores.some((score) => score !== null && isRight(score) === wanted)) return false;
  }
  if (STATE.source !== "") {
    const [key, source] = JSON.parse(STATE.source);
    if (!findMethods(key).some((method) => read(method, "source", question) === source))
      return false;
  }
  return true;
}

/** Number of methods that are rated on a question, and of those that are right. */
function count(question) {
  const scores = METHODS.map((method) => rate(method, question)).filter((score) => score !== null);
  return { rated: scores.length, right: scores.filter(isRight).length };
}

/** What a question is sorted by: by a column, or by a method's score. */
function findSortValue(name) {
  if (name === "question") return (question) => QUESTIONS.question[question].toLowerCase();
  if (name === "popularity") return (question) => QUESTIONS.popularity[question];
  if (name === "count") return (question) => count(question).right;
  const [method] = findMethods(name);
  return method && ((question) => rate(method, question));
}

function findQuestions() {
  const words = STATE.search
    .toLowerCase()
    .split(/\s+/)
    .filter((word) => word !== "");
  found = [];
  for (let question = 0; question < COUNT; question++)
    if (passes(question, words)) found.push(question);
  const down = STATE.sort.startsWith("-");
  const value = findSortValue(down ? STATE.sort.slice(1) : STATE.sort);
  if (!value) return;
  const values = new Map(found.map((question) => [question, value(question)]));
  const compare = (left, right) => {
    const [a, b] = [values.get(left), values.get(right)];
    if (a === b) return left - right;
    if (a === null || b === null) return a === null ? 1 : -1; // what has no value comes last
    return (a < b ? -1 : 1) * (down ? -1 : 1);
  };
  found.sort(compare);
}

function showQuestions() {
  fillFilters();
  findQuestions();
  showList();
  const question = KEYS.indexOf(STATE.q);
  at("questions").classList.toggle("open", question !== NONE);
  at("detail").hidden = question === NONE;
  const before = opened;
  opened = question === NONE ? "" : STATE.q;
  if (question === NONE) {
    at("detail").replaceChildren();
    if (before !== "") focusRow(active);
  } else {
    showQuestion(question);
    if (before !== opened) at("asked").focus();
  }
}

/** The settings of the filters as they are in the state; a filter without a choice is not shown. */
function fillFilters() {
  for (const name of FILTERS) {
    const field = at(name);
    if (field.value !== STATE[name]) field.value = STATE[name];
  }
}

function fillSelect(name, choices, all) {
  const field = at(name);
  field.replaceChildren(
    make("option", { value: "" }, all),
    ...choices.map(([value, label]) => make("option", { value }, label)),
  );
  field.parentElement.hidden = choices.length === 0;
}

function listValues(column) {
  const values = [...new Set(QUESTIONS[column])].filter((value) => value !== "").sort();
  return values.length > 1 ? values.map((value) => [value, value]) : [];
}

/** Sources by method, of the methods that have more than one. */
function listSources() {
  return METHODS.flatMap((method) => {
    const names = [...new Set(method.columns.source || [])].filter((name) => name !== null).sort();
    return names.length < 2
      ? []
      : names.map((name) => [JSON.stringify([method.key, name]), `${method.label}: ${name}`]);
  });
}

function startQuestions() {
  const methods = METHODS.map(({ key, label }) => [key, label]);
  fillSelect("right", [["*", ANY], ...methods], "any or none");
  fillSelect("wrong", [["*", ANY], ...methods], "any or none");
  fillSelect("source", listSources(), "every source");
  fillSelect("set", listValues("dataset"), "every set");
  fillSelect("type", listValues("type"), "every type");
  const thirds = new Set(QUESTIONS.third);
  fillSelect(
    "third",
    [
      ["head", "head: most popular third"],
      ["middle", "middle"],
      ["tail", "tail: least popular third"],
    ].filter(([name]) => thirds.has(name)),
    "every popularity",
  );
  const scores = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.scores)))];
  fillSelect(
    "score",
    scores.length > 1
      ? scores.map((name) => [name, `${name.replaceAll("_", " ")}, from 0.5 on`])
      : [],
    "each run's own score",
  );
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("input", () => {
    change({ ...Object.fromEntries(FILTERS.map((name) => [name, at(name).value])), page: "" });
  });
  at("clear").addEventListener("click", () => {
    change({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), sort: "", page: "" });
  });
  for (const [name, step] of [
    ["before", -1],
    ["after", 1],
  ]) {
    at(name).addEventListener("click", () => {
      const page = readPage() + step;
      if (page >= 1 && page <= countPages()) change({ page: String(page) });
    });
  }
  document.addEventListener("keydown", onKey);
}
