"""The trie against nested dicts, on disk, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.decoding import Trie
from rag_jax.decoding import trie as trie_module
from rag_jax.decoding.trie import choose_gathers
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

END = 5
TOKENS = st.integers(0, 4)
CORPUS = st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=12)


def grow_dicts(sequences, least=None):
    """A dict from each token to what follows it; the list of a sequence's rows once it is alone.

    And once its path has as many tokens as `least` asks for.
    """
    members, paths = {}, {}
    for row, sequence in enumerate(sequences):
        text = (*sequence, END)
        members.setdefault(text, []).append(row)
        paths[text] = max(paths.get(text, 0), 0 if least is None else least[row])

    def grow(texts, depth):
        if len(texts) == 1 and depth >= paths[texts[0]]:
            return members[texts[0]]
        tokens = sorted({text[depth] for text in texts})
        return {t: grow([x for x in texts if x[depth] == t], depth + 1) for t in tokens}

    return grow(sorted(members), 0)


def walk(trie, node=0):
    """The same from a trie's arrays."""
    children = range(trie.first_child[node], trie.first_child[node + 1])
    if not children:
        return trie.rows_at(node)
    return {int(trie.tokens[child]): walk(trie, child) for child in children}


def build(sequences, least=None):
    return Trie.from_sequences(sequences, end_id=END, least=least)


def check(sequences, least=None):
    trie = build(sequences, least)
    assert walk(trie) == grow_dicts(sequences, least)
    for leaf in np.flatnonzero(trie.leaves >= 0):
        for row in trie.rows_at(leaf):
            assert trie.sequence(leaf) == list(sequences[row])
            # What was decoded and what is pasted after it are the whole.
            path = trie.path(leaf)
            assert path == list(sequences[row][: len(path)])
            assert trie.find([path])[0] == leaf or (*path, END) == (*sequences[row], END)
    return trie


@given(CORPUS)
def test_nested_dicts_say_the_same(sequences):
    check(sequences)


@given(CORPUS, st.data())
def test_paths_are_as_long_as_asked_for(tmp_path_factory, sequences, data):
    least = [data.draw(st.integers(0, len(sequence))) for sequence in sequences]
    trie = check(sequences, least)
    leaves = trie.find([*sequences, []])[:-1]
    for sequence, leaf, length in zip(sequences, leaves, least, strict=True):
        # Every first part of a sequence that has to be walked has a node of its own.
        assert trie.path(leaf)[:length] == sequence[:length]
        for n in range(length + 1):
            assert trie.path(trie.find([sequence[:n]])[0]) == sequence[:n]
    folder = tmp_path_factory.mktemp("trie") / "trie"
    trie.save(folder)
    assert walk(Trie.load(folder)) == walk(trie)


@pytest.mark.parametrize(
    ("sequences", "least", "nodes", "depth"),
    [
        ([[1, 2, 3]], [2], 3, 2),  # the only one, from the root on
        ([[1, 2, 3]] * 2, [1, 3], 4, 3),  # of equal ones the longest path
        ([[1, 2, 3], [4]], [3, 0], 5, 3),
        ([[1, 2, 3], [1, 2]], [0, 2], 5, 3),
    ],
)
def test_shapes_of_longer_paths(sequences, least, nodes, depth):
    trie = check(sequences, np.asarray(least))
    assert (trie.size, trie.depth) == (nodes, depth)


@pytest.mark.parametrize(
    ("least", "message"),
    [
        ([1], "least: give one integer for each of the 2 sequences$"),
        ([1, 0.5], "least: give one integer for each of the 2 sequences$"),
        (2, "least: give one integer for each of the 2 sequences$"),
        ([1, 3], "least: 3 for sequence 1, which has 2 tokens; give a number from 0 to its"),
        ([-1, 1], "least: -1 for sequence 0, which has 1 tokens"),
    ],
)
def test_paths_that_cannot_be(least, message):
    with pytest.raises(RagJaxError, match=f"^{message}"):
        build([[1], [2, 3]], least)


