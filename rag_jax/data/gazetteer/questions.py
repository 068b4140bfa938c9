"""Writes the gazetteer's questions and deals them to the splits."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rag_jax.data.gazetteer import names, places, templates
from rag_jax.data.gazetteer.places import City, Country
from rag_jax.data.gazetteer.scene import BANDS, Facts, Question, Scene, make_rng
from rag_jax.runtime.errors import RagJaxError

# When a relation comes up for an entity, against the others: the smaller, the earlier. Common
# knowledge comes first, so that a small model has something to know; then what is known of popular
# places alone; what few know by heart comes last.
_LATENESS = {"continent": 0.3, "language": 0.3, "capital": 0.5, "capital_of": 0.5}

# One acceptable thing to name, with its other names: `("Persian", "Farsi", "Dari")`.
_Names = tuple[str, ...]


@dataclass(frozen=True)
class _Subject:
    phrase: str  # as it stands in the question
    name: str
    popularity: int


@dataclass(frozen=True)
class _Candidate:
    question: Question
    component: str  # entities that must stay in one split


def choose_questions(scene: Scene, counts: dict[str, int]) -> dict[str, list[Question]]:
    """Returns `counts[split]` questions for every split, in random order.

    Entities are dealt to the splits, not questions. Within a split a third of the questions comes
    from each band of popularity (as far as there are enough), and every entity is asked about once
    before any is asked about twice.

    Raises:
      RagJaxError: naming the split for which too few questions are left.
    """
    candidates = list(_write_questions(scene))
    split_of = _deal_components(scene, candidates, counts)
    chosen = {}
    for split, count in counts.items():
        rng = make_rng(scene.seed, "questions", split)
        pool = [c for c in candidates if split_of.get(c.component) == split]
        if len(pool) < count:
            raise RagJaxError(
                f"{split}={count}: only {len(pool)} of all {len(candidates)} questions are left "
                "for this split; ask for fewer questions or more cities"
            )
        pool.sort(key=lambda c: rng.random() * _LATENESS.get(c.question.relation, 1.0))
        turns: Counter[str] = Counter()
        by_turn = []
        for candidate in pool:
            by_turn.append((turns[candidate.component], candidate.question))
            turns[candidate.component] += 1
        by_turn.sort(key=lambda pair: pair[0])  # stable
        bands: list[list[Question]] = [[], [], []]
        for _, question in by_turn:
            bands[_find_band(question.popularity)].append(question)
        quotas = [count // 3 + (i < count % 3) for i in range(3)]
        taken = [q for band, quota in zip(bands, quotas, strict=True) for q in band[:quota]]
        spare = [q for band, quota in zip(bands, quotas, strict=True) for q in band[quota:]]
        taken += spare[: count - len(taken)]
        rng.shuffle(taken)
        chosen[split] = taken
    return chosen


def list_questions(scene: Scene) -> list[Question]:
    """Every question that the world can be asked, the same ones in both revisions."""
    return [candidate.question for candidate in _write_questions(scene)]


def _find_band(popularity: int) -> int:
    return sum(popularity < lower for lower in BANDS)


def _deal_components(
    scene: Scene, candidates: list[_Candidate], counts: dict[str, int]
) -> dict[str, str]:
    popularity: dict[str, int] = {}
    for c in candidates:
        popularity[c.component] = max(popularity.get(c.component, 0), c.question.popularity)
    wanted = [split for split, count in counts.items() if count]
    dealt = {}
    for band in range(3):
        components = sorted(c for c, size in popularity.items() if _find_band(size) == band)
        make_rng(scene.seed, "splits", band).shuffle(components)
        given: Counter[str] = Counter()
        for component in components if wanted else ():
            split = min(wanted, key=lambda s: (given[s] + 1) / counts[s])
            given[split] += 1
            dealt[component] = split
    return dealt


def _write_questions(scene: Scene) -> Iterator[_Candidate]:
    """Yields every question that can be asked fairly in both revisions."""
    capital_cities = {}
    for code in scene.countries:
        for facts in scene.revisions:
            city = places.find_city(code, facts.capital[code])
            if city:
                capital_cities[city.id] = code
    for country in scene.described:
        if country.population:
            yield from _ask_about_country(scene, country)
    unique = _find_unique(scene.cities)
    same_place = Counter(_locate(c) for c in places.load_cities())
    for city in scene.cities:
        component = capital_cities.get(city.id, f"city/{city.id}")
        is_unique = city.id in unique
        if is_unique or same_place[_locate(city)] == 1:
            yield from _ask_about_city(scene, city, component=component, is_unique=is_unique)


def _find_unique(cities: list[City]) -> set[int]:
    """Returns the ids of the cities that their name alone identifies.

    It does if the world holds no other of that name, and the largest other one anywhere has less
    than a tenth of the people.
    """
    here = Counter(places.fold_name(c.name) for c in cities)
    sizes: dict[str, list[int]] = {}
    for city in places.load_cities():  # the most populous first
        sizes.setdefault(places.fold_name(city.name), []).append(city.population)
    unique = set()
    for city in cities:
        name = places.fold_name(city.name)
        others = [size for size in sizes[name] if size != city.population] or [0]
        is_only = len(sizes[name]) == 1
        if here[name] == 1 and (is_only or city.population > 10 * others[0]):
            unique.add(city.id)
    return unique


def _locate(city: City) -> tuple[str, str, str]:
    return places.fold_name(city.name), city.country, city.state


def _ask_about_country(scene: Scene, country: Country) -> Iterator[_Candidate]:
    code = country.code
    subject = _Subject(country.running, country.name, country.population)
    languages = [(x, *names.LANGUAGE_ALIASES.get(x, ())) for x in country.languages]
    # Of several right answers none is likely: how likely one is would say little about a source.
    only = country.neighbours if len(country.neighbours) == 1 else ()
    neighbours = [_name_country(scene.countries[n]) for n in only]
    fixed: dict[str, tuple[str, list[_Names]]] = {
        "language": ("economy", languages),
        "neighbour": ("neighbours", neighbours),
    }
    if code not in names.TWO_CONTINENTS:
        fixed["continent"] = ("government", [(country.continent,)])
    for relation, (part, options) in fixed.items():
        yield from _ask(
            scene, relation, subject, code, f"country/{code}/{part}", [options, options]
        )

    options = [_name_capital(facts, code) for facts in scene.revisions]
    yield from _ask(scene, "capital", subject, code, f"country/{code}/government", options)
    options = [_name_currency(scene, facts, code) for facts in scene.revisions]
    yield from _ask(scene, "currency", subject, code, f"country/{code}/economy", options)

    capital = country.capital
    is_fixed = all(facts.capital[code] == capital for facts in scene.revisions)
    holders = [c for f in scene.revisions for c, name in f.capital.items() if name == capital]
    if capital and is_fixed and set(holders) == {code} and not country.is_territory:
        city = places.find_city(code, capital)
        subject = _Subject(capital, capital, city.population if city else country.population)
        options = [_name_country(country)]
        gold = f"country/{code}/government"
        yield from _ask(scene, "capital_of", subject, code, gold, [options, options])


def _ask_about_city(
    scene: Scene, city: City, *, component: str, is_unique: bool
) -> Iterator[_Candidate]:
    country = scene.countries[city.country]
    gold = f"city/{city.id}"
    phrase = city.name
    if not is_unique:
        phrase = f"{city.name}, {city.state}" if city.state else f"{city.name} in {country.running}"
    subject = _Subject(phrase, phrase, city.population)
    near = places.find_nearest_big().get(city.id)
    # Of a city that shares its name nothing else can be asked: the name says where it is.
    if near:
        options = [_add_plain((near[0].name,))]
        yield from _ask(scene, "near", subject, component, gold, [options, options])
    if is_unique and not country.is_territory:
        options = [_name_country(country)]
        yield from _ask(scene, "country", subject, component, gold, [options, options])
    if is_unique and city.state:
        options = [(city.state,)]
        yield from _ask(scene, "state", subject, component, gold, [options, options])


def _name_country(country: Country) -> _Names:
    return _add_plain((country.name, *country.aliases))


def _name_capital(facts: Facts, code: str) -> list[_Names]:
    if not facts.capital[code]:
        return []
    return [_add_plain((facts.capital[code], *facts.capital_aliases[code]))]


def _name_currency(scene: Scene, facts: Facts, code: str) -> list[_Names]:
    name, short_code = facts.currency[code]
    if not name:
        return []
    # "Yen" names one currency, "dollar" many: only the first will do as an answer.
    everything = {currency for currency, _ in scene.revisions[0].currency.values()}
    last = name.split()[-1]
    is_unique = sum(currency.split()[-1:] == [last] for currency in everything) == 1
    short = (last,) if is_unique and name != last and last != "gold" else ()
    plural = (f"{name}s", *(f"{word}s" for word in short))
    return [_add_plain((name, *short, *plural, *names.CURRENCY_ALIASES.get(name, ()), short_code))]


def _add_plain(spellings: _Names) -> _Names:
    """Returns the names, each followed by its spelling without accents where that differs."""
    both = []
    for name in spellings:
        marked = unicodedata.normalize("NFKD", name)
        both += [name, "".join(c for c in marked if not unicodedata.combining(c))]
    return tuple(dict.fromkeys(both))


def _ask(
    scene: Scene,
    relation: str,
    subject: _Subject,
    component: str,
    passage_id: str,
    options: list[list[_Names]],
) -> Iterator[_Candidate]:
    """Yields the question, unless some revision's answers (`options`) leave nothing to ask."""
    entity = passage_id.split("/")[1]
    template = scene.choose(templates.QUESTIONS[relation], "question", relation, entity)
    text = templates.begin_sentence(template.format(subject=subject.phrase))
    kept = [_keep_fair(option, text=text, subject=subject.name) for option in options]
    if all(kept):
        answers = kept[scene.revisions.index(scene.facts)]
        id_ = f"{relation}/{entity}"
        question = Question(
            id_, text, answers, subject.name, relation, subject.popularity, passage_id
        )
        yield _Candidate(question, component)


def _keep_fair(options: list[_Names], *, text: str, subject: str) -> tuple[str, ...]:
    """Returns the answers that the question neither gives away nor nearly gives away."""

    def is_fair(name: str) -> bool:
        return not _holds(text, name) and not _holds(name, subject)

    kept = [name for group in options if is_fair(group[0]) for name in group if is_fair(name)]
    return tuple(dict.fromkeys(kept))


def _holds(text: str, words: str) -> bool:
    return f" {places.fold_name(words)} " in f" {places.fold_name(text)} "
