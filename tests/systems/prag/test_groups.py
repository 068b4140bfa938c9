"""Groups of documents: everyone once, and little padding."""

import numpy as np
import pytest

from rag_jax.systems.prag.groups import MAX_PADDING, group_documents


@pytest.mark.parametrize("count", [1, 7, 45, 200])
@pytest.mark.parametrize("multiple", [1, 4])
def test_groups(count, multiple):
    rng = np.random.default_rng(count)
    passages = rng.integers(60, 140, (count, 1)) + rng.integers(0, 12, (count, 4))
    lengths = np.concatenate([passages, rng.integers(20, 32, (count, 1))], axis=1)
    groups = group_documents(lengths, together=16, program_tokens=1600, multiple=multiple)
    assert sorted(groups.order) == list(range(count))
    assert groups.size % multiple == 0 and groups.size <= 16
    computed = 0
    for number, widths in enumerate(groups.widths):
        members = groups.order[number * groups.size :][: groups.size]
        assert members and (lengths[members] <= np.asarray(widths)).all()
        computed += groups.size * sum(widths)
    assert groups.padding == pytest.approx(1 - lengths.sum() / computed)
    if count > 7:
        assert groups.padding < MAX_PADDING


def test_documents_of_one_length_share_a_program():
    groups = group_documents(np.full((64, 5), 96), together=16, program_tokens=1600)
    assert groups.size == 16 and groups.widths == [[96] * 5] * 4 and groups.padding == 0
