"""What tasks of preferences learn from a sample, in one process, by the papers' equations.

Each text goes through the model alone. TRL's trainers are not used here: of them come the values of
settings that the recipe leaves out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from dslm.recipe.schema import Recipe
from dslm.worker.verify.learnt import Learnt, folded, row


class _Preferences(Learnt):
    """The base: each sample counts the same."""

    def __init__(self, recipe: Recipe, arguments: type, words: int | None) -> None:
        """Take on a recipe's settings; `arguments`: TRL's class, for those that it leaves out."""
        self._given = recipe.training_args
        self._fields: Any = vars(arguments)["__dataclass_fields__"]
        self._words = words
        self._length = recipe.data.sequence_length

    def count(self, sample: Mapping[str, Any]) -> int:
        """One."""
        return 1

    def _setting(self, name: str) -> float:
        return float(self._given.get(name, self._fields[name].default) or 0.0)

    def _said(self, model: nn.Module, prompt: Any, answer: Any) -> _Said:
        ids = folded({"input_ids": row([*prompt, *answer][: self._length])}, self._words)
        tokens = ids["input_ids"]
        logits = model(input_ids=tokens).logits[0, :-1].float()
        found = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        return _Said(found, max(len(prompt) - 1, 0))


class _Said:
    """Log-probabilities of the tokens of a text, from its second one on."""

    def __init__(self, whole: torch.Tensor, begins: int) -> None:
        self.whole = whole
        self.answer = whole[begins:]


class _Compared(_Preferences):
    """The base of those that compare with the model as it was at the start."""

    _start: nn.Module

    def begin(self, model: nn.Module) -> None:
        """Keep a copy."""
        self._start = copy.deepcopy(model).requires_grad_(requires_grad=False)

    def _beyond(self, model: nn.Module, prompt: Any, answer: Any) -> torch.Tensor:
        """How much likelier an answer is than at the start: the logarithm of the ratio."""
        with torch.no_grad():
            known = self._said(self._start, prompt, answer).answer.sum()
        return self._said(model, prompt, answer).answer.sum() - known


class Dpo(_Compared):
    """Direct preference optimisation (arXiv 2305.18290, equation 7)."""

    def loss(self, model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        """Of a pair."""
        prompt = sample["prompt_ids"]
        margin = self._beyond(model, prompt, sample["chosen_ids"]) - self._beyond(
            model, prompt, sample["rejected_ids"]
        )
        return -logsigmoid(self._setting("beta") * margin)


class Kto(_Compared):
    """Kahneman-Tversky optimisation (arXiv 2402.01306, equations 7 and 8)."""

    _usual = 0.0  # how far the model is from its start on answers that belong to other prompts

    def prepare(self, model: nn.Module, samples: Sequence[Mapping[str, Any]]) -> None:
        """The estimate of a step, of all its samples."""
        found = [self._beyond(model, s["prompt_ids"], s["KL_completion_ids"]) for s in samples]
        self._usual = max(0.0, float(torch.stack(found).mean().detach()))

    def loss(self, model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        """Of a good answer or of a bad one."""
        further = self._beyond(model, sample["prompt_ids"], sample["completion_ids"]) - self._usual
        good = bool(sample["good"][0])
        weight = self._setting("desirable_weight" if good else "undesirable_weight")
        value = self._setting("beta") * (further if good else -further)
        return weight * (1 - torch.sigmoid(value))


class Orpo(_Preferences):
    """Odds ratio preference optimisation (arXiv 2403.07691, equations 2 to 7)."""

    def loss(self, model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        """Of a pair."""
        chosen = self._said(model, sample["prompt_ids"], sample["chosen_ids"])
        rejected = self._said(model, sample["prompt_ids"], sample["rejected_ids"])
        odds = [_log_odds(each.answer.mean()) for each in (chosen, rejected)]
        return -chosen.whole.mean() - self._setting("beta") * logsigmoid(odds[0] - odds[1])


class Reward(_Preferences):
    """The likelihood that the chosen answer is the better one (arXiv 2203.02155, equation 1)."""

    def loss(self, model: nn.Module, sample: dict[str, Any]) -> torch.Tensor:
        """Of a pair."""
        chosen, rejected = (
            self._worth(model, [*sample["prompt_ids"], *sample[name]])
            for name in ("chosen_ids", "rejected_ids")
        )
        centred = self._setting("center_rewards_coefficient") * (chosen + rejected) ** 2
        return centred - logsigmoid(chosen - rejected)

    def _worth(self, model: nn.Module, text: list[int]) -> torch.Tensor:
        found: torch.Tensor = model(**folded({"input_ids": row(text)}, self._words)).logits
        return found.float()[0, 0]


def _log_odds(mean: torch.Tensor) -> torch.Tensor:
    """Of a mean log-probability."""
    return mean - torch.log1p(-mean.exp())


PREFERENCES: Mapping[str, type[_Preferences]] = {
    "dpo": Dpo, "kto": Kto, "orpo": Orpo, "reward": Reward,
}  # fmt: skip
