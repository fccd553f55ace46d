"""What a task learns from a sample, beside what the libraries' own losses give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trl
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

from dslm.recipe.load import load_recipe
from dslm.worker.verify.learnt import Tokens, folded
from dslm.worker.verify.preferences import PREFERENCES

PROMPT, CHOSEN, REJECTED = [5, 6, 7], [8, 9, 10, 11], [12, 13]
PAIR = {"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED, "place": 0}


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))


def said(of: Any, answer: list[int]) -> torch.Tensor:
    """Log-probabilities of an answer's tokens."""
    ids = torch.tensor([[*PROMPT, *answer]])
    logits = of(input_ids=ids).logits.log_softmax(-1)[0, len(PROMPT) - 1 : -1]
    return logits.gather(1, torch.tensor(answer)[:, None])[:, 0]


def learnt(task: str, **settings: Any) -> Any:
    recipe = load_recipe(
        f"quickstart-{task}", [f"training_args.{key}={value}" for key, value in settings.items()]
    ).recipe
    arguments = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "reward": trl.RewardConfig}
    return PREFERENCES[task](recipe, arguments.get(task, trl.DPOConfig), None)


def test_a_pair_is_learnt_by_how_much_likelier_its_chosen_answer_became() -> None:
    start, now = model(0), model(1)
    loss = learnt("dpo", beta=0.5)
    loss.begin(start)
    gains = [said(now, answer).sum() - said(start, answer).sum() for answer in (CHOSEN, REJECTED)]
    wanted = -torch.nn.functional.logsigmoid(0.5 * (gains[0] - gains[1]))
    assert loss.loss(now, PAIR).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert loss.count(PAIR) == 1


@pytest.mark.parametrize("good", [0, 1])
def test_a_single_answer_is_compared_with_answers_to_other_prompts(good: int) -> None:
    start, now = model(0), model(1)
    loss = learnt("kto", beta=0.5, undesirable_weight=2.0)
    loss.begin(start)
    sample = {"prompt_ids": PROMPT, "completion_ids": CHOSEN, "good": [good],
              "KL_completion_ids": REJECTED}  # fmt: skip
    loss.prepare(now, [sample])
    gain, other = (
        (said(now, answer).sum() - said(start, answer).sum()).item()
        for answer in (CHOSEN, REJECTED)
    )
    further = (gain - max(0.0, other)) * (1 if good else -1)
    wanted = (1 if good else 2) * (1 - torch.sigmoid(torch.tensor(0.5 * further)))
    assert loss.loss(now, sample).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_labels_are_smoothed_as_transformers_does() -> None:
    recipe = load_recipe("quickstart", ["training_args.label_smoothing_factor=0.2"]).recipe
    tokens, of = [3, 4, 5, 6, 7], model()
    ids = torch.tensor([tokens])
    wanted = LabelSmoother(0.2)(of(input_ids=ids), ids, shift_labels=True)
    loss = Tokens(recipe, lambda samples: {}, None)
    sample = {"input_ids": tokens, "place": 0}
    mean = loss.loss(of, sample) / loss.count(sample)
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_words_that_a_reduced_model_lacks_become_others_and_labels_that_are_ignored_stay() -> None:
    batch = {"input_ids": torch.tensor([1, 9]), "labels": torch.tensor([-100, 9]),
             "position_ids": torch.tensor([0, 9])}  # fmt: skip
    found = folded(batch, 8)
    assert [found[name].tolist() for name in batch] == [[1, 1], [-100, 1], [0, 9]]
    assert folded(batch, None) == batch
