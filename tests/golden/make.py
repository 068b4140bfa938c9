"""Makes the golden files: tiny random models in Hugging Face's layout, and what they compute.

Needs PyTorch and transformers, which the tests themselves do not:

    pip install torch==2.13.0 transformers && python tests/golden/make.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import BertNormalizer
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    SmolLM3Config,
    StableLmConfig,
)

FOLDER = Path(__file__).parent
SENTENCES = [
    "The capital of France is Paris.",
    "Paris has 2,138,551 inhabitants, and Lyon has 472,317.",
    "What is the capital of France?\n\nIt's Paris!",
    "Where is Zürich? In Switzerland; \u6771\u4eac is in Japan \U0001f5fc.",
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Answer in one word. "},
        {"role": "user", "content": "  Where is Lyon?\n"},
        {"role": "assistant", "content": "France"},
        {"role": "user", "content": "And Paris?"},
    ],
]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] | trim }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_llama_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )  # fmt: skip


def make_bert_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=specials, show_progress=False
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def make_bart_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the sentences, with a token before every text, as Llama's tokenizer puts it."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=40, special_tokens=specials, show_progress=False)
    core.train_from_iterator(SENTENCES, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def randomise(model: torch.nn.Module, *, kept_as: torch.dtype = torch.float32) -> None:
    """Weights large enough that attention is far from uniform and norms and biases matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape) * 0.2
            value = noise + 1 if "norm" in name.lower() and "bias" not in name else noise
            parameter.copy_(value.to(kept_as))


def make_batch(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Four rows: full, padded on the right, padded on the left, one token."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (4, 11))
    mask = np.ones((4, 11), np.int64)
    mask[1, 7:] = mask[2, :5] = mask[3, 1:] = 0
    return tokens, mask


def make_llama(name: str, *, shard: str, **settings) -> None:
    folder = FOLDER / name
    tokenizer = make_llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        max_position_embeddings=64, attn_implementation="eager", bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    randomise(model)
    tokens, mask = make_batch(config.vocab_size)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        logits = model(
            torch.tensor(tokens), attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
        ).logits  # fmt: skip
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    np.savez(folder / "golden.npz", tokens=tokens, mask=mask, logits=logits.numpy())
    golden = {
        "texts": {text: tokenizer.encode(text, add_special_tokens=False) for text in SENTENCES},
        "chats": [
            {"messages": chat, "ids": tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=False)}
            for chat in CHATS
        ],
    }  # fmt: skip
    (folder / "golden.json").write_text(json.dumps(golden, indent=1), "utf-8")


def make_family(name: str, config: PreTrainedConfig) -> None:
    """A tiny decoder of another family, its weights in bfloat16 to keep the files small.

    Every row is read alone and without padding: what stands beside it must change nothing.
    """
    folder = FOLDER / name
    tokenizer = make_word_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, kept_as=torch.bfloat16)
    tokens, mask = make_batch(config.vocab_size)
    logits = np.zeros((*tokens.shape, config.vocab_size), np.float32)
    with torch.no_grad():
        for row, real, place in zip(tokens, mask.astype(bool), logits, strict=True):
            place[real] = model(torch.tensor(row[real])[None]).logits[0].numpy()
    model.bfloat16().save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    tokenizer.save_pretrained(folder)
    np.savez_compressed(folder / "golden.npz", tokens=tokens, mask=mask, logits=logits)


def make_bert(name: str) -> None:
    folder = FOLDER / name
    tokenizer = make_bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=24, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    randomise(model)
    tokens, mask = make_batch(config.vocab_size)
    types = (np.arange(11) > 4).astype(np.int64)[None].repeat(4, 0)
    outputs = {}
    with torch.no_grad():
        for key, kind in {"hidden": np.zeros_like(types), "hidden_typed": types}.items():
            outputs[key] = model(
                torch.tensor(tokens), attention_mask=torch.tensor(mask),
                token_type_ids=torch.tensor(kind),
            ).last_hidden_state.numpy()  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    np.savez(folder / "golden.npz", tokens=tokens, mask=mask, types=types, **outputs)
    golden = {
        "texts": {
            f"{length}": {
                text: tokenizer.encode(text, truncation=True, max_length=length)
                for text in SENTENCES
            }
            for length in (8, 64)
        },
        "pairs": [
            [a, b, length, tokenizer.encode(a, b, truncation="longest_first", max_length=length)]
            for a in SENTENCES[:2] for b in SENTENCES[1:] for length in (8, 9, 25, 99)
        ],
    }  # fmt: skip
    (folder / "golden.json").write_text(json.dumps(golden, indent=1), "utf-8")


