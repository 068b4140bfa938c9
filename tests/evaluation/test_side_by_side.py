"""Runs side by side: which of their questions are one."""

from rag_jax.evaluation.side_by_side import join_runs


def make_run(name, *asked):
    """A run of questions, each an id, a text and answers."""
    columns = {
        "id": [id for id, _, _ in asked],
        "question": [text for _, text, _ in asked],
        "answers": [list(answers) for _, _, answers in asked],
        "relevant": [[row] for row in range(len(asked))],
    }
    return {"name": name, "questions": columns, "methods": {}}


def test_questions_are_matched_by_text_and_id():
    first = make_run(
        "a", ("1", "Where?", "x"), ("2", "Who?", "y"), ("3", "Who?", "z"), ("4", "Why?", "w")
    )
    second = make_run(
        "b",
        ("3", "Who?", "z"),  # by both, though another question has this text too
        ("9", "Where?", "x"),  # by the text
        ("4", "And why?", "w"),  # another question with the id and the answers of one
        ("2", "When?", "v"),  # another question with the id of one
        ("8", "Who?", "y"),  # by the text that is left
    )
    page = join_runs([first, second])
    assert [run["rows"] for run in page["runs"]] == [[0, 1, 2, 3], [2, 0, 4, 5, 1]]
    assert page["questions"]["question"] == ["Where?", "Who?", "Who?", "Why?", "And why?", "When?"]
    assert page["runs"][1]["relevant"] == [[0], [1], [2], [3], [4]]
    assert page["matching"] == [
        "The runs ask different questions: 3 of 6 are in all.",
        "1 are in a alone.",
        "2 are in b alone.",
    ]


def test_runs_have_names_of_their_own():
    page = join_runs([make_run("run", ("1", "?", "x")) for _ in range(3)])
    assert [run["label"] for run in page["runs"]] == ["run (1)", "run (2)", "run (3)"]
    assert page["matching"] == ["All runs ask the same 1 questions."]
    page = join_runs([make_run(name, ("1", "?", "x")) for name in ("a", "a", "a (1)")])
    assert [run["label"] for run in page["runs"]] == ["a (2)", "a (3)", "a (1)"]
    assert join_runs([make_run("run")])["matching"] == []