@given(CORPUS, st.lists(st.lists(TOKENS, max_size=7), max_size=5))
def test_find(sequences, others):
    trie = build(sequences)
    prefixes = [text[:n] for text in sequences for n in range(len(text) + 1)]
    for prefix, node in zip(prefixes, trie.find(prefixes), strict=True):
        members = {tuple(text) for text in sequences if text[: len(prefix)] == prefix}
        if len(members) == 1:
            assert trie.sequence(node) == list(*members)
        else:
            assert trie.leaves[node] == -1 and trie.path(node) == prefix
    for other in others:
        if other not in prefixes:
            with pytest.raises(RagJaxError, match="no sequence of the trie begins with prefix 1$"):
                trie.find([[], other])


@pytest.mark.parametrize(
    ("sequences", "nodes", "depth"),
    [
        ([[1, 2, 3]], 1, 0),  # nothing to decode: the root is the leaf
        ([[1, 2, 3]] * 3, 1, 0),
        ([[1, 2, 3], [1, 2]], 5, 3),  # the second ends with the end token
        ([[1], [2, 2], [2, 3], [2, 2]], 5, 2),
        ([range(5), np.arange(4), [0, 4]], 8, 5),
    ],
)
def test_shapes(sequences, nodes, depth):
    trie = check(sequences)
    assert (trie.size, trie.depth) == (nodes, depth)
    assert trie.find([[]]).tolist() == [0] and trie.find([]).tolist() == []


def test_many_shared_tokens_and_many_children():
    long = np.random.default_rng(0).integers(0, 5, 5000).tolist()
    trie = build([[*long, 1], [*long, 2], long, [(long[0] + 1) % 5]])
    assert (trie.size, trie.depth) == (5005, 5001)
    node = trie.find([[*long, 2]])[0]
    assert trie.rows_at(node) == [1] and trie.sequence(node) == [*long, 2]
    wide = Trie.from_sequences([[2 * i, i, 7] for i in range(3000)], end_id=6000)
    assert (wide.size, wide.depth) == (3001, 1)
    assert wide.tails.reshape(3000, 2)[:, 0].tolist() == list(range(3000))
    assert wide.place().widths == (8, 64, 512, 4096)
    assert trie.place().widths == (8,)
    # Nothing leads to what fills the arrays up, and nothing leads on from there.
    arrays = wide.place()
    assert arrays.tokens.shape == (3072,) and arrays.first_child.shape == (3073,)
    assert (arrays.first_child[3000:] == 3001).all()
    assert np.flatnonzero(wide.mark(wide.find([[4], [8]]))).tolist() == [3, 5]
    assert wide.mark([0]).shape == (3072,)


@given(st.integers(1, 200_000))
def test_gathers_hold_every_node(most):
    widths = choose_gathers(most)
    assert list(widths) == sorted(set(widths)) and most <= widths[-1] < max(16, 2 * most)


@pytest.mark.parametrize(
    ("sequences", "end_id", "message"),
    [
        ([], END, "sequences: the corpus is empty; give at least one sequence"),
        ([[1], [], [2]], END, "sequences: sequence 1 is empty; give at least one token"),
        ([[1], [2, -3]], END, "sequences: sequence 1 must hold integers from 0 to 2147483647"),
        ([[1 << 31]], END, "sequences: sequence 0 must hold"),
        ([[1 << 80]], END, "sequences: sequence 0 must hold"),
        ([[1.5]], END, "sequences: sequence 0 must hold"),
        (["one"], END, "sequences: sequence 0 must hold"),
        ([[[1]]], END, "sequences: sequence 0 must hold"),
        ([[1, 2], [1, END, 2]], END, "sequences: sequence 1 contains end_id=5; choose an end_id"),
        ([[1]], -1, "end_id=-1: must be from 0"),
    ],
)
def test_what_is_refused(sequences, end_id, message):
    with pytest.raises(RagJaxError, match=f"^{message}"):
        Trie.from_sequences(sequences, end_id=end_id)


@pytest.mark.parametrize("sequences", [[[1], [2], [3]], [[1], [1], [1], [1]]])
def test_more_than_int32_can_number(monkeypatch, sequences):
    monkeypatch.setattr(trie_module, "_MOST_NODES", 3)
    build([[1], [2], [2]])
    with pytest.raises(RagJaxError, match="^sequences: . sequences need . nodes, .* 3 of either"):
        build(sequences)


