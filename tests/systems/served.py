"""What the tests of serving share: answers of a server's thread, in batches and one by one."""

import asyncio

import numpy as np

from rag_jax.retrieval.texts import tokenize_texts
from rag_jax.runtime.clock import xla_seconds
from rag_jax.serving.compute_thread import ComputeThread
from systems.asked import LONG


def check_answers(served, session, records, *, fixed=True):
    """Answers in whole batches and alone are those of the evaluation's records.

    Args:
        fixed: whether what a second pass needs was compiled in the first one.

    Returns:
        The answers, in the order of the records.
    """
    thread = ComputeThread(served, session.mesh, tokens=1000)
    asked = [record["question"] for record in records]

    async def answer_all():
        size = served.batch_size
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        answers = [answer for part in parts for answer in await thread.answer(part)]
        return answers, (await thread.answer(asked[:1]))[0]

    answers, alone = asyncio.run(answer_all())
    assert [answer.text for answer in [*answers, alone]] == [
        record["prediction"] for record in [*records, records[0]]
    ]
    assert all(answer.prompt_tokens > 0 for answer in answers)
    before = xla_seconds()
    again, _ = asyncio.run(answer_all())
    assert [answer.text for answer in again] == [answer.text for answer in answers]
    if fixed:
        assert xla_seconds() == before
    # One question that is refused does not harm the other.
    refused, answer = asyncio.run(thread.answer([LONG, asked[0]]))
    assert refused.status == 400 and "tokens" in refused.message
    assert answer.text == records[0]["prediction"]
    thread.close()
    return answers


def check_embeddings(served, session, role, encoder, texts):
    """Texts of two requests are embedded as the run embeds them, a text alone too."""
    thread = ComputeThread(served, session.mesh, tokens=1000)
    requests = [(texts[:1], role), (texts[1:], role), (texts[:1], "query")]
    first, rest, _ = asyncio.run(thread.embed(requests))
    (alone,) = asyncio.run(thread.embed(requests[:1]))
    expected = session.encode(encoder, texts, role)
    got = np.concatenate([first.vectors, rest.vectors])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(alone.vectors, expected[:1], atol=1e-5)
    read = tokenize_texts(encoder, texts, session.encoding.max_length, role=role)
    assert [*first.tokens, *rest.tokens] == [len(row) for row in read]
    before = xla_seconds()
    asyncio.run(thread.embed(requests))
    assert xla_seconds() == before
    thread.close()