def make_dpr(name: str, kind: type, **settings) -> None:
    folder = FOLDER / name
    tokenizer = make_bert_tokenizer()
    config = DPRConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, attn_implementation="eager", **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = kind(config).eval()
    randomise(model)
    tokens, mask = make_batch(config.vocab_size)
    pairs = [(SENTENCES[0], text) for text in SENTENCES[1:]]
    with torch.no_grad():
        embeddings = model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).pooler_output
        # Without token types, as DPR was trained: all of them 0, in a pair as well.
        of_texts = [
            model(torch.tensor([tokenizer.encode(*text)])).pooler_output.numpy()
            for text in [*((text,) for text in SENTENCES), *pairs]
        ]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    np.savez(
        folder / "golden.npz", tokens=tokens, mask=mask, embeddings=embeddings.numpy(),
        of_texts=np.concatenate(of_texts),
    )  # fmt: skip
    golden = {"texts": [*SENTENCES, *pairs]}
    (folder / "golden.json").write_text(json.dumps(golden, indent=1), "utf-8")


def make_bart(name: str) -> None:
    folder = FOLDER / name
    tokenizer = make_bart_tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=40, max_position_embeddings=24, scale_embedding=True,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BartForConditionalGeneration(config).eval()
    randomise(model)
    with torch.no_grad():
        model.final_logits_bias.normal_(std=0.5)
        model.final_logits_bias[0, config.eos_token_id] = 3.0  # so that some rows end by themselves
    model.generation_config.forced_bos_token_id = config.bos_token_id
    tokens, mask = make_batch(config.vocab_size)
    # The decoder's rows are padded elsewhere than their inputs.
    decoder_tokens, decoder_mask = (part[::-1, :9].copy() for part in make_batch(config.vocab_size))
    inputs = {
        "input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask),
        "decoder_input_ids": torch.tensor(decoder_tokens),
        "decoder_attention_mask": torch.tensor(decoder_mask),
    }  # fmt: skip
    with torch.no_grad():
        whole = model(**inputs, output_hidden_states=True, use_cache=False)
        outputs = {
            "encoded": whole.encoder_last_hidden_state,
            "decoded": torch.stack(whole.decoder_hidden_states),
            "logits": whole.logits,
        }
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_tokens.embed_scale = 1.0
        outputs["logits_unscaled"] = model(**inputs, use_cache=False).logits
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_tokens.embed_scale = config.d_model**0.5
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    np.savez(
        folder / "golden.npz", tokens=tokens, mask=mask, decoder_tokens=decoder_tokens,
        decoder_mask=decoder_mask, **{name: part.numpy() for name, part in outputs.items()},
    )  # fmt: skip
    prompts = [row[: 11 - 2 * i].tolist() for i, row in enumerate(make_batch(len(tokenizer))[0])]
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="right")
    golden = {
        "texts": {text: tokenizer.encode(text) for text in SENTENCES},
        "prompts": prompts,
        "generated": [
            [forced, model.generate(
                **padded, num_beams=1, do_sample=False, max_new_tokens=10, **forced).tolist()]
            for forced in [
                {"forced_bos_token_id": bos, "forced_eos_token_id": eos}
                for bos in (0, None) for eos in (2, None)
            ]
        ],
    }  # fmt: skip
    (folder / "golden.json").write_text(json.dumps(golden, indent=1), "utf-8")


