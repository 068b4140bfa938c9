"""The page of a report in a browser: what it finds, shows and says, by pointer and by keyboard."""

import contextlib
import re

import pytest

from browser.made_run import COUNT, HOSTILE, SETS, TYPES, list_questions
from rag_jax.evaluation.answers import popularity_thirds

pytestmark = pytest.mark.browser

QUESTIONS = {question.id: question for question in list_questions()}
THIRDS = dict(
    zip(QUESTIONS, popularity_thirds([q.popularity for q in QUESTIONS.values()]), strict=True)
)
VIEWS = ("view=summary", "view=questions", "view=questions&q=q/3", "view=training", "view=run")


@contextlib.contextmanager
def following(page):
    """Waits until the page has taken in the address that a link within leads to."""
    page.evaluate(
        """() => { window.followed = new Promise((done, fail) => {
             addEventListener("hashchange", () => done(null), { once: true });
             setTimeout(() => fail(new Error("the address stayed as it was")), 5000);
           }); }"""
    )
    yield
    page.evaluate("window.followed")  # which is waited for


def list_ids(page):
    """The ids of the questions on all pages of the list, in its order."""
    ids = []
    while True:
        links = page.locator("#list tbody a").evaluate_all("found => found.map(a => a.hash)")
        ids += [re.search(r"(?:^#|&)q=([^&]*)", link)[1].replace("%2F", "/") for link in links]
        if page.locator("#after").is_disabled():
            return ids
        page.click("#after")


def find(made, *, right=None, wrong=None, source=None, fits=lambda question: True):
    """The ids that filters leave, in the slow way."""
    records = {
        name: {record["id"]: record for record in rows} for name, rows in made.records.items()
    }

    def is_rated(name, id, score):
        names = records if name == "any" else [name]
        return name is None or any(records[n][id]["correct"] == score for n in names)

    return [
        id
        for id, question in QUESTIONS.items()
        if is_rated(right, id, 1)
        and is_rated(wrong, id, 0)
        and (source is None or records["routed"][id]["source"] == source)
        and fits(question)
    ]


FILTERS = [
    ({"right": "alone", "wrong": "routed"}, {"right": "alone", "wrong": "routed"}),
    ({"right": "any method"}, {"right": "any"}),
    ({"source": "routed: Wiki", "wrong": "any method"}, {"source": "Wiki", "wrong": "any"}),
    ({"set": SETS[1]}, {"fits": lambda q: q.dataset == SETS[1]}),
    ({"type": TYPES[0]}, {"fits": lambda q: q.type == TYPES[0]}),
    ({"third": "tail: least popular third"}, {"fits": lambda q: THIRDS[q.id] == "tail"}),
]


@pytest.mark.parametrize(("chosen", "wanted"), FILTERS)
def test_filters_find_what_a_slow_search_finds(visit, made, chosen, wanted):
    page = visit(made.page, "view=questions&page=2")
    for name, label in chosen.items():
        page.select_option(f"#{name}", label=label)
    ids = find(made, **wanted)
    assert 0 < len(ids) < COUNT
    assert page.inner_text("#count") == f"{len(ids)} of {COUNT} questions"
    assert page.get_attribute("#count", "role") == "status"
    found = list_ids(page)
    assert found == ids
    # The address leads another page to the same list.
    again = visit(made.page, page.evaluate("location.hash.slice(1)").replace("page=", "x="))
    assert list_ids(again) == ids
    page.click("#clear")
    assert page.inner_text("#count") == f"{COUNT} of {COUNT} questions"


def test_a_search_looks_through_questions_answers_and_predictions(visit, made):
    page = visit(made.page, "view=questions")
    for text, ids in {
        "TOWN 77?": ["q/77"],
        "12 LAND": ["q/12", "q/112"],  # every word, in any order
        "q/45": ["q/45"],
        "<img onerror": find(made, wrong="any", fits=lambda q: True),
        "nothing of the kind": [],
    }.items():
        page.fill("#search", text)
        wanted = {*ids} | ({"q/3"} if "<img" in text else set())
        assert {*list_ids(page)} == wanted
        assert page.inner_text("#count").startswith(f"{len(wanted)} of")


def test_headings_sort_up_down_and_not(visit, made):
    page = visit(made.page, "view=questions")
    ids = list(QUESTIONS)
    popularity = {id: question.popularity for id, question in QUESTIONS.items()}
    known = [id for id in ids if popularity[id] is not None]
    unknown = [id for id in ids if popularity[id] is None]
    button = page.locator("[data-sort=popularity]")
    for order, wanted in {
        "ascending": sorted(known, key=popularity.get) + unknown,
        "descending": sorted(known, key=lambda id: -popularity[id]) + unknown,
        None: ids,
    }.items():
        button.click()
        assert button.evaluate("button => button.parentElement.ariaSort") == order
        assert list_ids(page) == wanted
        page.click("#before")
    button = page.get_by_role("button", name="alone")
    button.click()
    scores = {record["id"]: record["correct"] for record in made.records["alone"]}
    assert list_ids(page) == sorted(ids, key=scores.get)


