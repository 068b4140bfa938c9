"""Log-probabilities read off full passes in NumPy, one row at a time."""

import numpy as np
from tiny import read_row, softmax


def answer_logprob(model, params, context, answer):
    """log p(answer | context), summed over the answer's tokens."""
    logits = read_row(model, params, [*context, *answer])[2]
    probabilities = softmax(logits[len(context) - 1 : -1])
    return np.log(probabilities[np.arange(len(answer)), answer]).sum()


def span_logprobs(model, params, row, term):
    """Log-probabilities of the tokens in a row's span; none where it lacks the span."""
    start, stop = row.spans.get(term, (0, 0))
    if not stop:
        return np.zeros(0)
    logits = read_row(model, params, row.tokens)[2]
    probabilities = softmax(logits[start - 1 : stop - 1])
    return np.log(probabilities[np.arange(stop - start), row.tokens[start:stop]])


def sum_terms(model, params, rows, *, terms, scale, reduction="mean"):
    """Each term's loss over some rows: mean or sum over a span's tokens, sum over rows."""
    totals = dict.fromkeys(terms, 0.0)
    for row in rows:
        for term in set(terms) & set(row.spans):
            logprobs = span_logprobs(model, params, row, term)
            totals[term] -= scale * (logprobs.mean() if reduction == "mean" else logprobs.sum())
    return totals
