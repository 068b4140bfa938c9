// The views of numbers: the summary, the training curves, and what is known of each run.

/** Once for each title, what each run has by it. */
function groupByTitle(field) {
  const titles = new Map();
  for (const run of DATA.runs) {
    for (const [title, value] of Object.entries(run[field])) {
      titles.set(title, [...(titles.get(title) || []), { run, value }]);
    }
  }
  return titles;
}

function nameOf(run, title) {
  return DATA.runs.length > 1 ? `${run.label}: ${title}` : title;
}

/** The methods of all runs in one table, with every column that some run has. */
function makeMethodTable() {
  const heads = [...new Set(DATA.runs.flatMap((run) => run.tables.methods[0].slice(1)))];
  const rows = DATA.runs.flatMap((run) => {
    const [head, ...body] = run.tables.methods;
    return body.map((row) => [
      nameOf(run, row[0]),
      ...heads.map((name) => {
        const at = head.indexOf(name, 1);
        return at < 0 ? "-" : row[at];
      }),
    ]);
  });
  return makeTable("Methods, all over the same questions of their run", [
    ["method", ...heads],
    ...rows,
  ]);
}

function showSummary(place) {
  place.append(...DATA.matching.map((text) => make("p", { class: "note" }, text)));
  for (const [title, rows] of Object.entries(DATA.tables)) place.append(makeTable(title, rows));
  place.append(make("h2", {}, "Methods"), makeMethodTable());
  const figures = [...groupByTitle("figures")].flatMap(([title, found]) =>
    found.map(({ run, value }) => makeFigure(nameOf(run, title), value)),
  );
  if (figures.length)
    place.append(make("h2", {}, "Figures"), make("div", { class: "figures" }, ...figures));
  const tables = [...groupByTitle("tables")].filter(
    ([title]) => !["methods", "stages", "programs"].includes(title),
  );
  if (tables.length) place.append(make("h2", {}, "Tables"));
  for (const [title, found] of tables) {
    place.append(...found.map(({ run, value }) => makeTable(nameOf(run, title), value)));
  }
}

/** The curves of every stage by one metric, the runs' in one chart. */
function showTraining(place) {
  const stages = groupByTitle("curves");
  if (!stages.size) {
    place.append(
      make("p", {}, "No stage of these runs was trained, or its log is not in the work folder."),
    );
    return;
  }
  const names = [
    ...new Set([...stages.values()].flat().flatMap(({ value }) => Object.keys(value.metrics))),
  ];
  const wanted = names.includes(STATE.metric) ? STATE.metric : names[0];
  const options = names.map((name) =>
    make("option", { value: name, selected: name === wanted }, name.replaceAll("_", " ")),
  );
  const select = make(
    "select",
    { id: "metric", change: (event) => change({ metric: event.target.value }) },
    ...options,
  );
  const figures = [...stages]
    .map(([stage, found]) => makeCurve(stage, wanted, found))
    .filter((figure) => figure !== null);
  place.append(
    make("p", {}, make("label", { for: "metric" }, "Curves of "), select),
    make("div", { class: "figures" }, ...figures),
  );
}

function makeCurve(stage, metric, found) {
  const own = found.filter(({ value }) => value.metrics[metric]);
  if (!own.length) return null;
  const series = own.map(({ run, value }, number) => ({
    name: nameOf(run, metric.replaceAll("_", " ")),
    kind: "line",
    number,
    points: value.metrics[metric].map(describe),
  }));
  const every = Math.max(...own.map(({ value }) => value.every));
  const title = every > 1 ? `${stage}: each point is the mean of ${every} steps` : stage;
  const reach = (axis) => {
    const values = series.flatMap(({ points }) => points.map((point) => point[axis]));
    const range = [Math.min(...values), Math.max(...values)];
    if (range[0] === range[1]) range[1] += 1;
    return { range, ticks: listTicks(range) };
  };
  const steps = reach("x");
  steps.ticks = steps.ticks.filter(({ at: step }) => Number.isInteger(step));
  return makeChart({
    title,
    x: { label: "step", ...steps },
    y: { label: metric.replaceAll("_", " "), ...reach("y") },
    series,
  });
}

function showRun(place) {
  for (const run of DATA.runs) {
    const facts = Object.entries(run.environment).map(([name, value]) => [
      name.replaceAll("_", " "),
      describeFact(value),
    ]);
    place.append(
      make("h2", {}, run.label),
      makeFacts([
        ["system", run.system],
        ["model", run.model],
        ["questions", run.dataset],
        ...facts,
      ]),
      ...run.cuts.map((text) => make("p", { class: "quiet" }, text)),
      makeTable(nameOf(run, "seconds of each stage when it was made"), addBars(run.tables.stages)),
      ...(run.tables.programs
        ? [makeTable(nameOf(run, "programs that took half a second"), run.tables.programs)]
        : []),
    );
  }
}

function describeFact(value) {
  return typeof value === "number" ? format(value) : String(value);
}

/** The table of stages with a bar for the seconds, the dark part for compiling. */
function addBars([head, ...body]) {
  const longest = Math.max(1e-9, ...body.slice(0, -1).map((row) => Number(row[1])));
  const rows = body.map((row, number) => {
    if (number === body.length - 1) return [...row, ""];
    const [all, part] = [row[1], row[2]].map((seconds) => (Number(seconds) / longest) * 160);
    return [
      ...row,
      draw(
        "svg",
        { width: 160, height: 12, "aria-hidden": "true" },
        draw("rect", { class: "bar", width: all, height: 12 }),
        draw("rect", { class: "bar-compiling", width: Math.min(all, part), height: 12 }),
      ),
    ];
  });
  return [[...head, "seconds, and compiling"], ...rows];
}
