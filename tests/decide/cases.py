"""For each check a recipe that it refuses and a near one that it lets through, as overrides."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from dslm.decide import matrix
from dslm.decide.axes import Cell

QUICK = "quickstart"
BERT = "quickstart-mlm"
ARCHITECTURE = "model.architecture"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What is refused, with which words; what isn't; on which device (None: this machine's CPU)."""

    check: str
    red: tuple[str, ...]
    green: tuple[str, ...] = ()
    says: tuple[str, ...]
    recipe: str = QUICK
    device: str | None = None
    of_cpu: bool = False  # it is refused because this is a CPU: a batch job may have others
    installed: tuple[tuple[str, str], ...] = ()  # versions instead of the installed ones


def _row(
    check: str,
    red: str,
    green: str,
    *says: str,
    recipe: str = QUICK,
    device: str | None = None,
    of_cpu: bool = False,
    installed: tuple[tuple[str, str], ...] = (),
) -> Row:
    return Row(
        check=check,
        red=tuple(red.split()),
        green=tuple(green.split()),
        says=says,
        recipe=recipe,
        device=device,
        of_cpu=of_cpu,
        installed=installed,
    )


_TYPE = "a model type that there is"
_HEAD = "a model for the task"
_ENTRIES = "entries of the right type"
_HEADS = "heads divide the width"
_SHARED = "key-value heads divide the heads"
_ACTIVATION = "an activation that there is"
_POSITIONS = "positions and special tokens that there are"
_KIND = "data of the kind that the task reads"
_SHAPE = "records of a shape that the task learns from"
_EVALUATE = "something to evaluate on"
_TOKENIZER = "a tokenizer that is there and fits"
_ARGUMENTS = "arguments that the Trainer has, and that are its to decide"
_REFERENCE = "a reference that is compared with, and stays"
_REWARDS = "rewards that there are"
_GROUPS = "groups of answers that fit"
_SECTION = "a `deepspeed` section that agrees with the recipe"
_ATTENTION = "attention that the model and the device have"
_FEW_BITS = "adapters and few bits that go with the rest"
_STAGE = "a partitioning that adapters and few bits go with"
_EXISTING = "adapters that there are"
_LORA = "adapters on a trained model"
_TOGETHER = "ranks that share what goes together"
_RANKS = "parallel.ranks=4 parallel.zero_stage=1"
_MIXTURE = f"{ARCHITECTURE}.model_type=mixtral {ARCHITECTURE}.num_local_experts=4"
_DISK = "a disk to offload to"
_OPTIMIZER = "an optimizer for the device and its offload"
NVME = "parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path="

_FEATURES = "features of DeepSpeed where they go"
_GOES = "features of DeepSpeed that go together"
_PLAN = "features of DeepSpeed that go with the plan"
_SAVINGS = "savings for long samples that go with the rest"
_PACKS = "documents that don't see each other"
KNOWN = "what is known to fail"
_VERSIONS = "versions that learn what one process would"
OLD = (("deepspeed", "0.18.2"),)

