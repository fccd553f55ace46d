"""A training by TRL's own trainer as one writes it by hand: the data, model and settings of a run.

    deepspeed --num_gpus 2 benchmarks/trl_script.py RUN RECORDS OUT

RUN is a run directory of dslm (its recipe, ds_config.json and tokenizer), RECORDS the data in the
order in which dslm reads them, a JSON object a line, OUT a JSON file that gets, of every step,
the loss (GRPO: reward), the gradient's norm and the wall-clock time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from dslm.recipe.duration import warmup_steps
from dslm.recipe.load import read_resolved
from dslm.recipe.schema import Recipe
from dslm.worker.rl.draws import Drawn, keys_of
from dslm.worker.rl.rewards import reward_function

KINDS = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
}


class Ends(TrainerCallback):  # type: ignore[misc]
    """When each step ended, its loss (GRPO: reward) and its gradient's norm."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.ends: list[float] = []
        self.values: list[float] = []
        self.norms: list[float] = []

    def on_step_end(self, *args: Any, **given: Any) -> None:
        self.ends.append(time.time())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        if "loss" in logs:
            self.values.append(logs[self.value])
            self.norms.append(logs["grad_norm"])


def _arguments(recipe: Recipe, config: dict[str, Any], out: Path) -> dict[str, Any]:
    steps = recipe.duration.steps or 1
    optimizer = recipe.optimizer
    given = {
        "output_dir": str(out.with_suffix("")), "max_steps": steps, "seed": recipe.seed,
        "per_device_train_batch_size": config["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "learning_rate": optimizer.lr, "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.betas[0], "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps, "max_grad_norm": optimizer.grad_clip,
        "lr_scheduler_type": recipe.schedule.name, "warmup_steps": warmup_steps(recipe, steps),
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "deepspeed": {k: v for k, v in config.items() if k != "train_batch_size"},
    }  # fmt: skip
    if recipe.task == "grpo":
        rollout = recipe.rollout
        return given | {
            "num_generations": rollout.group, "max_completion_length": rollout.max_tokens,
            "temperature": rollout.temperature, "shuffle_dataset": False, "disable_dropout": True,
            "reward_weights": [reward.weight for reward in recipe.rewards],
            **recipe.training_args,
        }  # fmt: skip
    return given | {"max_length": recipe.data.sequence_length, **recipe.training_args}


class SameDraws(GRPOTrainer):  # type: ignore[misc]
    """Draws tokens as dslm does, so that both learn from the same answers."""

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any) -> Any:
        group, rows = self.num_generations, len(prompt_ids)
        step = self.state.global_step * self.args.generation_batch_size
        first = step + self.accelerator.process_index * rows
        answers = [divmod(first + row, group) for row in range(rows)]
        places = [(self.places[prompt % len(self.places)], copy) for prompt, copy in answers]
        inner = self.accelerator.unwrap_model(self.model)
        plain = inner.generate
        self.generation_config.do_sample = False
        keys = keys_of(self.args.seed, places)
        inner.generate = lambda **given: plain(**given, logits_processor=[Drawn(keys)])
        try:
            return super()._generate_single_turn(prompt_ids, *rest)
        finally:
            inner.generate = plain


def main() -> None:
    """Train as many steps as the recipe says."""
    run, records, out = (Path(argument) for argument in sys.argv[1:4])
    recipe = read_resolved(run / "recipe.yaml")
    config = json.loads((run / "ds_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    trainer_class, kind = KINDS[recipe.task]
    arguments = kind(**_arguments(recipe, config, out))
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    sizes = {k: v for k, v in recipe.model.architecture.items() if k != "model_type"}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    shape = AutoConfig.for_model(recipe.model.architecture["model_type"], **ids, **sizes)

    def model() -> Any:
        set_seed(recipe.seed)
        return AutoModelForCausalLM.from_config(shape)

    more: dict[str, Any] = {}
    if recipe.task == "dpo":
        more["ref_model"] = model()
    if recipe.task == "grpo":
        more["reward_funcs"] = [reward_function(reward) for reward in recipe.rewards]
        trainer_class = SameDraws
    ends = Ends("reward" if recipe.task == "grpo" else "loss")
    places = [row.pop("place") for row in rows]
    trainer = trainer_class(
        model=model(), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[ends], **more,
    )  # fmt: skip
    trainer.places = places
    trainer.train()
    if torch.distributed.get_rank() == 0:
        found = {"ends": ends.ends, "values": ends.values, "norms": ends.norms}
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
