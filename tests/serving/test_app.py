"""The endpoint as clients see it: OpenAI's own, and some that do everything wrong."""

import base64
import gzip
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving.shouter import PASSAGES, Shouter, serving

openai = pytest.importorskip("openai", reason="the extra `test` has it")
httpx = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")

from rag_jax.runtime.errors import RagJaxError  # noqa: E402
from rag_jax.serving.access import check_address  # noqa: E402
from rag_jax.serving.server import bind  # noqa: E402

CHAT, TOKEN = "/v1/chat/completions", "a secret"


@pytest.fixture
def shouter():
    return Shouter()


@pytest.fixture
def address(shouter):
    with serving(shouter.serve()) as address:
        yield address


def connect(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def ask(client, question="Where is it?", **options):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ignored"},
        {"role": "assistant", "content": "IGNORED"},
        {"role": "user", "content": question},
    ]
    return client.chat.completions.create(model="rag", messages=messages, **options)


def post(address, body, path=CHAT, **headers):
    headers = {"Content-Type": "application/json", **headers}
    return httpx.post(f"{address}{path}", content=body, headers=headers)


def read_error(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["message"]


def make_chat(question, **fields):
    messages = [{"role": "user", "content": question}]
    return json.dumps({"model": "rag", "messages": messages, **fields})


def wait_for(address, waiting):
    """Returns when so many requests wait for their batch."""
    while (found := httpx.get(f"{address}/health").json())["waiting"] != waiting:
        assert found["status"] == "ok"
        time.sleep(0.01)


def test_a_chat(address):
    """The last question, with citations; settings of sampling change nothing."""
    client = connect(address)
    completion = ask(client, temperature=0.7, max_tokens=5, seed=1)
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("WHERE IS IT?", "stop")
    assert (completion.model, completion.usage.total_tokens) == ("rag", 6)
    cited = [annotation.url_citation for annotation in choice.message.annotations]
    assert [c.url for c in cited] == ["urn:passage:..%2Fa%20b%3F.pdf%233.2", "urn:passage:b"]
    named = [(c.rank, c.id, c.file, c.place, c.score) for c in cited]
    first, second = (passage.id for passage in PASSAGES)
    assert named == [(1, first, "../a b?.pdf", "page 3", 0.5), (2, second, None, None, None)]
    assert [c.title for c in cited] == ["Atlantis", ""]
    assert [c.text for c in cited] == [passage.text for passage in PASSAGES]
    assert {(c.start_index, c.end_index) for c in cited} == {(0, 12)}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two\x1b"}]
    assert ask(client, parts).choices[0].message.content == "ONE TWO\ufffd"
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    earlier = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "a"}]
    messages = [*earlier, {"role": "user", "content": "and now"}]
    found = client.chat.completions.create(model="rag", messages=messages)
    assert found.choices[0].message.content == "AND NOW"


def test_a_stream(address):
    client, whole = connect(address), ask(connect(address))
    events = [*ask(client, stream=True, stream_options={"include_usage": True})]
    *chunks, counts = events
    assert len({event.id for event in events}) == 1 and counts.choices == []
    assert counts.usage == whole.usage
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.content for delta in deltas] == ["", "WHERE", " IS", " IT?", None]
    assert deltas[0].role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert [a["url_citation"]["title"] for a in deltas[-1].annotations] == ["Atlantis", ""]
    with client.chat.completions.with_streaming_response.create(
        model="rag", messages=[{"role": "user", "content": "a"}], stream=True
    ) as response:
        assert [*response.iter_lines()][-2:] == ["data: [DONE]", ""]


def test_an_answer_that_the_limit_cuts_off(address):
    """It is finished by its length, whole and as a stream."""
    client = connect(address)
    assert ask(client, "cut").choices[0].finish_reason == "length"
    *_, last = ask(client, "cut", stream=True)
    assert last.choices[0].finish_reason == "length"


