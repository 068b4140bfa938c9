"""What passages and questions are written from, and the types of what is written."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rag_jax.data.gazetteer import places
from rag_jax.data.gazetteer.places import City, Country
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError

# Lower ends of the head and of the middle, in people: about where a language model of some hundred
# million parameters stops answering most questions, and where it stops answering nearly any.
BANDS = (5_000_000, 300_000)
_FAMOUS = 1_000_000  # people
# Shares of the countries whose capital (if another large city exists) or currency changes.
_REVISED_CAPITALS = 0.5
_REVISED_CURRENCIES = 0.4


@dataclass(frozen=True)
class Question:
    """A question, its acceptable answers (the first is the usual one) and its gold passage's id.

    `subject` is unique to the entity asked about; `popularity` is its population.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    subject: str
    relation: str
    popularity: int
    passage_id: str


@dataclass(frozen=True)
class World:
    """An encyclopedia and questions about it by split: `"train"`, `"dev"` and `"test"`."""

    passages: list[Passage]
    questions: dict[str, list[Question]]


@dataclass(frozen=True)
class Facts:
    """What differs between revisions, by country code."""

    capital: dict[str, str]  # "" where there is none
    capital_aliases: dict[str, tuple[str, ...]]
    currency: dict[str, tuple[str, str]]  # name and code, "" where there is none


@dataclass(frozen=True)
class Scene:
    """The settings and facts of one world; `facts` is one of `revisions`.

    `countries` are all that there are, `described` those that have articles.
    """

    seed: int
    countries: dict[str, Country]
    described: list[Country]
    cities: list[City]
    revisions: tuple[Facts, Facts]
    facts: Facts

    def choose(self, options: Sequence[str], *key: object) -> str:
        """Returns the option that falls to `key`, whatever else the world holds."""
        return make_rng(self.seed, *key).choice(options)


def set_scene(*, cities: int, countries: int, seed: int, revision: int) -> Scene:
    """Chooses the places and works out the facts; see `build_world` for the settings.

    Raises:
        RagJaxError: there are not so many.
    """
    known = places.load_countries()
    if countries > len(known):
        raise RagJaxError(f"countries={countries}: only {len(known)} are known")
    ranked = sorted(known.values(), key=lambda c: (-c.population, c.code))
    described = sorted(ranked[: countries or None], key=lambda c: c.code)
    first = Facts(
        capital={c.code: c.capital for c in known.values()},
        capital_aliases={c.code: c.capital_aliases for c in known.values()},
        currency={c.code: (c.currency, c.currency_code) for c in known.values()},
    )
    revisions = (first, _revise_facts(first, known, seed=seed))
    chosen = _choose_cities(cities, {c.code for c in described}, seed)
    return Scene(seed, known, described, chosen, revisions, revisions[revision])


def make_rng(seed: int, *key: object) -> random.Random:
    """Returns the random stream that belongs to `key`."""
    # Seeding with a string hashes it with SHA-512, so the stream is the same in every process.
    return random.Random(":".join(map(str, (seed, *key))))


def _revise_facts(first: Facts, countries: dict[str, Country], *, seed: int) -> Facts:
    capital, aliases = dict(first.capital), dict(first.capital_aliases)
    currency = dict(first.currency)
    currencies = sorted(set(first.currency.values()) - {("", "")})
    for code, country in countries.items():
        rng = make_rng(seed, "revision", code)
        known = {places.fold_name(x) for x in (country.capital, *country.capital_aliases)}
        largest = [c.name for c in places.load_cities_by_country().get(code, ())[:6]]
        others = [name for name in largest if places.fold_name(name) not in known]
        if country.capital and others and rng.random() < _REVISED_CAPITALS:
            capital[code], aliases[code] = rng.choice(others), ()
        if country.currency and rng.random() < _REVISED_CURRENCIES:
            currency[code] = rng.choice([c for c in currencies if c != first.currency[code]])
    return Facts(capital, aliases, currency)


def _choose_cities(number: int, countries: set[str], seed: int) -> list[City]:
    """Half are the largest, three eighths a spread over the rest, an eighth their namesakes."""
    there = tuple(city for city in places.load_cities() if city.country in countries)
    if number > len(there):
        raise RagJaxError(f"cities={number}: only {len(there)} are known")
    everything = _leave_out_shadowed(there)
    largest, rest = everything[: -(-number // 2)], everything[-(-number // 2) :]
    make_rng(seed, "cities").shuffle(rest)
    spread, rest = rest[: number * 3 // 8], rest[number * 3 // 8 :]
    names = {c.name for c in largest + spread}
    rest.sort(key=lambda c: c.name not in names)  # stable, so still in random order otherwise
    chosen = largest + spread + rest
    return sorted(chosen[:number], key=lambda c: (-c.population, c.id))


def _leave_out_shadowed(cities: tuple[City, ...]) -> list[City]:
    """Returns the cities without the namesakes of famous ones, which come first in `cities`.

    "London" means the famous one, and a question about it should not have to say so.
    """
    famous = {c.name: c.id for c in reversed(cities) if c.population >= _FAMOUS}
    return [c for c in cities if famous.get(c.name, c.id) == c.id]
