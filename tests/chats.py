"""Chat templates of the model families, tokenizers with their kinds of tokens, and odd texts."""

import json

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = [
    "Where is Oslo? Oslo is the capital of Norway, and 709,037 people live there.",
    "Answer the question with a few words. You are a helpful assistant. Today Date: 26 Jul 2024",
    "user assistant system [INST] [/INST] <<SYS>> end\n\nthe following it's don't\n  spaces",
]
# In the layout of each family's published template: how it takes the system's and the user's text,
# strips, looks at the text, and builds its control tokens.
TEMPLATES = {
    "phi3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}"
        "{{ eos_token }}{% endif %}"
    ),
    "llama3": (
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n"
        "{%- endif %}\n{{- '<|system|>\n\n' ~ system_message ~ '<|end|>' }}\n"
        "{%- for m in messages %}\n"
        "    {{- '<|' + m.role + '|>\n\n' + m.content | trim + '<|end|>' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|assistant|>\n\n' }}\n{%- endif %}\n"
    ),
    "llama2": (
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0].content %}{% else %}{% set rest = messages %}"
        "{% set system = false %}{% endif %}{% for m in rest %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}"
        "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}{% else %}"
        "{% set text = m.content %}{% endif %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "qwen3": (
        "{%- set ns = namespace(last=messages|length - 1, open=true) %}\n"
        "{%- for m in messages[::-1] %}\n"
        "    {%- if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>') "
        "and m.content.endswith('</tool_response>')) %}\n"
        "        {%- set ns.open = false %}\n"
        "        {%- set ns.last = messages|length - 1 - loop.index0 %}\n    {%- endif %}\n"
        "{%- endfor %}\n{%- for m in messages %}\n    {%- if m.role == 'assistant' %}\n"
        "        {%- set content, thought = m.content, '' %}\n"
        "        {%- if '</think>' in m.content %}\n"
        "            {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}\n"
        "            {%- set thought = m.content.split('</think>')[0].split('<think>')[-1] %}\n"
        "        {%- endif %}\n        {{- '<|assistant|>\\n' }}\n"
        "        {%- if loop.index0 > ns.last and thought %}\n"
        "            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}\n"
        "        {%- endif %}\n        {{- content + '<|end|>\\n' }}\n    {%- else %}\n"
        "        {{- '<|' + m.role + '|>\\n' + m.content + '<|end|>' + '\\n' }}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|assistant|>\\n<think>\\n\\n</think>\\n\\n' }}\n{%- endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{% if loop.last and messages[0].role == 'system' %}"
        "{{ '[INST] ' + messages[0].content + '\n\n' + m.content + '[/INST]' }}{% else %}"
        "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content|trim + eos_token }}{% endif %}{% endfor %}"
    ),
    "formats": (
        "{% for m in messages %}{{ '<|%s|>\n%s%%' % (m.role, m.content) }}"
        "{{ '<|{}|>{:>3}{{'.format('end', loop.index) }}"
        "{{ '%s|%-9s' | format(m.content, m.content) }}"
        "{{ '<|%(role)s|>%(content)s' % m }}{{ '<|{role}|>{content}'.format_map(m) }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|%s%s|>' % ('assist', 'ant') }}{% endif %}"
    ),
    "looks": (  # at everything that a text has
        "{% macro tag(name) %}<|{{ name }}|>{% endmacro %}{% for m in messages %}{{ tag('user') }}"
        "{{ m.content|length }} {{ m.content[:7] }}|{{ m.content[-3:] }} {{ m.content|tojson }}"
        "{% if m.content.startswith('[') %}list{% endif %}"
        "{{ m.content.split('\n')|join('<|end|>') }}{{ m.content.replace('e', '<|end|>') }}"
        "{{ m.content|replace(' ', '_') }}{{ m.content.splitlines()|length }}{{ m.content|first }}"
        "{{ m.content|upper }}{{ m.content.partition(' ')[2] }}"
        "{{ m.content ~ '<|end|>' ~ loop.index }}{{ m.content.title() }}"
        "{{ m.content.strip('aeiou').removesuffix('n') }}"
        "{% set both %}<|user|>{{ m.content }}{% endset %}{{ both }}{% endfor %}"
    ),
}
CONTROL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
UNMARKED = ["<think>", "</think>", "<tool_response>", "</tool_response>"]
NAMES = ["<s>", "</s>", *CONTROL, *UNMARKED, "[INST]", "[/INST]"]
_PIECES = [
    *(
        "Where",
        "is",
        "Oslo?",
        "the",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "é",
        "e\u0301",
        "東京",
        "\U0001f5fc",
    ),
    *("\u200d", "\ufeff", "\u00a0", "\u2028", "x" * 60, "123456", "3.14", "don't", "{{ m }}"),
    *("{% x %}", "[1]", "<b>", "</b>", "\\n", "\ufb01", "\u00df", "\u0130", "\0", "\ue000", '"'),
    *("\U000f0000", "\U00100001", "<|", "|>", "|", "<", "end", "[/", "INST", "]", "s>", "\uff5c"),
    *("\u2581", "  lead", "trail  ", "\r\n", "\ufdfa", "\u093e", "\U0001d518", "a", "\ufffd"),
]


