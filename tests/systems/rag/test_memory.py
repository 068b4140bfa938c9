"""The questions about facts that the world's other revision changed."""

from rag_jax.config import WorldConfig
from rag_jax.data.gazetteer import list_changes
from rag_jax.systems.rag.memory import choose_changes


def test_changes_are_questions_of_both_revisions():
    changes = list_changes(cities=5, seed=0)
    assert len(changes) > 20
    for old, new in changes:
        assert (old.id, old.question) == (new.id, new.question)
        assert not set(old.answers) >= set(new.answers)


def test_changes_are_chosen_among_other_subjects_than_those_of_the_training():
    world = WorldConfig(cities=5)
    every = list_changes(cities=5, seed=world.seed)
    trained_on = {old.subject for old, _ in every[::2]}
    chosen = choose_changes(world, trained_on, count=5, seed=0)
    assert len(chosen) == 5 and all(pair in every for pair in chosen)
    assert not {old.subject for old, _ in chosen} & trained_on
    assert choose_changes(world, trained_on, count=3, seed=0) == chosen[:3]
    left = [pair for pair in every if pair[0].subject not in trained_on]
    found = choose_changes(world, trained_on, count=len(every), seed=1)
    assert len(found) == len(left) and all(pair in found for pair in left)
