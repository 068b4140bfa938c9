"""Passages of the gazetteer: three or four short ones for a country, two for a city.

Every fact is in two passages, in two wordings, as in an encyclopedia that mentions a place in
several articles. With a single passage per fact, at most one of the retrieved passages of any
question could help, and comparing sources by several passages each would be meaningless.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from rag_jax.data.gazetteer import places, templates
from rag_jax.data.gazetteer.places import City, Country
from rag_jax.data.gazetteer.scene import Facts, Passage, Question, Scene, make_rng

# More languages would make the passage long. A question accepts the unlisted languages too.
MAX_LISTED_LANGUAGES = 4
_MAX_NEIGHBOURS_WITH_CITIES = 6
_MAX_NEIGHBOURS_BESIDE = 3
_MIN_WORDS = 22


def write_passages(scene: Scene) -> list[Passage]:
    """Returns the passages of all countries by code, then those of the cities by population."""
    countries = [p for c in scene.described for p in _write_country(scene, c)]
    return countries + [p for city in scene.cities for p in _write_city(scene, city)]


def write_talk(scene: Scene, questions: Sequence[Question], pages: int) -> Iterator[Passage]:
    """Yields talk pages, each of which repeats one question without the answer.

    The passage most similar to a question is then one that does not help, and a retriever learns
    to avoid such a passage by training only. A place has at most `pages` talk pages.
    """
    by_place: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_place[question.passage_id.split("/")[1]].append(question)
    for place, group in by_place.items():
        rng = make_rng(scene.seed, "talk", place)
        for question in rng.sample(group, min(pages, len(group))):
            text = rng.choice(templates.TALK).format(question=question.question)
            yield Passage(f"talk/{question.id}", f"Talk: {question.subject}", text)


def _make_say(scene: Scene, key: object, values: dict[str, str]) -> Callable[..., str]:
    """Returns a function that chooses a template for an entity and fills in the values."""

    def say(options: Sequence[str], **facts: str) -> str:
        # The first template names the random stream, so a fact never changes the wording.
        return scene.choose(options, key, options[0]).format(**values, **facts)

    return say


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
    say = _make_say(scene, code, values)
    neighbours = [scene.countries[n].running for n in country.neighbours]
    parts = {
        "government": _say_government(country, say, scene.facts.capital[code]),
        "economy": _say_economy(country, say, currency),
        "neighbours": _say_neighbours(country, say, neighbours),
        "overview": _say_overview(country, say, neighbours, scene.facts),
    }
    for part, sentences in parts.items():
        text = " ".join(sentences)
        if part == "neighbours" and not text:
            continue
        for fillers in templates.FILLERS:
            if len(text.split()) < _MIN_WORDS and part != "government":
                text = f"{text} {say(fillers)}".lstrip()
        yield Passage(f"country/{code}/{part}", country.name, text)


def _say_government(country: Country, say: Callable[..., str], capital: str) -> list[str]:
    clause = say(templates.CAPITAL, capital=capital) if capital else ""
    population = templates.POPULATION if country.population else templates.NO_POPULATION
    return [say(templates.GOVERNMENT, capital=clause), say(population)]


def _say_economy(country: Country, say: Callable[..., str], currency: str) -> list[str]:
    sentences = []
    if currency and country.population:
        sentences.append(say(templates.MONEY))
    languages = country.languages[:MAX_LISTED_LANGUAGES]
    if languages:
        wordings = templates.LANGUAGES if len(languages) > 1 else templates.LANGUAGE
        sentences.append(say(wordings, languages=templates.write_list(languages)))
    if country.domain:
        sentences.append(say(templates.CODES if country.calling_code else templates.DOMAIN))
    return sentences


def _say_neighbours(country: Country, say: Callable[..., str], neighbours: list[str]) -> list[str]:
    sentences = []
    if neighbours:
        wordings = templates.NEIGHBOURS if len(neighbours) > 1 else templates.NEIGHBOUR
        sentences.append(say(wordings, neighbours=templates.write_list(neighbours)))
    largest = [c.name for c in places.load_cities_by_country().get(country.code, ())[:4]]
    if len(largest) > 1 and len(neighbours) <= _MAX_NEIGHBOURS_WITH_CITIES:
        sentences.append(say(templates.CITIES, cities=templates.write_list(largest)))
    return sentences


def _say_overview(
    country: Country, say: Callable[..., str], neighbours: list[str], facts: Facts
) -> list[str]:
    capital, (currency, _) = facts.capital[country.code], facts.currency[country.code]
    borders = ""
    if neighbours:
        nearby = templates.write_list(neighbours[:_MAX_NEIGHBOURS_BESIDE])
        borders = say(templates.OVERVIEW_BORDERS, neighbours=nearby)
    sentences = [say(templates.OVERVIEW, borders=borders)]
    if capital:
        sentences.append(say(templates.OVERVIEW_CAPITAL, capital=capital))
    languages = country.languages[:MAX_LISTED_LANGUAGES]
    if languages and country.population:
        listed = templates.write_list(languages)
        money = say(templates.OVERVIEW_MONEY) if currency else ""
        sentences.append(say(templates.OVERVIEW_DAILY, languages=listed, money=money))
    return sentences


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
    say = _make_say(scene, city.id, values)
    sentences = [say(templates.CITY)]
    if places.find_city(city.country, scene.facts.capital[city.country]) == city:
        sentences.append(say(templates.CITY_IS_CAPITAL))
    nearest = places.find_nearest_big(city)
    if nearest:
        big_city, km, direction = nearest
        distance = f"{km:.0f}" if km < 20 else f"{round(km / 10) * 10}"
        facts = {"near": big_city.name, "distance": distance, "direction": direction}
        sentences.append(say(templates.CITY_NEAR, **facts))
        place = say(templates.CITY_MAP_NEAR, **facts)
    else:
        sentences.append(say(templates.CITY_POSITION))
        place = say(templates.CITY_MAP_POSITION)
    yield Passage(f"city/{city.id}", city.name, " ".join(sentences))
    on_map = f"{say(templates.CITY_MAP, place=place)} {say(templates.CITY_PHONE)}"
    yield Passage(f"city/{city.id}/map", city.name, on_map)
