// Keys that go through the list and through the questions.

function focusRow(row) {
  const links = at("list").querySelectorAll("tbody a");
  if (!links.length) return;
  active = Math.max(0, Math.min(links.length - 1, row));
  links.forEach((anchor, number) => {
    anchor.tabIndex = number === active ? 0 : -1;
  });
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
  const does = (action) => {
    event.preventDefault();
    action();
  };
  if (event.key === "Escape" && STATE.q !== "") does(closeQuestion);
  else if (event.key === "/" && single && at("browse").offsetParent !== null)
    does(() => at("search").focus());
  else if (inDetail && single && event.key === "j") does(() => moveQuestion(1));
  else if (inDetail && single && event.key === "k") does(() => moveQuestion(-1));
  else if (inDetail || writes) return;
  else if ((event.key === "j" && single) || (event.key === "ArrowDown" && inList))
    does(() => stepRow(inList, 1));
  else if ((event.key === "k" && single) || (event.key === "ArrowUp" && inList))
    does(() => stepRow(inList, -1));
}

function stepRow(inList, step) {
  if (inList) moveRow(step);
  else focusRow(active);
}
