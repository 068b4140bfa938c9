"""Losses against closed forms and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rag_jax.losses import (
    dpo_loss,
    find_likeliest,
    in_batch_contrastive,
    mix_documents,
    rag_sequence_nll,
    rag_token_nll,
    span_cross_entropy,
    sum_exponentials,
    token_logprobs,
)

FINITE = st.floats(-100, 100, width=32)
ZERO = jnp.zeros(1)


def close(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-5)


def pair(*values, beta):
    """`dpo_loss` of one pair."""
    return dpo_loss(*(jnp.asarray([v], jnp.float32) for v in values), beta=beta)[0]


WILD = st.sampled_from([0.0, 1.0, 1.0, -2.5, 80.0, 3e4, -1e9, -np.inf, np.inf, np.nan])


SIZES = [1, 5, 12, 67, 128, 130]


@settings(max_examples=100)
@given(st.sampled_from(SIZES), st.integers(0, 2**31), st.data())
def test_a_vocabulary_in_parts(size, seed, data):
    """The sum and the likeliest token are those of the whole, also of the wildest logits."""
    rng = np.random.default_rng(seed)
    values = np.asarray(data.draw(st.lists(WILD, min_size=1, max_size=6)), np.float32)
    logits = jnp.asarray(rng.choice(values, (3, 2, size)))
    np.testing.assert_array_equal(find_likeliest(logits), jnp.argmax(logits, axis=-1))
    close(sum_exponentials(logits), jax.nn.logsumexp(logits, axis=-1))


@pytest.mark.parametrize("size", SIZES)
def test_gradients_and_pieces_of_a_vocabulary(size):
    one = jnp.asarray(np.random.default_rng(size).normal(size=size), jnp.float32)
    one = one.at[: size // 2].set(-jnp.inf)
    close(jax.grad(sum_exponentials)(one), jax.grad(jax.nn.logsumexp)(one))
    logits = jnp.zeros((3, 2, size))
    device = jax.sharding.AbstractDevice("tpu", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):  # where it stays in one piece
        assert f"[3,2,1,{size}]" in str(jax.make_jaxpr(find_likeliest)(logits))


@settings(max_examples=50)
@given(
    arrays(np.float32, (2, 3, 5), elements=FINITE),
    arrays(np.int32, (2, 3), elements=st.integers(0, 4)),
)
def test_token_logprobs(logits, targets):
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    table = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(table, targets[..., None], axis=-1)[..., 0]
    close(token_logprobs(jnp.asarray(logits), jnp.asarray(targets)), expected, atol=5e-5)


def test_token_logprobs_closed_forms():
    close(token_logprobs(jnp.full((3, 7), 42.0), jnp.asarray([0, 3, 6])), -np.log([7, 7, 7]))
    one_of_four = token_logprobs(jnp.log(jnp.asarray([1.0, 2.0, 3.0, 4.0])), jnp.asarray(2))
    close(one_of_four, np.log(0.3))
    far = token_logprobs(jnp.asarray([[3e4, -3e4], [0.0, -1e9]]), jnp.asarray([1, 0]))
    close(far, [-6e4, 0])
    narrow = jnp.asarray([[1.0, 2.0, 3.0]], jnp.bfloat16)
    logprobs = token_logprobs(narrow, jnp.asarray([1]))
    assert logprobs.dtype == jnp.float32
    close(logprobs, [2 - np.log(np.exp([1, 2, 3]).sum())])


def test_token_logprobs_gradient_is_one_hot_minus_softmax():
    logits = jnp.asarray([0.5, -1.0, 2.0])
    gradient = jax.grad(lambda x: token_logprobs(x, jnp.asarray(2)))(logits)
    close(gradient, np.eye(3)[2] - jax.nn.softmax(logits))


@settings(max_examples=50)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(-50, 0, width=32)),
    arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
)
def test_span_cross_entropy(logprobs, weights):
    expected = [
        -sum(float(p) * float(w) for p, w in zip(*row, strict=True))
        for row in zip(logprobs, weights, strict=True)
    ]
    close(span_cross_entropy(jnp.asarray(logprobs), jnp.asarray(weights)), expected, atol=1e-4)


def test_span_cross_entropy_sum_mean_and_none():
    logprobs = jnp.log(jnp.asarray([[0.5, 0.25, 0.125]] * 3))
    weights = jnp.asarray([[1.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    close(span_cross_entropy(logprobs, weights), np.log(2) * np.asarray([3, 1.5, 0]))


@settings(max_examples=50)
@given(st.lists(FINITE, min_size=4, max_size=4), st.floats(0.01, 5))
def test_dpo_loss(values, beta):
    chosen, rejected, reference_chosen, reference_rejected = map(float, values)
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    close(pair(*values, beta=beta), np.logaddexp(0, -beta * margin), atol=5e-4)
    # Swapping the pair turns the margin round: the two losses differ by beta times it.
    swapped = pair(rejected, chosen, reference_rejected, reference_chosen, beta=beta)
    close(swapped - pair(*values, beta=beta), beta * margin, atol=1e-3)


@settings(max_examples=20)
@given(FINITE, FINITE, st.floats(0.01, 5))
def test_dpo_loss_of_equals_is_log_two(policy, reference, beta):
    close(pair(policy, policy, reference, reference, beta=beta), np.log(2))
    close(pair(policy, reference, policy, reference, beta=beta), np.log(2))  # not yet trained


def test_dpo_loss_far_out_stays_finite():
    assert pair(1e4, -1e4, 0, 0, beta=1.0) == 0
    close(pair(-1e4, 1e4, 0, 0, beta=0.5), 1e4)
    gradient = jax.grad(lambda x: pair_loss(x, 1e4, 0.5))(-1e4)
    close(gradient, -0.5)


def pair_loss(chosen, rejected, beta):
    """The loss as a function of scalars that can be differentiated."""
    return dpo_loss(ZERO + chosen, ZERO + rejected, ZERO, ZERO, beta=beta)[0]


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_dpo_gradient_raises_the_chosen_and_lowers_the_rejected(beta):
    values = [jnp.asarray([v]) for v in (-2.0, -1.5, -1.0, -1.2)]

    def loss(*values):
        return dpo_loss(*values, beta=beta)[0]

    chosen, rejected, reference_chosen, reference_rejected = (
        float(g[0]) for g in jax.grad(loss, argnums=(0, 1, 2, 3))(*values)
    )
    margin = (-2.0 + 1.0) - (-1.5 + 1.2)
    slope = beta / (1 + np.exp(beta * margin))  # the paper's weight: larger where it is wrong
    close([chosen, rejected], [-slope, slope])
    close([reference_chosen, reference_rejected], [slope, -slope])


def test_dpo_rows_are_apart():
    values = [jnp.asarray(np.random.default_rng(i).normal(size=5), jnp.float32) for i in range(4)]
    together = dpo_loss(*values, beta=0.3)
    assert together.shape == (5,)
    close(together, [pair(*(v[i] for v in values), beta=0.3) for i in range(5)])


def contrast(queries, passages, positives, masked, scale):
    """The loss of each question, one passage at a time, in float64."""
    losses = []
    for i, positive in enumerate(positives):
        scores = [scale * np.dot(queries[i], passage) for passage in passages.astype(np.float64)]
        counted = [s for j, s in enumerate(scores) if j == positive or not masked[i, j]]
        losses.append(np.log(np.sum(np.exp(counted))) - scores[positive])
    return losses


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_in_batch_contrastive(scale):
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(3, 4)) / 2, rng.normal(size=(6, 4)) / 2
    positives, masked = jnp.asarray([0, 2, 4]), rng.random((3, 6)) < 0.4
    masked[0, 0] = True  # its own positive counts all the same
    arrays = [jnp.asarray(x, jnp.float32) for x in (queries, passages)]
    ours = in_batch_contrastive(*arrays, positives, masked=jnp.asarray(masked), scale=scale)
    close(ours, contrast(queries, passages, positives, masked, scale))
    plain = in_batch_contrastive(*arrays, positives, scale=scale)
    close(plain, contrast(queries, passages, positives, np.zeros_like(masked), scale))


def test_in_batch_contrastive_closed_forms():
    same = jnp.ones((2, 3))
    close(in_batch_contrastive(same, jnp.ones((5, 3)), jnp.asarray([0, 3])), np.log([5, 5]))
    alone = ~jnp.eye(2, 5, dtype=bool)
    positives = jnp.asarray([0, 1])
    close(in_batch_contrastive(same, jnp.ones((5, 3)), positives, masked=alone), [0, 0])

    def loss(queries):
        return in_batch_contrastive(queries, jnp.ones((5, 3)), positives, masked=alone).sum()

    assert not jax.grad(loss)(same).any()  # and no NaN from what is masked


def draw_documents(seed, questions=2, docs=3, width=4, vocabulary=5):
    """Scores, log-probabilities over the vocabulary, targets and a mask, in float64."""
    rng = np.random.default_rng(seed)
    scores, logits = (
        rng.normal(0, 2, (questions, docs)),
        rng.normal(0, 2, (questions, docs, width, vocabulary)),
    )
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1)[..., None]
    targets = rng.integers(0, vocabulary, (questions, width))
    mask = np.arange(width) < rng.integers(1, width + 1, questions)[:, None]
    return scores, logprobs, targets, jnp.asarray(mask)


def marginal_by_enumeration(scores, logprobs, targets, mask):
    """`-log p(y|x)` of both models and their smoothing terms, one number at a time."""
    prior = np.exp(scores) / np.exp(scores).sum()
    docs, width, vocabulary = logprobs.shape
    steps = [t for t in range(width) if mask[t]]
    sequence = sum(
        prior[k] * np.prod([np.exp(logprobs[k, t, targets[t]]) for t in steps]) for k in range(docs)
    )
    token = np.prod(
        [sum(prior[k] * np.exp(logprobs[k, t, targets[t]]) for k in range(docs)) for t in steps]
    )
    # The product over the vocabulary in place of the target's probability.
    smooth = np.logaddexp.reduce(
        [
            sum(logprobs[k, t].sum() for t in steps) + vocabulary * np.log(prior[k])
            for k in range(docs)
        ]
    )
    token_smooth = sum(
        np.log(sum(prior[k] * np.exp(logprobs[k, t, v]) for k in range(docs)))
        for t in steps for v in range(vocabulary)
    )  # fmt: skip
    return -np.log(sequence), -np.log(token), -smooth, -token_smooth


@pytest.mark.parametrize("unseen", [-np.inf, np.nan])
def test_what_is_masked_does_not_count(unseen):
    """Whatever it is, and nor do its gradients."""
    scores, logprobs, targets, mask = draw_documents(0)
    mask = jnp.asarray(mask).at[:, -1].set(False)
    chosen = np.take_along_axis(logprobs, targets[:, None, :, None].repeat(3, 1), axis=-1)[..., 0]
    chosen = chosen.astype(np.float32)
    hidden = np.where(np.asarray(mask)[:, None], chosen, np.float32(unseen))
    for loss in (rag_sequence_nll, rag_token_nll):
        differentiate = jax.value_and_grad(lambda s, c, m=mask, f=loss: f(s, c, m).sum(), (0, 1))
        wanted, found = (
            differentiate(jnp.asarray(scores, jnp.float32), jnp.asarray(part))
            for part in (chosen, hidden)
        )
        for one, other in zip(*map(jax.tree.leaves, (wanted, found)), strict=True):
            close(one, other)
    weights = jnp.asarray([[1.0, 0.0]])
    close(span_cross_entropy(jnp.asarray([[-2.0, unseen]], jnp.float32), weights), [2.0])


def test_of_no_rows_there_are_no_losses():
    nothing = jnp.zeros((0, 4))
    positives = jnp.zeros(0, jnp.int32)
    assert in_batch_contrastive(nothing, jnp.ones((3, 4)), positives).shape == (0,)
    assert find_likeliest(jnp.zeros((0, 64))).shape == (0,)
    assert token_logprobs(jnp.zeros((2, 0, 64)), jnp.zeros((2, 0), jnp.int32)).shape == (2, 0)


@pytest.mark.parametrize("seed", range(5))
def test_rag_marginals_by_enumeration(seed):
    scores, logprobs, targets, mask = draw_documents(seed)
    wanted = np.transpose(
        [
            marginal_by_enumeration(*(part[b] for part in (scores, logprobs, targets, mask)))
            for b in range(2)
        ]
    )
    chosen = np.take_along_axis(logprobs, targets[:, None, :, None].repeat(3, 1), axis=-1)[..., 0]
    arrays = [jnp.asarray(part, jnp.float32) for part in (scores, chosen)]
    close(rag_sequence_nll(*arrays, mask), wanted[0])
    close(rag_token_nll(*arrays, mask), wanted[1])
    mixed = mix_documents(*(jnp.asarray(part, jnp.float32) for part in (scores, logprobs)))
    for loss, sums, place in (
        (rag_sequence_nll, logprobs.sum(-1), 0),
        (rag_token_nll, mixed.sum(-1), 1),
    ):
        smoothed = loss(
            *arrays, mask, smoothing=0.1, vocab_sums=jnp.asarray(sums, jnp.float32), vocab_size=5
        )
        close(smoothed, 0.9 * wanted[place] + 0.1 / 5 * wanted[place + 2])
        for some in ({}, {"vocab_sums": jnp.asarray(sums, jnp.float32)}, {"vocab_size": 5}):
            with pytest.raises(ValueError, match="smoothing needs vocab_sums and vocab_size"):
                loss(*arrays, mask, smoothing=0.1, **some)


def test_rag_marginals_of_one_token_or_one_document_are_the_same():
    scores, logprobs, _, _ = draw_documents(1)
    some = jnp.asarray(logprobs[..., 0], jnp.float32)
    first = jnp.asarray([[True, False, False, False]] * 2)
    scores = jnp.asarray(scores, jnp.float32)
    close(rag_sequence_nll(scores, some, first), rag_token_nll(scores, some, first))
    mask = jnp.ones((2, 4), bool)
    alone = -some[:, :1].sum((1, 2))
    for loss in (rag_sequence_nll, rag_token_nll):
        close(loss(scores[:, :1], some[:, :1], mask), alone)
        # A document without probability has no part, and no gradient that is not a number.
        far = jnp.concatenate([scores[:, :1], jnp.full((2, 2), -1e9)], axis=1)
        close(loss(far, some, mask), alone)
        gradient = jax.grad(lambda s, loss=loss: loss(s, some, mask).sum())(far)
        close(gradient, np.zeros((2, 3)))


def test_rag_gradient_favours_the_document_that_explains_the_answer():
    """By the scores it is the prior less the posterior (the paper's training signal)."""
    scores, logprobs, targets, mask = draw_documents(2)
    chosen = np.take_along_axis(logprobs, targets[:, None, :, None].repeat(3, 1), axis=-1)[..., 0]
    gradient = jax.grad(
        lambda s: rag_sequence_nll(s, jnp.asarray(chosen, jnp.float32), mask).sum()
    )(jnp.asarray(scores, jnp.float32))
    joint = scores + (chosen * mask[:, None]).sum(-1)
    posterior = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    prior = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
    close(gradient, prior - posterior)
