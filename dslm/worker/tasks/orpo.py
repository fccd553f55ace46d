"""Odds ratio preference optimisation: the chosen answer is learnt, and set apart from the other.

No reference. TRL's ORPO, but for one mean: TRL averages the loss of the chosen text over the tokens
of a micro batch, so that how samples are spread over micro batches and ranks would show in it. Here
each sample counts the same, as in the paper (arXiv 2403.07691, equations 2 and 6).
"""

from __future__ import annotations

from typing import Any

from dslm.worker.tasks.base import Task
from dslm.worker.tasks.dpo import OF_PAIRS, PreferenceEncoder, both_answers
from dslm.worker.tasks.measured import Batch, MeasuredAlone, means_of, pairs_in

_MEANS = (*OF_PAIRS, "nll_loss", "log_odds_ratio", "log_odds_chosen")


class AsItIs:
    """A data set that is tokenised already, for a trainer that would map it first."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def map(self, *_: Any, **__: Any) -> AsItIs:
        """Leave it as it is."""
        return self


def _trainer() -> tuple[type, type]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.trainer.utils import selective_log_softmax

    class PreparedORPOTrainer(MeasuredAlone, ORPOTrainer):
        """TRL's trainer on data that is tokenised already, each sample of equal weight."""

        def __init__(self, *, train_dataset: Any, eval_dataset: Any = None, **given: Any) -> None:
            evaluation = None if eval_dataset is None else AsItIs(eval_dataset)
            super().__init__(train_dataset=AsItIs(train_dataset), eval_dataset=evaluation, **given)

        def measured(self, batch: Batch) -> dict[str, float]:
            """Return the loss and TRL's metrics of a batch, which go into no sums of TRL's."""
            loss, found = self.get_batch_loss_metrics(self.model_wrapped, batch, "eval")
            named = {name.removeprefix("eval_"): value for name, value in found.items()}
            return {**named, "loss": float(loss)}

        def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
            """Log-probabilities of both answers (B,), their logits, the loss of the chosen text."""
            more = {"output_router_logits": True} if self.aux_loss_enabled else {}
            known = batch["attention_mask"]
            outputs = model(batch["input_ids"], attention_mask=known, use_cache=False, **more)
            logits = outputs.logits[:, :-1]  # (2 B, L - 1, V)
            found = selective_log_softmax(logits, batch["input_ids"][:, 1:])
            chosen, rejected = _means(found, batch["completion_mask"]).chunk(2)
            whole, _ = _means(found, known).chunk(2)
            sides = logits.detach().chunk(2)
            auxiliary = (outputs.aux_loss,) if self.aux_loss_enabled else ()
            return (chosen, rejected, *sides, -whole.mean(), *auxiliary)

    return PreparedORPOTrainer, ORPOConfig


def _means(found: Any, mask: Any) -> Any:
    """The mean over the tokens of each sequence that a mask shows."""
    shown = mask[:, 1:]
    return (found * shown).sum(1) / shown.sum(1).clamp(min=1)


ORPO = Task(
    auto_class="AutoModelForCausalLM",
    encoder=PreferenceEncoder,
    collator=both_answers,
    trainer=_trainer,
    measure=means_of(dict.fromkeys(_MEANS, pairs_in)),
)
