"""The model types whose experts DeepSpeed can share between ranks.

Source: `hf_model_types` of module_inject/auto_ep_presets; a test holds this equal to the installed
DeepSpeed's.
"""

EXPERT_TYPES = frozenset({
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_5_moe_text", "deepseek_v2", "deepseek_v3",
    "minimax_m3_vl_text",
})  # fmt: skip
