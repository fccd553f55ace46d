"""A wrong key gets the right one of its section, or the recipe's word for another tool's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.errors import InputError
from dslm.recipe.findings import known_keys
from dslm.recipe.hints import _SYNONYMS, hint_for, other_tool
from dslm.recipe.load import load_recipe

# a wrong key, what the hint names
TABLE = [
    ("lora.r", "lora.rank"),
    ("lora.lora_alpha", "lora.alpha"),
    ("r", "lora.rank"),
    ("learning_rate", "optimizer.lr"),
    ("optimizer.learning_rate", "optimizer.lr"),
    ("learning_rat", "optimizer.lr"),
    ("per_device_train_batch_size", "batch.micro_size"),
    ("micro_batch_size", "batch.micro_size"),
    ("batch.per_device", ""),
    ("gradient_accumulation_steps", "batch.global_size"),
    ("datasets", "data.train"),
    ("cutoff_len", "data.sequence_length"),
    ("data.max_seq_length", "data.sequence_length"),
    ("num_epochs", "duration.epochs"),
    ("duration.num_train_epochs", "duration.epochs"),
    ("max_steps", "duration.steps"),
    ("base_model", "model.name"),
    ("model_name_or_path", "model.name"),
    ("model.model_name_or_path", "model.name"),
    ("gradient_checkpointing", "model.activation_checkpointing"),
    ("bf16", "precision"),
    ("warmup_ratio", "schedule.warmup"),
    ("lr", "optimizer.lr"),
    ("zero_stage", "parallel.zero_stage"),
    ("optimiser", "optimizer"),
    ("batch.globl_size", "batch.global_size"),
    ("parallel.zero_stagee", "parallel.zero_stage"),
    ("output_dir", "-o DIR"),
    ("max-grad-norm", "optimizer.grad_clip"),
    ("Learning_Rate", "optimizer.lr"),
]


@pytest.mark.parametrize(("key", "right"), TABLE)
def test_a_wrong_key_gets_the_right_one(key: str, right: str) -> None:
    hint = hint_for(key, known_keys())
    if right:
        assert f"`{right}`" in hint
    else:
        assert "did you mean" not in hint


def test_every_synonym_leads_to_a_key_and_is_none_itself() -> None:
    known = known_keys()
    options = ("-o DIR", "--resume", "--num-nodes", "training_args.run_name")
    assert len(_SYNONYMS) > 150
    for word, key in _SYNONYMS.items():
        assert key in known or key in options, (word, key)
        assert key.rpartition(".")[0] + f".{word}" not in known, (word, key)
        assert word not in known or word == "deepspeed", word


FILES = {
    "Axolotl": """
base_model: NousResearch/Llama-3.2-1B
datasets: [{path: teknium/GPT4-LLM-Cleaned, type: alpaca}]
val_set_size: 0.1
adapter: lora
lora_r: 16
sequence_len: 2048
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
""",
    "LLaMA-Factory": """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 1
""",
    "TRL or transformers": """
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: trl-lib/Capybara
learning_rate: 2.0e-5
num_train_epochs: 1
per_device_train_batch_size: 2
use_peft: true
""",
    "torchtune": """
model: {_component_: torchtune.models.llama3_2.llama3_2_1b}
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer}
epochs: 1
batch_size: 4
max_steps_per_epoch: null
""",
    "accelerate": """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 3}
mixed_precision: bf16
num_processes: 8
""",
    "DeepSpeed": """
train_batch_size: 8
gradient_clipping: 1.0
zero_optimization: {stage: 2}
fp16: {enabled: true}
""",
}


@pytest.mark.parametrize("tool", FILES)
def test_a_file_of_another_tool_is_recognised(tmp_path: Path, tool: str) -> None:
    (tmp_path / "r.yaml").write_text(FILES[tool])
    with pytest.raises(InputError) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert f"looks like a file of {tool};" in caught.value.hint


def test_a_recipe_with_a_slip_is_taken_for_a_recipe() -> None:
    assert other_tool({"model": {}, "lora": {"r": 8}}, ["lora.r"]) == ""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model=gpt2", "`model: {name: gpt2}`"),
        ("data=a.jsonl", "`data: {train: a.jsonl}`"),
        ("batch=8", "`batch: {global_size: 8}`"),
        ("optimizer=adamw", "`optimizer: {name: adamw}`"),
        ("duration=100", "`duration: {steps: 100}`"),
        ("lora=16", "`lora: {rank: 16}`"),
    ],
)
def test_a_section_given_as_one_value_is_shown_as_a_section(setting: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("quickstart", [setting])
    assert said in caught.value.hint
