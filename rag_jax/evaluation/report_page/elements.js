// Elements, whose texts are texts: nothing of the data is ever read as markup.

function fillElement(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An element; a child is an element or a text, and an attribute that is a function listens. */
function make(tag, attributes = {}, ...children) {
  return fillElement(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fillElement(
    document.createElementNS("http://www.w3.org/2000/svg", tag),
    attributes,
    children,
  );
}

/** A table that scrolls by itself; `rows` have the heading first, and cells of text or elements. */
function makeTable(caption, rows) {
  const [head, ...body] = rows;
  const titles = head.map((cell) =>
    cell === "" ? make("td") : make("th", { scope: "col" }, cell),
  );
  const lines = body.map(([name, ...cells]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      ...cells.map((cell) => make("td", {}, cell)),
    ),
  );
  const table = make(
    "table",
    {},
    make("caption", {}, make("span", {}, caption)),
    make("thead", {}, make("tr", {}, ...titles)),
    make("tbody", {}, ...lines),
  );
  return make(
    "div",
    { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    table,
  );
}

/** A description list of names and what each is, without the empty ones. */
function makeFacts(facts, kind = "facts") {
  const shown = facts.filter(([, value]) => value !== "" && value !== null);
  return make(
    "dl",
    { class: kind },
    ...shown.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

/** A text with every one of some words marked, whatever its case. */
function markWords(text, words) {
  const lower = text.toLowerCase();
  const wanted = words.map((word) => word.toLowerCase()).filter((word) => word.trim() !== "");
  const parts = [];
  let start = 0;
  // Some letters change their number with their case; then places in the two do not agree.
  while (lower.length === text.length) {
    let next = null;
    for (const word of wanted) {
      const at = lower.indexOf(word, start);
      if (at >= 0 && (next === null || at < next.at)) next = { at, end: at + word.length };
    }
    if (next === null) break;
    parts.push(text.slice(start, next.at), make("mark", {}, text.slice(next.at, next.end)));
    start = next.end;
  }
  parts.push(text.slice(start));
  return parts;
}

/** Right, wrong or neither, as a sign and in words. */
function makeVerdict(score, { brief = false } = {}) {
  if (score === null)
    return make(
      "span",
      { class: "quiet" },
      "–",
      brief ? make("span", { class: "unseen" }, "not rated") : " not rated",
    );
  const [sign, word] = isRight(score) ? ["✓", "right"] : ["✗", "wrong"];
  const said = brief ? make("span", { class: "unseen" }, word) : ` ${word}`;
  return make("span", { class: word }, make("span", { "aria-hidden": "true" }, sign), said);
}
