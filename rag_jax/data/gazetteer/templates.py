"""Sentence templates of the gazetteer: several wordings of each fact and each question.

Every template is a plain `str.format` string. `{name}` is the form of a name at the start of a
sentence, `{running}` the form inside a sentence. The caller chooses the template by entity and not
by fact, so a changed fact leaves the wording around the fact unchanged.
"""

GOVERNMENT = (
    "{name} is a {kind} in {continent} that covers about {area}{capital}.",
    "Located in {continent}, {running} is a {kind} of about {area}{capital}.",
    "{name}, a {kind} in {continent}, spans around {area}{capital}.",
)
POPULATION = (
    "Its population is roughly {population}.",
    "About {population} people live there.",
    "It is home to around {population} people.",
)
NO_POPULATION = ("Nobody lives there permanently.",)
CAPITAL = (
    ", and its capital is {capital}",
    ", with {capital} as its capital",
    ", and it is governed from its capital, {capital}",
)

MONEY = (
    "The currency of {running} is the {currency} ({currency_code}).",
    "People in {running} pay with the {currency} ({currency_code}).",
    "In {running} the official currency is the {currency}, whose code is {currency_code}.",
)
LANGUAGES = (
    "The languages spoken there include {languages}.",
    "Its main languages are {languages}.",
    "Among its languages are {languages}.",
)
LANGUAGE = (
    "The language spoken there is {languages}.",
    "Its main language is {languages}.",
    "Most people there speak {languages}.",
)
CODES = (
    "Internet addresses in {running} end in {domain}, and the calling code is +{calling_code}.",
    "The internet domain of {running} is {domain}; phone numbers begin with +{calling_code}.",
)

DOMAIN = ("Internet addresses in {running} end in {domain}.",)

NEIGHBOURS = (
    "{name} shares land borders with {neighbours}.",
    "By land, {running} borders {neighbours}.",
    "The neighbours of {running} on land are {neighbours}.",
)
NEIGHBOUR = (
    "{name} shares a land border with only one neighbour, {neighbours}.",
    "By land, {running} borders only {neighbours}.",
    "The only neighbour of {running} on land is {neighbours}.",
)
# Additional sentences for passages that would be too short.
FILLERS = (
    (
        "{name} is counted as part of {continent}, and its country code is {code}.",
        "Maps show {running}, country code {code}, as a part of {continent}.",
    ),
    ("The {kind} covers an area of about {area}.", "The area of the {kind} is about {area}."),
)
CITIES = (
    "Its largest cities and towns include {cities}.",
    "The most populous places in {running} are {cities}.",
    "Many people in {running} live in {cities}.",
)
# The second passage about a country, which repeats the facts in other words.
OVERVIEW = (
    "{name} belongs to {continent}{borders}.",
    "Look for {running} on a map of {continent}{borders}.",
    "{name} is found in {continent}{borders}.",
)
OVERVIEW_BORDERS = (
    ", beside {neighbours}",
    ", next to {neighbours}",
    ", in the company of {neighbours}",
)
OVERVIEW_CAPITAL = (
    "The seat of its government is the capital, {capital}.",
    "Its parliament and ministries are in {capital}, the capital.",
    "{capital} is the capital from which it is governed.",
)
OVERVIEW_DAILY = (
    "Daily life there runs in {languages}{money}.",
    "On the streets one hears {languages}{money}.",
    "Newspapers there are printed in {languages}{money}.",
)
OVERVIEW_MONEY = (
    ", and prices are given in the {currency}",
    ", and shops take the {currency}",
    ", and wages are paid in the {currency}",
)

