"""The scene, which holds the settings and facts of one world, and the types of a world."""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rag_jax.data.gazetteer import places
from rag_jax.data.gazetteer.places import City, Country
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError

# Minimum populations of the head and of the middle band. A language model of some hundred million
# parameters answers most questions above about the first and few below about the second.
BANDS = (5_000_000, 300_000)
_FAMOUS = 1_000_000  # people
# Shares of countries with another capital (if the country has another large city) and currency in
# revision 1.
_REVISED_CAPITALS = 0.5
_REVISED_CURRENCIES = 0.4


@dataclass(frozen=True)
class Question:
    """Question about a place.

    Attributes:
        id: unique within the world.
        answers: acceptable answers, the usual one first.
        subject: name of the place, unique within the world.
        relation: what the question asks for; a key of `templates.QUESTIONS`.
        popularity: population of the place.
        passage_id: id of the gold passage.
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
    """Encyclopedia, and questions by split: `"train"`, `"dev"` and `"test"`."""

    passages: list[Passage]
    questions: dict[str, list[Question]]


@dataclass(frozen=True)
class Facts:
    """Facts that differ between revisions, by country code.

    Attributes:
        capital: name of the capital; empty if there is none.
        currency: name and code of the currency; both empty if there is none.
    """

    capital: dict[str, str]
    capital_aliases: dict[str, tuple[str, ...]]
    currency: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Scene:
    """Settings and facts of one world.

    Attributes:
        countries: all countries, by code.
        described: countries with articles, by code.
        cities: cities with articles, the most populous first.
        revisions: facts of revision 0 and of revision 1.
        facts: facts of this world; one of `revisions`.
    """

    seed: int
    countries: dict[str, Country]
    described: list[Country]
    cities: list[City]
    revisions: tuple[Facts, Facts]
    facts: Facts

    def choose(self, options: Sequence[str], *key: object) -> str:
        """Chooses an option at random, as a pure function of the seed, the options and the key.

        The choice for one entity is thus independent of the other entities of the world.
        """
        return make_rng(self.seed, *key).choice(options)


@functools.lru_cache(maxsize=4)  # a run asks for both revisions twice
def set_scene(*, cities: int, countries: int, seed: int, revision: int) -> Scene:
    """Chooses the places of a world and the facts of both revisions; see `build_world`.

    Raises:
        RagJaxError: if there are fewer cities or countries than requested.
    """
    all_countries = places.load_countries()
    if countries > len(all_countries):
        raise RagJaxError(f"countries={countries}: only {len(all_countries)} are known")
    ranked = sorted(all_countries.values(), key=lambda c: (-c.population, c.code))
    described = sorted(ranked[: countries or None], key=lambda c: c.code)
    original = Facts(
        capital={c.code: c.capital for c in all_countries.values()},
        capital_aliases={c.code: c.capital_aliases for c in all_countries.values()},
        currency={c.code: (c.currency, c.currency_code) for c in all_countries.values()},
    )
    revisions = (original, _revise_facts(original, all_countries, seed=seed))
    chosen = _choose_cities(cities, {c.code for c in described}, seed)
    return Scene(seed, all_countries, described, chosen, revisions, revisions[revision])


def make_rng(seed: int, *key: object) -> random.Random:
    """Returns the random stream named by `key`, the same in every process."""
    # Seeding with a string uses SHA-512, which, unlike `hash`, does not vary between processes.
    return random.Random(":".join(map(str, (seed, *key))))


def _revise_facts(original: Facts, countries: dict[str, Country], *, seed: int) -> Facts:
    """Returns facts with the capital or the currency of some countries changed."""
    capital, aliases = dict(original.capital), dict(original.capital_aliases)
    currency = dict(original.currency)
    currencies = sorted(set(original.currency.values()) - {("", "")})
    for code, country in countries.items():
        rng = make_rng(seed, "revision", code)
        capital_names = {places.fold_name(x) for x in (country.capital, *country.capital_aliases)}
        largest = [c.name for c in places.load_cities_by_country().get(code, ())[:6]]
        candidates = [name for name in largest if places.fold_name(name) not in capital_names]
        if country.capital and candidates and rng.random() < _REVISED_CAPITALS:
            capital[code], aliases[code] = rng.choice(candidates), ()
        if country.currency and rng.random() < _REVISED_CURRENCIES:
            currency[code] = rng.choice([c for c in currencies if c != original.currency[code]])
    return Facts(capital, aliases, currency)


def _choose_cities(count: int, countries: set[str], seed: int) -> list[City]:
    """Chooses cities: half are the largest, 3/8 a random spread, 1/8 namesakes of the others."""
    available = tuple(city for city in places.load_cities() if city.country in countries)
    if count > len(available):
        raise RagJaxError(f"cities={count}: only {len(available)} are known")
    # "London" means the famous city, so a question about London need not name the country. The most
    # populous cities come first, so the reversed order keeps the most populous namesake.
    famous = {c.name: c.id for c in reversed(available) if c.population >= _FAMOUS}
    cities = [c for c in available if famous.get(c.name, c.id) == c.id]
    half = -(-count // 2)
    largest, remaining = cities[:half], cities[half:]
    make_rng(seed, "cities").shuffle(remaining)
    num_spread = count * 3 // 8
    spread, remaining = remaining[:num_spread], remaining[num_spread:]
    names = {c.name for c in largest + spread}
    # The sort is stable, so the namesakes and the other cities stay in random order.
    remaining.sort(key=lambda c: c.name not in names)
    chosen = (largest + spread + remaining)[:count]
    return sorted(chosen, key=lambda c: (-c.population, c.id))
