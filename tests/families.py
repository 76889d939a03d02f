"""Tiny random models of further families that transformers offers, made from their configurations."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from caryatid.models.load import LoadedModel
from tiny import tiny_tokenizer

_SHARED: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 3,
    "eos_token_id": 2,
}  # fmt: skip
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_DELTA = _LINEAR | {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
_GROUPS = {"n_group": 1, "topk_group": 1}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    # attention and an MLP
    "llama": {}, "mistral": {}, "ministral": {}, "ministral3": {}, "qwen3": {}, "phi": {}, "phi3": {}, "olmo": {},
    "olmo2": {}, "olmo3": _SLIDING, "gpt_neox": {}, "gemma": {}, "gemma2": _SLIDING, "gemma3_text": _SLIDING,
    "gemma4_text": _SLIDING | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400,
                               "global_head_dim": 8},
    "glm": {}, "glm4": {}, "granite": {}, "cohere2": _SLIDING, "smollm3": {}, "exaone4": {}, "stablelm": {},
    "starcoder2": {}, "nemotron": {}, "seed_oss": {}, "helium": {},
    # mixtures of experts
    "mixtral": _LOCAL, "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 32}, "qwen3_moe": _EXPERTS,
    "gpt_oss": _LOCAL | _SLIDING, "olmoe": _EXPERTS, "deepseek_v3": _ROUTED | _GROUPS | _LATENT,
    "glm4_moe": _ROUTED | _GROUPS, "granitemoe": _LOCAL, "phimoe": _LOCAL,
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
                    "intermediate_size_mlp": 64, "attention_chunk_size": 64},
    # hybrids
    "qwen3_next": _DELTA | _EXPERTS | {"shared_expert_intermediate_size": 32}, "qwen3_5_text": _DELTA,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 64, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1} | _EXPERTS,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
              "num_experts": 4, "mamba_d_state": 8, "use_mamba_kernels": False},
    "granitemoehybrid": _LOCAL | {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32,
                                  "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mlp", "mamba"], "mamba_num_heads": 8,
                   "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "bloom": {},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4},
    "minimax": _LOCAL | _LINEAR | {"block_size": 16},
    "gemma3n_text": _SLIDING
    | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400, "num_kv_shared_layers": 0}
    | {"laurel_rank": 8, "intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.0] * 4},
}


def family(kind: str) -> LoadedModel:
    """A model of a family with the chat tokenizer, its matrices drawn so large that logits differ clearly."""
    settings = {**_SHARED, **(FAMILIES | REFUSED)[kind]}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.eval().requires_grad_(False)
    return LoadedModel(model, tiny_tokenizer(), kind, kind, torch.float32, torch.device("cpu"))


_ENCODER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGES = _ENCODER | {"image_size": 28, "patch_size": 14}
_PATCHES = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
VISION: dict[str, dict[str, Any]] = {
    "mistral3": {"text_config": _SHARED | {"model_type": "mistral"},
                 "vision_config": _IMAGES | {"model_type": "pixtral", "head_dim": 16}},
    "llava": {"text_config": _SHARED | {"model_type": "llama"},
              "vision_config": _IMAGES | {"model_type": "clip_vision_model", "projection_dim": 32}},
    "gemma3": {"text_config": _SHARED | _SLIDING, "vision_config": _IMAGES | {"model_type": "siglip_vision_model"}},
    "gemma4": {"text_config": _SHARED | FAMILIES["gemma4_text"], "vision_config": _ENCODER | {"head_dim": 16}},
    "qwen3_5": {"text_config": _SHARED | _DELTA, "vision_config": _PATCHES},
    "qwen2_5_vl": {"text_config": _SHARED | _SECTIONS, "vision_config": _PATCHES},
    "qwen3_vl": {"text_config": _SHARED | _SECTIONS, "vision_config": _PATCHES | {"deepstack_visual_indexes": [0]}},
}  # fmt: skip
WHOLE = ("qwen2_5_vl", "qwen3_vl")  # their text parts have no class of their own


def vision_language(kind: str) -> PreTrainedModel:
    """A vision-language model."""
    config = CONFIG_MAPPING[kind](**VISION[kind], tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
