// Charts: drawn at the width that they have, with the values of each point by pointer and by keys.

const COLOURS = 10;
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const MARGIN = { left: 58, right: 14, top: 12, bottom: 46 };
const LINE_HEIGHT = 300;

function colour(number) {
  return `var(--series-${number % COLOURS})`;
}

/** The number of a name's colour: a method has one in all figures, other names have the others. */
function numberName(name, names) {
  const methods = [...new Set(METHODS.map((method) => method.name))];
  const place = methods.indexOf(name);
  return place >= 0
    ? place
    : methods.length + names.filter((other) => !methods.includes(other)).indexOf(name);
}

/** Dashes, so that lines differ by more than their colour. */
function dash(number) {
  return DASHES[Math.floor(number / COLOURS + number) % DASHES.length];
}

/** Round numbers that divide a range into about five parts. */
function listTicks([low, high]) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++)
    ticks.push(n * step);
  return ticks.map((at) => ({ at, label: format(Number(at.toPrecision(6))) }));
}

/** Powers of ten, and 0 at the left end where a cost of 0 has its place. */
function listDecades([low, high], zero) {
  const ticks = zero === null ? [] : [{ at: zero, label: "0" }];
  for (let n = Math.ceil(low); n <= high; n++)
    ticks.push({ at: n, label: n < 0 || n > 5 ? `1e${n}` : (10 ** n).toLocaleString("en") });
  return ticks;
}

/**
 * A figure of a chart. Its series have a `name`, a `kind` ("line", "dots", "guide" or "bar") and
 * `points` {x, y, values}, the values as texts, which may have a name of their own. Axes have a
 * `label`, a `range` and `ticks`.
 */
function makeChart({ title, x, y, series, wide = null }) {
  const plot = make("div", {
    class: "plot",
    tabindex: "0",
    role: "application",
    "aria-roledescription": "chart",
    "aria-label": `${title}. Arrow keys go to the points.`,
  });
  const readout = make(
    "p",
    { class: "readout", "aria-live": "polite" },
    "Point at the chart, or use its arrow keys.",
  );
  const shown = series.filter((one) => one.points.length && one.kind !== "guide");
  const chosen = { line: 0, point: -1 };
  let places = [];
  let cursor = null;

  function select(line, point) {
    if (!shown.length) return;
    chosen.line = (line + shown.length) % shown.length;
    const { name, points } = shown[chosen.line];
    chosen.point = Math.max(0, Math.min(points.length - 1, point));
    const [across, down] = places[chosen.line][chosen.point];
    cursor.setAttribute("cx", across);
    cursor.setAttribute("cy", down);
    cursor.removeAttribute("visibility");
    const { values, name: own = name } = points[chosen.point];
    readout.textContent = `${own}: ${x.label} ${values[0]}, ${y.label} ${values[1]}`;
  }

  function redraw(width) {
    const height = LINE_HEIGHT + MARGIN.top + MARGIN.bottom;
    const inner = Math.max(60, width - MARGIN.left - MARGIN.right);
    const scale = (range, value) => (value - range[0]) / (range[1] - range[0] || 1);
    const place = (point) => [
      MARGIN.left + scale(x.range, point.x) * inner,
      MARGIN.top + (1 - scale(y.range, point.y)) * LINE_HEIGHT,
    ];
    const svg = draw("svg", {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "aria-hidden": "true",
    });
    drawAxes(svg, { x, y, inner, place });
    series.forEach((one) => svg.append(...drawSeries(one, place, inner, wide)));
    places = shown.map((one) => one.points.map(place));
    cursor = draw("circle", { class: "cursor", r: 7, visibility: "hidden" });
    svg.append(cursor);
    plot.replaceChildren(svg);
    if (chosen.point >= 0) select(chosen.line, chosen.point);
  }

  function findNearest(event) {
    const box = plot.getBoundingClientRect();
    let best = { distance: Infinity };
    places.forEach((own, line) =>
      own.forEach(([across, down], point) => {
        const distance = Math.hypot(
          across - event.clientX + box.left,
          down - event.clientY + box.top,
        );
        if (distance < best.distance) best = { distance, line, point };
      }),
    );
    if (best.distance < Infinity) select(best.line, best.point);
  }

  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  plot.addEventListener("keydown", (event) => {
    if (!steps[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    const [line, point] = steps[event.key];
    event.preventDefault();
    select(chosen.line + line, chosen.point + point);
  });
  plot.addEventListener("pointermove", findNearest);
  plot.addEventListener("pointerdown", findNearest);
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(plot.clientWidth);
    if (width && width !== drawn) redraw((drawn = width));
  }).observe(plot);
  return make(
    "figure",
    {},
    make("figcaption", {}, title),
    plot,
    readout,
    makeLegend(series),
    makeValues(title, x, y, series),
  );
}

