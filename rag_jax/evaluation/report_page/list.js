// The list of the questions that were found, a page at a time.

const ROWS = 50; // of the list on one page of it
let active = 0; // the row of the list that the arrow keys are at

function countPages() {
  return Math.max(1, Math.ceil(found.length / ROWS));
}

/** The page of the list: the one that was gone to, or else the open question's. */
function readPage() {
  if (STATE.page === "")
    return Math.floor(Math.max(0, found.indexOf(KEYS.indexOf(STATE.q))) / ROWS) + 1;
  return Math.min(countPages(), Math.max(1, Math.floor(Number(STATE.page)) || 1));
}

function showList() {
  const page = readPage();
  const rows = found.slice((page - 1) * ROWS, page * ROWS);
  const last = STATE.q || opened; // a question that has been closed is where the list goes on
  active = Math.max(
    0,
    rows.findIndex((question) => KEYS[question] === last),
  );
  const hasPopularity = QUESTIONS.popularity.some((value) => value !== null);
  const columns = [
    ["question", "Question", "asked"],
    ...(METHODS.length > 1 ? [["count", "Right", ""]] : []),
    ...METHODS.map((method) => [method.key, method.label, "method"]),
    ...(hasPopularity ? [["popularity", "Popularity", ""]] : []),
  ];
  const head = columns.map(([name, label, kind]) => makeSortHead(name, label, kind));
  const body = rows.map((question, row) =>
    make(
      "tr",
      { class: KEYS[question] === STATE.q ? "chosen" : null },
      make(
        "th",
        { scope: "row", class: "asked" },
        make(
          "a",
          { href: link({ q: KEYS[question] }), tabindex: row === active ? "0" : "-1" },
          QUESTIONS.question[question],
        ),
      ),
      ...(METHODS.length > 1 ? [make("td", {}, describeCount(question))] : []),
      ...METHODS.map((method) =>
        make("td", { class: "method" }, makeVerdict(rate(method, question), { brief: true })),
      ),
      ...(hasPopularity ? [make("td", {}, format(QUESTIONS.popularity[question]))] : []),
    ),
  );
  at("list").replaceChildren(
    make("caption", { class: "unseen" }, "Questions, and which methods answer them right"),
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...body),
  );
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
  const button = make(
    "button",
    {
      type: "button",
      "data-sort": name,
      click: () => {
        change({ sort: next, page: "" });
        document.querySelector(`[data-sort="${CSS.escape(name)}"]`).focus();
      },
    },
    label,
    make("span", { "aria-hidden": "true" }, sign),
  );
  const order = sorted ? "ascending" : down ? "descending" : null;
  return make("th", { scope: "col", class: kind || null, "aria-sort": order }, button);
}
