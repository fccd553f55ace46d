"""A script as anybody writes it: the Hugging Face Trainer with a shipped DeepSpeed config.

Arguments: the configs. Each is trained with in a fork of its own, whose process groups nobody else
has, and its losses are written to NAME.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dslm.host.network import free_port
from dslm.worker.layout.experts import let_registry_take_names

LENGTH = 16
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def adapted(path: str) -> dict[str, Any]:
    """A shipped config with what is this machine's: a disk, and no accelerator."""
    config: dict[str, Any] = json.loads(Path(path).read_text())
    for section in ("offload_optimizer", "offload_param"):
        moved = config["zero_optimization"].get(section, {})
        if moved.get("device") == "nvme":
            moved["nvme_path"] = str(Path.cwd())
    if "expert_parallel" in config:
        config["expert_parallel"]["use_grouped_mm"] = False  # which is an accelerator's
        let_registry_take_names()  # DeepSpeed 0.19.8 knows transformers up to 5.22
    return config


def model(config: dict[str, Any]) -> Any:
    """A small Llama, or a mixture where experts are shared."""
    if "expert_parallel" not in config:
        return LlamaForCausalLM(LlamaConfig(**SIZES))
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, head_dim=8))


def samples() -> list[dict[str, torch.Tensor]]:
    """Random tokens, with their positions, which ranks that share sequences need."""
    tokens = [torch.randint(1, 64, (LENGTH,)) for _ in range(64)]
    places = torch.arange(LENGTH)
    return [{"input_ids": each, "labels": each, "position_ids": places} for each in tokens]


def train(path: str) -> list[float]:
    """Train three steps with a config; their losses."""
    config = adapted(path)
    size = config.get("sequence_parallel_size", 1)
    handler = DeepSpeedSequenceParallelConfig(
        sp_seq_length_is_variable=True, sp_attn_implementation="sdpa"
    )
    shared = ParallelismConfig(sp_size=size, sp_backend="deepspeed", sp_handler=handler)
    if size > 1:
        deepspeed.init_distributed()  # on a CPU, accelerate asks for the groups before it does so
    set_seed(1)
    arguments = TrainingArguments(
        output_dir="out",
        deepspeed=config,
        bf16=True,
        use_cpu=True,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        parallelism_config=shared if size > 1 else None,
    )
    trainer = Trainer(model=model(config), args=arguments, train_dataset=samples())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def port_of(file: Path) -> str:
    """Return the port that rank 0 has found free just now, which the others read from a file."""
    if os.environ["RANK"] == "0":
        partial = file.with_suffix(".partial")
        partial.write_text(str(free_port()))
        partial.rename(file)
    while not file.exists():
        time.sleep(0.01)
    return file.read_text()


def main() -> None:
    """Train with each config in turn."""
    failed = []
    for path in sys.argv[1:]:
        pid = os.fork()
        if pid:
            failed += [path] * bool(os.waitpid(pid, 0)[1])
            continue
        try:
            os.environ["MASTER_PORT"] = port_of(Path(f"{Path(path).stem}.port"))
            losses = train(path)
            if os.environ["RANK"] == "0":
                Path(f"{Path(path).stem}.json").write_text(json.dumps(losses))
        except BaseException:  # noqa: BLE001 - whatever it is, it is shown
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    sys.exit(f"failed: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