def make_byte_level(*, bos=False, **flags):
    """Byte-level BPE, as Llama 3, Qwen and SmolLM have it; `flags` are the control tokens'."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _train(core, trainers.BpeTrainer, bos, flags, initial_alphabet=alphabet)


def make_metaspace(scheme, *, bos=True, **flags):
    """BPE over blanks as U+2581, as Llama 2, Mistral and Phi-3 have it.

    Args:
        scheme: where a blank is put before a text: "first" or "always", or "legacy" for a
            normalizer that puts it before every piece between special tokens.
    """
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        before = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        core.normalizer = normalizers.Sequence(before)
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    return _train(core, trainers.BpeTrainer, bos, flags, initial_alphabet=alphabet)


def make_unigram(*, bos=False, **flags):
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return _train(core, trainers.UnigramTrainer, bos, flags, unk_token="<unk>")


def _train(core, trainer, bos, flags, **options):
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainer(vocab_size=400, special_tokens=special, show_progress=False, **options)
    core.train_from_iterator(SENTENCES, trainer)
    marked = {"special": True, "normalized": False} | flags
    core.add_tokens([AddedToken(name, **marked) for name in CONTROL])
    core.add_tokens([AddedToken(name, normalized=False) for name in ("[INST]", "[/INST]")])
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in UNMARKED])
    if bos:
        pairs = [("<s>", core.token_to_id("<s>"))]
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=pairs)
    return core


TOKENIZERS = {
    "byte level": lambda: make_byte_level(),
    "byte level, bos": lambda: make_byte_level(bos=True),
    "byte level, rstrip": lambda: make_byte_level(rstrip=True),
    "byte level, lstrip": lambda: make_byte_level(lstrip=True, rstrip=True),
    "byte level, words": lambda: make_byte_level(single_word=True),
    "metaspace, first": lambda: make_metaspace("first"),
    "metaspace, always, rstrip": lambda: make_metaspace("always", rstrip=True),
    "metaspace, legacy": lambda: make_metaspace("legacy", rstrip=True),
    "unigram": lambda: make_unigram(),
    "normalized": lambda: make_byte_level(normalized=True),
}


def write_folder(folder, core, template, **settings):
    """A tokenizer's folder in Hugging Face's layout."""
    folder.mkdir(exist_ok=True, parents=True)
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template} | settings
    settings = {"bos_token": "<s>", "eos_token": "</s>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def draw_texts(count, *, typed=False):
    """Odd texts, the same in every run; with names of control tokens in them if `typed`."""
    rng = np.random.default_rng(0)
    pieces = [*_PIECES, *NAMES] if typed else _PIECES
    texts = ["", " ", "\n", "\n\n x \n", "Where is Oslo?"]
    while len(texts) < count:
        chosen = rng.choice(len(pieces), rng.integers(1, 12))
        text = "".join(pieces[i] + rng.choice(["", " ", ""]) for i in chosen)
        if typed or not any(name in text for name in NAMES):
            texts.append(text)
    return texts


def make_chats(text, other):
    """Conversations with a text in each role."""
    question, answer = {"role": "user", "content": other}, {"role": "assistant", "content": text}
    user = {"role": "user", "content": text}
    return [[user], [question, answer, user], [{"role": "system", "content": text}, question]]
