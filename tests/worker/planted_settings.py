"""More planted faults: of optimizers and their settings, of schedules, of tasks of preferences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from tests.worker.planting import (
    LORA,
    MOE,
    Fault,
    after_step,
    batches,
    gradients,
    on_engine,
    on_trainer,
    stage,
)


def _eps(engine: Any, rank: int) -> None:
    if rank:
        for group in engine.optimizer.param_groups:
            group["eps"] = 1e-5


def _swapped_betas(engine: Any, rank: int) -> None:
    if rank:
        for group in engine.optimizer.param_groups:
            group["betas"] = group["betas"][::-1]


def _late_schedule(engine: Any, rank: int) -> None:
    """The first step's rate is that of the second step, too, and so on."""
    usual, calls = engine.lr_scheduler.step, [0]

    def step(*given: Any, **more: Any) -> None:
        calls[0] += 1
        if calls[0] > 1:
            usual(*given, **more)

    engine.lr_scheduler.step = step


def _decay_twice(found: dict[str, Any], rank: int) -> None:
    for name, parameter in found.items():
        if name != "before" and parameter.dim() > 1:
            parameter.mul_(1 - 6e-4)  # the rate times the weight decay of the recipe


def _in_bf16(found: dict[str, Any], rank: int) -> None:
    for name, parameter in found.items():
        if name != "before":
            parameter.copy_(parameter.bfloat16())


