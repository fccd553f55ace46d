"""TRL's GRPOTrainer on prepared prompts: dslm's draws, rewards, evaluation, record of answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, pad

from dslm.run.events import Answered
from dslm.run.rollouts import Rollout, append_rollouts
from dslm.worker.layout.ranks import Layout
from dslm.worker.rl.draws import Drawn, keys_of
from dslm.worker.rl.models import reward_model
from dslm.worker.rl.prompts import SAMPLES
from dslm.worker.rl.rewards import reward_function, text_of
from dslm.worker.rl.session import Session
from dslm.worker.tasks.base import Collate

_KEPT = "answers-{}-of-{}.pt"  # in a checkpoint within a round: what the next steps learn from
_SHOWN = 400  # letters of a prompt or an answer in an event


class PreparedGRPOTrainer(GRPOTrainer):
    """GRPO as dslm runs it; `session` says with which recipe, and where it writes."""

    reward_func_names: list[str]
    accelerator: Any

    def __init__(
        self,
        *,
        session: Session,
        args: Any,
        data_collator: Any,  # TRL's trainer takes none
        ref_model: Any = None,
        **given: Any,
    ) -> None:
        self._session = session
        self._asked: list[dict[str, Any]] = []  # the samples that are answered right now
        recipe = session.recipe
        beta = args.beta
        if ref_model is not None:
            args.beta = 0.0  # else TRL would load one by the model's name
        models = [reward_model(r, recipe) if r.model else None for r in recipe.rewards]
        functions = [
            reward_function(reward) if made is None else made.model
            for reward, made in zip(recipe.rewards, models, strict=True)
        ]
        super().__init__(
            args=args,
            reward_funcs=functions,
            reward_processing_classes=[None if m is None else m.tokenizer for m in models],
            **given,
        )
        self.reward_func_names = _apart(self.reward_func_names)
        if ref_model is not None:
            args.beta = self.beta = beta
            self.ref_model = self._reference(ref_model)
        self._drawing = GenerationConfig(
            max_new_tokens=self.max_completion_length,
            do_sample=False,  # the noise of the last processor makes the largest score a draw
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=self.eos_token_ids,
            repetition_penalty=self.repetition_penalty,
            cache_implementation=args.cache_implementation,
            use_cache=True,
            disable_compile=True,
        )
        # micro batches are counted from the beginning of the run, not of the attempt
        self._step = session.start_step * args.gradient_accumulation_steps

    def _reference(self, model: Any) -> Any:
        disable_dropout_in_model(model)
        add_fused_lm_head(model, temperature=self.temperature)
        return prepare_deepspeed(model, self.accelerator)

    # --- answers

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [sample["prompt_ids"] for sample in self._asked], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, count: int, *rest: Any
    ) -> tuple[list[list[int]], Any]:
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, images, fields, count, *rest)
        recipe = self._session.recipe
        seed = recipe.seed if self.model.training else recipe.seed + 1
        keys = keys_of(seed, [(sample["place"], sample["copy"]) for sample in self._asked])
        rows = recipe.rollout.at_once or len(prompt_ids)
        found: list[list[int]] = []
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
        ):
            for start in range(0, len(prompt_ids), rows):
                part = slice(start, start + rows)
                found += self._answered(model, prompt_ids[part], keys[part])
                self._session.note()
        return found, None

    def _answered(self, model: Any, prompts: Sequence[list[int]], keys: Any) -> list[list[int]]:
        device, filler = self.accelerator.device, self._tokenizer.pad_token_id
        ids = [torch.tensor(prompt) for prompt in prompts]
        inputs = pad(ids, padding_value=filler, padding_side="left").to(device)
        mask = pad([torch.ones_like(i) for i in ids], padding_value=0, padding_side="left")
        made = model.generate(
            input_ids=inputs,
            attention_mask=mask.to(device),
            generation_config=self._drawing,
            logits_processor=self._processors(keys),
            # parameters that were gathered need no other rank
            synced_gpus=None if not self.args.ds3_gather_for_generation else False,
        )
        ends = set(self.eos_token_ids)
        return [_until_end(row, ends) for row in made[:, inputs.size(1) :].tolist()]

    def _processors(self, keys: torch.Tensor) -> LogitsProcessorList:
        """The draw's, and before it those of transformers' sampling, in its order."""
        found: list[Any] = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_k:
            found.append(TopKLogitsWarper(top_k=self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(top_p=self.top_p))
        if self.min_p is not None:
            found.append(MinPLogitsWarper(min_p=self.min_p))
        return LogitsProcessorList([*found, Drawn(keys)])

    # --- what they are worth

    def _prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = super()._prepare_inputs(batch[SAMPLES])
        return found

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = inputs
        logs = [self._logs["prompt"], self._logs["completion"], self._logs["advantages"]]
        for log in (*logs, *self._logs["rewards"].values()):
            log.clear()
        with self._each_once():
            found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._record()
        return found

    def _calculate_rewards(self, *given: Any) -> torch.Tensor:
        return _one_of_each(super()._calculate_rewards(*given), self._session.layout)

    def _compute_loss(self, *given: Any) -> Any:
        with self._each_once():
            return super()._compute_loss(*given)

    @contextmanager
    def _each_once(self) -> Iterator[None]:
        """Let what is counted over ranks count ranks that have the same answers once."""
        whole = self.accelerator
        self.accelerator = _Once(whole, self._session.layout)
        try:
            yield
        finally:
            self.accelerator = whole

    def _record(self) -> None:
        """Write down the first answers of this step, on rank 0, and tell of one."""
        rank, recipe = self._session.rank, self._session.recipe
        if rank is None or rank.rank:
            return
        kept = [
            self._rollout(number, rank.attempt.number)
            for number in range(min(recipe.rollout.keep, len(self._logs["prompt"])))
        ]
        append_rollouts(rank.run, kept)
        step = self.state.global_step + 1
        if kept and (step % recipe.log.every == 0 or step == 1):
            best = max(kept, key=lambda one: one.advantage)
            rank.record(
                Answered(
                    **rank.stamp(),
                    step=step,
                    prompt=best.prompt[-_SHOWN:],
                    answer=best.answer[:_SHOWN],
                    reward=best.reward,
                )
            )

    def _rollout(self, number: int, attempt: int) -> Rollout:
        rewards = {name: _number(values[number]) for name, values in self._logs["rewards"].items()}
        weighted = zip(rewards.values(), self._session.recipe.rewards, strict=True)
        given = [value * reward.weight for value, reward in weighted if value is not None]
        sample = self._asked[number] if number < len(self._asked) else {}
        answer = text_of(self._logs["completion"][number])
        reference = sample.get("answer")
        return Rollout(
            attempt=attempt,
            step=self.state.global_step + 1,
            prompt=text_of(self._logs["prompt"][number]),
            answer=answer,
            reference=None if reference is None else str(reference),
            reward=round(sum(given), 6) if given else None,
            rewards=rewards,
            advantage=round(float(self._logs["advantages"][number]), 6),
            tokens=len(self._tokenizer(answer, add_special_tokens=False)["input_ids"]),
        )

    # --- evaluation

    def mean_rewards(
        self,
        samples: Any,
        collate: Collate,
        layout: Layout,
        *,
        micro_batch: int,
        on_batch: Callable[[], None],
    ) -> dict[str, float]:
        """The mean of each reward, over one answer to each prompt, on all ranks.

        What a reward can't judge doesn't count in its mean.
        """
        count, rows = len(samples), micro_batch * self.args.gradient_accumulation_steps
        sums, judged = torch.zeros(2, len(self.reward_funcs), dtype=torch.float64)
        for start in range(0, count, rows * layout.data_size):
            first = start + layout.data_rank * rows
            places = range(first, first + rows)
            batch: Any = collate([samples[i if i < count else 0] for i in places])
            self._asked = batch[SAMPLES]
            prompts = [sample["prompt"] for sample in self._asked]
            with torch.no_grad():
                _, ids, _, answers, *_ = self._generate(prompts)
                rewards = self._calculate_rewards(self._asked, prompts, answers, ids)
            inside = rewards[: count - start].double().cpu()  # of all ranks, in order
            sums += inside.nansum(0)
            judged += (~inside.isnan()).sum(0)
            on_batch()
        self._metrics["eval"].clear()
        weights = torch.tensor([reward.weight for reward in self._session.recipe.rewards])
        means = (sums / judged.clamp(min=1)).tolist()
        return {
            **{f"rewards/{n}": v for n, v in zip(self.reward_func_names, means, strict=True)},
            "reward": float((sums * weights).sum() / count),
            "prompts": float(count),
        }

    # --- checkpoints within a round

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.state.global_step % self.num_iterations and self._buffered_inputs is not None:
            torch.save(self._buffered_inputs, self._answers_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        file = self._answers_file(checkpoint) if checkpoint else None
        if file is not None and file.is_file():
            kept = torch.load(file, map_location="cpu", weights_only=True)
            self._buffered_inputs = send_to_device(kept, self.accelerator.device)

    def _answers_file(self, folder: str) -> Path:
        layout = self._session.layout
        return Path(folder) / _KEPT.format(layout.rank, layout.world_size)


class _Once:
    """An accelerator for which ranks that share layers are one."""

    def __init__(self, accelerator: Any, layout: Layout) -> None:
        self._accelerator = accelerator
        self._layout = layout
        self.process_index, self.num_processes = layout.data_rank, layout.data_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what the first rank of each group has."""
        return _one_of_each(self._accelerator.gather(tensor), self._layout)

    gather_for_metrics = gather


def _one_of_each(gathered: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The rows of the first rank of each group, of those of all ranks in order."""
    groups = gathered.unflatten(0, (layout.data_size, layout.sharing, -1))
    return groups[:, 0].flatten(0, 1)


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """An answer up to its end, that token included."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def _apart(names: Sequence[str]) -> list[str]:
    """Names of rewards, those that come again with a number: metrics are found by them."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