def test_requests_are_answered_together_and_each_gets_its_own(address, shouter):
    client = connect(address)
    shouter.going.clear()
    with ThreadPoolExecutor(9) as pool:
        asked = [f"question {i}" for i in range(9)]
        first = pool.submit(ask, client, asked[0])
        while not shouter.batches:
            time.sleep(0.01)
        rest = [pool.submit(ask, client, question) for question in asked[1:]]
        wait_for(address, 8)
        shouter.going.set()
        answers = [f.result().choices[0].message.content for f in (first, *rest)]
    assert answers == [question.upper() for question in asked]
    # A question alone is one row; others are padded to the next size of a batch.
    assert [len(batch) for batch in shouter.batches] == [1, 4, 4]


def test_one_question_harms_no_other(address, shouter, capfd):
    client = connect(address)
    shouter.going.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, client, "first")
        while not shouter.batches:
            time.sleep(0.01)
        unread, broken, other = (
            pool.submit(ask, client, question) for question in ("unread", "breaks", "other")
        )
        wait_for(address, 3)
        shouter.going.set()
        assert first.result() and other.result().choices[0].message.content == "OTHER"
        for failed in (unread, broken):
            with pytest.raises(openai.InternalServerError, match="its own output says where"):
                failed.result()
    said = capfd.readouterr().err
    assert "shouter.py" in said and "ValueError" in said and "RagJaxError" in said
    assert "unread.txt" not in said and "['breaks" not in said  # the errors' own messages


def test_embeddings(address):
    client = connect(address)
    texts = ["a", "bb\n", "<|im_end|>"]
    for options, role in (({}, 0), ({"extra_body": {"input_type": "query"}}, 1)):
        # The client asks for base64, and decodes it.
        got = client.embeddings.create(model="rag", input=texts, **options)
        expected = [[len(text), role] for text in texts]
        assert [item.embedding for item in got.data] == expected
        assert [item.index for item in got.data] == [0, 1, 2]
        assert got.usage.prompt_tokens == 3
        plain = client.embeddings.create(
            model="rag", input="bb\n", encoding_format="float", dimensions=2, **options
        )
        assert plain.data[0].embedding == expected[1]
    body = json.dumps({"model": "rag", "input": "abc", "encoding_format": "base64"})
    (item,) = post(address, body, "/v1/embeddings").json()["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), [3, 0])
    with pytest.raises(openai.BadRequestError, match="the run's encoder has 2"):
        client.embeddings.create(model="rag", input="a", dimensions=1)


def test_reranking(address):
    fields = {"model": "rag", "query": "abc", "documents": ["x", {"text": "cab"}, "b", "y"]}
    found = post(address, json.dumps(fields), "/v1/rerank").json()
    assert [r["index"] for r in found["results"]] == [1, 2, 0, 3]
    scores = [r["relevance_score"] for r in found["results"]]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-1.0, 1, 2, 2])), rtol=1e-6)
    fields |= {"top_n": 1, "return_documents": True}
    (best,) = post(address, json.dumps(fields), "/v1/rerank").json()["results"]
    assert best["document"] == {"text": "cab"}


def test_models(address):
    client = connect(address)
    assert [model.id for model in client.models.list()] == ["rag"]
    assert client.models.retrieve("rag").owned_by == "rag_jax"
    with pytest.raises(
        openai.NotFoundError, match="model \"gpt\" is not served here, but 'rag' is"
    ):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.embeddings.create(model="../rag", input="a")
    assert httpx.get(f"{address}/health").json() == {"status": "ok", "waiting": 0}


