"""Conversations are encoded as Jinja and `tokenizers` do by themselves, and text stays text."""

import itertools
import json
from datetime import datetime
from functools import lru_cache

import pytest
from chats import (
    CONTROL,
    NAMES,
    TEMPLATES,
    TOKENIZERS,
    draw_texts,
    make_byte_level,
    make_chats,
    make_metaspace,
    write_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import SandboxedEnvironment
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core
from tokenizers.pre_tokenizers import Metaspace

from rag_jax.models.tokenizer import Tokenizer
from rag_jax.models.traced import Traced
from rag_jax.runtime.errors import RagJaxError

USER = [{"role": "user", "content": "Where is Oslo?"}]


@lru_cache
def read_template(source):
    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)


def render(template, messages, **variables):
    """The text by Jinja, without any of our own code."""
    variables = {"bos_token": "<s>", "eos_token": "</s>", "messages": messages} | variables
    return read_template(template).render(**variables)


@pytest.fixture
def open_chat(tmp_path):
    def open_chat(template, core=None, **settings):
        folder = write_folder(tmp_path / "x", core or make_byte_level(), template, **settings)
        return Tokenizer.from_folder(folder)

    return open_chat


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_rendered_text(name, kind, open_chat):
    core, template = TOKENIZERS[kind](), TEMPLATES[name]
    tokenizer = open_chat(template, core)
    for text in draw_texts(12):
        for messages in make_chats(text, "Hi"):
            for prompt in (True, False):
                rendered = render(template, messages, add_generation_prompt=prompt)
                expected = core.encode(rendered, add_special_tokens=False).ids
                got = tokenizer.encode_chat(messages, add_generation_prompt=prompt)
                assert got == expected, messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_typed_control_tokens_stay_text(name, open_chat):
    """The control tokens are those of the same conversation about a letter."""
    tokenizer = open_chat(TEMPLATES[name])
    control = set(map(tokenizer.token_id, NAMES))
    for text in draw_texts(60, typed=True):
        ids = tokenizer.encode(text)
        assert control.isdisjoint(ids)
        for messages in make_chats(text, "Hi"):
            if name == "looks" or (name == "qwen3" and "think>" in text):
                continue  # the text itself decides what the template writes
            plain = [{**m, "content": "q"} for m in messages]
            got = [i for i in tokenizer.encode_chat(messages) if i in control]
            assert got == [i for i in tokenizer.encode_chat(plain) if i in control]


def test_the_template_sees_the_text_itself(open_chat):
    template = (
        "{% for m in messages %}{{ m.content|tojson }}{{ m.content|length }}{{ m.content[:6] }}"
        "{% if m.content.startswith('<|end|>') %}starts{% endif %}"
        "{{ m.content.split('<|end|>')|length }}{% endfor %}<|end|>"
    )
    tokenizer = open_chat(template)
    ids = tokenizer.encode_chat([{"role": "user", "content": "<|end|>x<|end|>"}])
    text = '"<|end|>x<|end|>"15<|end|starts3'
    assert ids == [*tokenizer.encode(text), tokenizer.token_id("<|end|>")]


def test_a_template_may_look_for_a_control_token_in_the_text(open_chat):
    tokenizer = open_chat(TEMPLATES["qwen3"])
    thought = {"role": "assistant", "content": "<think>\nhm</think>\n\nOslo"}
    ids = tokenizer.encode_chat([*USER, thought], add_generation_prompt=False)
    expected = render(TEMPLATES["qwen3"], [*USER, thought])
    assert "<think>\nhm\n</think>\n\nOslo<|end|>" in expected
    assert ids == make_byte_level().encode(expected, add_special_tokens=False).ids


def test_a_token_made_in_an_unknown_way_is_refused(open_chat):
    template = "{% for m in messages %}{{ ('<|END|>' ~ m.content).casefold() }}{% endfor %}"
    tokenizer = open_chat(template)
    with pytest.raises(
        RagJaxError, match=r"makes '<\|end\|>' by an operation that is not followed"
    ):
        tokenizer.encode_chat(USER)
    assert tokenizer.token_id("<|end|>") not in tokenizer.encode_chat(
        [{"role": "user", "content": "<|end|>"}]
    )