def _forgetful(engine: Any, rank: int) -> None:
    """An optimizer that starts anew with each step."""
    usual = engine.step

    def step(*given: Any, **more: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            engine.optimizer.state.clear()
        return usual(*given, **more)

    engine.step = step


def _no_smoothing(trainer: Any, rank: int) -> None:
    trainer.label_smoother.epsilon = 0.0


def _not_training(trainer: Any, rank: int) -> None:
    """A model that stays as an evaluation left it."""
    usual = trainer.compute_loss

    def compute_loss(model: Any, *given: Any, **more: Any) -> Any:
        model.module.eval()
        return usual(model, *given, **more)

    trainer.compute_loss = compute_loss


def _never_evaluating(engine: Any, rank: int) -> None:
    """A model that stays as a training left it."""
    engine.eval = lambda: engine


def _last_counts_more(trainer: Any, rank: int) -> None:
    """The last micro batch of a step is divided by fewer tokens than the others."""
    usual, count = trainer.compute_loss, [0]

    def compute_loss(*given: Any, **more: Any) -> Any:
        found = usual(*given, **more)
        count[0] += 1
        times = 1 if count[0] % trainer.args.gradient_accumulation_steps else 1.25
        return (found[0] * times, found[1]) if isinstance(found, tuple) else found * times

    trainer.compute_loss = compute_loss


def _padding_counted(trainer: Any, rank: int) -> None:
    """The loss is divided by all tokens of the batch, those that aren't learnt included."""
    usual = trainer.get_batch_samples

    def get_batch_samples(*given: Any) -> Any:
        found, _ = usual(*given)
        tokens = sum(batch["labels"].numel() for batch in found)
        return found, torch.tensor(2 * tokens)  # of both ranks

    trainer.get_batch_samples = get_batch_samples


def _coarse_norms(trainer: Any, rank: int) -> None:
    for name, module in trainer.model.named_modules():
        if rank and "norm" in name:
            module.variance_epsilon = 1e-3


def _norms_in_16_bits(trainer: Any, rank: int) -> None:
    for name, module in trainer.model.named_modules():
        if "norm" in name:
            module.forward = _rounded(module.forward)


def _rounded(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda states: forward(states.bfloat16().to(states.dtype))


def _replayed_otherwise(trainer: Any, rank: int) -> None:
    """A layer whose second forward pass, of recomputation, is another."""
    module, calls = trainer.model.model.layers[1].mlp, [0]
    usual = module.forward

    def forward(states: torch.Tensor) -> Any:
        calls[0] += 1
        return usual(states if calls[0] % 2 else states * 1.5)

    module.forward = forward


def _other_experts(trainer: Any, rank: int) -> None:
    """On one rank a token goes to its first expert alone."""
    for name, module in trainer.model.named_modules():
        if rank and hasattr(module, "top_k") and "mlp" in name:
            module.top_k = 1


def _moving_start(trainer: Any, rank: int) -> None:
    """The model that preferences are compared with learns along."""
    usual = trainer.compute_loss

    def compute_loss(model: Any, *given: Any, **more: Any) -> Any:
        other = getattr(trainer.ref_model, "module", trainer.ref_model)
        other.load_state_dict(copy.deepcopy(model.module.state_dict()))
        return usual(model, *given, **more)

    trainer.compute_loss = compute_loss


def _answers_swapped(batch: dict[str, torch.Tensor], rank: int) -> None:
    if rank:
        for name in ("input_ids", "attention_mask", "completion_mask"):
            if name in batch:
                batch[name] = torch.cat(batch[name].chunk(2)[::-1])


def _bad_for_good(batch: dict[str, torch.Tensor], rank: int) -> None:
    if rank:
        batch["label"] = ~batch["label"]


SETTINGS: dict[str, Fault] = {
    "another eps on one rank": Fault(
        plant=on_engine(_eps), kind="optimizer", names="rank 1: eps", settings=stage(1),
    ),
    "betas swapped on one rank": Fault(
        plant=on_engine(_swapped_betas), kind="optimizer", names="rank 1: beta", settings=stage(3),
    ),
    "a schedule one step late": Fault(
        plant=on_engine(_late_schedule), kind="learning rate", settings=stage(2),
    ),
    "weight decay applied twice": Fault(
        plant=on_engine(after_step(_decay_twice)), kind="update", names="proj", settings=stage(0),
    ),
    "no full-precision copy": Fault(
        plant=on_engine(after_step(_in_bf16)), kind="update", settings=stage(0),
    ),
    "moments that are forgotten": Fault(
        plant=on_engine(_forgetful), kind="update", settings=stage(0),
    ),
    "label smoothing left out": Fault(
        plant=on_trainer(_no_smoothing), kind="gradient",
        settings={**stage(2), "training_args.label_smoothing_factor": 0.1},
    ),
    "dropout left out": Fault(
        plant=on_trainer(_not_training), kind="dropout", recipe="quickstart-mlm", settings=stage(1),
    ),
    "dropout in an evaluation": Fault(
        plant=on_engine(_never_evaluating), kind="dropout", names="an evaluation",
        recipe="quickstart-mlm", settings=stage(2),
    ),
    "the last micro batch counts more": Fault(
        plant=on_trainer(_last_counts_more), kind="gradient", settings=stage(2),
    ),
    "a loss over padding, too": Fault(
        plant=on_trainer(_padding_counted), kind="gradient", recipe="quickstart-sft",
        settings=stage(1),
    ),
    "a table's gradient scaled": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * 1.01, "embed_tokens")), kind="gradient",
        names="embed_tokens", settings=stage(3),
    ),
    "another eps of norms on one rank": Fault(
        plant=on_trainer(_coarse_norms), kind="loss", names="sample", settings=stage(1),
    ),
    "norms in 16 bits": Fault(
        plant=on_trainer(_norms_in_16_bits), kind="gradient", settings=stage(2),
    ),
    "a layer that is recomputed otherwise": Fault(
        plant=on_trainer(_replayed_otherwise), kind="gradient",
        settings={**stage(2), "model.activation_checkpointing": "true"},
    ),
    "fewer experts on one rank": Fault(
        plant=on_trainer(_other_experts), kind="gradient", names="experts",
        settings={**stage(2), **MOE},
    ),
    "a start of preferences that learns along": Fault(
        plant=on_trainer(_moving_start), kind="gradient", recipe="quickstart-dpo",
        settings=stage(2),
    ),
    "answers swapped on one rank": Fault(
        plant=on_trainer(batches(_answers_swapped)), kind="gradient", recipe="quickstart-orpo",
        settings=stage(1),
    ),
    "bad answers for good ones on one rank": Fault(
        plant=on_trainer(batches(_bad_for_good)), kind="gradient", recipe="quickstart-kto",
        settings=stage(2),
    ),
    "adapters of a model in few bits scaled": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * 2, "lora_B")), kind="gradient",
        names="lora_B", settings={**stage(2), **LORA, "quantize": "nf4", "precision": "bf16"},
    ),
}  # fmt: skip