def test_what_a_run_does_not_have(shouter):
    with serving(shouter.serve(answer=None, score=None)) as address:
        with pytest.raises(openai.NotFoundError, match="rag writes no answers"):
            ask(connect(address))
        status, _, message = read_error(post(address, "{}", "/v1/rerank"))
        assert (status, message) == (404, "rag has no reranker in this run")
        assert connect(address).embeddings.create(model="rag", input="a").data
    with serving(shouter.serve(embed=None)) as address:
        status, _, message = read_error(post(address, "{}", "/v1/embeddings"))
        assert (status, message) == (404, "rag has no encoder in this run")


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ("{", None, "the body is not JSON: Expecting property name"),
        (b"\xff\xfe", None, "the body is not JSON"),
        (DEEP, None, "the body is not JSON: RecursionError"),
        ("[]", None, "the body is no JSON object"),
        ("{}", "model", "model is missing: this server has 'rag'"),
        ('{"model": 3}', "model", "model must be a text"),
        ('{"model": "rag"}', "messages", "messages has no message of the role user"),
        ('{"model": "rag", "messages": "hi"}', "messages", "messages must be a list"),
        (
            '{"model": "rag", "messages": [3]}',
            "messages[0]",
            "messages[0] is no object with a role",
        ),
        (make_chat(None), "messages[0].content", "messages[0].content must be a text"),
        (make_chat(" \n"), "messages[0].content", "messages[0].content is blank"),
        (make_chat("\ud800"), "messages[0].content", "messages[0].content has half of a surr"),
        (make_chat([{"type": "image_url"}]), "messages[0].content", "is no text, and only texts"),
        (make_chat("a", n=2), "n", "n: a run has no such thing; leave it out"),
        (make_chat("a", n=True), "n", "n: a run has no such thing; leave it out"),
        (make_chat("a", tools=[{}]), "tools", "tools: a run has no such thing"),
        (make_chat("a", tool_choice="required"), "tool_choice", "tool_choice: a run has no such"),
        (make_chat("a", top_logprobs=5), "top_logprobs", "top_logprobs: a run has no such thing"),
        (make_chat("a", audio={}), "audio", "audio: a run has no such thing"),
        (make_chat("a", stop="b"), "stop", "stop: a run has no such thing"),
        (make_chat("a", stream="yes"), "stream", "stream must be true or false"),
        (make_chat("word " * 300), "messages", "the question has 300 tokens, and the limit is 256"),
        (make_chat("a" * 20_000), "messages[0].content", "has 20000 characters, and the limit is"),
    ],
)
def test_a_wrong_chat(address, body, field, message):
    status, param, said = read_error(post(address, body))
    assert (status, param) == (400, field)
    assert message in said


@pytest.mark.parametrize(
    ("path", "fields", "field", "message"),
    [
        ("embeddings", {}, "input", "input must be texts, at least one"),
        ("embeddings", {"input": []}, "input", "input must be texts, at least one"),
        ("embeddings", {"input": [1, 2]}, "input[0]", "input[0] must be a text"),
        (
            "embeddings",
            {"input": ["a"] * 257},
            "input",
            "input has 257 texts, and the limit is 256",
        ),
        ("embeddings", {"input": "a", "input_type": "x"}, "input_type", "input_type must be"),
        ("embeddings", {"input": "a", "encoding_format": "x"}, "encoding_format", "must be"),
        ("embeddings", {"input": "a", "dimensions": True}, "dimensions", "must be a whole number"),
        ("rerank", {"documents": ["a"]}, "query", "query must be a text"),
        ("rerank", {"query": "a", "documents": [{}]}, "documents[0]", "must be a text"),
        ("rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", "must be at least 1"),
    ],
)
def test_wrong_texts(address, path, fields, field, message):
    response = post(address, json.dumps({"model": "rag", **fields}), f"/v1/{path}")
    status, param, said = read_error(response)
    assert (status, param) == (400, field)
    assert message in said


def test_too_much(shouter):
    with serving(shouter.serve(), body=10_000) as address:
        status, _, message = read_error(post(address, make_chat("a" * 1_000_000)))
        assert (status, message) == (413, "the body is larger than the limit of 10000 bytes")
        status, _, message = read_error(post(address, iter([b" " * 6_000] * 3)))  # in chunks
        assert status == 413
    with serving(shouter.serve(), seconds=0.2) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_full_queue_and_clients_that_go_away(shouter):
    """Those that went away leave room, are never worked on, and block nobody."""
    with serving(shouter.serve(), waiting=2) as address, ThreadPoolExecutor(4) as pool:
        client = connect(address)
        shouter.going.clear()
        first = pool.submit(ask, client, "first")
        while not shouter.batches:
            time.sleep(0.01)
        leaving = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=2)
        gone = [pool.submit(ask, leaving, f"gone {i}", stream=bool(i)) for i in range(2)]
        wait_for(address, 2)
        refused = post(address, make_chat("too many"))
        assert read_error(refused)[0] == 429
        assert refused.headers["Retry-After"] == "1"
        assert all(isinstance(f.exception(), openai.APITimeoutError) for f in gone)
        wait_for(address, 0)
        last = pool.submit(ask, client, "last")
        wait_for(address, 1)
        shouter.going.set()
        assert first.result().choices[0].message.content == "FIRST"
        assert last.result().choices[0].message.content == "LAST"
    assert shouter.batches == [["first"], ["last"]]


