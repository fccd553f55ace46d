"""What a recipe says of learning from rewards: what answers are worth, and how they are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from dslm.recipe.values import STRICT, Few, Misfit, Name, Positive, PositiveInt, Seconds, Whole

BUILT_IN_REWARDS = ("exact_match", "number_match", "format", "length")
COMPARING_REWARDS = ("exact_match", "number_match")  # with a reference answer
_NEEDED_BY = {"format": "pattern", "length": "tokens"}


class Reward(BaseModel):
    """What an answer is worth (task grpo): by a function, a built-in one, or a model."""

    model_config = STRICT

    function: Name | None = None
    """`FILE.py:NAME`, called as TRL calls it; or `exact_match`, `number_match`, `format` or
    `length`."""
    model: Name | None = None
    """A reward model, by Hub name or folder."""
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 1.0
    """Its share of the sum; below 0 it is a penalty."""
    pattern: str | None = None
    """The regular expression that `format` looks for; a dot is any character."""
    tokens: PositiveInt | None = None
    """How long an answer may be for `length`: 1 up to that, 0 from twice as many on."""
    timeout: Seconds = 60.0
    """Seconds that a call may take, for all answers of a rank in a step."""

    @model_validator(mode="after")
    def _is_one(self) -> Reward:
        if (self.function is None) == (self.model is None):
            raise Misfit("a reward is a `function` or a `model`", "function", "model")
        for function, key in _NEEDED_BY.items():
            given = getattr(self, key) is not None
            if self.function == function and not given:
                raise Misfit(f"the reward `{function}` needs `{key}`", key, "function")
            if given and self.function != function:
                raise Misfit(f"`{key}` is of the reward `{function}`", key, "function")
        return self


class Rollout(BaseModel):
    """How prompts are answered while training (task grpo)."""

    model_config = STRICT

    group: Annotated[Few, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with each other; `batch.global_size` counts
    answers."""
    max_tokens: Few = 256
    """Tokens of an answer, at most; prompt and answer fit into `data.sequence_length` together."""
    temperature: Positive = 1.0
    """What scores are divided by before a token is drawn."""
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """Draw from the likeliest tokens with this probability together."""
    top_k: Whole = 0
    """Draw from so many of the likeliest tokens; 0: from all."""
    rounds: Few = 1
    """Optimizer steps that learn from the same answers (the paper's µ)."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers everywhere, or vLLM beside the training, on CUDA."""
    at_once: Few | None = None
    """Answers of a rank that are generated together; absent: all of a step."""
    keep: Whole = 8
    """Answers of a step that are written to `rollouts.jsonl` of the run, at most."""
