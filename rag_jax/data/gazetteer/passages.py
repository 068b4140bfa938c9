"""Writes the gazetteer's passages: three or four short ones for a country, two for a city.

A fact stands in two passages, worded in two ways, as it does in an encyclopedia that mentions a
place in more than one article. With one alone, at most one of a question's retrieved passages could
help, whatever the question, and comparing sources by several passages each would say nothing.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rag_jax.data.gazetteer import places, templates
from rag_jax.data.gazetteer.places import City, Country
from rag_jax.data.gazetteer.scene import Passage, Question, Scene, make_rng

# More would make the passage long; a question's answer must be among the listed ones or their kin.
MAX_LISTED_LANGUAGES = 4
_MAX_NEIGHBOURS_WITH_CITIES = 6
_MAX_NEIGHBOURS_BESIDE = 3
_MIN_WORDS = 22


def write_passages(scene: Scene) -> list[Passage]:
    """Returns the passages of all countries by code, then those of the scene's cities by size."""
    countries = [p for c in scene.described for p in _write_country(scene, c)]
    return countries + [p for city in scene.cities for p in _write_city(scene, city)]


def write_talk(scene: Scene, questions: Sequence[Question], pages: int) -> Iterator[Passage]:
    """Yields up to so many talk pages for every place: each asks one question and answers none.

    What is most like a question is then no passage that helps, which only training can tell a
    retriever.

    Args:
      questions: every one that can be asked.
    """
    by_place: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_place[question.passage_id.split("/")[1]].append(question)
    for place, group in by_place.items():
        rng = make_rng(scene.seed, "talk", place)
        for question in rng.sample(group, min(pages, len(group))):
            text = rng.choice(templates.TALK).format(question=question.question)
            yield Passage(f"talk/{question.id}", f"Talk: {question.subject}", text)


def _write_country(scene: Scene, country: Country) -> Iterator[Passage]:
    code, (currency, currency_code) = country.code, scene.facts.currency[country.code]
    values = {
        "code": code,
        "name": templates.begin_sentence(country.running),
        "running": country.running,
        "kind": "territory" if country.is_territory else "country",
        "continent": country.continent,
        "area": templates.write_area(country.area_km2),
        "population": templates.write_number(country.population),
        "currency": currency,
        "currency_code": currency_code,
        "domain": country.domain,
        "calling_code": country.calling_code,
    }

    def say(options: Sequence[str], **more: str) -> str:
        return scene.choose(options, code, options[0]).format(**values, **more)

    def make(part: str, *sentences: str) -> Passage:
        text = " ".join(filter(None, sentences))
        for fillers in templates.FILLERS:
            if len(text.split()) < _MIN_WORDS and part != "government":
                text = f"{text} {say(fillers)}".lstrip()
        return Passage(f"country/{code}/{part}", country.name, text)

    capital = scene.facts.capital[code]
    clause = say(templates.CAPITAL, capital=capital) if capital else ""
    population = templates.POPULATION if country.population else templates.NO_POPULATION
    yield make("government", say(templates.GOVERNMENT, capital=clause), say(population))

    languages = country.languages[:MAX_LISTED_LANGUAGES]
    spoken = templates.LANGUAGES if len(languages) > 1 else templates.LANGUAGE
    codes = templates.CODES if country.calling_code else templates.DOMAIN
    yield make(
        "economy",
        say(templates.MONEY) if currency and country.population else "",
        say(spoken, languages=templates.write_list(languages)) if languages else "",
        say(codes) if country.domain else "",
    )

    largest = [c.name for c in places.load_cities_by_country().get(code, ())[:4]]
    neighbours = [scene.countries[n].running for n in country.neighbours]
    borders = templates.NEIGHBOURS if len(neighbours) > 1 else templates.NEIGHBOUR
    sentences = []
    if neighbours:
        sentences.append(say(borders, neighbours=templates.write_list(neighbours)))
    if len(largest) > 1 and len(neighbours) <= _MAX_NEIGHBOURS_WITH_CITIES:
        sentences.append(say(templates.CITIES, cities=templates.write_list(largest)))
    if sentences:
        yield make("neighbours", *sentences)

    beside = templates.write_list(neighbours[:_MAX_NEIGHBOURS_BESIDE]) if neighbours else ""
    borders = say(templates.OVERVIEW_BORDERS, neighbours=beside) if beside else ""
    is_lived_in = bool(languages and country.population)
    money = say(templates.OVERVIEW_MONEY) if currency else ""
    yield make(
        "overview",
        say(templates.OVERVIEW, borders=borders),
        say(templates.OVERVIEW_CAPITAL, capital=capital) if capital else "",
        say(templates.OVERVIEW_DAILY, languages=templates.write_list(languages), money=money)
        if is_lived_in
        else "",
    )


def _write_city(scene: Scene, city: City) -> Iterator[Passage]:
    country = scene.countries[city.country]
    values = {
        "name": city.name,
        "running": country.running,
        "size": "city" if city.population >= 100_000 else "town",
        "where": f"{city.state}, {country.name}" if city.state else country.running,
        "population": templates.write_number(city.population),
        "latitude": templates.write_degrees(city.latitude, poles="NS"),
        "longitude": templates.write_degrees(city.longitude, poles="EW"),
        "calling_code": country.calling_code,
    }

    def say(options: Sequence[str], **more: str) -> str:
        return scene.choose(options, city.id, options[0]).format(**values, **more)

    sentences = [say(templates.CITY)]
    if places.find_city(city.country, scene.facts.capital[city.country]) == city:
        sentences.append(say(templates.CITY_IS_CAPITAL))
    near = places.find_nearest_big().get(city.id)
    if near:
        distance = f"{near[1]:.0f}" if near[1] < 20 else f"{round(near[1] / 10) * 10}"
        facts = {"near": near[0].name, "distance": distance, "direction": near[2]}
        sentences.append(say(templates.CITY_NEAR, **facts))
        place = say(templates.CITY_MAP_NEAR, **facts)
    else:
        sentences.append(say(templates.CITY_POSITION))
        place = say(templates.CITY_MAP_POSITION)
    yield Passage(f"city/{city.id}", city.name, " ".join(sentences))
    on_map = f"{say(templates.CITY_MAP, place=place)} {say(templates.CITY_PHONE)}"
    yield Passage(f"city/{city.id}/map", city.name, on_map)