def test_another_score_may_say_what_is_right(visit, made):
    page = visit(made.page, "view=questions")
    page.select_option("#score", label="f1, from 0.5 on")
    page.select_option("#right", label="alone")
    ids = [record["id"] for record in made.records["alone"] if record["f1"] >= 0.5]
    assert list_ids(page) == ids


def test_a_link_opens_a_question_with_everything_known_of_it(visit, made):
    routed = made.records["routed"][60:]  # on the second page
    found = next(r for r in routed if r["source"] == "Wiki" and r["correct"])
    question = QUESTIONS[found["id"]]
    page = visit(made.page, f"view=questions&q={found['id']}")
    detail = page.locator("#detail")
    assert detail.locator("h2").inner_text() == question.question
    text = detail.inner_text()
    for wanted in (question.answers[0], question.type, question.dataset, found["prediction"]):
        assert wanted in text
    answer = detail.locator("details.answer").nth(1)
    text = answer.inner_text()
    assert text.startswith("routed: ✓ right, Land")
    shares = f"{found['probabilities'][1]:.3f}\t0.750\t✓ right"
    assert f"Wiki, chosen\t{shares}" in text
    passages = answer.locator(".passages li")
    number = int(found["passages"][0]["id"][1:])
    for rank, item in enumerate(passages.all(), 1):
        place = (number + rank - 1) % 7
        shown = item.inner_text()
        relevant = ", relevant by the data" if f"p{place}" in question.relevant else ""
        score = f"{10.5 - rank:g}"
        assert shown.startswith(f"Title {place} rank {rank}, score {score}{relevant}; p{place}")
        assert f"Passage {place} of Land {place}. {HOSTILE[:30]}" in shown
    assert passages.count() == 3
    marked = answer.locator("mark").first.inner_text()
    assert marked == question.answers[0]
    # Its row is the marked one of the list, on whatever page of it.
    assert page.locator("#list tr.chosen a").inner_text() == question.question
    # By the browser's own history, and by the list.
    page.click("text=Next question")
    with following(page):
        page.go_back()
    assert page.inner_text("#asked") == question.question
    with following(page):
        page.get_by_role("link", name="Back to the list").click()
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("document.activeElement.textContent") == question.question


def test_a_text_is_never_markup(visit, made):
    page = visit(made.page, "view=questions&q=q/3")
    assert page.inner_text("#asked").startswith(f"Question 3: {HOSTILE[:50]}")
    assert page.locator("img").count() == 0
    with following(page):
        page.click("[data-view=summary]")
    assert HOSTILE[:50] in page.locator("h1").inner_text()
    assert page.locator("img").count() == 0


def test_the_keyboard_alone_finds_and_opens(visit, made):
    page = visit(made.page, "view=questions")

    def focused():
        return page.evaluate("document.activeElement.id || document.activeElement.text")

    page.keyboard.press("Tab")
    assert focused() == "skip" and page.locator("#skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert focused() == "main" and page.url.endswith("#view=questions")
    page.keyboard.press("/")
    assert focused() == "search"
    page.keyboard.type("town 11 j/")
    assert page.input_value("#search") == "town 11 j/"
    page.fill("#search", "town")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert focused() == "Where is the town 0?"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert focused() == "Where is the town 1?"
    for _ in range(50):  # over the end of the list's first page; town 3 is no town
        page.keyboard.press("ArrowDown")
    assert focused() == "Where is the town 52?"
    assert page.inner_text("#place") == "Page 2 of 3"
    with following(page):
        page.keyboard.press("Enter")
    assert focused() == "asked" and page.inner_text("#asked") == "Where is the town 52?"
    page.keyboard.press("j")
    assert page.inner_text("#asked") == "Where is the town 53?"
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden() and focused() == "Where is the town 51?"
    page.click("text=Keys")
    page.uncheck("#keys")
    page.keyboard.press("/")
    assert focused() == "keys"


def test_every_element_that_takes_a_key_is_reached_by_tab(visit, made):
    page = visit(made.page, "view=summary")
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert {f"{name}. Arrow keys go to the points." for name in ("Frontier", "Thirds")} <= seen


def list_values(figure):
    """The rows of a chart's table, which is made when it is opened."""
    figure.locator("summary").click()
    rows = figure.locator("tbody tr")
    rows.first.wait_for()
    return rows.all_inner_texts()


def test_charts_tell_their_values(visit, made):
    page = visit(made.page, "view=summary")
    figure = page.locator("figure", has=page.get_by_text("Frontier", exact=True))
    plot, readout = figure.locator(".plot"), figure.locator(".readout")
    plot.focus()
    said = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        said.append(readout.inner_text())
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    said.append(readout.inner_text())
    assert said == [
        "routed: retrieval rate 0, accuracy 0.25",
        "routed: retrieval rate 0.5, accuracy 0.75",
        "routed: retrieval rate 1, accuracy 0.5",
        "alone: retrieval rate 0, accuracy 0.125",
    ]
    # By pointer, in the middle of the chart's area: the point (0.5, 0.75) is nearest.
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 58 + (box["width"] - 72) / 2, box["y"] + 12 + 300 / 4)
    assert readout.inner_text() == said[1]
    rows = list_values(figure)
    assert "routed\t0.5\t0.75" in rows and "at random\t1\t0.5" in rows
    bars = page.locator("figure", has=page.get_by_text("Thirds", exact=True))
    heights = bars.locator(".plot rect").evaluate_all(
        "r => r.map(x => Number(x.getAttribute('height')))"
    )
    assert heights == [150, 300, 75]
    costs = page.locator("figure", has=page.get_by_text("Costs", exact=True))
    assert list_values(costs) == ["a\t0\t0.5", "b\t20\t1"]


