"""Group relative policy optimisation: answers are rewarded, and better ones of a group learnt.

TRL's GRPOTrainer; dslm gives it prompts in its own order, draws of its own and guarded rewards, so
that a run learns the same on any number of ranks and continues where it was.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from dslm.recipe.schema import Recipe
from dslm.worker.layout.ranks import Layout
from dslm.worker.ranks import Rank
from dslm.worker.rl.prompts import SAMPLES, GroupSampler, PromptEncoder, Prompts
from dslm.worker.rl.session import Session
from dslm.worker.tasks.base import Task, Tokenizer


def _arguments(recipe: Recipe) -> dict[str, Any]:
    rollout = recipe.rollout
    return {
        "num_generations": rollout.group,
        "num_iterations": rollout.rounds,
        "max_completion_length": rollout.max_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "use_vllm": rollout.engine == "vllm",
        "vllm_mode": "colocate",
        "reward_weights": [reward.weight for reward in recipe.rewards],
        "disable_dropout": True,
        "num_generations_eval": 1,
    }


def _sampler(recipe: Recipe) -> Any:
    return partial(GroupSampler, group=recipe.rollout.group, rounds=recipe.rollout.rounds)


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Any:
    """Samples stay records; all have the same fields, since a reward gets each as a list."""

    def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
        names = {"answer": None, **{name: None for sample in samples for name in sample}}
        return {SAMPLES: [{**names, **sample} for sample in samples]}

    return together


def _session(recipe: Recipe, rank: Rank | None, layout: Layout, step: int) -> dict[str, Any]:
    """What the trainer is told of the run."""
    return {"session": Session(recipe=recipe, rank=rank, layout=layout, start_step=step)}


def _measure(trainer: Any, samples: Any, *given: Any, **settings: Any) -> dict[str, float]:
    found: dict[str, float] = trainer.mean_rewards(samples, *given, **settings)
    return found


def _trainer() -> tuple[type, type]:
    from trl import GRPOConfig

    from dslm.worker.rl.trainer import PreparedGRPOTrainer

    return PreparedGRPOTrainer, GRPOConfig


GRPO = Task(
    auto_class="AutoModelForCausalLM",
    encoder=PromptEncoder,
    collator=_collator,
    trainer=_trainer,
    arguments=_arguments,
    made_with=_session,
    view=Prompts,
    sampler=_sampler,
    measure=_measure,
)