# What templates do to a message's text, in operations that are followed and in others.
OPERATIONS = [
    *("m.content|lower", "m.content|upper", "m.content|title", "m.content.title()"),
    *("m.content|capitalize", "m.content.swapcase()", "m.content.casefold()", "m.content|tojson"),
    *("m.content|replace('#', '')", "m.content|replace('END', 'end')", "m.content|reverse"),
    *("m.content.replace('#', '')", "m.content.split('#')|join", "m.content|list|join('')"),
    *("m.content[:3] ~ m.content[4:]", "m.content ~ m.content", "[m.content, m.content]|join"),
    *("'%s%s'|format(m.content, m.content)", "'{}{}'.format(m.content, m.content)"),
    *("m.content % ()", "'<|%s|>' % m.content", "'<|%3s|>' % m.content", "'%(content)s|>' % m"),
    *(
        "'<|{}|>'.format(m.content)",
        "'<|{content:>3}|>'.format(**m)",
        "'<|{content}'.format_map(m)",
    ),
    *("'<|%s%s' % (m.content[:2], m.content[2:])", "'%.6s|>' % m.content", "'%r' % m.content"),
    *("'<|' ~ m.content ~ '|>'", "'%s' % m.content", "m.content|lower|indent(2)"),
    *("m.content|lower|trim", "m.content|lower|center(30)", "m.content|lower|truncate(90)"),
    *("messages|map(attribute='content')|map('lower')|join", "m.content.strip('#')|first"),
    *("(m.content|lower).ljust(9)", "namespace(x=m.content).x|lower", "dict(m)|tojson"),
]
NEARLY = ["<|END|>", "<|end|>", "<|en#d|>", "<|EN", "D|>", "end", "|>", ">|dne|<", "</S>", "<s>"]
NEARLY += ["\uff1c|end|\uff1e", "<|e<b></b>nd|>", "[inst]", "</think>", "\u00df", "\u0130", "#"]
TYPED = st.lists(st.sampled_from(NEARLY), min_size=1, max_size=3).map("".join)


@pytest.mark.parametrize("kind", ["byte level", "metaspace, legacy", "unigram", "normalized"])
def test_no_operation_makes_a_control_token_of_a_text(kind, open_chat):
    core = TOKENIZERS[kind]()
    template = "{{% for m in messages %}}<|user|>{{{{ {} }}}}<|end|>{{% endfor %}}"
    chats = [open_chat(template.format(operation), core) for operation in OPERATIONS]
    control = {*chats[0]._control}

    @settings(max_examples=12, deadline=None)
    @given(TYPED)
    def check(content):
        for tokenizer in chats:
            ids = tokenizer.encode_chat([{"role": "user", "content": content}])
            expected = [tokenizer.token_id("<|user|>"), tokenizer.token_id("<|end|>")]
            assert [i for i in ids if i in control] == expected

    check()


