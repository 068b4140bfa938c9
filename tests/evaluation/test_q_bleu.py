import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.evaluation.questions import q_bleu_1
from rag_jax.runtime.errors import RagJaxError


def test_q_bleu_1_by_hand():
    # Names {Is} and type {} are equal, function words {is this a} too; relevant {great question?}
    # share one of two words; of all words four of five are right.
    assert q_bleu_1("Is this a great question?", ["Is this a good question?"]) == pytest.approx(
        0.7 * (0.6 + 0.2 + 0.1 * 0.5 + 0.1) + 0.3 * 4 / 5
    )
    # Kenya is the name of one only. Precision and recall of the function words {is the of} and
    # {is the} are 2 / 3 and exp(1 - 3 / 2); "what" and the word after it are the type.
    short = math.exp(1 - 3 / 2)
    function = 2 * 2 / 3 * short / (2 / 3 + short)
    brevity = math.exp(1 - 6 / 4)
    assert q_bleu_1("What is the capital", ["What is the capital of Kenya?"]) == pytest.approx(
        0.7 * (0.6 * 0 + 0.2 + 0.1 + 0.1 * function) + 0.3 * brevity
    )


@pytest.mark.parametrize(
    ("predicted", "wanted", "share"),
    [
        # The word after "which" belongs to the type: "river" is wrong, "which" right.
        ("Which river crosses Nairobi?", "Which town crosses Nairobi?", 0.2 * (1 - 1 / 2)),
        ("Who rules Kenya?", "Where rules Kenya?", 0.2),
        ("Who rules Kenya?", "Who rules Uganda?", 0.6),
        ("Who rules Kenya?", "Who likes Kenya?", 0.1),
        ("Who rules in Kenya?", "Who rules for Kenya?", 0.1),
    ],
)
def test_each_kind_of_word_has_its_weight(predicted, wanted, share):
    words = len(wanted.split())
    score = 0.7 * (1 - share) + 0.3 * (words - 1) / words
    assert q_bleu_1(predicted, [wanted]) == pytest.approx(score)
    assert q_bleu_1(predicted, ["How?", wanted]) == pytest.approx(score)  # the closest counts


def test_case_and_punctuation_do_not_count():
    assert q_bleu_1("who rules kenya", ["who Rules kenya?!"]) < 1  # a capital makes a name
    assert q_bleu_1("Who rules Kenya", ["Who rules Kenya?"]) == pytest.approx(1)
    assert q_bleu_1("", ["Who rules Kenya?"]) == pytest.approx(0.7 * 0.1)  # no function words
    with pytest.raises(RagJaxError, match="without answers"):
        q_bleu_1("Who?", [])


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_has_a_share(one, other):
    assert 0 <= q_bleu_1(one, [other]) <= 1 + 1e-9
