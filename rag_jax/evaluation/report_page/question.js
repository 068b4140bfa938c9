// One question: what every method made of it.

const OPEN = 3; // so many methods are shown whole without being asked for
const unfolded = new Map();

function showQuestion(question) {
  const place = found.indexOf(question);
  const steps = [
    ["Previous question", -1],
    ["Next question", 1],
  ].map(([label, step]) =>
    make(
      "button",
      {
        type: "button",
        disabled: place < 0 || found[place + step] === undefined,
        click: () => moveQuestion(step),
      },
      label,
    ),
  );
  const popularity = QUESTIONS.popularity[question];
  const third = QUESTIONS.third[question];
  at("detail").replaceChildren(
    make(
      "p",
      { class: "pages" },
      make("a", { href: link({ q: "", page: String(readPage()) }) }, "Back to the list"),
      ...steps,
    ),
    make("h2", { id: "asked", tabindex: "-1" }, QUESTIONS.question[question]),
    makeFacts([
      ["answers", QUESTIONS.answers[question].join("; ")],
      ["id", QUESTIONS.id[question]],
      ["set", QUESTIONS.dataset[question]],
      ["type", QUESTIONS.type[question]],
      [
        "popularity",
        popularity === null ? "" : `${format(popularity)}${third ? ` (${third})` : ""}`,
      ],
    ]),
    makeOverview(question),
    ...METHODS.filter((method) => method.at[question] >= 0).map((method, number) =>
      makeAnswer(method, question, number),
    ),
    ...makeMissing(question),
  );
}

/** A line a method: whether it is right, its source, its answer. */
function makeOverview(question) {
  const own = METHODS.filter((method) => method.at[question] >= 0);
  const hasSource = own.some((method) => read(method, "source", question) !== null);
  const rows = own.map((method) => [
    method.label,
    makeVerdict(rate(method, question)),
    ...(hasSource ? [read(method, "source", question) || "-"] : []),
    make("span", { class: "given" }, read(method, "prediction", question) || "-"),
  ]);
  return makeTable("Answers", [
    ["method", "", ...(hasSource ? ["source"] : []), make("span", { class: "given" }, "answer")],
    ...rows,
  ]);
}

function makeMissing(question) {
  const without = DATA.runs.filter(
    (run) => !METHODS.some((method) => method.run === run && method.at[question] >= 0),
  );
  const names = without.map((run) => run.label).join(", ");
  return without.length ? [make("p", { class: "quiet" }, `Not asked in ${names}.`)] : [];
}

function makeAnswer(method, question, number) {
  const knowledge = read(method, "knowledge", question);
  const passages = read(method, "passages", question) || [];
  const adapters = read(method, "adapters", question) || [];
  const wasOpen = unfolded.get(method.key);
  const details = make(
    "details",
    { class: "answer", open: wasOpen === undefined ? number < OPEN : wasOpen },
    make(
      "summary",
      {},
      make("strong", {}, method.label),
      ": ",
      makeVerdict(rate(method, question)),
      ", ",
      read(method, "prediction", question) || "no answer",
    ),
  );
  details.addEventListener("toggle", () => unfolded.set(method.key, details.open));
  const answers = QUESTIONS.answers[question];
  const parts = [];
  const shares = makeShares(method, question);
  if (shares) parts.push(shares);
  if (knowledge !== null) {
    parts.push(
      make("h3", {}, "Knowledge read"),
      make("p", { class: "text" }, ...markWords(method.run.texts[knowledge], answers)),
    );
  }
  if (passages.length)
    parts.push(make("h3", {}, "Passages"), makePassages(method, question, passages));
  if (adapters.length)
    parts.push(
      make("h3", {}, "Merged adapters of"),
      makePassages(
        method,
        question,
        adapters.map((place) => [place]),
      ),
    );
  details.append(
    ...parts,
    make("h3", {}, "Numbers"),
    makeFacts(listFacts(method, question), "numbers"),
  );
  return details;
}

/** The numbers of an answer by name: its scores first. */
function listFacts(method, question) {
  const names = Object.keys(method.columns.numbers);
  const scores = Object.values(method.run.scores).filter((name) => names.includes(name));
  return [...new Set([...scores, ...names])].map((name) => {
    const value = readNumber(method, name, question);
    return [name.replaceAll("_", " "), value === null ? "" : format(value)];
  });
}

const BY_SOURCE = {
  probabilities: "probability",
  votes: "neighbours' share",
  correct_by_source: "its answer",
};

/** What speaks for each source, and whether its answer would be right. */
function makeShares(method, question) {
  const columns = Object.keys(BY_SOURCE).filter((name) => read(method, name, question));
  if (!columns.length) return null;
  const values = columns.map((name) => read(method, name, question));
  const chosen = read(method, "source", question);
  const rows = values[0].map((_, number) => {
    const source = method.run.sources[number] || `source ${number + 1}`;
    const cells = columns.map((name, column) => {
      const value = values[column][number];
      if (value === undefined) return "-";
      return name === "correct_by_source" ? makeVerdict(value) : value.toFixed(3);
    });
    return [source === chosen ? `${source}, chosen` : source, ...cells];
  });
  return makeTable(`${method.label}: sources`, [
    ["source", ...columns.map((name) => BY_SOURCE[name])],
    ...rows,
  ]);
}

function makePassages(method, question, entries) {
  const run = method.run;
  const relevant = new Set(run.relevant[run.rows.indexOf(question)] || []);
  const answers = QUESTIONS.answers[question];
  const items = entries.map(([place, score, before], number) => {
    const [id, title, text] = run.passages[place];
    const facts = [`rank ${number + 1}`];
    if (score !== null && score !== undefined) facts.push(`score ${format(score)}`);
    if (before) facts.push(`rank ${before} before reranking`);
    if (relevant.has(place)) facts.push("relevant by the data");
    return make(
      "li",
      { class: relevant.has(place) ? "relevant" : null },
      make(
        "p",
        {},
        make("strong", {}, title || id),
        make("span", { class: "quiet" }, ` ${facts.join(", ")}; ${id}`),
      ),
      text === null
        ? make("p", { class: "quiet" }, "The page does not have its text.")
        : make("p", { class: "text" }, ...markWords(text, answers)),
    );
  });
  return make("ol", { class: "passages" }, ...items);
}
