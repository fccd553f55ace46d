"""Masked language modelling: dynamic masking, documents of a packed sample kept apart.

Source: RoBERTa (arXiv 1907.11692), 3 and 4.1: of the chosen tokens 80 % become the mask, 10 %
another token, 10 % stay; chosen anew each time a sample is seen.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedTokenizerBase

from dslm.errors import RecipeError, Where
from dslm.recipe.schema import Recipe
from dslm.worker.data.packing import IGNORED, packed_sample
from dslm.worker.tasks.base import Task, cross_entropy, pad_token
from dslm.worker.tasks.pretrain import TextEncoder

_COUNTS = "create_position_ids_from_input_ids"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingCollator:
    """Makes a batch: tokens, labels and positions (B, L), and the attention's mask: of pairs of
    tokens (B, 1, L, L) where documents share a sample, else of tokens that are there (B, L), since
    some models take no other.
    """

    mask_token: int
    vocabulary: int
    probability: float
    special: frozenset[int]
    position_offset: int
    seed: int
    length: int
    pad: int
    packed: bool
    added_mask: bool  # eager attention adds its mask to the scores; others want true and false

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: Any) -> MaskingCollator:
        """Return the collator of a recipe.

        Raises:
            RecipeError: the tokenizer has no mask token, or the attention can't keep the documents
                of a sample apart.
        """
        attention = config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise RecipeError(
                f"`{attention}` can't keep the documents of a sample apart in a masked model",
                where=Where(key="model.attention"),
                hint="use `sdpa`",
            )
        if tokenizer.mask_token_id is None:
            raise RecipeError(
                "the tokenizer has no mask token",
                where=Where(key="model.tokenizer"),
                hint="use the tokenizer of a masked language model, or train one",
            )
        return cls(
            mask_token=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
            probability=recipe.data.mlm_probability,
            special=frozenset(tokenizer.all_special_ids),
            position_offset=_first_position(config),
            seed=recipe.seed,
            length=recipe.data.sequence_length,
            pad=pad_token(tokenizer),
            packed=recipe.data.packing,
            added_mask=attention == "eager",
        )

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Mask and stack; the choice is a function of the seed and of where the sample stands."""
        made = [packed_sample(sample, self.length, self.pad) for sample in samples]
        positions = torch.stack([sample["position_ids"] for sample in made])
        masked, labels = zip(
            *(
                self._mask(sample["input_ids"], int(stored["place"]))
                for sample, stored in zip(made, samples, strict=True)
            ),
            strict=True,
        )
        return {
            "input_ids": torch.stack(masked),
            "labels": torch.stack(labels),
            "position_ids": positions + self.position_offset,
            "attention_mask": self._seen(positions),
            "token_type_ids": torch.zeros_like(positions),
        }

    def _seen(self, positions: torch.Tensor) -> torch.Tensor:
        """The mask of attention: tokens see those of their document."""
        documents = (positions == 0).cumsum(1)
        if not self.packed:
            return (documents == 1).long()  # what follows the only document is padding
        mask = (documents[:, :, None] == documents[:, None, :])[:, None]
        if self.added_mask:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return mask

    def _mask(self, tokens: torch.Tensor, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(_seed_of(self.seed, place))
        draw = torch.rand(tokens.shape, generator=generator)
        fate = torch.rand(tokens.shape, generator=generator)
        other = torch.randint(self.vocabulary, tokens.shape, generator=generator)
        special = torch.isin(tokens, torch.tensor(sorted(self.special)))
        chosen = (draw < self.probability) & ~special
        labels = torch.where(chosen, tokens, IGNORED)
        masked = torch.where(chosen & (fate < 0.8), self.mask_token, tokens)
        masked = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other, masked)
        return masked, labels


def _first_position(config: Any) -> int:
    """Return the position of a first token.

    RoBERTa and its relatives count from behind the index of their padding on, and their code has a
    function for it; positions that are given to them have to be theirs.
    """
    model = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    padding = getattr(config, "pad_token_id", None)
    if model is None or padding is None:
        return 0
    module = sys.modules[model.__module__]
    counts = any(hasattr(each, _COUNTS) for each in (module, *vars(module).values()))
    return int(padding) + 1 if counts else 0


def _seed_of(seed: int, place: int) -> int:
    """A seed for a sample's masks, the same in every version of Python."""
    digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits


MLM = Task(
    auto_class="AutoModelForMaskedLM",
    encoder=TextEncoder,
    collator=MaskingCollator.of,
    loss=cross_entropy,
)
