"""Run passes of a model under FakeTensorMode, cut into the stretches of its layers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dslm.worker.trace.layers import Layer, Skips, choose, layers_of
from dslm.worker.trace.model import Traced, batch, loss_of
from dslm.worker.trace.standins import checkpoint_away, standing_in
from dslm.worker.trace.timeline import Point, Stretch, Timeline
from dslm.worker.trace.values import faking, on_meta

START, HEAD = "start", "head"


@dataclass(frozen=True, slots=True)
class PassTrace:
    """The stretches of a forward and of a backward pass; those of layers named `layer N`."""

    forward: list[Stretch]
    backward: list[Stretch]

    @property
    def holds(self) -> bool:
        """Whether stage 3 keeps more."""
        return any(
            s.end_held or any(p.held for p in s.points) for s in self.forward + self.backward
        )

    def under_stage_3(self) -> PassTrace:
        """Return the pass with what stage 3 keeps."""
        return PassTrace(_with_held(self.forward), _with_held(self.backward))


def _with_held(stretches: list[Stretch]) -> list[Stretch]:
    return [
        replace(
            one,
            points=[Point(p.level + p.held, p.gradients, 0) for p in one.points],
            end=one.end + one.end_held,
        )
        for one in stretches
    ]


class Tracer:
    """A model ready to run passes."""

    def __init__(
        self, traced: Traced, *, skip: bool = True, on_cpu: bool = False, meta: bool = True
    ) -> None:
        self.traced = traced
        self.layers = layers_of(traced.model)
        if skip:
            choose(self.layers)
        self.width = 0  # of the hidden state between layers
        self.drops = False  # whether the model has dropout
        self._on_cpu = on_cpu
        self._timeline: Timeline | None = None
        self._skips = Skips()
        self._entered: list[int] = []  # the stacks of a pass, in the order in which they ran
        self._names = {id(layer): f"layer {number}" for number, layer in enumerate(self.layers)}
        self._fake = None if meta else FakeTensorMode(allow_non_fake_inputs=True)
        if self._fake is not None:
            with self._fake:
                traced.model.to_empty(device="cpu")
                traced.base.tie_weights()
        for parameter in traced.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._complete)
        for layer in self.layers:
            if layer.runs:
                self._watch(layer)
            else:
                self._skips.patch(layer)
        gc.collect()
        gc.freeze()  # the libraries' own objects: what is collected later are a pass's

    def _complete(self, parameter: torch.Tensor) -> None:
        if self._timeline is not None:
            self._timeline.set_gradient_apart(parameter)

    def _watch(self, layer: Layer) -> None:
        name = self._names[id(layer)]
        stack = [x for x in self.layers if x.stack == layer.stack]
        last_of_stack = layer is stack[-1]
        skipped_next = not last_of_stack and not stack[layer.number + 1].runs

        def before(module: Any, args: Any, settings: Any) -> None:
            if self._timeline is None or self._backward:
                return
            self._skips.let_go(layer.stack)
            self._enter(layer.stack)
            self._timeline.cut(name)
            if layer.number == 0:
                # the backward pass leaves the stack where the gradient of its input is there
                for value in (*args, *settings.values()):
                    if isinstance(value, torch.Tensor) and value.requires_grad:
                        value.register_hook(self._cut_backward(f"before {name}"))
                        break

        def after(module: Any, args: Any, settings: Any, output: Any) -> None:
            if self._timeline is None or self._backward:
                return
            if skipped_next:
                self._skips.after(layer, output)
            first = output[0] if isinstance(output, tuple | list) else output
            if isinstance(first, torch.Tensor):
                self.width = first.shape[-1]
                if first.requires_grad:
                    first.register_hook(self._cut_backward(name))
            if last_of_stack:
                self._timeline.cut(f"after {name}")

        layer.module.register_forward_pre_hook(before, with_kwargs=True)
        layer.module.register_forward_hook(after, with_kwargs=True)

    def _enter(self, stack: int) -> None:
        """Note which stack runs; none can be shortened whose layers run in turns with another's."""
        if stack in self._entered[:-1] and not all(layer.runs for layer in self.layers):
            raise ValueError("the layers of several stacks take turns")
        if stack not in self._entered[-1:]:
            self._entered.append(stack)

    def _cut_backward(self, name: str) -> Any:
        def hook(gradient: Any) -> None:
            if self._timeline is not None:
                self._timeline.cut(name)

        return hook

    def run(self, samples: int, length: int, *, recompute: bool) -> PassTrace:
        """Trace one forward and backward pass in training."""
        base, adapted = self.traced.base, self.traced.base is not self.traced.model
        if recompute:
            base.activation_checkpointing_enable({"use_reentrant": False})
            if self.traced.away:
                base._set_gradient_checkpointing(gradient_checkpointing_func=checkpoint_away)
            if adapted:
                base.enable_input_require_grads()
        elif base.is_activation_checkpointing:
            base.activation_checkpointing_disable()
            if adapted:
                base.disable_input_require_grads()
        loss_function = loss_of(self.traced)
        with self._timed() as timeline:
            inputs = batch(self.traced, samples, length)
            loss = loss_function(inputs)
            gc.collect()
            timeline.close()
            count = len(timeline.stretches)
            self._backward = True
            timeline.cut(HEAD)
            loss.backward()
            timeline.close()
            del loss, inputs
        return PassTrace(timeline.stretches[:count], timeline.stretches[count:])

    def evaluate(self, samples: int, length: int) -> PassTrace:
        """Trace one forward pass of an evaluation: no gradients, logits only."""
        model = self.traced.model
        model.eval()
        try:
            with self._timed() as timeline, torch.no_grad():
                inputs = batch(self.traced, samples, length)
                if not getattr(self.traced.base, "loss_in_tiles", False):
                    inputs.pop("labels")
                outputs = model(**inputs)
                timeline.close()
                del outputs, inputs
        finally:
            model.train()
        return PassTrace(timeline.stretches, [])

    @contextmanager
    def _timed(self) -> Iterator[Timeline]:
        timeline = Timeline()
        timeline.width = self.width
        model = self.traced.model
        timeline.leave_out([*model.parameters(), *model.buffers()])
        self._timeline, self._backward = timeline, False
        self._entered.clear()
        where = faking(self._fake) if self._fake else on_meta()
        try:
            with where, standing_in(timeline, on_cpu=self._on_cpu), timeline:
                timeline.cut(START)
                yield timeline
        finally:
            self.drops |= timeline.drops
            self._timeline = None
            for layer in self.layers:
                self._skips.let_go(layer.stack)