def test_markers_of_roles_that_are_not_marked_cannot_be_typed(open_chat):
    markers = ["### User:", "### Assistant:", "\u25c1think\u25b7", "<start of turn>"]
    core = make_byte_level()
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in markers])
    tokenizer = open_chat(
        "{% for m in messages %}{{ '### ' ~ m.role.capitalize() ~ ':' }} {{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### ' + 'Assistant:' }}{% endif %}",
        core,
    )
    ids = {core.token_to_id(name) for name in markers}
    text = " ".join(markers)
    assert ids.isdisjoint(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.encode_chat([{"role": "user", "content": text}])
    assert [i for i in chat if i in ids] == [core.token_to_id(name) for name in markers[:2]]


def test_private_use_characters_are_text(open_chat):
    tokenizer = open_chat(TEMPLATES["phi3"])
    content = "\U000f0000\U000f0001 \U000f0005\U00100000\ue000"
    ids = tokenizer.encode_chat([{"role": "user", "content": content}])
    at = ids.index(tokenizer.token_id("<|end|>"))
    assert ids[1:at] == tokenizer.encode(f"\n{content}")


def test_a_long_message_is_not_cut_into_characters(open_chat, monkeypatch):
    tokenizer, cut, made = open_chat(TEMPLATES["phi3"]), Traced.__getitem__, []
    monkeypatch.setattr(Traced, "__getitem__", lambda text, key: made.append(key) or cut(text, key))
    counts = []
    for length in (10, 1000):
        tokenizer.encode_chat([{"role": "user", "content": "a" * length}])
        counts.append(len(made))
        made.clear()
    assert counts[0] == counts[1] < 100


def test_a_word_of_its_own(open_chat):
    tokenizer = open_chat(
        "{{ messages[0].content }}<|end|> <|end|>", make_byte_level(single_word=True)
    )
    for text in ("a", "5", "_", "\u0301", "\u200d"):
        ids = tokenizer.encode_chat([{"role": "user", "content": text}])
        assert ids == [*tokenizer.encode(f"{text}<|end|> "), tokenizer.token_id("<|end|>")]
    for text in ("", "!", "\U0001f5fc"):
        assert tokenizer.encode_chat([{"role": "user", "content": text}]).count(
            tokenizer.token_id("<|end|>")
        ) == 2  # fmt: skip


def test_helpers(open_chat):
    year = open_chat("{{ strftime_now('%Y') }}")
    assert year.encode_chat(USER) == year.encode(f"{datetime.now():%Y}")
    template = (
        "{% for m in messages %}{% generation %}{% set inner = 'in' %}<|user|>{{ m.content }}"
        "{% endgeneration %}{{ inner }}{% endfor %}{{ 'tools' if tools is defined and not tools }}"
        "{{ 'unset' if pad_token is not defined }}{% for m in messages %}{% break %}{% endfor %}"
    )
    tokenizer = open_chat(template)
    expected = [tokenizer.token_id("<|user|>"), *tokenizer.encode("Where is Oslo?toolsunset")]
    assert tokenizer.encode_chat(USER) == expected


def test_thinking_is_left_to_the_template_or_turned_off(open_chat):
    """As Qwen3's template has it: undefined is on, and a closed thought turns it off."""
    template = (
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
        "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    )
    tokenizer = open_chat(template)
    usual = tokenizer.encode_chat(USER)
    assert usual == tokenizer.encode_chat(USER, thinking=True)
    closed = tokenizer.encode_chat(USER, thinking=False)
    assert closed[: len(usual)] == usual
    assert tokenizer.decode(closed[len(usual) :]) == "<think></think>"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["default", "rag", "tool_use"], "default"),
        (["rag", "tool_use"], "rag"),
        (["tool_use"], "tool_use"),
        (["a", "b"], None),
    ],
)
@pytest.mark.parametrize("shape", ["list", "object", "files"])
def test_templates_with_names(names, chosen, shape, open_chat, tmp_path):
    template = None
    if shape == "list":
        template = [{"name": name, "template": name} for name in names]
    elif shape == "object":
        template = {name: name for name in names}
    else:
        folder = tmp_path / "x"
        (folder / "additional_chat_templates").mkdir(parents=True)
        for name in names:
            path = folder / "additional_chat_templates" / f"{name}.jinja"
            path = folder / "chat_template.jinja" if name == "default" else path
            path.write_text(name)
    tokenizer = open_chat(template)
    if chosen is None:
        with pytest.raises(RagJaxError, match="several chat templates, a, b, and none is named"):
            tokenizer.encode_chat(USER)
    else:
        assert tokenizer.encode_chat(USER) == tokenizer.encode(chosen)
    tokenizer.save(tmp_path, max_length=8)
    again = Tokenizer.from_folder(tmp_path)
    assert chosen is None or again.encode_chat(USER) == tokenizer.encode_chat(USER)
    assert again._template == tokenizer._template