function drawAxes(svg, { x, y, inner, place }) {
  const bottom = MARGIN.top + LINE_HEIGHT;
  for (const { at, label } of y.ticks) {
    const [, down] = place({ x: x.range[0], y: at });
    svg.append(
      draw("line", { class: "grid", x1: MARGIN.left, x2: MARGIN.left + inner, y1: down, y2: down }),
      draw("text", { x: MARGIN.left - 6, y: down + 4, "text-anchor": "end" }, label),
    );
  }
  for (const { at, label } of x.ticks) {
    const [across] = place({ x: at, y: y.range[0] });
    svg.append(
      draw("line", { class: "grid", x1: across, x2: across, y1: MARGIN.top, y2: bottom }),
      draw("text", { x: across, y: bottom + 18, "text-anchor": "middle" }, label),
    );
  }
  const middle = MARGIN.top + LINE_HEIGHT / 2;
  svg.append(
    draw("text", { x: MARGIN.left + inner / 2, y: bottom + 38, "text-anchor": "middle" }, x.label),
    draw(
      "text",
      { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` },
      y.label,
    ),
  );
}

function drawSeries({ kind, points, number }, place, inner, wide) {
  const places = points.map(place);
  const along = places.map((at) => at.map((value) => value.toFixed(1)).join(",")).join(" ");
  if (kind === "guide") return [draw("polyline", { class: "guide", points: along })];
  if (kind === "line") {
    const line = {
      fill: "none",
      stroke: colour(number),
      "stroke-width": 2,
      "stroke-dasharray": dash(number),
    };
    return places.length > 1 ? [draw("polyline", { points: along, ...line })] : places.map(drawDot);
  }
  if (kind === "bar") {
    const bottom = MARGIN.top + LINE_HEIGHT;
    return places.map(([across, down]) =>
      draw("rect", {
        x: across - (wide * inner) / 2,
        width: wide * inner,
        y: down,
        height: Math.max(0, bottom - down),
        fill: colour(number),
      }),
    );
  }
  return places.map(drawDot);

  function drawDot([cx, cy]) {
    return draw("circle", { cx, cy, r: 5, fill: colour(number), stroke: "var(--paper)" });
  }
}

function makeLegend(series) {
  const marks = new Map();
  for (const { name, kind, number } of series)
    marks.set(name, [...(marks.get(name) || []), drawMark(kind, number)]);
  const entries = [...marks].map(([name, drawn]) =>
    make(
      "li",
      {},
      draw("svg", { width: 24, height: 12, "aria-hidden": "true" }, ...drawn),
      make("span", {}, name),
    ),
  );
  return make("ul", { class: "legend" }, ...entries);
}

function drawMark(kind, number) {
  if (kind === "guide") return draw("line", { class: "guide", x1: 0, x2: 24, y1: 6, y2: 6 });
  if (kind === "line")
    return draw("line", {
      x1: 0,
      x2: 24,
      y1: 6,
      y2: 6,
      stroke: colour(number),
      "stroke-width": 2,
      "stroke-dasharray": dash(number),
    });
  if (kind === "bar")
    return draw("rect", { x: 6, y: 0, width: 12, height: 12, fill: colour(number) });
  return draw("circle", { cx: 12, cy: 6, r: 5, fill: colour(number) });
}

/** The values of a chart as a table, made when it is opened. */
function makeValues(title, x, y, series) {
  const details = make("details", {}, make("summary", {}, "Values as a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const rows = series
      .filter(({ points }) => points[0]?.values)
      .flatMap(({ name, points }) => points.map((point) => [point.name || name, ...point.values]));
    details.append(makeTable(`${title}: values`, [["", x.label, y.label], ...rows]));
  });
  return details;
}
