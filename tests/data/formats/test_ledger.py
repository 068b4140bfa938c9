"""The table of files adds up: every record is read, skipped or left out, and a file says which."""

import contextlib
import io
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection

# What becomes of a claim, and the fields that decide it.
CLAIMS = {
    "read": {"label": "true"},
    "skipped": {"label": "no label"},
    "left out": {"label": "unproven"},
}
PASSAGES = {"read": {"text": "a"}, "skipped": {"text": ""}}
LISTS = st.lists(st.sampled_from([*CLAIMS]), min_size=1, max_size=6)
LAYOUTS = st.sampled_from(["lines", "array", "objects", "arrays"])


def lay_out(records, layout):
    if layout == "array":
        return json.dumps(records, indent=1)
    if layout == "arrays":
        return "".join(json.dumps([record]) for record in records)
    indent = 2 if layout == "objects" else None
    return "\n".join(json.dumps(record, indent=indent) for record in records)


@settings(max_examples=20)
@given(
    claims=st.lists(st.tuples(LISTS, LAYOUTS), min_size=1, max_size=3),
    passages=st.tuples(st.lists(st.sampled_from([*PASSAGES]), max_size=5), LAYOUTS),
)
def test_every_record_is_accounted_for(tmp_path_factory, claims, passages):
    folder = tmp_path_factory.mktemp("ledger")
    files = {"passages.json": (["read", *passages[0]], passages[1], PASSAGES)}
    files |= {
        f"train_{i}.json": (kinds, layout, CLAIMS) for i, (kinds, layout) in enumerate(claims)
    }
    files["test.json"] = (["read"], "lines", CLAIMS)
    number = 0
    for name, (kinds, layout, fields) in files.items():
        records = [
            {"claim_id": (number := number + 1), "id": number, "claim": f"{number}."} | fields[kind]
            for kind in kinds
        ]
        if fields is PASSAGES:
            records = [{k: v for k, v in r.items() if k in ("id", "text")} for r in records]
        (folder / name).write_text(lay_out(records, layout))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found = read_collection(DataConfig(str(folder), bad_lines=99), WorldConfig())
    told = dict(
        line.removeprefix(f"{folder}/").split(": ", 1) for line in said.getvalue().splitlines()
    )
    for name, (kinds, _, _) in files.items():
        for kind in CLAIMS:
            counts = re.findall(rf"(\d+) {kind}", told[name])
            assert sum(map(int, counts)) == kinds.count(kind), told[name]
    read = [kinds.count("read") for name, (kinds, _, _) in files.items() if "train" in name]
    assert len(found.questions.get("train", [])) == sum(read)
    assert len(found.passages) == files["passages.json"][0].count("read")