SILENT = (
    "{% for m in messages %}{% if m.role != 'system' %}<|user|>{{ m.content }}{% endif %}"
    "{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('the user begins') }}{% endif %}<|user|>{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("template", [SILENT, STRICT])
def test_an_instruction_joins_the_user_where_there_is_no_system_role(template, open_chat):
    tokenizer = open_chat(template)
    system = {"role": "system", "content": "Be brief."}
    start = tokenizer.token_id("<|user|>")
    joined = [start, *tokenizer.encode("Be brief.\n\nWhere is Oslo?")]
    assert tokenizer.encode_chat([system, *USER]) == joined
    more = [{"role": "assistant", "content": "There."}, {"role": "user", "content": "Where?"}]
    rest = [start, *tokenizer.encode("There."), start, *tokenizer.encode("Where?")]
    assert tokenizer.encode_chat([system, *USER, *more]) == joined + rest
    empty = {"role": "system", "content": ""}
    assert tokenizer.encode_chat([empty, *USER]) == tokenizer.encode_chat(USER)


def test_a_template_that_refuses_is_told_so(open_chat):
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(RagJaxError, match="refuses these messages: the user begins"):
        open_chat(STRICT).encode_chat([system])
    with pytest.raises(RagJaxError, match="refuses these messages: .*concatenate"):
        open_chat("{{ 'a' + 5 }}").encode_chat(USER)
    with pytest.raises(RagJaxError, match="the chat template cannot be read: .*endfor"):
        open_chat("{% for m in messages %}").encode_chat(USER)
    with pytest.raises(RagJaxError, match="chat_template must be a text, or texts by name"):
        open_chat({"default": 5})
    with pytest.raises(RagJaxError, match="needs a name and a template for each entry"):
        open_chat([{"name": "default"}])


def test_prompts_begin_as_the_tokenizer_begins_texts(open_chat):
    for core, start in (
        (make_byte_level(), []),
        (make_byte_level(bos=True), ["<s>"]),
        (make_metaspace("first"), ["<s>"]),
    ):
        tokenizer = open_chat(None, core)
        for text in ("Where is Oslo?", "", " <s>"):
            ids = [*map(tokenizer.token_id, start), *tokenizer.encode(text)]
            assert tokenizer.encode_prompt(text) == ids
        assert tokenizer.encode_prompt("Oslo") == core.encode("Oslo").ids


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        ({}, "first"),
        ({"legacy": False}, "first"),
        ({"legacy": True}, "always"),
        ({"legacy": False, "add_prefix_space": False}, "never"),
    ],
)
def test_llamas_class_puts_blanks_as_in_transformers(settings, scheme, open_chat):
    template, core = TEMPLATES["phi3"], make_metaspace("legacy")
    newer = make_metaspace("always" if scheme == "first" else "first")
    cases = itertools.product((core, newer), ("LlamaTokenizer", "CodeLlamaTokenizerFast"))
    for own, kind in (*cases, (core, "LlamaTokenizerFast")):
        tokenizer = open_chat(template, own, tokenizer_class=kind, **settings)
        expected = Core.from_str(own.to_str())
        expected.normalizer = None
        own_scheme = "first" if kind.startswith("Code") and scheme == "always" else scheme
        expected.pre_tokenizer = Metaspace(prepend_scheme=own_scheme, split=False)
        for text in draw_texts(12):
            assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False).ids
            messages = [{"role": "user", "content": text}]
            rendered = render(template, messages, add_generation_prompt=True)
            ids = expected.encode(rendered, add_special_tokens=False).ids
            assert tokenizer.encode_chat(messages) == ids
    other = open_chat(template, core, **settings)
    assert other.encode(" Oslo") == core.encode(" Oslo", add_special_tokens=False).ids


def test_flags_in_the_settings_hold(open_chat):
    core = make_byte_level()
    flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": False}
    added = {
        str(core.token_to_id(name)): {"content": name, "special": True, **flags} for name in CONTROL
    }
    tokenizer = open_chat(TEMPLATES["phi3"], core, added_tokens_decoder=added)
    expected = open_chat(TEMPLATES["phi3"], make_byte_level(rstrip=True))
    assert tokenizer.encode_chat(USER) == expected.encode_chat(USER)
    with pytest.raises(RagJaxError, match=r"added_tokens_decoder gives '<\|end\|>' the id 7,"):
        open_chat(None, core, added_tokens_decoder={"7": {"content": "<|end|>", **flags}})
    with pytest.raises(RagJaxError, match="added_tokens_decoder is damaged"):
        open_chat(None, core, added_tokens_decoder={"seven": {}})


def test_control_tokens_that_are_not_marked(open_chat):
    tokenizer = open_chat(None, eos_token="</think>", pad_token="the")
    text = "A <think> about <tool_response> and </think>."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    control = {tokenizer._core.token_to_id(name) for name in NAMES}
    assert control.isdisjoint(tokenizer.encode(text))
    assert tokenizer.eos_id == tokenizer._core.token_to_id("</think>")
    assert tokenizer.pad_id == tokenizer._core.token_to_id("the")
    grown = tokenizer.add_special_tokens(["<think>", "<new>"])
    assert grown.token_id("<think>") == tokenizer.token_id("<think>")
    assert grown.token_id("<new>") == tokenizer.vocab_size


@pytest.mark.parametrize("kind", ["unigram", "metaspace, first"])
def test_unknown_characters_are_not_lost(kind, open_chat):
    core = TOKENIZERS[kind]()
    ids = open_chat(None, core).encode("Oslo \U0001f5fc")
    assert ids == core.encode("Oslo \U0001f5fc", add_special_tokens=False).ids
    assert core.token_to_id("<unk>") in ids