ROWS: tuple[Row, ...] = (
    _row(_VERSIONS, "parallel.zero_stage=2", "parallel.zero_stage=3", "deepspeed 0.18.2", "0.18.3", "issues/7718", installed=OLD),  # noqa: E501
    _row(_VERSIONS, "parallel.zero_stage=0 precision=bf16", "parallel.zero_stage=0", "pull/7839", installed=(("deepspeed", "0.18.5"),)),  # noqa: E501
    _row(_VERSIONS, "parallel.zero_stage=2", "parallel.zero_stage=2 guards.on_trouble=warn", "on_trouble=warn", installed=OLD),  # noqa: E501
    _row(KNOWN, "parallel.offload=optimizer", "parallel.offload=optimizer parallel.zero_stage=3", "the operator stops", "deepspeed 0.19.8", "on_trouble=warn", of_cpu=True),  # noqa: E501
    _row("a task that dslm trains", "task=script", "task=pretrain", "dslm launch"),
    _row(
        "a task that a verification has a reference for", "", "seed=1", "no reference", "task=sft",
        recipe="quickstart-grpo",
    ),
    _row("a task that a verification has a reference for", "training_args.neftune_noise_alpha=5", "training_args.neftune_noise_alpha=null", "neftune_noise_alpha: 5"),  # noqa: E501
    _row(_TOGETHER, "optimizer.name=adafactor checkpoint.format=portable", "optimizer.name=adafactor", "no portable form"),  # noqa: E501
    _row(_TOGETHER, f"{_RANKS} parallel.tensor=2 {_MIXTURE}", f"{_RANKS} parallel.tensor=2", "doesn't know"),  # noqa: E501
    _row(_TOGETHER, f"{_RANKS} parallel.sequence=2", f"{_RANKS} parallel.sequence=1", "pretrain", recipe=BERT),  # noqa: E501
    _row("heads that ranks can share", f"{_RANKS} parallel.tensor=4 {ARCHITECTURE}.num_attention_heads=6 {ARCHITECTURE}.hidden_size=96", f"{_RANKS} parallel.tensor=2 {ARCHITECTURE}.num_attention_heads=6 {ARCHITECTURE}.hidden_size=96", "6 heads", "2 or 3"),  # noqa: E501
    _row("sequences that ranks can share", f"{_RANKS} parallel.sequence=2 data.sequence_length=99", f"{_RANKS} parallel.sequence=2 data.sequence_length=98", "98 or 100"),  # noqa: E501
    _row("experts that ranks can share", f"{_RANKS} parallel.expert=2", f"{_RANKS} parallel.expert=2 {_MIXTURE}", "no experts"),  # noqa: E501
    _row("experts that ranks can share", f"{_RANKS} parallel.expert=2 {_MIXTURE.replace('=4', '=5')}", f"{_RANKS} parallel.expert=2 {_MIXTURE}", "5 experts"),  # noqa: E501
    _row(_STAGE, "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 evaluation.sample=null lora={} lora.init=pissa parallel.zero_stage=3", "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 evaluation.sample=null lora={} lora.init=pissa parallel.zero_stage=2", "whole matrices"),  # noqa: E501
    _row(_FEW_BITS, "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 evaluation.sample=null quantize=nf4", "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 evaluation.sample=null quantize=nf4 lora={}", "only adapters"),  # noqa: E501
    _row(_EXISTING, "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 evaluation.sample=null lora={} lora.adapter=./llama", "model.init=pretrained model.name=./llama model.tokenizer=null data.sequence_length=16 evaluation.sample=null lora={}", "holds no adapters"),  # noqa: E501
    _row(_LORA, "lora={}", "lora=null", "starts from scratch", "model.init"),
    _row(_TYPE, f"{ARCHITECTURE}.model_type=lama", f"{ARCHITECTURE}.model_type=mistral", "lama", "llama"),  # noqa: E501
    _row(_TYPE, "model.init=pretrained model.name=./unknown", "model.init=pretrained model.name=./llama", "config.json", "no model type `nope`"),  # noqa: E501
    _row(_HEAD, "task=mlm", "task=pretrain", "llama", "mlm", "bert"),
    _row(_HEAD, "task=pretrain", "task=mlm", "encoder", "task: mlm", recipe=BERT),
    _row(_HEAD, "task=seq2seq", "task=sft", "llama", "t5"),
    _row(_HEAD, f"{ARCHITECTURE}.model_type=llama", "", "vision", recipe="quickstart-vision"),
    _row(_ENTRIES, f"{ARCHITECTURE}.num_hidden_layers=two", f"{ARCHITECTURE}.num_hidden_layers=2", "whole number", "two"),  # noqa: E501
    _row(_ENTRIES, f"{ARCHITECTURE}.rms_norm_eps=1", f"{ARCHITECTURE}.rms_norm_eps=1.0", "point", "1"),  # noqa: E501
    _row(_ENTRIES, f"{ARCHITECTURE}.tie_word_embeddings=maybe", f"{ARCHITECTURE}.tie_word_embeddings=true", "true or false"),  # noqa: E501
    _row(_ENTRIES, f"{ARCHITECTURE}.num_hiden_layers=2", f"{ARCHITECTURE}.my_note=2", "mean `num_hidden_layers`"),  # noqa: E501
    _row("sizes above zero", f"{ARCHITECTURE}.hidden_size=-8", f"{ARCHITECTURE}.hidden_size=64", "-8"),  # noqa: E501
    _row("sizes above zero", f"{ARCHITECTURE}.num_hidden_layers=0", "", "positive"),
    _row(_HEADS, f"{ARCHITECTURE}.num_attention_heads=5", f"{ARCHITECTURE}.num_attention_heads=8", "5 heads", "128", "4 or 8"),  # noqa: E501
    _row(_HEADS, f"{ARCHITECTURE}.num_attention_heads=3", "", "3 heads", recipe=BERT),
    _row(_HEADS, f"{ARCHITECTURE}.hidden_size=12 {ARCHITECTURE}.num_attention_heads=4", "", "size 3"),  # noqa: E501
    _row(_SHARED, f"{ARCHITECTURE}.num_key_value_heads=3", f"{ARCHITECTURE}.num_key_value_heads=1", "3 key-value heads", "1 or 2 or 4"),  # noqa: E501
    _row(_ACTIVATION, f"{ARCHITECTURE}.hidden_act=sillu", f"{ARCHITECTURE}.hidden_act=gelu", "sillu", "silu"),  # noqa: E501
    _row(_ACTIVATION, f"{ARCHITECTURE}.feed_forward_proj=gated-gella", f"{ARCHITECTURE}.feed_forward_proj=gated-gelu", "gated-gelu", recipe="quickstart-seq2seq"),  # noqa: E501
    _row(_POSITIONS, f"{ARCHITECTURE}.rope_scaling.rope_type=lama3", "", "lama3", "llama3"),
    _row(_POSITIONS, f"{ARCHITECTURE}.pad_token_id=1024", f"{ARCHITECTURE}.pad_token_id=1023", "1024", "vocabulary"),  # noqa: E501
    _row("sequences no longer than the model's", "data.sequence_length=1000000", "data.sequence_length=512", "1000000", "512 positions"),  # noqa: E501
    _row("recomputation that the model can do", f"model.activation_checkpointing=true {ARCHITECTURE}.model_type=albert", "model.activation_checkpointing=true", "albert", recipe=BERT),  # noqa: E501
    _row("data that is named", "data.train=null", "data.train=stdlib", "names no training data"),
    _row("data that is there", "data.train=gone.txt", "data.train=text.txt", "gone.txt"),
    _row("data that is there", "data.eval=gone.txt", "data.eval=text.txt", "gone.txt"),
    _row("data that is there", "data.train=empty.txt", "", "empty"),
    _row(_KIND, "data.train=digits", "data.train=stdlib", "images", "pretrain"),
    _row(_KIND, "data.train=stdlib", "data.train=digits", "images", recipe="quickstart-vision"),
    _row(_KIND, "data.train=text.txt", "data.train=records.jsonl", "plain text", "prompt", recipe="quickstart-sft"),  # noqa: E501
    _row(_SHAPE, "data.train=pairs.jsonl", "data.train=records.jsonl", "pairs.jsonl:1", "better and a worse", recipe="quickstart-sft"),  # noqa: E501
    _row(_SHAPE, "data.train=odd.jsonl", "data.train=odd.jsonl data.fields.prompt=frage data.fields.completion=antwort", "`frage`", recipe="quickstart-sft"),  # noqa: E501
    _row(_SHAPE, "data.train=chats.jsonl", "data.train=chats.jsonl data.chat_template=chatml", "no chat template", recipe="quickstart-sft"),  # noqa: E501
    _row(_EVALUATE, "evaluation.every=10 data.eval=0", "evaluation.every=10", "evaluation.every"),
    _row(_EVALUATE, "checkpoint.keep_best=1", "checkpoint.keep_best=1 evaluation.every=300", "only at the end"),  # noqa: E501
    _row("a prompt only where one is continued", "evaluation.sample=hello", "evaluation.sample=null", "mlm", recipe=BERT),  # noqa: E501
    _row("a duration that the data has", "duration.tokens=1000", "duration.epochs=1", "images", recipe="quickstart-vision"),  # noqa: E501
    _row(_TOKENIZER, "model.tokenizer=null", "", "needs a tokenizer"),
    _row(_TOKENIZER, "model.tokenizer=./gone", "model.tokenizer=./words", "no tokenizer folder"),
    _row(_TOKENIZER, "model.tokenizer=./hollow", "", "holds no tokenizer"),
    _row(_TOKENIZER, f"model.tokenizer=./words {ARCHITECTURE}.vocab_size=50", f"model.tokenizer=./words {ARCHITECTURE}.vocab_size=60", "60 entries", "only 50"),  # noqa: E501
    _row(_TOKENIZER, "model.tokenizer.vocab_size=2048", "model.tokenizer.vocab_size=1000", "2048", "only 1024"),  # noqa: E501
    _row(_TOKENIZER, "model.tokenizer=./words", "", "mask token", recipe=BERT),
    _row("weights to begin with", "model.init=pretrained model.name=./bare", "model.init=pretrained model.name=./llama", "holds no weights"),  # noqa: E501
    _row("weights to begin with", "model.init=pretrained model.name=./adapter", "model.init=pretrained model.name=./llama", "an adapter of `./llama`"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.neftune_noise_alpa=5.0", "training_args.neftune_noise_alpha=5.0", "neftune_noise_alpha"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.max_steps=10", "training_args.ddp_timeout=7200", "duration.steps"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.dataloader_num_workers=2", "data.workers=2", "data.workers"),
    _row(_ARGUMENTS, "training_args.tf32=often", "training_args.tf32=true", "true or false"),
    _row(_ARGUMENTS, "training_args.betta=0.2", "training_args.beta=0.2", "beta", "DPO", recipe="quickstart-dpo"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.precompute_ref_log_probs=true", "reference=precomputed", "`reference` does", recipe="quickstart-kto"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.center_rewards=0.01", "training_args.center_rewards_coefficient=0.01", "center_rewards_coefficient", recipe="quickstart-reward"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.loss_type=sigmoid", "training_args.beta=0.2", "ORPOConfig has no", recipe="quickstart-orpo"),  # noqa: E501
    _row(_REFERENCE, "reference=precomputed", "reference=model", "compares with no", "dpo and kto", recipe="quickstart-orpo"),  # noqa: E501
    _row(_REFERENCE, "training_args.sync_ref_model=true", "training_args.beta=0.2", "in no checkpoint", recipe="quickstart-dpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[]", "", "what an answer is worth", "rewards.py:correct", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"exact_match\"}]", "rewards=[]", "gives no rewards", recipe="quickstart-dpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"exactmatch\"}]", "rewards=[{\"function\":\"exact_match\"}]", "mean `exact_match`", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"format\",\"pattern\":\"(a\"}]", "rewards=[{\"function\":\"format\",\"pattern\":\"(a)\"}]", "regular expression", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"gone.py:worth\"}]", "rewards=[{\"function\":\"rewards.py:worth\"}]", "no file `gone.py`", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"rewards.py:wort\"}]", "rewards=[{\"function\":\"rewards.py:also\"}]", "no function `wort`", "mean `worth`", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"rewards.py:later\"}]", "", "coroutine", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "rewards=[{\"function\":\"broken.py:worth\"}]", "", "broken.py:1 can't be read", recipe="quickstart-grpo"),  # noqa: E501
    _row(_REWARDS, "checkpoint.keep_best=1 evaluation.every=5 data.eval=0.1", "evaluation.every=5 data.eval=0.1", "lowest loss", recipe="quickstart-grpo"),  # noqa: E501
    _row("references where rewards compare", "data.train=asked.jsonl", "data.train=asked.jsonl data.fields.answer=truth", "first record of", "has none", recipe="quickstart-grpo"),  # noqa: E501
    _row(_GROUPS, "batch.global_size=100", "batch.global_size=96", "whole groups of 16", "=96`: 6 prompts", recipe="quickstart-grpo"),  # noqa: E501
    _row(_GROUPS, "rollout.max_tokens=16", "rollout.max_tokens=8", "no room for a prompt", recipe="quickstart-grpo"),  # noqa: E501
    _row("a way to generate that the device has", "rollout.engine=vllm", "rollout.engine=transformers", "this is a CPU", of_cpu=True, recipe="quickstart-grpo"),  # noqa: E501
    _row(_KIND, "data.train=stdlib", "data.train=arithmetic", "no prompts to answer", recipe="quickstart-grpo"),  # noqa: E501
    _row(_KIND, "data.train=arithmetic", "data.train=stdlib", "prompts to answer", recipe="quickstart-sft"),  # noqa: E501
    _row(_ARGUMENTS, "training_args.num_generations=4", "rollout.group=4", "`rollout.group` does", recipe="quickstart-grpo"),  # noqa: E501
    _row(_SHAPE, "data.train=pairs.jsonl", "data.train=judged.jsonl", "better and a worse", recipe="quickstart-kto"),  # noqa: E501
    _row(_SHAPE, "data.train=judged.jsonl", "data.train=pairs.jsonl", "labelled good or bad", recipe="quickstart-reward"),  # noqa: E501
    _row(_KIND, "data.train=text.txt", "data.train=pairs.jsonl", "`chosen`", recipe="quickstart-orpo"),  # noqa: E501
    _row(_SECTION, "deepspeed.zero_optimization.stage=3", "deepspeed.zero_optimization.stage=2", "parallel.zero_stage"),  # noqa: E501
    _row(_SECTION, "deepspeed.optimizer.params.lr=1.0", "deepspeed.wall_clock_breakdown=true", "optimizer.lr"),  # noqa: E501
    _row(_SECTION, "deepspeed.bf16.enabled=true", "precision=bf16 deepspeed.bf16.enabled=true", "precision"),  # noqa: E501
    _row(_SECTION, "deepspeed.train_batch_size=8", "deepspeed.train_batch_size=16", "batch.global_size"),  # noqa: E501
    _row("an optimizer that there is", "deepspeed.optimizer.type=AdamWW", "deepspeed.optimizer.type=AdamW", "AdamWW"),  # noqa: E501
    _row("a schedule that is complete", "schedule.name=cosine_with_min_lr", "schedule.name=cosine_with_min_lr training_args.lr_scheduler_kwargs.min_lr_rate=0.1", "min_lr"),  # noqa: E501
    _row("trackers that there are", "log.report_to=[tensorbord]", "log.report_to=[tensorboard]", "tensorboard"),  # noqa: E501
    _row("packages that the recipe needs", "task=sft", "task=pretrain", "TRL", "dslm[trl]"),
    _row(_ATTENTION, "model.attention=flash_attention_2 precision=bf16", "model.attention=sdpa", "CUDA", of_cpu=True),  # noqa: E501
    _row(_ATTENTION, "model.attention=flash_attention_2 precision=bf16", "model.attention=auto precision=bf16", "flash-attn is not installed", device="h100"),  # noqa: E501
    _row(_ATTENTION, f"model.attention=sdpa {ARCHITECTURE}.model_type=gpt_neo", "", "gpt_neo"),
    _row("Liger where it runs", "model.liger=true", "model.liger=auto", "CPU", of_cpu=True),
    _row("Liger where it runs", "model.liger=true precision=bf16", "model.liger=false precision=bf16", "not installed", device="h100"),  # noqa: E501
    *(
        _row(_FEATURES, f"parallel.zero_stage=3 {setting}", f"parallel.zero_stage=3 {off}", key, "CPU", of_cpu=True)  # noqa: E501
        for key, setting, off in (
            ("parallel.zeropp", "parallel.zeropp=true", "parallel.zeropp=false"),
            ("parallel.hpz", "parallel.hpz=true", "parallel.hpz=false"),
            ("parallel.quantized_weights", "parallel.quantized_weights=true", "parallel.overlap=false"),  # noqa: E501
            ("parallel.quantized_gradients", "parallel.quantized_gradients=true", "parallel.overlap=auto"),  # noqa: E501
            ("parallel.super_offload", "parallel.offload=optimizer parallel.super_offload=true", "parallel.offload=optimizer parallel.offload_ratio=0.5"),  # noqa: E501
            ("parallel.overlap", "parallel.overlap=true", "parallel.overlap=false"),
            ("model.deepcompile", "model.deepcompile=true", "model.deepcompile=false"),
        )
    ),
    _row(_FEATURES, "parallel.zero_stage=2 parallel.hpz=true", "parallel.zero_stage=3 parallel.hpz=true", "stage 3, not 2", device="h100"),  # noqa: E501
    _row(_FEATURES, "parallel.zero_stage=0 parallel.quantized_gradients=true", "parallel.zero_stage=3 parallel.quantized_gradients=true", "stage 3, not 0", device="h100"),  # noqa: E501
    _row(_FEATURES, "parallel.zero_stage=3 parallel.super_offload=true", "parallel.zero_stage=3 parallel.offload=optimizer parallel.super_offload=true", "parallel.offload=optimizer", device="h100"),  # noqa: E501
    _row(_FEATURES, "parallel.zero_stage=3 parallel.offload=optimizer parallel.super_offload=true", "parallel.zero_stage=3 parallel.offload=optimizer", "NVIDIA", device="mi300x"),  # noqa: E501
    _row(_FEATURES, "parallel.zero_stage=2 parallel.zenflow=true", "parallel.zero_stage=2 parallel.offload=optimizer parallel.zenflow=true parallel.ranks=2 batch.global_size=2", "offloaded optimizer"),  # noqa: E501
    _row(_FEATURES, "model.chunked_loss=true", "model.chunked_loss=false", "mlm", recipe=BERT),
    _row(_FEATURES, "model.tiled_loss=true", "model.tiled_mlp=true", "tiles", "sft", recipe="quickstart-sft"),  # noqa: E501
    _row(_FEATURES, "model.tiled_mlp=true", "model.tiled_mlp=auto model.long_context=true", "tiles", recipe="quickstart-dpo"),  # noqa: E501
    _row(_FEATURES, "model.offload_activations=true", "model.long_context=true", "CPU", of_cpu=True),  # noqa: E501
    _row(_SAVINGS, "model.tiled_mlp=true model.compile=true", "model.long_context=true model.compile=true", "compiled"),  # noqa: E501
    _row(_SAVINGS, "model.tiled_loss=true model.chunked_loss=true", "model.long_context=true model.chunked_loss=true", "chunks"),  # noqa: E501
    _row(_SAVINGS, "model.offload_activations=true model.activation_checkpointing=false", "model.offload_activations=true model.activation_checkpointing=true", "recomputed from", device="h100"),  # noqa: E501
    _row(_TOGETHER, f"{_RANKS} parallel.tensor=2 model.tiled_loss=true", f"{_RANKS} parallel.tensor=2 model.long_context=true", "the head"),  # noqa: E501
    _row(_GOES, "autocast=true precision=fp32", "autocast=true precision=bf16", "precision=bf16"),
    _row(_GOES, "parallel.zero_stage=3 autocast=true precision=bf16 parallel.quantized_weights=true", "parallel.zero_stage=3 parallel.quantized_weights=true", "autocast", device="h100"),  # noqa: E501
    _row(_GOES, "parallel.zero_stage=2 parallel.offload=optimizer parallel.zenflow=true optimizer.name=lion", "", "Adam"),  # noqa: E501
    _row(_GOES, "parallel.zero_stage=2 model.deepcompile=true model.compile=true precision=bf16", "parallel.zero_stage=2 model.deepcompile=true precision=bf16", "model.compile", device="h100"),  # noqa: E501
    _row(_GOES, "parallel.zero_stage=2 parallel.offload=optimizer parallel.zenflow=true checkpoint.format=portable", "", "portable form"),  # noqa: E501
    _row(_PLAN, "parallel.zero_stage=2 parallel.offload=optimizer parallel.zenflow=true batch.micro_size=1", "parallel.zero_stage=2 parallel.offload=optimizer parallel.zenflow=true parallel.ranks=2 batch.global_size=2", "micro batch"),  # noqa: E501
    *(
        _row("ZeRO++ where it runs", f"parallel.zero_stage=3 deepspeed.zero_optimization.{setting}", f"parallel.zero_stage=3 deepspeed.zero_optimization.{harmless}", "CPU", of_cpu=True)  # noqa: E501
        for setting, harmless in (
            ("zero_quantized_weights=true", "zero_quantized_weights=false"),
            ("zero_quantized_gradients=true", "zero_quantized_gradients=false"),
            ("zero_hpz_partition_size=2", "zero_hpz_partition_size=1"),
        )
    ),
    _row(_PACKS, f"{ARCHITECTURE}.model_type=bloom", f"{ARCHITECTURE}.model_type=bloom data.packing=false", "bloom", "data.packing=false"),  # noqa: E501
    _row(_OPTIMIZER, "optimizer.name=lion", "optimizer.name=adamw", "lion", "CPU", of_cpu=True),
    _row(_OPTIMIZER, "optimizer.name=adafactor parallel.offload=optimizer", "optimizer.name=sgd parallel.offload=optimizer", "adafactor"),  # noqa: E501
    _row(_DISK, NVME + "/nowhere/at/all", "", "/nowhere/at/all"),
)  # fmt: skip


# a cell that nobody has seen to fail, so that there is one whatever is mended
FAILING = Cell("cpu", "llama", "parallel.offload=optimizer", "fp32", 2)


def let_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the matrix say that one cell failed with the versions that are here."""
    outcome = matrix.Outcome(matrix.Result.FAILED.value, "", "the operator stops")
    with_ = matrix.Matrix(made="2026-01-02", versions={"deepspeed": "0.19.8"})
    found = matrix.filled(with_, {FAILING: outcome})
    monkeypatch.setattr(matrix, "recorded", lambda: found)
    monkeypatch.setattr(matrix, "installed", lambda: dict(with_.versions))


def make_files(folder: Path) -> None:
    """What the rows name: data, model and tokenizer folders."""
    (folder / "text.txt").write_text("some text\n")
    (folder / "empty.txt").touch()
    (folder / "records.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (folder / "judged.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    (folder / "asked.jsonl").write_text('{"prompt": "2+2=", "truth": "4"}\n')
    (folder / "rewards.py").write_text(
        "def worth(completions, **more):\n    return [1.0] * len(completions)\n"
        "also = worth\nasync def later(completions, **more):\n    return []\n"
    )
    (folder / "broken.py").write_text("def worth(:\n")
    (folder / "odd.jsonl").write_text('{"frage": "a", "antwort": "b"}\n')
    (folder / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    (folder / "hollow").mkdir()
    (folder / "script.py").touch()
    sizes = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 1024,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    vocabulary = {f"w{number}": number for number in range(60)}
    tokenizer = json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []})
    for name, kind in (("llama", "llama"), ("bare", "llama"), ("unknown", "nope")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({**sizes, "model_type": kind}))
        (folder / name / "tokenizer.json").write_text(tokenizer)
        if name != "bare":
            (folder / name / "model.safetensors").touch()
    shutil.copytree(folder / "bare", folder / "adapter")
    (folder / "adapter" / "adapter_model.safetensors").touch()
    of = json.dumps({"base_model_name_or_path": "./llama"})
    (folder / "adapter" / "adapter_config.json").write_text(of)
    (folder / "words").mkdir()
    (folder / "words" / "tokenizer.json").write_text(tokenizer)
    named = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "words" / "tokenizer_config.json").write_text(named)
