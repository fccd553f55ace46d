"""Small architectures that the real engine trains here; sizes under the names of their configs."""

from __future__ import annotations

from typing import Any

_BASE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 4096}
_KV = {"num_key_value_heads": 8, "max_position_embeddings": 512}
_BERT = {**_BASE, "intermediate_size": 1024, "max_position_embeddings": 512}
_GPT = {"n_embd": 256, "n_layer": 4, "n_head": 8, "vocab_size": 4096}
_QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 4096, "n_embd": 384, "n_layer": 6, "n_head": 6,
        "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "qwen3": {
        "model_type": "qwen3", "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
        "max_position_embeddings": 512, "tie_word_embeddings": False,
    },
    "phi3": {"model_type": "phi3", **_BASE, **_KV, "intermediate_size": 704, "pad_token_id": 0},
    "phi": {"model_type": "phi", **_BASE, **_KV, "intermediate_size": 1024},
    "falcon": {"model_type": "falcon", **_BASE},
    "olmoe": {"model_type": "olmoe", **_BASE, **_KV, "intermediate_size": 256, "num_experts": 8,
              "num_experts_per_tok": 2},
    "bloom": {"model_type": "bloom", "hidden_size": 256, "n_layer": 4, "n_head": 8,
              "vocab_size": 4096},
    "gemma2": {"model_type": "gemma2", **_BASE, **_KV, "intermediate_size": 512, "head_dim": 32,
               "num_key_value_heads": 4, "sliding_window": 128},
    "opt": {"model_type": "opt", **_BASE, "ffn_dim": 1024, "word_embed_proj_dim": 256,
            "max_position_embeddings": 512, "dropout": 0.0},
    "stablelm": {"model_type": "stablelm", **_BASE, **_KV, "intermediate_size": 704},
    "starcoder2": {"model_type": "starcoder2", **_BASE, **_KV, "intermediate_size": 1024,
                   "num_key_value_heads": 2},
    "gptj": {"model_type": "gptj", **_GPT, **_QUIET, "n_positions": 512, "rotary_dim": 16},
    "cohere": {"model_type": "cohere", **_BASE, **_KV, "intermediate_size": 704},
    "granite": {"model_type": "granite", **_BASE, **_KV, "intermediate_size": 704},
    "mpt": {"model_type": "mpt", "d_model": 256, "n_heads": 8, "n_layers": 4, "vocab_size": 4096,
            "max_seq_len": 512},
    "deepseek_v2": {"model_type": "deepseek_v2", **_BASE, **_KV, "intermediate_size": 512,
                    "moe_intermediate_size": 128, "n_routed_experts": 8, "n_shared_experts": 1,
                    "num_experts_per_tok": 2, "kv_lora_rank": 64, "q_lora_rank": None,
                    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
                    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "bert": {"model_type": "bert", **_BERT},
    "t5": {"model_type": "t5", "d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 3,
           "num_heads": 8, "vocab_size": 4096},
    "bart": {"model_type": "bart", "d_model": 256, "encoder_layers": 3, "decoder_layers": 3,
             "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 1024,
             "decoder_ffn_dim": 1024, "vocab_size": 4096, "max_position_embeddings": 512},
    "vit": {"model_type": "vit", "hidden_size": 256, "num_hidden_layers": 6, "image_size": 112,
            "num_attention_heads": 8, "intermediate_size": 1024, "patch_size": 8},
    "deberta-v2": {"model_type": "deberta-v2", **_BERT},
    "electra": {"model_type": "electra", **_BERT, "embedding_size": 128},
}  # fmt: skip
TASKS = {
    "bert": "mlm", "t5": "seq2seq", "bart": "seq2seq", "vit": "vision", "deberta-v2": "classify",
    "electra": "classify",
}  # fmt: skip