def test_added_words_stay_words(open_chat):
    core = make_byte_level()
    core.add_tokens(["COVID-19", "    ", "|||"])
    ids = [core.token_to_id(name) for name in ("COVID-19", "    ", "|||")]
    assert open_chat(None, core).encode("COVID-19    |||") == ids
    written = open_chat("{{ messages[0].content }}|||", core)
    assert written.encode_chat([{"role": "user", "content": "COVID-19    "}]) == ids
    assert ids[2] not in written.encode("|||")


NEW = "{{ bos_token }}{% for m in messages %}<|new|>{{ m.content }}<|more|>{% endfor %}"
MAP, OLDER = "special_tokens_map.json", "added_tokens.json"


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({}, {MAP: {"additional_special_tokens": ["<|new|>", "<|more|>"]}}),
        ({"additional_special_tokens": ["<|new|>", "<|more|>"]}, {}),
        ({"extra_special_tokens": ["<|new|>", {"content": "<|more|>"}]}, {}),
        ({"extra_special_tokens": {"new_token": "<|new|>", "more": "<|more|>"}}, {}),
        ({}, {OLDER: {"<|more|>": 1, "<|new|>": 0}}),
        ({"pad_token": "<|new|>"}, {OLDER: {"<|new|>": 0, "<|more|>": 1}}),
    ],
)
def test_tokens_that_other_files_add(settings, files, tmp_path):
    """They get the next ids, as in transformers, and are control tokens."""
    core = make_byte_level()
    first = core.get_vocab_size(with_added_tokens=True)
    folder = write_folder(tmp_path, core, NEW, **settings)
    for name, content in files.items():
        content = {k: v + first if name == OLDER else v for k, v in content.items()}
        (folder / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.from_folder(folder)
    text = core.encode("Hi", add_special_tokens=False).ids
    wanted = [tokenizer.bos_id, first, *text, first + 1]
    assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}]) == wanted
    assert tokenizer.vocab_size == first + 2
    assert not {first, first + 1} & {*tokenizer.encode("<|new|><|more|>")}


@pytest.mark.parametrize(
    ("settings", "older", "eos", "pad"),
    [
        ({}, {"eos_token": "<|more|>"}, "<|more|>", None),
        ({"pad_token": None}, {"pad_token": "<|more|>"}, "<|new|>", "<|more|>"),
        ({"added_tokens_decoder": {}}, {"eos_token": "<|more|>"}, "<|new|>", None),
        ({"added_tokens_decoder": {}}, {"pad_token": "<|more|>"}, "<|new|>", "<|more|>"),
    ],
)
def test_which_of_two_files_names_a_token(settings, older, eos, pad, tmp_path):
    """As in transformers the older one, unless the newer one describes its added tokens."""
    extra = {"additional_special_tokens": ["<|new|>", "<|more|>"], "eos_token": "<|new|>"}
    folder = write_folder(tmp_path, make_byte_level(), None, **extra | settings)
    (folder / MAP).write_text(json.dumps(older))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_id == tokenizer.token_id(eos)
    assert tokenizer.pad_id == (pad and tokenizer.token_id(pad))


def test_variables_of_extra_tokens(open_chat, tmp_path):
    """A template calls them by their names, also after the tokenizer was saved."""
    extra = {"extra_special_tokens": {"image_token": "<|user|>"}}
    tokenizer = open_chat("{{ image_token }}{{ messages[0].content }}", **extra)
    tokenizer.save(tmp_path, max_length=9)
    for one in (tokenizer, Tokenizer.from_folder(tmp_path)):
        assert one.encode_chat(USER)[0] == one.token_id("<|user|>")
    with pytest.raises(RagJaxError, match="extra_special_tokens must hold names of tokens, not 3"):
        open_chat(None, extra_special_tokens=[3])
    with pytest.raises(RagJaxError, match="extra_special_tokens must be a list or an object"):
        open_chat(None, extra_special_tokens="<|new|>")


def test_an_older_file_with_an_id_that_is_taken(tmp_path):
    folder = write_folder(tmp_path, make_byte_level(), None)
    (folder / OLDER).write_text(json.dumps({"<|new|>": 3}))
    with pytest.raises(RagJaxError, match=r"added_tokens.json.* gives '<\|new\|>' the id 3,"):
        Tokenizer.from_folder(folder)