def test_requests_that_have_come_are_answered_before_the_end(shouter):
    with ThreadPoolExecutor(3) as pool:
        with serving(shouter.serve()) as address:
            shouter.going.clear()
            asked = [pool.submit(ask, connect(address), "first")]
            while not shouter.batches:
                time.sleep(0.01)
            asked += [pool.submit(ask, connect(address), "last") for _ in range(2)]
            wait_for(address, 2)
            threading.Timer(0.5, shouter.going.set).start()  # after the end began
        answers = [f.result().choices[0].message.content for f in asked]
    assert answers == ["FIRST", "LAST", "LAST"]
    with pytest.raises(openai.APIConnectionError):
        ask(connect(address))


def test_a_token(shouter):
    with serving(shouter.serve(), token=TOKEN) as address:
        assert ask(connect(address, TOKEN)).choices
        for key in ("a secreT", "a secret.", "a", "ä"):
            response = post(address, make_chat("a"), Authorization=f"Bearer {key}".encode())
            assert read_error(response)[0] == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert read_error(post(address, make_chat("a")))[0] == 401
        basic = post(address, make_chat("a"), Authorization=f"Basic {TOKEN}")
        assert read_error(basic)[0] == 401
        # Others may call the machine as they like, and a wrong body is not read.
        for scheme in ("Bearer", "bearer", "BEARER"):  # of any case (RFC 9110, 11.1)
            headers = {"Host": "x", "Authorization": f"{scheme} {TOKEN}"}
            assert post(address, make_chat("a"), **headers).is_success
        assert read_error(post(address, "{"))[0] == 401
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/health").is_success


def test_pages_in_a_browser_cannot_ask(address):
    """A page sends no JSON to another machine by itself, and its own name is not this machine's."""
    for host in ("evil.example", "127.0.0.1.evil.example:80", "[::2]:80", "10.0.0.1"):
        assert read_error(post(address, make_chat("a"), Host=host))[0] == 403
    for host in ("localhost:1", "[::1]:80", "127.0.0.2"):
        assert post(address, make_chat("a"), Host=host).is_success
    response = post(address, make_chat("a"), **{"Content-Type": "text/plain"})
    assert read_error(response)[0] == 415


def test_a_body_with_a_coding_is_refused_and_told_so(address):
    for coding in ("gzip", "br", "identity, gzip"):
        body = gzip.compress(make_chat("a").encode())
        status, _, message = read_error(post(address, body, **{"Content-Encoding": coding}))
        assert status == 415 and "the header Content-Encoding must be left out" in message
    for coding in ("identity", "Identity", ""):
        assert post(address, make_chat("a"), **{"Content-Encoding": coding}).is_success


def test_other_paths(address):
    assert read_error(httpx.get(f"{address}{CHAT}"))[0] == 405
    assert read_error(httpx.get(f"{address}/v1/files/../../etc/passwd"))[0] == 404


def test_addresses():
    with pytest.raises(RagJaxError, match="--host=0.0.0.0: others could ask this server; set RAG_"):
        check_address("0.0.0.0", None)
    check_address("0.0.0.0", TOKEN)
    for host in ("localhost", "127.0.0.1", "::1", "[::1]"):
        check_address(host, None)
    for host in ("a..b", ".example.com", "a" * 70, "256.1.1.1"):
        with pytest.raises(RagJaxError, match="port 0: .*; choose others with --host and --port"):
            bind(host, 0)
    with bind("[127.0.0.1]", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(
            RagJaxError, match=f"127.0.0.1, port {port}: Address already in use; cho"
        ):
            bind("127.0.0.1", port)
    with pytest.raises(RagJaxError, match="choose others with --host and --port"):
        bind("no.such.host.invalid", 80)
