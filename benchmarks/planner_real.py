"""Published architectures at their real sizes: the profile against whole passes of the model.

Sizes are those of the models' config.json on the Hub; no preset has them. A pass is run whole under
FakeTensorMode and followed by `benchmarks.live`, with the attention that the trainer would use;
samples and lengths are others than the profile was traced with.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

MEAN_ERROR, WORST_ERROR = 0.005, 0.02


def _decoder(
    kind: str, width: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": vocabulary, "max_position_embeddings": 16384, "pad_token_id": 0, **more,
    }  # fmt: skip


def _encoder(kind: str, width: int, layers: int, heads: int, vocabulary: int, **more: Any) -> Any:
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary,
        "max_position_embeddings": 512, **more,
    }  # fmt: skip


def _seq2seq(kind: str, layers: int, inner: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "d_model": 1024, "encoder_layers": layers, "decoder_layers": layers,
        "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner, "vocab_size": vocabulary, "max_position_embeddings": 1024, **more,
    }  # fmt: skip


_LITE = {
    "moe_intermediate_size": 1408, "n_shared_experts": 2, "n_routed_experts": 64,
    "num_experts_per_tok": 6, "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
_DEBERTA = {
    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
# name: architecture, task, samples, length
MODELS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "Llama-2-7b": (_decoder("llama", 4096, 11008, 32, 32, 32, 32000), "pretrain", 2, 4096),
    "CodeLlama-34b": (_decoder("llama", 8192, 22016, 48, 64, 8, 32000), "pretrain", 1, 16384),
    "Yi-34B": (_decoder("llama", 7168, 20480, 60, 56, 8, 64000), "pretrain", 1, 4096),
    "phi-2": (_decoder("phi", 2560, 10240, 32, 32, 32, 51200, partial_rotary_factor=0.4),
              "pretrain", 6, 2048),
    "Phi-3-mini-4k": (_decoder("phi3", 3072, 8192, 32, 32, 32, 32064, sliding_window=2047),
                      "pretrain", 3, 4096),
    "phi-4": (_decoder("phi3", 5120, 17920, 40, 40, 10, 100352), "pretrain", 1, 16384),
    "falcon-7b": ({"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
                   "num_attention_heads": 71, "vocab_size": 65024}, "pretrain", 4, 2048),
    "opt-6.7b": ({"model_type": "opt", "hidden_size": 4096, "ffn_dim": 16384, "dropout": 0.1,
                  "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50272,
                  "word_embed_proj_dim": 4096}, "pretrain", 5, 2048),
    "bloom-7b1": ({"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32,
                   "vocab_size": 250880}, "pretrain", 2, 2048),
    "gpt-j-6b": ({"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16,
                  "rotary_dim": 64, "vocab_size": 50400}, "pretrain", 3, 2048),
    "gpt-neox-20b": (_decoder("gpt_neox", 6144, 24576, 44, 64, 64, 50432), "pretrain", 3, 2048),
    "stablelm-3b": (_decoder("stablelm", 2560, 6912, 32, 32, 32, 50304), "pretrain", 3, 4096),
    "starcoder2-7b": (_decoder("starcoder2", 4608, 18432, 32, 36, 4, 49152, sliding_window=4096),
                      "pretrain", 1, 16384),
    "gemma-7b": (_decoder("gemma", 3072, 24576, 28, 16, 16, 256000, head_dim=256),
                 "pretrain", 1, 8192),
    "gemma-2-9b": (_decoder("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256,
                            sliding_window=4096), "pretrain", 1, 8192),
    "Qwen2.5-7B": (_decoder("qwen2", 3584, 18944, 28, 28, 4, 152064), "pretrain", 1, 16384),
    "Qwen2.5-32B": (_decoder("qwen2", 5120, 27648, 64, 40, 8, 152064), "pretrain", 1, 8192),
    "command-r": (_decoder("cohere", 8192, 22528, 40, 64, 64, 256000), "pretrain", 1, 8192),
    "granite-3.1-8b": (_decoder("granite", 4096, 12800, 40, 32, 8, 49155), "pretrain", 1, 16384),
    "OLMo-7B": (_decoder("olmo", 4096, 11008, 32, 32, 32, 50304), "pretrain", 6, 2048),
    "mpt-7b": ({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32,
                "vocab_size": 50432, "max_seq_len": 2048}, "pretrain", 3, 2048),
    "Mistral-Nemo-12B": (_decoder("mistral", 5120, 14336, 40, 32, 8, 131072, head_dim=128,
                                  sliding_window=None), "pretrain", 1, 16384),
    "SmolLM3-3B": (_decoder("smollm3", 2048, 11008, 36, 16, 4, 128256), "pretrain", 1, 16384),
    "glm-4-9b": (_decoder("glm", 4096, 13696, 40, 32, 2, 151552, head_dim=128),
                 "pretrain", 1, 8192),
    "xglm-7.5B": ({"model_type": "xglm", "d_model": 4096, "ffn_dim": 16384, "num_layers": 32,
                   "attention_heads": 32, "vocab_size": 256008}, "pretrain", 3, 2048),
    "OLMoE-1B-7B": (_decoder("olmoe", 2048, 1024, 16, 16, 16, 50304, num_experts=64,
                             num_experts_per_tok=8), "pretrain", 3, 4096),
    "Qwen1.5-MoE-A2.7B": (_decoder("qwen2_moe", 2048, 5632, 24, 16, 16, 151936, num_experts=60,
                                   moe_intermediate_size=1408, num_experts_per_tok=4,
                                   shared_expert_intermediate_size=5632), "pretrain", 1, 8192),
    "DeepSeek-V2-Lite": (_decoder("deepseek_v2", 2048, 10944, 27, 16, 16, 102400, **_LITE),
                         "pretrain", 3, 4096),
    "Phi-3.5-MoE": (_decoder("phimoe", 4096, 6400, 32, 32, 8, 32064, num_local_experts=16,
                             num_experts_per_tok=2), "pretrain", 1, 4096),
    "gpt-oss-20b": (_decoder("gpt_oss", 2880, 2880, 24, 64, 8, 201088, head_dim=64,
                             num_local_experts=32, num_experts_per_tok=4, sliding_window=128),
                    "pretrain", 1, 4096),
    "granite-3.0-3b-a800m": (_decoder("granitemoe", 1536, 512, 32, 24, 8, 49155,
                                      num_local_experts=40, num_experts_per_tok=8),
                             "pretrain", 3, 4096),
    "LFM2-1.2B": (_decoder("lfm2", 2048, 12288, 16, 32, 8, 65536,
                           full_attn_idxs=[2, 5, 8, 10, 12, 14]), "pretrain", 1, 16384),
    "bert-large": (_encoder("bert", 1024, 24, 16, 30522), "mlm", 17, 512),
    "roberta-large": (_encoder("roberta", 1024, 24, 16, 50265, type_vocab_size=1,
                               max_position_embeddings=514), "mlm", 17, 512),
    "xlm-roberta-large": (_encoder("xlm-roberta", 1024, 24, 16, 250002, type_vocab_size=1,
                                   max_position_embeddings=514), "mlm", 9, 512),
    "ModernBERT-large": ({"model_type": "modernbert", "hidden_size": 1024, "num_hidden_layers": 28,
                          "intermediate_size": 2624, "num_attention_heads": 16,
                          "vocab_size": 50368, "max_position_embeddings": 8192}, "mlm", 1, 8192),
    "deberta-v3-large": (_encoder("deberta-v2", 1024, 24, 16, 128100, **_DEBERTA),
                         "classify", 9, 512),
    "electra-large": (_encoder("electra", 1024, 24, 16, 30522, embedding_size=1024),
                      "classify", 17, 512),
    "albert-xxlarge": (_encoder("albert", 4096, 12, 64, 30000, embedding_size=128), "mlm", 5, 512),
    "flan-t5-xl": ({"model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32,
                    "num_layers": 24, "num_decoder_layers": 24, "vocab_size": 32128,
                    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
                   "seq2seq", 5, 1024),
    "mt5-large": ({"model_type": "mt5", "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_heads": 16,
                   "num_layers": 24, "num_decoder_layers": 24, "vocab_size": 250112,
                   "feed_forward_proj": "gated-gelu"}, "seq2seq", 5, 1024),
    "bart-large": (_seq2seq("bart", 12, 4096, 50265), "seq2seq", 9, 1024),
    "nllb-200-1.3B": (_seq2seq("m2m_100", 24, 8192, 256206), "seq2seq", 5, 1024),
    "pegasus-large": (_seq2seq("pegasus", 16, 4096, 96103), "seq2seq", 5, 1024),
    "vit-large": ({"model_type": "vit", "hidden_size": 1024, "num_hidden_layers": 24,
                   "num_attention_heads": 16, "intermediate_size": 4096}, "vision", 33, 1),
    "beit-large": ({"model_type": "beit", "hidden_size": 1024, "num_hidden_layers": 24,
                    "num_attention_heads": 16, "intermediate_size": 4096}, "vision", 33, 1),
    "dinov2-large": ({"model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24,
                      "num_attention_heads": 16, "image_size": 518, "patch_size": 14},
                     "vision", 9, 1),
    "swin-large": ({"model_type": "swin", "embed_dim": 192, "depths": [2, 2, 18, 2],
                    "num_heads": [6, 12, 24, 48], "window_size": 7}, "vision", 33, 1),
    "convnext-large": ({"model_type": "convnext", "depths": [3, 3, 27, 3],
                        "hidden_sizes": [192, 384, 768, 1536]}, "vision", 33, 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A pass: bytes kept, and the peaks of forward and backward; measured, and predicted."""

    name: str
    task: str
    samples: int
    length: int
    recomputes: bool
    parameters: int
    measured: tuple[int, int, int] = (1, 1, 1)
    predicted: tuple[int, int, int] = (0, 0, 0)
    why: str = ""  # there are no numbers

    @property
    def off(self) -> list[float]:
        """Relative errors."""
        return [a / b - 1 for a, b in zip(self.predicted, self.measured, strict=True)]