CITY = (
    "{name} is a {size} in {where}, with a population of about {population}.",
    "{name} is a {size} of roughly {population} people in {where}.",
    "Home to about {population} people, {name} is a {size} in {where}.",
    "The {size} of {name} in {where} has around {population} inhabitants.",
)
CITY_IS_CAPITAL = (
    "It is the capital of {running}.",
    "The city serves as the capital of {running}.",
)
CITY_NEAR = (
    "It lies about {distance} km {direction} of {near}, the nearest big city.",
    "The nearest big city is {near}; the {size} lies about {distance} km {direction} of it.",
    "The closest big city, {near}, is some {distance} km away; the {size} lies {direction} of it.",
)
CITY_POSITION = (
    "Its coordinates are {latitude} and {longitude}.",
    "On the map it is found at {latitude}, {longitude}.",
)
# The second passage about a city.
CITY_MAP = (
    "Look for {name} on a map of {where}, {place}.",
    "{name} can be found in {where}, {place}.",
    "On a map of {where}, {name} stands {place}.",
)
CITY_MAP_NEAR = (
    "{distance} km to the {direction} of the nearest big city, {near}",
    "{distance} km {direction} of {near}, the nearest big city",
)
CITY_MAP_POSITION = ("at {latitude} and {longitude}", "at {latitude}, {longitude}")
CITY_PHONE = (
    "Phone numbers there begin with +{calling_code}, as everywhere in {running}.",
    "It shares the calling code +{calling_code} with the rest of {running}.",
)

QUESTIONS = {
    "capital": (
        "What is the capital of {subject}?",
        "Which city is the capital of {subject}?",
        "What city is the seat of government and capital of {subject}?",
    ),
    "capital_of": (
        "Which country has {subject} as its capital?",
        "{subject} is the capital of which country?",
        "Of which country is {subject} the capital?",
    ),
    "currency": (
        "What is the currency of {subject}?",
        "Which currency is used in {subject}?",
        "What money do people use in {subject}?",
    ),
    "language": (
        "What is the main language of {subject}?",
        "Which language is spoken in {subject}?",
        "What language do people speak in {subject}?",
    ),
    "neighbour": (
        "Which country borders {subject}?",
        "What is a country that shares a land border with {subject}?",
        "Name a country next to {subject}.",
    ),
    "continent": (
        "On which continent is {subject}?",
        "Which continent is {subject} part of?",
        "What continent is {subject} located in?",
    ),
    "country": (
        "In which country is {subject}?",
        "In what country is the city of {subject} located?",
        "Which country is {subject} in?",
    ),
    "state": (
        "In which U.S. state is {subject}?",
        "Which American state is {subject} in?",
        "In what state of the United States is {subject} located?",
    ),
    "near": (
        "What is the nearest big city to {subject}?",
        "Which big city is closest to {subject}?",
        "Which big city lies nearest to {subject}?",
    ),
}

# Talk pages of an encyclopedia, which ask a question that an article answers.
TALK = (
    "{question} I looked for it in the article and could not find it.",
    "{question} Somebody should add this to the article.",
    "A reader asks: {question} Nobody has answered yet.",
)


def write_number(value: float) -> str:
    """Returns a number with two or three digits: `1.4 billion`, `25 million`, `54,000`, `628`."""
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if value >= 0.9995 * scale:
            scaled = value / scale
            digits = f"{scaled:.1f}" if scaled < 9.95 else f"{scaled:.0f}"
            return f"{digits.removesuffix('.0')} {word}"
    if value >= 1000:
        step = 1000 if value >= 10_000 else 100
        return f"{round(value / step) * step:,}"
    return f"{value:.0f}"


def write_area(square_km: float) -> str:
    """Returns an area with its unit, such as `54,000 square kilometres`."""
    number = write_number(square_km)
    return f"{number} square kilometre{'s' if number != '1' else ''}"


def write_list(items: list[str] | tuple[str, ...]) -> str:
    """Joins items into `a`, `a and b` or `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def write_degrees(value: float, *, poles: str) -> str:
    """Returns degrees with the letter of the hemisphere, of `"NS"` or `"EW"`: `12.5°N`."""
    return f"{abs(value):.1f}°{poles[value < 0]}"


def begin_sentence(text: str) -> str:
    """Returns a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
