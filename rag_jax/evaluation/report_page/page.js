// The page: its views, its theme, and what it does when its address changes.

const VIEWS = {
  summary: showSummary,
  questions: showQuestions,
  training: showTraining,
  run: showRun,
};
const THEMES = { "": "as the system", light: "light", dark: "dark" };
const shown = {};

function render() {
  const view = VIEWS[STATE.view] ? STATE.view : "summary";
  document.documentElement.dataset.theme = STATE.theme;
  document.getElementById("theme").textContent = `Theme: ${THEMES[STATE.theme] || THEMES[""]}`;
  for (const anchor of document.querySelectorAll("[data-view]")) {
    anchor.href = link({ view: anchor.dataset.view });
    if (anchor.dataset.view === view) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  for (const name of Object.keys(VIEWS)) {
    const place = document.getElementById(name);
    place.hidden = name !== view;
    // What a view shows changes with its own settings alone.
    const depends = name === "questions" ? location.hash : name === "training" ? STATE.metric : "";
    if (name === view && shown[name] !== depends) {
      const focused = document.activeElement && document.activeElement.id;
      if (name !== "questions") place.replaceChildren();
      VIEWS[name](place);
      if (name === "training" && focused === "metric") document.getElementById("metric").focus();
      shown[name] = depends;
    }
  }
}

document
  .getElementById("notes")
  .append(
    ...DATA.runs
      .filter((run) => run.note)
      .map((run) => make("p", { class: "note" }, nameOf(run, run.note))),
  );
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
document.getElementById("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  change({ theme: names[(names.indexOf(STATE.theme) + 1) % names.length] });
});
window.addEventListener("hashchange", () => {
  readState();
  render();
});
readState();
startQuestions();
render();