def compare(name: str) -> list[Row]:
    """Measure the passes of a model, without and with recomputation, and predict them."""
    from benchmarks.planner_coverage import request_for, whole
    from dslm.profile.levels import levels
    from dslm.worker.trace.model import build
    from dslm.worker.trace.profile import profile

    architecture, task, samples, length = MODELS[name]
    request = request_for(task, architecture)
    found = profile(request)
    rows = []
    for mode in ("plain", "recompute"):
        again = mode == "recompute"
        row = Row(name, task, samples, length, again, found.total, why=found.why)
        if mode not in found.passes:
            rows += [row] if found.why else []
            continue
        seen = levels(found.pass_of(mode, samples), samples, length)
        most = max(level.kept for level in seen.backward)
        rows.append(
            Row(
                name, task, samples, length, again, found.total,
                measured=whole(build(request), samples, length, recompute=again),
                predicted=(int(seen.kept), int(seen.forward), int(most)),
            )
        )  # fmt: skip
    return rows


def measured(file: Path, *, minutes: float = 9.0) -> list[Row]:
    """Compare the models that a file doesn't have yet, for so long; all rows that it has."""
    began = time.monotonic()
    rows = [_row(each) for each in json.loads(file.read_text())] if file.is_file() else []
    done = {row.name for row in rows}
    for name in MODELS:
        if name in done or time.monotonic() - began > 60 * minutes:
            continue
        new = compare(name)
        for row in new:
            print(name, row.recomputes, row.why or [f"{off:+.3%}" for off in row.off], flush=True)
        rows += new
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([asdict(row) for row in rows]))
    return rows


def _row(values: dict[str, Any]) -> Row:
    pairs = {name: tuple(values[name]) for name in ("measured", "predicted")}
    return Row(**{**values, **pairs})


def errors(rows: list[Row]) -> list[float]:
    """The absolute errors of every number that there is."""
    return [abs(off) for row in rows if not row.why for off in row.off]


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | parameters | task | micro batch | recomputes | kept | off | forward | off "
        "| backward | off |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(
            f"{size / 2**30:.2f} GiB | {off:+.2%}"
            for size, off in zip(row.measured, row.off, strict=True)
        )
        lines.append(
            f"| {row.name} | {row.parameters / 1e9:.2f}B | {row.task} "
            f"| {row.samples} × {row.length} | {'yes' if row.recomputes else 'no'} "
            f"| {row.why or cells} |"
        )
    off = errors(rows)
    names, untraced = ({row.name for row in rows if bool(row.why) is why} for why in (False, True))
    lines.append(
        f"\n{len(names)} models, {len(off)} numbers: off by {mean(off):.3%} on average, by "
        f"{max(off):.2%} at worst. Can't be traced: {', '.join(sorted(untraced)) or 'none'}."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(measured(Path(sys.argv[1]))))