def test_training_curves(visit, pair):
    page = visit(pair.page, "view=training")
    assert page.input_value("#metric") == "loss"
    page.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".readout") == "first: loss: step 0, loss 4"
    page.keyboard.press("ArrowDown")
    assert page.inner_text(".readout") == "second: loss: step 0, loss 2"
    page.select_option("#metric", "grad_norm")
    assert len(list_values(page.locator("figure"))) == 24


def test_the_programs_of_a_run(visit, made):
    page = visit(made.page, "view=run")
    rows = page.locator("table", has_text="programs that took half a second").locator("tbody tr")
    assert rows.all_inner_texts() == ["train_step\ttrain\t1\t1.5\t2\t0.2"]


def test_runs_side_by_side(visit, pair):
    page = visit(pair.page)
    notes = page.locator("#summary .note").all_inner_texts()
    assert notes == [
        "The runs ask different questions: 20 of 140 are in all.",
        "100 are in first alone.",
        "20 are in second alone.",
    ]
    rows = page.locator("#summary table").first.locator("tbody th").all_inner_texts()
    assert rows == ["first: alone", "first: routed", "second: routed"]
    with following(page):
        page.click("[data-view=questions]")
    page.select_option("#right", label="second: routed")
    page.select_option("#wrong", label="first: routed")
    first, second = (
        {record["id"]: record["correct"] for record in records["routed"]}
        for records in pair.records
    )
    ids = [id for id, score in second.items() if score and first.get(id) == 0]
    assert ids and list_ids(page) == ids
    page = visit(pair.page, "view=questions&q=q/110")
    shown = page.locator("#detail .answer").all_inner_texts()
    assert [text.split(": ✓")[0].split(": ✗")[0] for text in shown] == rows
    assert page.locator("#detail > *").last.get_attribute("class") == "answer"
    assert not re.search(r"null|undefined|NaN", page.inner_text("body"))
    page = visit(pair.page, "view=questions&q=q/1")
    assert "Not asked in second." in page.inner_text("#detail")


def test_light_and_dark(visit, made):
    page = visit(made.page, "view=run", theme="dark")

    def colour():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert colour() == "rgb(21, 23, 27)"
    page.click("#theme")
    assert colour() == "rgb(255, 255, 255)" and page.inner_text("#theme") == "Theme: light"
    page.click("#theme")
    assert colour() == "rgb(21, 23, 27)" and "theme=dark" in page.url
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: as the system"


@pytest.mark.parametrize(("width", "theme"), [(380, "light"), (1280, "dark")])
def test_axe_finds_nothing(visit, pair, width, theme):
    why = "axe-core is not installed (the extra browser)"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=why).Axe()
    for place in (*VIEWS, "view=questions&q=q/110"):  # which both runs have
        page = visit(pair.page, place, width=width, theme=theme)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        found = axe.run(page)
        assert found.violations_count == 0, f"{place}: {found.generate_report()}"


@pytest.mark.parametrize("place", VIEWS)
def test_a_narrow_screen_reads_all(visit, pair, place):
    page = visit(pair.page, place, width=380)
    assert page.evaluate("document.documentElement.scrollWidth") == 380
    sizes = page.evaluate(
        """[...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
             && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
             .map(e => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert min(sizes) >= 13
    if "q=" in place:
        assert page.locator("#browse").is_hidden()  # the question has the screen for itself
        with following(page):
            page.get_by_role("link", name="Back to the list").click()
        assert page.locator("#browse").is_visible()
