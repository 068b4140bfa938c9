"""Questions of the gazetteer, and their assignment to splits."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rag_jax.data.gazetteer import names, places, templates
from rag_jax.data.gazetteer.places import City, Country
from rag_jax.data.gazetteer.scene import BANDS, Facts, Question, Scene, make_rng
from rag_jax.runtime.errors import RagJaxError

# Order of the relations of an entity: a smaller factor means an earlier question on average. Common
# knowledge comes first, so that a small model knows some answers, then facts that are known about
# popular places only, then facts that few people know by heart.
_LATENESS = {"continent": 0.3, "language": 0.3, "capital": 0.5, "capital_of": 0.5}

# Names of one acceptable answer, the usual one first: `("Persian", "Farsi", "Dari")`.
_Names = tuple[str, ...]


@dataclass(frozen=True)
class _Subject:
    """Place that a question is about."""

    phrase: str  # form of the name inside the question
    name: str
    popularity: int


@dataclass(frozen=True)
class _Candidate:
    """Question, and the group of entities of one split, such as a country and its capital."""

    question: Question
    component: str


def choose_questions(scene: Scene, counts: dict[str, int]) -> dict[str, list[Question]]:
    """Chooses the questions of every split.

    Splits share no entities. A third of the questions of a split, in random order, comes from each
    band of popularity, as far as a band has enough questions, and an entity gets a second question
    only after every entity has a first one.

    Raises:
        RagJaxError: if too few questions are left for a split.
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
        num_questions: Counter[str] = Counter()
        rounds = []  # (number of earlier questions about the same component, question)
        for candidate in pool:
            rounds.append((num_questions[candidate.component], candidate.question))
            num_questions[candidate.component] += 1
        rounds.sort(key=lambda pair: pair[0])  # stable, so the order within a round is kept
        bands: list[list[Question]] = [[], [], []]
        for _, question in rounds:
            bands[_find_band(question.popularity)].append(question)
        quotas = [count // 3 + (i < count % 3) for i in range(3)]
        selected = [q for band, quota in zip(bands, quotas, strict=True) for q in band[:quota]]
        spare = [q for band, quota in zip(bands, quotas, strict=True) for q in band[quota:]]
        selected += spare[: count - len(selected)]
        rng.shuffle(selected)
        chosen[split] = selected
    return chosen


def list_questions(scene: Scene) -> list[Question]:
    """Returns every possible question about the world; both revisions have the same questions."""
    return [candidate.question for candidate in _write_questions(scene)]


def _find_band(popularity: int) -> int:
    """Returns the band of a popularity: 0 for the head, 1 for the middle, 2 for the tail."""
    return sum(popularity < lower for lower in BANDS)


def _deal_components(
    scene: Scene, candidates: list[_Candidate], counts: dict[str, int]
) -> dict[str, str]:
    """Assigns components to splits, in proportion to the counts within each band of popularity."""
    popularity: dict[str, int] = {}
    for c in candidates:
        popularity[c.component] = max(popularity.get(c.component, 0), c.question.popularity)
    splits = [split for split, count in counts.items() if count]
    split_of = {}
    for band in range(3):
        components = sorted(c for c, size in popularity.items() if _find_band(size) == band)
        make_rng(scene.seed, "splits", band).shuffle(components)
        num_components: Counter[str] = Counter()
        for component in components if splits else ():
            split = min(splits, key=lambda s: (num_components[s] + 1) / counts[s])
            num_components[split] += 1
            split_of[component] = split
    return split_of


def _write_questions(scene: Scene) -> Iterator[_Candidate]:
    """Yields every question that has a fair answer in both revisions."""
    # A capital of either revision shares the component of its country.
    capital_cities = {}
    for code in scene.countries:
        for facts in scene.revisions:
            city = places.find_city(code, facts.capital[code])
            if city:
                capital_cities[city.id] = code
    for country in scene.described:
        if country.population:
            yield from _ask_about_country(scene, country)
    unique_ids = _find_unique(scene.cities)
    location_counts = _count_locations()
    for city in scene.cities:
        component = capital_cities.get(city.id, f"city/{city.id}")
        is_unique = city.id in unique_ids
        if is_unique or location_counts[_locate(city)] == 1:
            yield from _ask_about_city(scene, city, component=component, is_unique=is_unique)


def _find_unique(cities: list[City]) -> set[int]:
    """Returns the ids of the cities that are identified by their name alone.

    A name identifies a city if the world has no other city with the name, and the largest namesake
    anywhere has less than a tenth of the city's population.
    """
    name_counts = Counter(places.fold_name(c.name) for c in cities)
    populations = _list_populations()
    unique_ids = set()
    for city in cities:
        name = places.fold_name(city.name)
        namesakes = [size for size in populations[name] if size != city.population] or [0]
        is_only = len(populations[name]) == 1
        if name_counts[name] == 1 and (is_only or city.population > 10 * namesakes[0]):
            unique_ids.add(city.id)
    return unique_ids


@functools.cache
def _list_populations() -> dict[str, list[int]]:
    """Returns the populations of all cities by folded name, the largest first."""
    populations: dict[str, list[int]] = {}
    for city in places.load_cities():  # the most populous first
        populations.setdefault(places.fold_name(city.name), []).append(city.population)
    return populations


@functools.cache
def _count_locations() -> Counter[tuple[str, str, str]]:
    """Returns the number of cities by folded name, country and state."""
    return Counter(_locate(city) for city in places.load_cities())


def _locate(city: City) -> tuple[str, str, str]:
    """Returns the folded name, the country and the state of a city."""
    return places.fold_name(city.name), city.country, city.state


def _ask_about_country(scene: Scene, country: Country) -> Iterator[_Candidate]:
    code = country.code
    subject = _Subject(country.running, country.name, country.population)
    languages = [(x, *names.LANGUAGE_ALIASES.get(x, ())) for x in country.languages]
    # With several correct answers, the likelihood of each is low and says little about a source.
    only_neighbour = country.neighbours if len(country.neighbours) == 1 else ()
    neighbours = [_name_country(scene.countries[n]) for n in only_neighbour]
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
    near = places.find_nearest_big(city)
    # A city that shares its name gets this question only: its phrase names the country or state.
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
    # "Yen" names one currency, "dollar" names many: only the former is acceptable as an answer.
    currencies = {currency for currency, _ in scene.revisions[0].currency.values()}
    last_word = name.split()[-1]
    is_unique = sum(currency.split()[-1:] == [last_word] for currency in currencies) == 1
    short = (last_word,) if is_unique and name != last_word and last_word != "gold" else ()
    plural = (f"{name}s", *(f"{word}s" for word in short))
    return [_add_plain((name, *short, *plural, *names.CURRENCY_ALIASES.get(name, ()), short_code))]


def _add_plain(spellings: _Names) -> _Names:
    """Returns the names, each followed by the spelling without accents if the spelling differs."""
    names_and_plain = []
    for name in spellings:
        decomposed = unicodedata.normalize("NFKD", name)
        names_and_plain += [name, "".join(c for c in decomposed if not unicodedata.combining(c))]
    return tuple(dict.fromkeys(names_and_plain))


def _ask(
    scene: Scene,
    relation: str,
    subject: _Subject,
    component: str,
    passage_id: str,
    options: list[list[_Names]],
) -> Iterator[_Candidate]:
    """Yields a question, unless a revision has no fair answer among its `options`."""
    entity = passage_id.split("/")[1]
    template = scene.choose(templates.QUESTIONS[relation], "question", relation, entity)
    text = templates.begin_sentence(template.format(subject=subject.phrase))
    fair = [_keep_fair(option, text=text, subject=subject.name) for option in options]
    if all(fair):
        answers, id = fair[scene.revisions.index(scene.facts)], f"{relation}/{entity}"
        about = subject.name, relation, subject.popularity
        yield _Candidate(Question(id, text, answers, *about, passage_id), component)


def _keep_fair(options: list[_Names], *, text: str, subject: str) -> tuple[str, ...]:
    """Returns the answers that are not in the question and do not contain the subject's name.

    An answer is dropped with all its names if the usual name is unfair.
    """

    def is_fair(name: str) -> bool:
        return not _contains(text, name) and not _contains(name, subject)

    fair = [name for group in options if is_fair(group[0]) for name in group if is_fair(name)]
    return tuple(dict.fromkeys(fair))


def _contains(text: str, words: str) -> bool:
    """Returns whether the folded text contains the folded words as whole words."""
    return f" {places.fold_name(words)} " in f" {places.fold_name(text)} "