def test_the_limit_leaves_room_for_filling():
    """Nodes are numbered in int32 after rounding up, and so is the place after the last one."""
    full = replace(build([[1], [2]]), tokens=np.broadcast_to(np.int32(0), trie_module._MOST_NODES))
    assert full._places() == trie_module._MOST_NODES < 2**31 - 1


def test_only_leaves_have_sequences():
    trie = build([[1], [2]])
    with pytest.raises(ValueError, match="node 0 is not a leaf"):
        trie.rows_at(0)


@given(CORPUS)
def test_save_and_load(tmp_path_factory, sequences):
    folder = tmp_path_factory.mktemp("trie") / "deep" / "trie"
    trie = build(sequences)
    trie.save(folder)
    again = Trie.load(folder)
    assert vars(again).keys() == vars(trie).keys() and again.end_id == END
    for name, array in vars(trie).items():
        np.testing.assert_array_equal(getattr(again, name), array)
        assert getattr(again, name).dtype == getattr(trie, name).dtype if name != "end_id" else True


def rewrite(folder, **arrays):
    """Replaces arrays, and their hashes with them."""
    manifest = json.loads((folder / "index.json").read_text())
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        manifest["sha256"][f"{name}.npy"] = hash_file(folder / f"{name}.npy")
    (folder / "index.json").write_text(json.dumps(manifest))


SEQUENCES = [[1, 2, 3], [1, 2], [4, 4, 4], [4, 4, 4], [0]]
NAMES = ["first_child", "tokens", "leaves", "tail_starts", "tails", "row_starts", "rows"]


@pytest.mark.parametrize("name", NAMES)
def test_cut_files(tmp_path, name):
    build(SEQUENCES).save(tmp_path / "trie")
    path = tmp_path / "trie" / f"{name}.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(RagJaxError, match=f"{name}.npy was altered or cut short"):
        Trie.load(tmp_path / "trie")
    path.unlink()
    with pytest.raises(RagJaxError, match=f"{name}.npy is missing"):
        Trie.load(tmp_path / "trie")


DAMAGES = {
    "shorter": lambda a: a[:-1],
    "longer": lambda a: np.append(a, a[-1:]),
    "empty": lambda a: a[:0],
    "negative": lambda a: a - 100,
    "too large": lambda a: a + 100,
    "reversed": lambda a: a[::-1],
    "wide": lambda a: a.astype(np.float64),
    "a matrix": lambda a: a[None],
    "a pickle": lambda a: np.asarray([{}]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_arrays_that_do_not_fit(tmp_path, name, damage):
    """Shifting or reversing all tokens of the tails, or the rows, gives another sound trie."""
    if (name, damage) in {("tails", "too large"), ("tails", "reversed"), ("rows", "reversed"),
                          ("tokens", "too large")}:  # fmt: skip
        return
    trie = build(SEQUENCES)
    trie.save(tmp_path / "trie")
    rewrite(tmp_path / "trie", **{name: DAMAGES[damage](getattr(trie, name))})
    with pytest.raises(RagJaxError, match=r"do not form a trie: .*build it again$|npy cannot be"):
        Trie.load(tmp_path / "trie")


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(RagJaxError, match="is missing: build the index first"):
        Trie.load(tmp_path / "none")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RagJaxError, match="exists and is not an index"):
        build(SEQUENCES).save(tmp_path)
    damaged = replace(build(SEQUENCES), end_id=-1)
    damaged.save(tmp_path / "trie")
    with pytest.raises(RagJaxError, match="holds arrays that do not form a trie"):
        Trie.load(tmp_path / "trie")


def test_tokens_beyond_the_models_vocabulary(tmp_path):
    Trie.from_sequences([[1, 2], [1, 3], [7, 9]], end_id=0).save(tmp_path / "trie")
    assert Trie.load(tmp_path / "trie", vocab_size=10).size
    with pytest.raises(RagJaxError, match="has the token 9, but the model's vocabulary ends at 8"):
        Trie.load(tmp_path / "trie", vocab_size=9)
