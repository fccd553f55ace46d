"""What each judge is asked about: recipes at both sides of its edges, as overrides.

What it says of them is in tests/golden/findings/judges, a file for each check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SFT, MLM, DPO, ORPO = "quickstart-sft", "quickstart-mlm", "quickstart-dpo", "quickstart-orpo"
GRPO, VISION, SEQ2SEQ = "quickstart-grpo", "quickstart-vision", "quickstart-seq2seq"
A = "model.architecture"
LOADED = (
    "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 "
    "evaluation.sample=null"
)
Plan = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """A recipe, where it runs, what was planned and traced of it, and what is installed."""

    sets: str = ""
    recipe: str = "quickstart"
    device: str = "cpu"
    hosts: tuple[int, ...] = (2,)
    here: bool = True
    plan: Plan | None = None
    positions: int | None = None  # that the trace found; with `apart` None there is no trace
    apart: Mapping[str, bool] | None = None
    other_versions: tuple[str, ...] = ()  # packages of which transformers.json is of another one
    installed: tuple[str, ...] = ()  # packages that are there
    missing: tuple[str, ...] = ()  # packages that are not
    releases: Mapping[str, str] = field(default_factory=dict)  # of packages, instead of the real

    def __str__(self) -> str:
        parts = [self.recipe, self.sets.replace(LOADED, "LOADED").replace(A, "…")]
        if self.device != "cpu" or self.hosts != (2,):
            parts.append(f"on {self.device} {'+'.join(map(str, self.hosts))}")
        parts += [] if self.here else ["elsewhere"]
        for name in ("plan", "apart", "releases"):
            value = getattr(self, name)
            if value or (value is not None and name != "releases"):
                parts.append(f"{name}({', '.join(f'{k}={v}' for k, v in value.items())})")
        parts += [f"positions {self.positions}"] if self.positions is not None else []
        for name in ("other_versions", "installed", "missing"):
            parts += [f"{name} {' '.join(value)}"] if (value := getattr(self, name)) else []
        return " ".join(part for part in parts if part)


def _all(*sets: str, **more: Any) -> tuple[Given, ...]:
    return tuple(Given(each, **more) for each in sets)


G = Given
_FLASH = "model.attention=flash_attention_2"
_FLASH_ATTN: dict[str, Any] = {"device": "h100", "installed": ("flash_attn",)}
_ZERO = "deepspeed.zero_optimization"

_MIXTRAL = f"{A}.model_type=mixtral"
_NO_KIND = f"{A}.model_type=nope"
_OTHER: dict[str, Any] = {"other_versions": ("transformers",)}
_ZENFLOW = "parallel.zero_stage=2 parallel.offload=optimizer parallel.zenflow=true"
_SUPER = "parallel.zero_stage=3 parallel.offload=optimizer parallel.super_offload=true"
_FUNCTION = 'rewards=[{{"function":"{}"}}]'

# keys of the section: the recipe's value, and another one
_OF_THE_SECTION: dict[str, tuple[object, ...]] = {
    "train_batch_size": (16, 8),
    "train_micro_batch_size_per_gpu": (4, 5),
    "gradient_accumulation_steps": (5, 4),
    "gradient_clipping": (1.0, 2.0),
    "optimizer.params.lr": (0.5, 0.6),
    "optimizer.params.betas": ("[0.9,0.95]", "[0.9,0.99]"),
    "optimizer.params.eps": ("1e-8", 0.1),
    "optimizer.params.weight_decay": (0.1, 0.2),
    "scheduler.params.warmup_max_lr": (0.5, 0.6),
    "scheduler.params.warmup_num_steps": (7,),
    "scheduler.params.total_num_steps": (7,),
    "zero_optimization.stage": (2, 1),
    "zero_optimization.offload_optimizer.nvme_path": ("null", "/disk"),
    "zero_optimization.offload_param.nvme_path": ("null", "/disk"),
    "tensor_parallel.autotp_size": (2, 3),
    "sequence_parallel_size": (3, 2),
    "wall_clock_breakdown": ("true",),
}

GIVEN: dict[str, tuple[Given, ...]] = {
    "a task that dslm trains": _all("", "task=script"),
    "a task that a verification has a reference for": (G(), *(
        G(recipe=f"quickstart-{task}") for task in ("dpo", "orpo", "kto", "reward", "grpo", "sft")
    ), *_all(
        *(f"{LOADED} lora={{}} quantize={bits}" for bits in ("nf4", "int8")),
        "training_args.neftune_noise_alpha=5", "training_args.neftune_noise_alpha=null",
        "training_args.use_weighting=true", "training_args.use_weighting=false",
        "training_args.f_divergence_type=js_divergence", "training_args.loss_type=[sigmoid,sft]",
    )),
    "savings for long samples that go with the rest": _all(
        "", "model.tiled_mlp=true", "model.tiled_loss=true", "model.long_context=true",
        "model.tiled_mlp=true model.compile=true", "model.tiled_mlp=true model.compile=false",
        "model.tiled_loss=true model.chunked_loss=true", "model.tiled_loss=true parallel.tensor=2",
        "model.tiled_loss=true parallel.sequence=2",
        "model.offload_activations=true model.activation_checkpointing=false",
        "model.offload_activations=true model.activation_checkpointing=true",
    ),
    "adapters on a trained model": _all("", "lora={}", f"{LOADED} lora={{}}", LOADED),
    "packages that the recipe needs": (
        G(), G(recipe=SFT), G(recipe=SFT, missing=("trl",)), G(missing=("trl",)),
        G(f"{LOADED} lora={{}} quantize=nf4", recipe=SFT, missing=("trl", "peft", "bitsandbytes")),
    ),
    "attention that the model and the device have": (
        *_all(
            "", "model.attention=eager", "model.attention=sdpa",
            f"model.attention=sdpa {A}.model_type=gpt_neo",
            f"model.attention=eager {A}.model_type=gpt_neo",
            f"model.attention=sdpa {_NO_KIND}", f"model.attention=sdpa {A}.model_type=aimv2",
            f"{_FLASH} precision=bf16", f"{_FLASH} precision=bf16 {A}.model_type=bloom",
        ),
        G(f"{_FLASH} precision=bf16", device="h100"),
        G(f"{_FLASH} precision=bf16", device="h100", here=False),
        G("model.attention=sdpa precision=fp32", recipe=MLM, device="h100"),
        *_all(f"{_FLASH} precision=bf16", f"{_FLASH} precision=fp16", _FLASH, **_FLASH_ATTN),
        G(f"{_FLASH} precision=bf16", recipe=MLM, **_FLASH_ATTN),
        G(f"{_FLASH} precision=bf16", recipe=VISION, **_FLASH_ATTN),
        G(f"{_FLASH} task=script precision=bf16", **_FLASH_ATTN),
    ),
    "Liger where it runs": (
        *_all("", "model.liger=true", "model.liger=false", "model.liger=auto"),
        G("model.liger=true", device="h100"), G("model.liger=true", device="h100", here=False),
        G("model.liger=true", device="h100", installed=("liger_kernel",)),
        G("model.liger=auto", device="h100"),
    ),
    "ZeRO++ where it runs": (
        *_all(
            "", f"{_ZERO}.zero_quantized_weights=true", f"{_ZERO}.zero_quantized_weights=false",
            f"{_ZERO}.zero_quantized_gradients=true",
            f"{_ZERO}.zero_quantized_nontrainable_weights=true",
            f"{_ZERO}.zero_hpz_partition_size=1", f"{_ZERO}.zero_hpz_partition_size=2",
            f"{_ZERO}.zero_hpz_partition_size=often", "deepspeed.zero_optimization=3",
            f"{_ZERO}.zero_quantized_weights=true {_ZERO}.zero_hpz_partition_size=8",
        ),
        G(f"{_ZERO}.zero_quantized_weights=true", device="h100"),
    ),
    "an optimizer for the device and its offload": (
        *_all(
            "optimizer.name=lion", "optimizer.name=lion parallel.offload=optimizer",
            "optimizer.name=lion parallel.offload=auto", "optimizer.name=adafactor",
            "optimizer.name=adafactor parallel.offload=auto",
            "optimizer.name=adafactor parallel.offload=optimizer", "optimizer.name=adamw",
            "optimizer.name=sgd parallel.offload=optimizer",
        ),
        G("optimizer.name=lion", device="h100"),
        G("optimizer.name=lion parallel.offload=auto", plan={"offload": "none"}),
        G("optimizer.name=lion", plan={"offload": "optimizer"}),
        G("optimizer.name=adafactor", plan={"zero_stage": 3, "offload": "all"}),
        G("optimizer.name=adafactor parallel.offload=optimizer", plan={"offload": "none"}),
    ),
    "a disk to offload to": _all(
        "", "parallel.nvme_path=/nowhere/at/all",
        "parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path=/nowhere/at/all",
        "parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path=./llama",
        "parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path=~/llama",
        "parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path=./text.txt",
    ),
    "adapters and few bits that go with the rest": _all(
        "", f"{LOADED} quantize=nf4", f"{LOADED} quantize=nf4 lora={{}}", "quantize=nf4 lora={}",
        *(
            f"{LOADED} quantize=nf4 lora={{}} {other}"
            for other in (
                "parallel.tensor=2", "parallel.tensor=auto", "parallel.expert=2",
                "parallel.expert=auto", "parallel.zero_stage=3 parallel.zeropp=true",
                "lora.init=pissa", "lora.init=olora", "lora.init=gaussian",
                "lora.init=pissa lora.adapter=./adapter",
            )
        ),
        f"{LOADED} lora={{}} lora.init=pissa parallel.tensor=2 parallel.expert=2",
        *(
            f"{LOADED} lora={{}} lora.b_lr_ratio={ratio} optimizer.name={name}"
            for ratio, name in ((1.0, "lion"), (4.0, "lion"), (4.0, "adam"), (4.0, "adamw"))
        ),
    ),
    "a partitioning that adapters and few bits go with": (
        G(f"{LOADED} quantize=int8 lora={{}} parallel.zero_stage=3"),
        *(
            G(f"{LOADED} lora={{}} {sets}", plan={"zero_stage": stage, "offload": offload})
            for sets in ("", "quantize=nf4", "quantize=int8", "lora.init=pissa",
                         "lora.b_lr_ratio=4.0")
            for stage, offload in ((2, "none"), (2, "optimizer"), (3, "none"), (3, "all"),
                                   (3, "nvme"))
        ),
    ),
    "adapters that there are": _all(
        "", f"{LOADED} lora={{}}", f"{LOADED} lora={{}} lora.adapter=./adapter",
        f"{LOADED} lora={{}} lora.adapter=./llama", f"{LOADED} lora={{}} lora.adapter=./gone",
        f"{LOADED} lora={{}} lora.adapter=~/adapter",
    ),
    "a model type that there is": (
        *_all(
            "", _NO_KIND, f"{A}.model_type=lama", f"{A}.model_type=zzzzzzzz",
            f"{_NO_KIND} {A}.auto_map.AutoModel=a.B",
            f"{_NO_KIND} {A}.auto_map.AutoModel=a.B model.trust_remote_code=true",
            f"{_NO_KIND} model.trust_remote_code=true", f"{A}.auto_map.AutoModel=a.B",
            "model.init=pretrained model.name=./unknown",
            "model.init=pretrained model.name=./llama",
            "model.init=pretrained model.name=no-one/has-this",
        ),
        G(_NO_KIND, **_OTHER),
    ),
    "a model for the task": (
        *(
            G(f"{A}.model_type={kind} task={task}")
            for kind in ("llama", "bert", "t5", "vit", "bart", "xlm", "convbert", "nope", "aimv2")
            for task in ("pretrain", "mlm", "sft", "seq2seq", "classify", "vision", "script")
        ),
        *_all(
            "task=mlm model.trust_remote_code=true",
            f"task=mlm model.trust_remote_code=true {A}.auto_map.AutoModel=a.B",
            f"task=mlm {A}.auto_map.AutoModel=a.B",
            f"{A}.model_type=bert {A}.is_decoder=true", f"{A}.model_type=bert {A}.is_decoder=false",
            f"{A}.model_type=bert-generation",
            "model.init=pretrained model.name=./bert", f"{A}.model_type=reformer task=seq2seq",
        ),
        *_all("task=mlm", f"{A}.model_type=convbert", f"{A}.model_type=bert", **_OTHER),
    ),
    "entries of the right type": (
        *_all(
            "", f"{A}.num_hidden_layers=two", f"{A}.rms_norm_eps=1", f"{A}.rms_norm_eps=1.0",
            f"{A}.attention_dropout=0", f"{A}.attention_dropout=null", f"{A}.hidden_size=true",
            f"{A}.tie_word_embeddings=maybe", f"{A}.rope_parameters=often",
            f"{A}.eos_token_id=[1,2]", f"{A}.eos_token_id=1.5", f"{A}.hidden_act=3",
            f"{A}.num_hiden_layers=2", f"{A}.my_note=2", f"{_NO_KIND} {A}.hidden_size=two",
            f"{A}.model_type=gpt2 {A}.hidden_size=two", f"{A}.model_type=gpt2 {A}.n_embd=two",
            f"{A}.model_type=gpt2 {A}.n_embed=64", f"{A}.model_type=gpt_neo {A}.attention_types=9",
            f"{A}.model_typ=llama", "model.init=pretrained model.name=./odd",
            f"{A}.num_hidden_layers=two {A}.rms_norm_eps=1 {A}.num_hiden_layers=2",
        ),
        G(f"{A}.num_hidden_layers=two", **_OTHER),
    ),
    "sizes above zero": _all(
        "", f"{A}.hidden_size=-8", f"{A}.hidden_size=0", f"{A}.hidden_size=1",
        f"{A}.num_hidden_layers=two", f"{A}.hidden_size=false", f"{_NO_KIND} {A}.hidden_size=-8",
        f"{A}.model_type=gpt2 {A}.n_embd=0", f"{A}.model_type=gpt2 {A}.hidden_size=0",
        f"{A}.head_dim=-1 {A}.vocab_size=0 {A}.intermediate_size=-2",
        "model.init=pretrained model.name=./odd",
    ),
    "heads divide the width": _all(
        "", *(
            f"{A}.hidden_size={width} {A}.num_attention_heads={heads}"
            for width, heads in ((128, 5), (128, 3), (128, 127), (128, 256), (7, 3), (12, 4),
                                 (12, 12), (0, 3), (7, 1), (128, 0), (-128, 3), (128, -3), (128, 1))
        ),
        f"{A}.num_attention_heads=two", f"{A}.hidden_size=null",
        f"{_NO_KIND} {A}.num_attention_heads=5",
        f"{A}.num_attention_heads=3 {A}.head_dim=32",
        *(
            f"{_MIXTRAL} {A}.num_attention_heads=3 {A}.{name}={size}"
            for name, size in (("head_dim", 32), ("head_dim", "null"), ("head_dim", 5),
                               ("v_head_dim", 32), ("qk_nope_head_dim", 32),
                               ("attention_head_size", 8), ("d_kv", 8))
        ),
        f"{A}.head_dim=5", f"{A}.head_dim=5 {A}.partial_rotary_factor=0.5",
        f"{A}.head_dim=5 {A}.partial_rotary_factor=1",
        f"{A}.model_type=bert {A}.head_dim=5",
        f"{A}.model_type=bert {A}.hidden_size=12 {A}.num_attention_heads=4",
        f"{A}.model_type=jetmoe {A}.hidden_size=12 {A}.num_attention_heads=4",
        f"{A}.model_type=gpt2 {A}.n_embd=64 {A}.n_head=5",
        f"{A}.model_type=gpt2 {A}.hidden_size=64 {A}.n_head=5",
        f"{A}.model_type=gpt2 {A}.n_head=7",
    ),
    "key-value heads divide the heads": _all(
        "", *(
            f"{A}.num_attention_heads={heads} {A}.num_key_value_heads={shared}"
            for heads, shared in ((4, 3), (4, 1), (4, 4), (4, 8), (24, 5), (360, 7), (4, 0),
                                  (4, -3), (0, 3), (-4, 3), (4, "null"), (1, 2))
        ),
        f"{_NO_KIND} {A}.num_key_value_heads=3",
        f"{A}.model_type=bert {A}.num_key_value_heads=3",
        f"{A}.model_type=gpt2 {A}.n_head=4 {A}.num_key_value_heads=3",
        "model.init=pretrained model.name=./odd",
    ),
    "an activation that there is": (
        *_all(
            "", *(f"{A}.hidden_act={name}" for name in ("gelu", "sillu", "zzzzzzzzz", "3")),
            f"{_NO_KIND} {A}.hidden_act=sillu",
            f"{A}.activation_function=sillu",
            f"{A}.model_type=gpt2 {A}.activation_function=sillu {A}.hidden_act=sillu",
            f"{A}.model_type=gemma3_text {A}.hidden_activation=sillu",
            f"{A}.feed_forward_proj=zzzzzz", f"{A}.hidden_act=[silu]",
            *(
                f"{A}.model_type=t5 {A}.feed_forward_proj={name}"
                for name in ("relu", "gated-gelu", "gated-silu", "gated-gella", "gated-zzzzzzzz",
                             "grated-gelu", "zzzzzzzz", "a-gated-gelu", "3", "silk")
            ),
        ),
        G(f"{A}.hidden_act=sillu", **_OTHER),
    ),
    "positions and special tokens that there are": (
        *_all(
            "", *(
                f"{A}.{name}.{entry}={rule}"
                for name in ("rope_parameters", "rope_scaling")
                for entry, rule in (("rope_type", "llama3"), ("rope_type", "lama3"),
                                    ("type", "yarrn"), ("type", "yarn"), ("rope_type", "zzzzzzz"),
                                    ("factor", 2.0), ("rope_type", 3))
            ),
            f"{A}.rope_scaling.rope_type=yarn {A}.rope_scaling.type=zzzzzzzz",
            f"{A}.rope_scaling=often",
            *(
                f"{A}.{name}={token}"
                for name in ("pad_token_id", "bos_token_id", "eos_token_id",
                             "decoder_start_token_id", "sep_token_id")
                for token in (1023, 1024)
            ),
            f"{A}.eos_token_id=[1024]", f"{A}.pad_token_id=1024 {A}.vocab_size=null",
            f"{A}.pad_token_id=1024 {A}.vocab_size=0", f"{A}.pad_token_id=1024.5",
            f"{A}.pad_token_id=2 {A}.vocab_size=1 {A}.bos_token_id=1",
        ),
        G(f"{A}.rope_scaling.rope_type=lama3", **_OTHER),
    ),
    "sequences no longer than the model's": (
        G("data.sequence_length=513"), G("data.sequence_length=513", apart={}),
        *(
            G(f"data.sequence_length={length}", recipe=recipe, positions=512, apart={})
            for recipe in ("quickstart", VISION) for length in (512, 513)
        ),
    ),
    "recomputation that the model can do": (
        *(
            G(f"{A}.model_type={kind} model.activation_checkpointing={wanted}{more}", recipe=MLM)
            for kind in ("albert", "bert", "aimv2", "nope") for wanted in ("true", "false", "auto")
            for more in ("", f" {A}.auto_map.AutoModel=a.B model.trust_remote_code=true")
        ),
        *(
            G(f"{A}.model_type=albert model.activation_checkpointing={wanted}", recipe=MLM,
              plan={"activation_checkpointing": planned})
            for wanted in ("auto", "false") for planned in (True, False)
        ),
    ),
    "documents that don't see each other": (
        G(), *(
            G(sets, apart=apart)
            for sets in ("", "data.packing=false", "model.attention=sdpa")
            for apart in ({}, {"mask": False}, {"mask": True}, {"lengths": True, "mask": False},
                          {"lengths": False, "mask": True})
        ),
    ),
    "heads that ranks can share": (
        *(
            G(f"{A}.num_attention_heads={heads} {A}.num_key_value_heads={shared} "
              f"parallel.{key}={size}")
            for key in ("tensor", "sequence")
            for size, heads, shared in ((1, 5, 5), (2, 4, 2), (3, 4, 2), (5, 24, 2), (2, 1, 1),
                                        (4, 12, 3), (6, 12, 3), (3, 12, 3), (12, 12, 3), (2, 2, 0),
                                        (2, 4, "two"), (2, "two", 3), (2, 4, -3), (9, 3, 3))
        ),
        *_all(
            "parallel.tensor=auto", "parallel.tensor=3 parallel.sequence=3",
            f"{_NO_KIND} parallel.tensor=3", f"{A}.model_type=gpt2 {A}.n_head=6 parallel.tensor=4"
        ),
        G(plan={"tensor_parallel": 3}), G(plan={"sequence_parallel": 3}),
        G("parallel.tensor=3", plan={}),
    ),
    "sequences that ranks can share": (
        *(
            G(f"parallel.sequence={size} data.sequence_length={length}")
            for size, length in ((1, 99), (2, 99), (2, 98), (4, 3), (4, 4), (3, 100), ("auto", 99))
        ),
        G("data.sequence_length=99", plan={"sequence_parallel": 2}),
    ),
    "experts that ranks can share": (
        *(
            G(f"parallel.expert={size} {A}.model_type={kind} {sets}", hosts=hosts)
            for kind, sets in (
                ("llama", ""), ("llama", f"{A}.num_experts=4"), ("mixtral", ""),
                ("mixtral", f"{A}.num_local_experts=4"), ("mixtral", f"{A}.num_local_experts=0"),
                ("mixtral", f"{A}.num_local_experts=0 {A}.n_routed_experts=5"),
                ("mixtral", f"{A}.num_local_experts=5"), ("mixtral", f"{A}.num_experts=5"),
                ("deepseek_v3", f"{A}.n_routed_experts=12"), ("jamba", f"{A}.num_experts=4"),
                ("mixtral", f"{A}.num_local_experts=1"), ("jamba", f"{A}.num_experts=one"),
                ("nope", f"{A}.n_routed_experts=4"), ("nope", f"{A}.num_local_experts=1"),
            )
            for size, hosts in ((1, (2,)), (2, (2,)), (5, (5,)), (2, (3,)), (2, (2, 1)))
        ),
        G(f"{_MIXTRAL} {A}.num_local_experts=3", plan={"expert_parallel": 2}),
        G("model.init=pretrained model.name=no-one/has-this", plan={"expert_parallel": 2}),
    ),
    "ranks that share what goes together": (
        *_all(
            "", "parallel.tensor=2", "parallel.sequence=2", f"{LOADED} lora={{}}",
            f"{LOADED} lora={{}} parallel.tensor=2", f"{LOADED} lora={{}} parallel.expert=2",
            f"{LOADED} lora={{}} parallel.sequence=2",
            *(
                f"optimizer.name={name} {more}"
                for name in ("adafactor", "muon", "adamw")
                for more in ("", "checkpoint.format=portable", "parallel.tensor=2",
                             f"parallel.expert=2 {_MIXTRAL} {A}.num_local_experts=4")
            ),
            *(
                f"{A}.model_type={kind} parallel.{key}=2"
                for kind in ("bert", "mixtral", "bloom", "nope", "aimv2")
                for key in ("tensor", "sequence")
            ),
            *(
                f"{sets} parallel.sequence={size}"
                for sets in (f"{A}.attn_logit_softcapping=30.0", f"{A}.alibi=true",
                             f"{A}.alibi=false", f"{A}.attention_chunk_size=8",
                             f"{A}.use_bidirectional_attention=true", f"{A}.kv_lora_rank=8",
                             f"{A}.q_lora_rank=8", f"{A}.qk_rope_head_dim=8", "task=sft",
                             "task=sequence")
                for size in (1, 2)
            ),
            "task=sequence parallel.tensor=2", "task=sft parallel.tensor=2",
        ),
        *(
            G(f"parallel.tensor={size}", hosts=hosts)
            for size in (1, 2, 4) for hosts in ((3,), (2, 2), (4, 4), (2, 3), (3, 2), (1, 1))
        ),
        G(plan={"tensor_parallel": 2, "sequence_parallel": 2}, hosts=(1, 1)),
    ),
    "features of DeepSpeed where they go": (
        *(
            G(f"parallel.zero_stage={stage} {sets}", device=device)
            for device in ("cpu", "h100", "mi300x")
            for stage in ("auto", 1, 2, 3)
            for sets in (
                "parallel.hpz=true", "parallel.offload_ratio=0.5", "parallel.overlap=true",
                "parallel.super_offload=true", "parallel.zenflow=true", "model.deepcompile=true",
                "parallel.zenflow=true parallel.offload=auto",
            )
        ),
        *_all(
            "", "parallel.zero_stage=0 parallel.overlap=true parallel.quantized_weights=true",
            "parallel.zero_stage=3 parallel.zeropp=true",
            "parallel.zero_stage=3 parallel.offload=optimizer parallel.offload_ratio=0.5",
            "parallel.zero_stage=3 parallel.offload=all parallel.offload_ratio=0.5",
            "parallel.zero_stage=3 parallel.offload=all parallel.zenflow=true", _ZENFLOW, _SUPER,
            "autocast=true", "model.chunked_loss=true", device="h100",
        ),
        *(
            G("model.chunked_loss=true", recipe=recipe)
            for recipe in (MLM, SFT, "quickstart-sequence", VISION)
        ),
        G("parallel.zero_stage=3 parallel.zenflow=true",
          plan={"zero_stage": 2, "offload": "optimizer"}),
        G(_ZENFLOW, plan={"zero_stage": 3, "offload": "none"}),
    ),
    "features of DeepSpeed that go together": _all(
        "", *(f"autocast={on} precision={number}" for on in ("true", "false")
              for number in ("fp32", "bf16", "fp16")),
        *(f"autocast={on} precision=bf16 {other}" for on in ("true", "false")
          for other in ("parallel.quantized_weights=true",
                        "parallel.zero_stage=3 parallel.zeropp=true", f"{LOADED} lora={{}}")),
        *(f"model.deepcompile={a} model.compile={b}" for a in ("true", "false")
          for b in ("true", "false")),
        *(f"model.chunked_loss={a} model.liger={b}" for a in ("true", "false")
          for b in ("true", "false", "auto")),
        *(f"parallel.super_offload={a} parallel.offload_ratio={b}" for a in ("true", "false")
          for b in (1.0, 0.9)),
        *(f"parallel.{key}={on} optimizer.name={name}" for key in ("super_offload", "zenflow")
          for on in ("true", "false") for name in ("adamw", "adam", "lion")),
        *(f"parallel.zenflow={on} checkpoint.format={form}" for on in ("true", "false")
          for form in ("native", "portable")),
    ),
    "features of DeepSpeed that go with the plan": (
        G(_ZENFLOW), *(
            G(_ZENFLOW, plan={"offload": "optimizer", "gradient_accumulation_steps": steps})
            for steps in (1, 2)
        ),
        G(plan={"gradient_accumulation_steps": 8}),
        *(
            G(f"parallel.zero_stage=3 parallel.{key}=true", device="h100", hosts=hosts,
              plan={"zero_stage": 3})
            for key in ("zeropp", "hpz", "quantized_weights") for hosts in ((1,), (1, 1), (2, 1))
        ),
        G("parallel.hpz=true", device="h100", plan={"zero_stage": 2}),
    ),
    "data that is named": _all("", "data.train=null", "data.train=text.txt", "data.train=[stdlib]"),
    "data that is there": _all(
        "", "data.train=text.txt", "data.train=gone.txt", "data.eval=gone.txt",
        "data.train=empty.txt", "data.eval=empty.txt", "data.train=[text.txt,empty.txt]",
        "data.train=./hollow", "data.train=null", "data.train=none/*.x", "data.train=some/hub",
    ),
    "data of the kind that the task reads": (
        *(
            G(f"data.{key}={data}", recipe=recipe)
            for recipe in ("quickstart", VISION, GRPO, SFT)
            for data in ("stdlib", "digits", "arithmetic", "text.txt", "records.jsonl",
                         "picture.png", "gone.txt", "[records.jsonl,text.txt]", "some/hub",
                         "zipped.jsonl.gz", "both")
            for key in ("train", "eval")
        ),
        *(
            G("data.train=text.txt", recipe=f"quickstart-{task}")
            for task in ("dpo", "orpo", "kto", "reward", "seq2seq", "classify", "mlm", "sequence")
        ),
        G("data.train=text.txt", recipe=SFT, here=False), G("data.train=null", recipe=SFT),
    ),
    "something to evaluate on": _all(
        "", *(
            f"data.eval={data} {sets}"
            for data in (0, 0.0, "[text.txt]", "text.txt", 0.1, "null")
            for sets in ("evaluation.every=10", "checkpoint.keep_best=1",
                         "checkpoint.keep_best=1 evaluation.every=10",
                         "training_args.eval_on_start=true", "training_args.eval_on_start=false")
            if data != "null"
        ),
    ),
    "a prompt only where one is continued": (
        *(
            G(f"evaluation.sample={said}", recipe=f"quickstart{task}")
            for task in ("", "-sft", "-dpo", "-grpo", "-mlm", "-classify", "-seq2seq", "-vision",
                         "-sequence", "-reward")
            for said in ("hello", "null")
        ),
        G("task=script"),
    ),
    "a duration that the data has": (
        *_all("duration.tokens=1000"),
        *_all("duration.tokens=1000", "duration.epochs=1", "duration.steps=1", recipe=VISION),
    ),
    "a tokenizer that is there and fits": (
        *_all(
            "", "model.tokenizer=null", "model.tokenizer=null model.name=gpt2",
            "model.tokenizer=gpt2", "model.tokenizer=./gone", "model.tokenizer=null model.name=a/b",
            "model.tokenizer=./hollow", "model.tokenizer=./words",
            "model.tokenizer=null model.name=./hollow model.init=scratch",
            *(
                f"model.tokenizer=./{name} {A}.vocab_size={size}"
                for name, size in (("words", 59), ("words", 60), ("words", 61), ("listed", 2),
                                   ("listed", 3), ("added", 61), ("added", 62), ("unsaid", 1),
                                   ("empty", 1), ("broken", 1), ("gapped", 11), ("gapped", 12),
                                   ("words", "many"), ("words", "null"),
                                   ("sentences", 1))
            ),
            *(f"model.tokenizer.vocab_size={size}" for size in (1023, 1024, 1025)),
            f"{LOADED} model.tokenizer=./many", f"{LOADED} model.tokenizer.vocab_size=2048",
            "model.init=pretrained model.name=./hollow2 model.tokenizer=null",
            "model.init=pretrained model.name=some/hub model.tokenizer.vocab_size=2048",
            "model.init=pretrained model.name=./llama model.tokenizer=null",
            "model.init=pretrained model.name=./own model.tokenizer=null",
            "model.init=pretrained model.name=./own model.tokenizer=./own",
            f"model.init=pretrained model.name=some/hub {A}.model_type=llama {A}.vocab_size=50 "
            "model.tokenizer=./words",
        ),
        *(
            G(sets, recipe=f"quickstart-{task}")
            for task in ("vision", "sequence") for sets in ("model.tokenizer=null",)
        ),
        G("task=script model.tokenizer=null"),
        *(
            G(f"model.tokenizer=./{name}", recipe=MLM)
            for name in ("words", "masked", "mapped", "backend", "own-class", "listed", "broken")
        ),
        G("model.tokenizer=./words", recipe=SFT),
    ),
    "weights to begin with": _all(
        "", "model.name=./bare", *(
            f"model.init=pretrained model.name={name}"
            for name in ("./llama", "./bare", "./adapter", "./adapter-of-nobody", "./sharded",
                         "./pickled", "./both", "gpt2", "./torch")
        ),
    ),
    "records of a shape that the task learns from": (
        *(
            G(f"data.train={data}", recipe=recipe)
            for recipe in ("quickstart", SFT, DPO, "quickstart-kto", GRPO)
            for data in ("records.jsonl", "pairs.jsonl", "judged.jsonl", "odd.jsonl",
                         "chats.jsonl", "cut.jsonl", "number.jsonl", "text.txt", "marked.jsonl")
        ),
        *_all(
            "data.eval=pairs.jsonl", "data.train=[records.jsonl,pairs.jsonl]",
            "data.train=[chats.jsonl,records.jsonl]", "data.train=[records.jsonl,chats.jsonl]",
            "data.train=[text.txt,pairs.jsonl]", "data.train=[cut.jsonl,pairs.jsonl]",
            "data.train=gone.jsonl", "data.eval=gone.jsonl data.train=pairs.jsonl",
            "data.train=mixed", "data.train=deep.jsonl", "data.train=long.jsonl",
            "data.train=odd.jsonl data.fields.prompt=frage data.fields.completion=antwort",
            "data.train=odd.jsonl data.fields.prompt=frage",
            'data.train=[{"path":"odd.jsonl","fields":{"prompt":"frage","completion":"antwort"}}]',
            'data.train=[{"path":"records.jsonl","format":"messages"}]',
            "data.train=records.jsonl data.format=messages",
            "data.train=records.jsonl data.format=labelled",
            "data.train=records.jsonl data.format=prompt_completion",
            'data.train=[{"path":"records.jsonl","format":"prompt_completion"}] '
            "data.format=messages",
            "data.train=chats.jsonl data.chat_template=chatml",
            "data.train=turned.jsonl", "data.train=records.jsonl data.eval=chats.jsonl",
            *(
                f"data.train=chats.jsonl model.tokenizer=./{name}"
                for name in ("words", "gone", "hollow", "listed", "templated", "jinja",
                             "additional", "broken-config")
            ),
            "data.train=chats.jsonl model.tokenizer=gpt2",
            "data.train=chats.jsonl model.tokenizer=null model.name=./words",
            recipe=SFT,
        ),
        G("data.train=pairs.jsonl", recipe=SFT, here=False),
    ),
    "a reference that is compared with, and stays": (
        *(
            G(sets, recipe=f"quickstart-{task}")
            for task in ("dpo", "kto", "orpo", "sft")
            for sets in ("", "reference=precomputed", "training_args.sync_ref_model=true",
                         "training_args.sync_ref_model=false",
                         f"{LOADED} lora={{}} reference=precomputed",
                         f"{LOADED} lora={{}} lora.adapter=./adapter reference=precomputed",
                         f"{LOADED} lora={{}} lora.adapter=./adapter")
        ),
    ),
    "rewards that there are": (
        *(
            G(sets, recipe=recipe)
            for recipe in (GRPO, DPO)
            for sets in ("", "rewards=[]", _FUNCTION.format("exact_match"),
                         "checkpoint.keep_best=1")
        ),
        *(
            G(_FUNCTION.format(name), recipe=GRPO)
            for name in ("exactmatch", "zzzzzzzz", "gone.py:worth", "./gone.py:worth",
                         "rewards.py:worth", "rewards.py:also", "rewards.py:wort",
                         "rewards.py:zzzzzzzz", "rewards.py:later", "rewards.py:Kind",
                         "rewards.py:imported", "rewards.py:renamed", "rewards.py:original",
                         "rewards.py:pair", "rewards.py:os", "star.py:anything", "nothing.py:worth",
                         "broken.py:worth", "nul.py:worth", "a:b.py:worth", "hollow:worth",
                         "~/rewards.py:worth", "rewards.py:inner", "rewards.py:tried",
                         "rewards.py:chosen", "rewards.py:only", "nowhere.py:", "rewards.py:")
        ),
        *_all(
            'rewards=[{"function":"format","pattern":"(a"}]',
            'rewards=[{"function":"format","pattern":"(a)"}]', 'rewards=[{"model":"some/model"}]',
            'rewards=[{"function":"exact_match"},{"function":"gone.py:worth"}]',
            'rewards=[{"function":"length","tokens":4},{"function":"zzzz"}]', recipe=GRPO,
        ),
        G(_FUNCTION.format("gone.py:worth"), recipe=GRPO, here=False),
        G(_FUNCTION.format("exactmatch"), recipe=GRPO, here=False),
    ),
    "references where rewards compare": (
        *(
            G(f"data.train={data} {more}", recipe=GRPO)
            for data in ("asked.jsonl", "answered.jsonl", "cut.jsonl", "text.txt", "gone.jsonl",
                         "[answered.jsonl,asked.jsonl]", "number.jsonl", "mixed-asked",
                         "odd.jsonl", "[text.txt,asked.jsonl]")
            for more in ("", "data.fields.answer=truth", _FUNCTION.format("exact_match"),
                         'rewards=[{"function":"length","tokens":4}]')
        ),
        G("data.train=asked.jsonl data.format=prompts", recipe=GRPO),
        G("data.train=pairs.jsonl data.format=prompts", recipe=GRPO),
        G("data.train=long.jsonl", recipe=GRPO),
        G("data.train=asked.jsonl", recipe=GRPO, here=False),
        G(f"data.train=asked.jsonl {_FUNCTION.format('exact_match')}", recipe=SFT),
        G('data.train=asked.jsonl rewards=[{"function":"length","tokens":4},'
          '{"function":"exact_match"},{"function":"number_match"}]', recipe=GRPO),
    ),
    "groups of answers that fit": (
        *(
            G(f"batch.global_size={size} rollout.group={group}", recipe=recipe)
            for recipe in (GRPO, "quickstart")
            for size, group in ((96, 16), (100, 16), (105, 16), (3, 16), (24, 16), (40, 16))
        ),
        *(G(f"rollout.max_tokens={tokens}", recipe=GRPO) for tokens in (15, 16, 17)),
        G("rollout.max_tokens=1000"),
    ),
    "a way to generate that the device has": tuple(
        G(f"rollout.engine={engine}", recipe=recipe, device=device)
        for recipe in (GRPO, "quickstart") for engine in ("vllm", "transformers")
        for device in ("cpu", "h100")
    ),
    "arguments that the Trainer has, and that are its to decide": (
        *_all(
            "", *(
                f"training_args.{each}"
                for each in (
                    "neftune_noise_alpa=5.0", "neftune_noise_alpha=5.0", "zzzzzzzzzzz=1",
                    "max_steps=10", "dataloader_num_workers=2", "use_cpu=true", "do_train=true",
                    "auto_find_batch_size=true", "push_to_hub=true", "tf32=often", "tf32=true",
                    "ddp_timeout=7200", "ddp_timeout=7200.5", "weight_decy=0.1",
                    "max_grad_nor=1.0", "neftune_noise_alpha=5", "save_stepz=5",
                    "beta=0.1", "tf32=null", "report_to=none",
                )
            ),
            "training_args.max_steps=10 training_args.tf32=often training_args.zzzzzzzz=2",
        ),
        *(
            G(sets, recipe=f"quickstart-{task}")
            for task in ("sft", "dpo", "orpo", "kto", "reward", "grpo", "mlm")
            for sets in ("training_args.beta=0.2", "training_args.betta=0.2",
                         "training_args.max_length=9", "training_args.precompute_ref_log_probs=1")
        ),
        *(
            G("training_args.neftune_noise_alpa=5.0", other_versions=other)
            for other in (("transformers",), ("trl",), ("transformers", "trl"))
        ),
    ),
    "a `deepspeed` section that agrees with the recipe": (
        G("deepspeed.zero_optimization.stage=3"),
        *(
            G(f"parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path=/disk "
              f"deepspeed.{each}",
              plan={"zero_stage": 3, "offload": offload})
            for offload in ("none", "optimizer", "all", "nvme")
            for each in (
                "zero_optimization.offload_optimizer.device=cpu",
                "zero_optimization.offload_optimizer.device=nvme",
                "zero_optimization.offload_optimizer.device=none",
                "zero_optimization.offload_param.device=cpu",
                "zero_optimization.offload_param.device=nvme",
                "zero_optimization.offload_param.device=none",
            )
        ),
        *(
            G(f"deepspeed.{key}={value} optimizer.lr=0.5",
              plan={"tensor_parallel": 2, "sequence_parallel": 3, "gradient_accumulation_steps": 5})
            for key, values in _OF_THE_SECTION.items() for value in values
        ),
        *(
            G(f"deepspeed.{key}.enabled={on} precision={number}", plan={})
            for key in ("bf16", "bfloat16", "fp16") for on in ("true", "false")
            for number in ("bf16", "fp16", "fp32")
        ),
        G("deepspeed.wall_clock_breakdown=true deepspeed.train_batch_size=8", plan={}),
        G(plan={}), G("deepspeed.train_batch_size=8 deepspeed.zero_optimization.stage=1", plan={}),
    ),
    "an optimizer that there is": (
        *_all(
            "", *(
                f"deepspeed.optimizer.type={name}"
                for name in ("AdamW", "adamw", "AdamWW", "Lion", "Adagrad", "adagrad", "NAdam",
                             "zzzzzzzzzz", "3", "OneBitAdam", "onebitadamm", "Adagradd")
            ),
            "deepspeed.optimizer=adam", "deepspeed.optimizer.params.lr=1.0",
        ),
        G("deepspeed.optimizer.type=AdamWW", other_versions=("torch",)),
        G("deepspeed.optimizer.type=AdamWW", **_OTHER),
    ),
    "a schedule that is complete": _all(
        "", *(
            f"schedule.name={name}{more}"
            for name in ("cosine_with_min_lr", "linear")
            for more in ("", " training_args.lr_scheduler_kwargs.min_lr=0.1",
                         " training_args.lr_scheduler_kwargs.min_lr_rate=0.1",
                         " training_args.lr_scheduler_kwargs.power=0.1",
                         " training_args.lr_scheduler_kwargs=often")
        ),
    ),
    "trackers that there are": (
        *(
            G(f"log.report_to=[{names}]", here=here)
            for names in ("", "tensorboard", "tensorbord", "zzzzzzz", "all", "none", "wandb",
                          "comet_ml", "kubeflow", "tensorbord,wandb,neptune")
            for here in (True, False)
        ),
        G("log.report_to=[wandb]", installed=("wandb",)),
        G("log.report_to=[tensorboard]", missing=("tensorboard",)),
        G("log.report_to=[azure_ml]"), G("log.report_to=[tensorbord]", **_OTHER),
    ),
    "what is known to fail": (
        G(plan={"offload": "optimizer"}),
        G(plan={}),
        G(),
        G(plan={"offload": "optimizer", "zero_stage": 3}),
        G(plan={"offload": "optimizer"}, hosts=(1,)),
        G(plan={"offload": "optimizer"}, hosts=(1, 1)),
        G(plan={"offload": "optimizer"}, device="h100"),
        *_all(
            "task=sft", "task=classify", "precision=bf16", "guards.on_trouble=warn",
            f"{A}.model_type=mistral", f"{A}.model_type=qwen3", plan={"offload": "optimizer"},
        ),
    ),
    "versions that learn what one process would": (
        G(releases={"deepspeed": "0.18.2"}),
        *(
            G(sets, device=device, hosts=hosts, plan=plan, releases={"deepspeed": release})
            for release in ("0.12.4", "0.18.2", "0.18.5")
            for device, hosts in (("cpu", (1,)), ("cpu", (2,)), ("h100", (2,)))
            for sets, plan in (("", {"zero_stage": 2}), ("precision=bf16", {"zero_stage": 0}),
                               ("guards.on_trouble=warn", {"zero_stage": 2}),
                               ("", {"zero_stage": 1, "gradient_accumulation_steps": 2}))
        ),
        *(
            G("precision=bf16", plan={"zero_stage": 0, "tensor_parallel": size})
            for size in (1, 2)
        ),
    ),
}  # fmt: skip