def make_rag(name: str) -> None:
    """What transformers' two RAG models compute around the BART of `make_bart`."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    generator = BartForConditionalGeneration.from_pretrained(FOLDER / "bart").eval()
    # Its RAG-Sequence decoding proposes answers without a mask, as if the padding were read.
    unmasked = generator.generate
    generator.generate = lambda tokens, attention_mask=None, **settings: unmasked(
        tokens, attention_mask=tokens.ne(1).long(), **settings
    )
    encoder = DPRQuestionEncoder(DPRConfig(hidden_size=8, num_hidden_layers=1, vocab_size=9,
                                           num_attention_heads=2, intermediate_size=8))  # fmt: skip
    start, bos, pad, eos = 2, 0, 1, 2
    docs, limit = 3, 8
    config = RagConfig.from_question_encoder_generator_configs(
        encoder.config, generator.config, n_docs=docs, bos_token_id=bos, pad_token_id=pad,
        eos_token_id=eos, decoder_start_token_id=start, is_encoder_decoder=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    mask = (np.arange(12) < rng.integers(4, 13, 2 * docs)[:, None]).astype(np.int64)
    tokens = np.where(mask, rng.integers(5, generator.config.vocab_size, mask.shape), pad)
    scores = rng.normal(size=(2, docs)).astype(np.float32)
    labels = rng.integers(5, generator.config.vocab_size, (2, 7))
    labels[:, :2] = start, bos
    labels[0, 6], labels[1, 4], labels[1, 5:] = eos, eos, pad
    inputs = {
        "context_input_ids": torch.tensor(tokens), "context_attention_mask": torch.tensor(mask),
        "n_docs": docs,
    }  # fmt: skip
    arrays = {"tokens": tokens, "mask": mask, "scores": scores, "labels": labels}
    for marginal, kind in (
        ("sequence", RagSequenceForGeneration),
        ("token", RagTokenForGeneration),
    ):
        model = kind(config=config, question_encoder=encoder, generator=generator).eval()
        for smoothing in (0.0, 0.1):
            model.config.label_smoothing = smoothing
            doc_scores = torch.tensor(scores, requires_grad=True)
            output = model(**inputs, doc_scores=doc_scores, labels=torch.tensor(labels))
            output.loss.sum().backward()
            arrays[f"{marginal}_{smoothing}"] = output.loss.detach().numpy()
            arrays[f"{marginal}_{smoothing}_gradient"] = doc_scores.grad.numpy()
        model.config.label_smoothing = 0.0
        with torch.no_grad():
            given = {"doc_scores": torch.tensor(scores), "labels": torch.tensor(labels)}
            if marginal == "sequence":
                output = model(**inputs, **given, exclude_bos_score=True)
                arrays["logits"] = output.logits.numpy()
                arrays["sequence_without_bos"] = output.loss.numpy()
            settings = {
                "do_sample": False, "max_length": limit, "forced_bos_token_id": bos,
                "forced_eos_token_id": eos, "decoder_start_token_id": start, "num_beams": 4,
                "bos_token_id": bos, "pad_token_id": pad, "eos_token_id": eos,
            }  # fmt: skip
            if marginal == "token":
                written = model.generate(
                    **inputs, doc_scores=torch.tensor(scores), num_return_sequences=4,
                    return_dict_in_generate=True, output_scores=True, **settings,
                )  # fmt: skip
                arrays["written_token"] = written.sequences.numpy()
                arrays["scores_token"] = written.sequences_scores.numpy()
            else:
                arrays["written_sequence"] = model.generate(
                    **inputs, doc_scores=torch.tensor(scores), num_return_sequences=4, **settings
                ).numpy()
    np.savez(folder / "golden.npz", **arrays)


if __name__ == "__main__":
    make_llama(
        "llama_tied", shard="1MB", num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    # Heads wider than `hidden_size / heads`, four query heads to one key head, several shards.
    make_llama(
        "llama_untied_sharded", shard="60KB", num_attention_heads=4, num_key_value_heads=1,
        head_dim=16, rms_norm_eps=1e-5,
    )  # fmt: skip
    make_bert("bert")
    make_dpr("dpr_question", DPRQuestionEncoder)
    make_dpr("dpr_context", DPRContextEncoder, projection_dim=20)
    make_bart("bart")
    make_rag("rag")
    sizes = dict(
        vocab_size=40, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    # A pair of features that turns as before, one in between and two that turn slower.
    llama3 = {
        "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 0.5,
        "high_freq_factor": 2.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    make_family(
        "llama3",
        LlamaConfig(
            **sizes, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=llama3
        ),
    )
    make_family("qwen2", Qwen2Config(**sizes, num_key_value_heads=1))
    # Of the rows of the batch, one is beyond the 8 positions of the short factors.
    longrope = {
        "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.1, 1.3],
        "long_factor": [1.5, 4.0, 9.0], "partial_rotary_factor": 0.75,
    }  # fmt: skip
    make_family(
        "phi3",
        Phi3Config(
            **sizes, num_key_value_heads=2, rope_parameters=longrope, sliding_window=32,
            original_max_position_embeddings=8,
        ),
    )  # fmt: skip
    make_family(
        "stablelm",
        StableLmConfig(
            **sizes, num_key_value_heads=2, use_qkv_bias=True,
            rope_parameters={"rope_theta": 100.0, "partial_rotary_factor": 0.5},
        ),
    )  # fmt: skip
    # Windows that the rows of the batch outgrow.
    make_family("mistral", MistralConfig(**sizes, num_key_value_heads=2, sliding_window=4))
    make_family("qwen3", Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16))
    make_family(
        "gemma3",
        Gemma3TextConfig(
            **sizes, num_key_value_heads=1, head_dim=16, sliding_window=4,
            layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=24,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
    )  # fmt: skip
    make_family("smollm3", SmolLM3Config(**sizes, num_key_value_heads=2, no_rope_layers=[0, 1]))
