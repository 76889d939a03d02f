"""Tiny random models of six architectures and a byte-level tokenizer, built in code: no download, no file.

The weights are drawn with a large standard deviation, so that logits differ clearly between tokens and a
parity test cannot pass by everything being flat.
"""

from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from caryatid.models.load import LoadedModel

ARCHITECTURES = ("llama", "mistral", "qwen2", "gemma2", "gpt2", "gpt_neox")

PAD, START, END, BOS = "<pad>", "<|im_start|>", "<|im_end|>", "<s>"

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny model<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The user's text is enclosed by ordinary text, so that tokens can merge across both of its ends.
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

_CORPUS = (
    "Sure, here is a short list of the steps. Sorry, I can't do that. You are a tiny model. "
    "How do I write a letter to the office? Explain how the tides work. What is the capital of France? "
    "system user assistant [INST] [/INST] !! !!! ... ?? Please write a poem about the sea and the sun. "
    "I cannot help with this request, but here is another thing that the user can do instead. "
) * 4


@lru_cache(maxsize=8)
def _serialised(vocabulary: int, add_bos: bool) -> str:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in (PAD, START, END, BOS)]
    raw.train_from_iterator(
        [_CORPUS],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if add_bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, raw.token_to_id(BOS))]
        )
    return raw.to_str()


def tiny_tokenizer(
    *, template: str | None = CHATML, vocabulary: int = 400, add_bos: bool = False, pad: str = PAD
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over all 256 bytes, `<pad>` = 0, `<|im_start|>` = 1, `<|im_end|>` = 2 = eos, `<s>` = 3.

    `add_bos` makes plain encoding add `<s>`, as Llama-like tokenizers do; `pad` may name another token, as the
    embedded backbone's tokenizer does (pad = eos).
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_serialised(vocabulary, add_bos)),
        pad_token=pad,
        eos_token=END,
        bos_token=BOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(arch: str, layers: int = 4, width: int = 32, vocabulary: int = 400) -> PreTrainedConfig:
    """A configuration of `layers` blocks of `width`, four heads, grouped keys where the architecture has them."""
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 2}
    if arch == "gpt2":
        return GPT2Config(
            **ids, n_embd=width, n_layer=layers, n_head=4, n_positions=512, initializer_range=0.2,
            resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
        )  # fmt: skip
    shared = {
        **ids,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    if arch == "gpt_neox":
        return GPTNeoXConfig(**shared, rotary_pct=0.5, attention_dropout=0.1, hidden_dropout=0.1)
    grouped = {**shared, "num_key_value_heads": 2}
    if arch == "llama":
        return LlamaConfig(**grouped)
    if arch == "mistral":
        return MistralConfig(**grouped, sliding_window=None)
    if arch == "qwen2":
        return Qwen2Config(**grouped)
    if arch == "gemma2":
        return Gemma2Config(
            **grouped,
            head_dim=width // 4,
            query_pre_attn_scalar=width // 4,
            sliding_window=256,
            tie_word_embeddings=True,
        )
    raise ValueError(f"unknown tiny architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")


def tiny_model(
    arch: str = "llama",
    seed: int = 0,
    layers: int = 4,
    width: int = 32,
    dtype: torch.dtype = torch.float32,
    vocabulary: int = 400,
) -> PreTrainedModel:
    """A random model in evaluation mode, frozen; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(arch, layers, width, vocabulary), dtype=dtype)
    model.eval().requires_grad_(False)
    return model


def tiny_loaded(
    arch: str = "llama",
    seed: int = 0,
    layers: int = 4,
    width: int = 32,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> LoadedModel:
    """A tiny model with the chat tokenizer, as `load_model` would return it."""
    model = tiny_model(arch, seed, layers, width, dtype).to(device)
    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        spec=f"tiny-{arch}",
        identity=f"tiny-{arch}-{seed}-{layers}-{width}",
        dtype=dtype,
        device=torch.device(device),
    )


def save_tiny(path: Path, arch: str = "llama", seed: int = 0, layers: int = 4, width: int = 32) -> Path:
    """Write a tiny model and its tokenizer as a model folder; returns `path`."""
    tiny_model(arch, seed, layers, width).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def save_adapter(path: Path, arch: str = "llama", *, size: float, seed: int = 0, **options: object) -> Path:
    """A LoRA adapter whose A is as PEFT draws it and whose B has standard deviation `size`."""
    from peft import LoraConfig, get_peft_model

    settings = {"target_modules": "all-linear", **options}
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(tiny_model(arch), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_" in name:
                parameter.data.normal_(std=size)
    model.save_pretrained(path)
    return path
