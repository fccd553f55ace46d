"""Answers of a trained model: `dslm generate` and `dslm chat` ask, this process answers.

The first request loads models, each later one has chats or prompts answered by each of them. What
is generated goes out piece by piece where one chat is answered at a time.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from dslm.errors import InputError
from dslm.run.answers import Piece
from dslm.worker.answer import Say, Tell
from dslm.worker.data.records import first_line
from dslm.worker.use import Used, beside, load

Prompt = str | list[dict[str, Any]]


class Answers:
    """The models that were loaded, and how they answer."""

    def __init__(self) -> None:
        self._used: list[Used] = []
        self._stopped = False

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def __call__(self, request: dict[str, Any], tell: Tell, say: Say) -> dict[str, Any]:
        """Load models (`model`), or answer (`prompts`)."""
        if "model" in request:
            first = load(request["model"], tell, trusted=request["trusted"])
            other = request.get("against")
            self._used = [first, beside(first, other, tell)] if other else [first]
            signal.signal(signal.SIGINT, self._stop)  # until here it ends the process
            return {"chats": first.tokenizer.chat_template is not None, "device": str(first.device)}
        self._stopped = False
        prompts: list[Prompt] = request["prompts"]
        answers = [
            self._answer(n, used, prompts, request, say) for n, used in enumerate(self._used)
        ]
        return {"answers": [list(pair) for pair in zip(*answers, strict=True)]}

    def _answer(
        self, number: int, used: Used, prompts: list[Prompt], request: dict[str, Any], say: Say
    ) -> list[dict[str, Any]]:
        """The answers of one model: to all prompts at once, or to the only one as a stream."""
        torch.manual_seed(request["seed"])
        streamer = _Pieces(used.tokenizer, number, say) if request["stream"] else None
        return self._generate(used, [_text(used, one) for one in prompts], request, streamer)

    def _generate(
        self, used: Used, texts: Sequence[str], request: dict[str, Any], streamer: Any
    ) -> list[dict[str, Any]]:
        began = time.monotonic()
        inputs = used.tokenizer(
            list(texts), return_tensors="pt", padding=True, return_token_type_ids=False,
            add_special_tokens=request["raw"] or used.tokenizer.chat_template is None,
        ).to(used.device)  # fmt: skip
        with used.ready() as model, torch.no_grad():
            tokens = model.generate(
                **inputs,
                generation_config=_settings(used, request),
                stopping_criteria=StoppingCriteriaList([_WhenAsked(lambda: self._stopped)]),
                streamer=streamer,
            )
        seconds = time.monotonic() - began
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        made = tokens[:, start:]
        ends = _ends(used)
        return [
            {
                "text": used.tokenizer.decode(row, skip_special_tokens=True),
                "tokens": int((row != used.tokenizer.pad_token_id).sum()),
                "complete": any(int(token) in ends for token in row),
                "seconds": round(seconds, 3),
            }
            for row in made
        ]


class _WhenAsked(StoppingCriteria):
    """Stops when somebody asked for it."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._asked(), device=input_ids.device)


class _Pieces(TextStreamer):
    """Says what is generated, in whole words."""

    def __init__(self, tokenizer: Any, number: int, say: Say) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._number, self._say = number, say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on a piece."""
        if text:
            self._say(Piece(text=text, of=self._number))


def _text(used: Used, prompt: Prompt) -> str:
    """A prompt as the model reads it; a chat by its template."""
    if isinstance(prompt, str):
        return prompt
    try:
        return str(
            used.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        )
    except Exception as failure:
        raise InputError(
            f"the chat template of `{used.name}` refuses the chat: {first_line(failure)}",
            hint="a system message, perhaps: not every template has one",
        ) from failure


def _ends(used: Used) -> set[int]:
    ends = used.model.generation_config.eos_token_id  # type: ignore[union-attr]
    known = ends if isinstance(ends, list) else [ends]
    return {int(token) for token in (*known, used.tokenizer.eos_token_id) if token is not None}


def _settings(used: Used, request: dict[str, Any]) -> GenerationConfig:
    """The model's own settings of generation, with those of the request on top."""
    given: dict[str, Any] = {"max_new_tokens": request["max_tokens"], "max_length": None}
    temperature = request["temperature"]
    if temperature is not None:
        given["do_sample"] = temperature > 0
        if temperature > 0:
            given["temperature"] = temperature
    if request["top_p"] is not None:
        given |= {"do_sample": True, "top_p": request["top_p"]}
    own = used.model.generation_config.to_dict()  # type: ignore[union-attr]
    if given.get("do_sample") is False:
        own |= {"temperature": None, "top_p": None, "top_k": None}
    ends = sorted(_ends(used))
    return GenerationConfig(
        **{
            **own,
            **given,
            "pad_token_id": used.tokenizer.pad_token_id,
            "eos_token_id": ends or None,
        }
    )
