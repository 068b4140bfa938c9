// The figures of a report, as `rag_jax.evaluation.figures` describes them.

function makeFigure(title, figure) {
  return { lines: makeLineFigure, bars: makeBarFigure, costs: makeCostFigure }[figure.kind](
    title,
    figure,
  );
}

const UNIT = { range: [0, 1], ticks: listTicks([0, 1]) };

function describe([x, y]) {
  return { x, y, values: [format(x), format(y)] };
}

function makeLineFigure(title, { x, y, lines, points, guides }) {
  const names = [...new Set([...Object.keys(lines), ...Object.keys(points)])];
  const list = (from, kind, pick) =>
    Object.entries(from).map(([name, value]) => ({
      name,
      kind,
      number: numberName(name, names),
      points: pick(value).map(describe),
    }));
  const series = [
    ...list(guides, "guide", (v) => v),
    ...list(lines, "line", (v) => v),
    ...list(points, "dots", (v) => [v]),
  ];
  return makeChart({ title, x: { ...UNIT, label: x }, y: { ...UNIT, label: y }, series });
}

function makeBarFigure(title, { y, groups, bars }) {
  const names = Object.keys(bars);
  const width = 0.8 / names.length / groups.length;
  const series = names.map((name, number) => ({
    name,
    kind: "bar",
    number: numberName(name, names),
    points: bars[name]
      .map((height, group) => ({ height, group }))
      .filter(({ height }) => height !== null)
      .map(({ height, group }) => ({
        x: (group + 0.1) / groups.length + (number + 0.5) * width,
        y: height,
        values: [groups[group], format(height)],
      })),
  }));
  const ticks = groups.map((label, group) => ({ at: (group + 0.5) / groups.length, label }));
  return makeChart({
    title,
    x: { label: "group", range: [0, 1], ticks },
    y: { ...UNIT, label: y },
    series,
    wide: width,
  });
}

function makeCostFigure(title, { x, y, points, groups, frontier }) {
  const costs = Object.values(points).map(([cost]) => cost);
  const logs = costs.filter((cost) => cost > 0).map(Math.log10);
  const first = logs.length ? Math.floor(Math.min(...logs)) : 0;
  const last = Math.max(first + 1, logs.length ? Math.ceil(Math.max(...logs)) : 0);
  const zero = costs.some((cost) => cost <= 0) ? first - (last - first) / 8 : null;
  const place = (cost) => (cost > 0 ? Math.log10(cost) : zero);
  const names = [...new Set(Object.values(groups))];
  const series = names.map((group) => ({
    name: group,
    kind: "dots",
    number: numberName(group, names),
    points: Object.entries(points)
      .filter(([name]) => groups[name] === group)
      .map(([name, [cost, score]]) => ({
        name,
        x: place(cost),
        y: score,
        values: [format(cost), format(score)],
      })),
  }));
  const along = frontier.map((name) => ({ x: place(points[name][0]), y: points[name][1] }));
  if (along.length)
    series.unshift({ name: "no row beats these", kind: "guide", number: 0, points: along });
  const range = [zero === null ? first : zero, last];
  return makeChart({
    title,
    x: { label: x, range, ticks: listDecades([first, last], zero) },
    y: { ...UNIT, label: y },
    series,
  });
}
