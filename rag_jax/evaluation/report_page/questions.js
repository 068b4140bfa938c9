// The view of questions: what is asked for is found, listed, and opened.

const ROWS = 50; // of the list on one page of it
const NONE = -1;
const ANY = "any method";
const haystacks = [];
let found = [];
let active = 0; // the row of the list that the arrow keys are at
let opened = "";

function at(id) {
  return document.getElementById(id);
}

/** The text of a question that a search looks through. */
function readHaystack(question) {
  if (haystacks[question] === undefined) {
    const parts = [QUESTIONS.id[question], QUESTIONS.question[question], ...QUESTIONS.answers[question]];
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
  for (const [field, column] of [["set", "dataset"], ["type", "type"], ["third", "third"]]) {
    if (STATE[field] !== "" && QUESTIONS[column][question] !== STATE[field]) return false;
  }
  for (const [key, wanted] of [[STATE.right, true], [STATE.wrong, false]]) {
    if (key === "") continue;
    const scores = findMethods(key).map((method) => rate(method, question));
    if (!scores.some((score) => score !== null && isRight(score) === wanted)) return false;
  }
  if (STATE.source !== "") {
    const [key, source] = JSON.parse(STATE.source);
    if (!findMethods(key).some((method) => read(method, "source", question) === source)) return false;
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
  const words = STATE.search.toLowerCase().split(/\s+/).filter((word) => word !== "");
  found = [];
  for (let question = 0; question < COUNT; question++) if (passes(question, words)) found.push(question);
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

function countPages() {
  return Math.max(1, Math.ceil(found.length / ROWS));
}

/** The page of the list: the one that was gone to, or else the open question's. */
function readPage() {
  if (STATE.page === "") return Math.floor(Math.max(0, found.indexOf(KEYS.indexOf(STATE.q))) / ROWS) + 1;
  return Math.min(countPages(), Math.max(1, Math.floor(Number(STATE.page)) || 1));
}

function showList() {
  const page = readPage();
  const rows = found.slice((page - 1) * ROWS, page * ROWS);
  const last = STATE.q || opened; // a question that has been closed is where the list goes on
  active = Math.max(0, rows.findIndex((question) => KEYS[question] === last));
  const hasPopularity = QUESTIONS.popularity.some((value) => value !== null);
  const columns = [
    ["question", "Question", "asked"],
    ...METHODS.length > 1 ? [["count", "Right", ""]] : [],
    ...METHODS.map((method) => [method.key, method.label, "method"]),
    ...hasPopularity ? [["popularity", "Popularity", ""]] : [],
  ];
  const head = columns.map(([name, label, kind]) => makeSortHead(name, label, kind));
  const body = rows.map((question, row) => make("tr", { class: KEYS[question] === STATE.q ? "chosen" : null },
    make("th", { scope: "row", class: "asked" },
      make("a", { href: link({ q: KEYS[question] }), tabindex: row === active ? "0" : "-1" }, QUESTIONS.question[question])),
    ...METHODS.length > 1 ? [make("td", {}, describeCount(question))] : [],
    ...METHODS.map((method) => make("td", { class: "method" }, makeVerdict(rate(method, question), { brief: true }))),
    ...hasPopularity ? [make("td", {}, format(QUESTIONS.popularity[question]))] : []));
  at("list").replaceChildren(
    make("caption", { class: "unseen" }, "Questions, and which methods answer them right"),
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  at("count").textContent = `${format(found.length)} of ${format(COUNT)} questions`;
  at("place").textContent = `Page ${format(page)} of ${format(countPages())}`;
  // Not `disabled`, which would take the focus from a button at the end of its way.
  at("before").setAttribute("aria-disabled", page === 1);
  at("after").setAttribute("aria-disabled", page === countPages());
}

function describeCount(question) {
  const { right, rated } = count(question);
  return `${right} of ${rated}`;
}

/** A heading that sorts: up, then down, then not. */
function makeSortHead(name, label, kind) {
  const [sorted, down] = [STATE.sort === name, STATE.sort === `-${name}`];
  const next = sorted ? `-${name}` : down ? "" : name;
  const sign = sorted ? " ↑" : down ? " ↓" : "";
  const button = make("button", {
    type: "button", "data-sort": name,
    click: () => {
      change({ sort: next, page: "" });
      document.querySelector(`[data-sort="${CSS.escape(name)}"]`).focus();
    },
  }, label, make("span", { "aria-hidden": "true" }, sign));
  const order = sorted ? "ascending" : down ? "descending" : null;
  return make("th", { scope: "col", class: kind || null, "aria-sort": order }, button);
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
  field.replaceChildren(make("option", { value: "" }, all),
    ...choices.map(([value, label]) => make("option", { value }, label)));
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
    return names.length < 2 ? [] : names.map((name) => [JSON.stringify([method.key, name]), `${method.label}: ${name}`]);
  });
}

function focusRow(row) {
  const links = at("list").querySelectorAll("tbody a");
  if (!links.length) return;
  active = Math.max(0, Math.min(links.length - 1, row));
  links.forEach((anchor, number) => { anchor.tabIndex = number === active ? 0 : -1; });
  links[active].focus();
}

/** Goes from the active row to the next or the previous one, over the ends of a page. */
function moveRow(step) {
  const place = (readPage() - 1) * ROWS + active + step;
  if (place < 0 || place >= found.length) return;
  const page = Math.floor(place / ROWS) + 1;
  if (page !== readPage()) change({ page: String(page) });
  focusRow(place % ROWS);
}

/** Opens the question that is a step from the open one in the list. */
function moveQuestion(step) {
  const place = found.indexOf(KEYS.indexOf(STATE.q));
  const next = found[place + step];
  if (place < 0 || next === undefined) return;
  change({ q: KEYS[next], page: "" }, true);
}

function closeQuestion() {
  change({ q: "", page: String(readPage()) }, true);
}

function onKey(event) {
  if (STATE.view !== "questions" || event.ctrlKey || event.metaKey || event.altKey) return;
  const writes = event.target.closest("input, select, textarea");
  const single = at("keys").checked && !writes;
  const inDetail = at("detail").contains(event.target);
  const inList = at("list").contains(event.target);
  const does = (action) => { event.preventDefault(); action(); };
  if (event.key === "Escape" && STATE.q !== "") does(closeQuestion);
  else if (event.key === "/" && single && at("browse").offsetParent !== null) does(() => at("search").focus());
  else if (inDetail && single && event.key === "j") does(() => moveQuestion(1));
  else if (inDetail && single && event.key === "k") does(() => moveQuestion(-1));
  else if (inDetail || writes) return;
  else if ((event.key === "j" && single) || (event.key === "ArrowDown" && inList)) does(() => stepRow(inList, 1));
  else if ((event.key === "k" && single) || (event.key === "ArrowUp" && inList)) does(() => stepRow(inList, -1));
}

function stepRow(inList, step) {
  if (inList) moveRow(step);
  else focusRow(active);
}

function startQuestions() {
  const methods = METHODS.map(({ key, label }) => [key, label]);
  fillSelect("right", [["*", ANY], ...methods], "any or none");
  fillSelect("wrong", [["*", ANY], ...methods], "any or none");
  fillSelect("source", listSources(), "every source");
  fillSelect("set", listValues("dataset"), "every set");
  fillSelect("type", listValues("type"), "every type");
  const thirds = new Set(QUESTIONS.third);
  fillSelect("third", [["head", "head: most popular third"], ["middle", "middle"], ["tail", "tail: least popular third"]]
    .filter(([name]) => thirds.has(name)), "every popularity");
  const scores = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.scores)))];
  fillSelect("score", scores.length > 1 ? scores.map((name) => [name, `${name.replaceAll("_", " ")}, from 0.5 on`]) : [], "each run's own score");
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("input", () => {
    change({ ...Object.fromEntries(FILTERS.map((name) => [name, at(name).value])), page: "" });
  });
  at("clear").addEventListener("click", () => {
    change({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), sort: "", page: "" });
  });
  for (const [name, step] of [["before", -1], ["after", 1]]) {
    at(name).addEventListener("click", () => {
      const page = readPage() + step;
      if (page >= 1 && page <= countPages()) change({ page: String(page) });
    });
  }
  document.addEventListener("keydown", onKey);
}
