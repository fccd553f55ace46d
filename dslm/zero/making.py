"""The optimizer and the scheduler of a DeepSpeed config: is there one, and does it take that?

A config in, findings out; what each takes comes from `dslm.zero.keys`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dslm.errors import Finding
from dslm.zero.config import Config, error, is_on, number_at, section_at, stage_of, warning
from dslm.zero.keys import Maker, nearest, table
from dslm.zero.values import problem, shown

# DeepSpeed had these before 0.19: gone, and torch has none of the name
_REMOVED = frozenset({"onebitadam", "onebitlamb", "zerooneadam", "cpuadam", "fusedadam"})


def optimizer(config: Config) -> Iterator[Finding]:
    """Check the optimizer."""
    section, at = section_at(config, "optimizer"), "optimizer"
    if "optimizer" not in config or not isinstance(config["optimizer"], Mapping):
        return
    name = section.get("type")
    if not isinstance(name, str):
        if name is None:
            yield error("missing", f"{at}.type", "is missing", "such as `AdamW`")
        return
    params = section_at(section, "params")
    if "max_grad_norm" in params:
        yield error(
            "misplaced",
            f"{at}.params.max_grad_norm",
            "is not an optimizer parameter",
            "use the top-level key `gradient_clipping`",
        )
    maker = table().optimizer(name)
    if maker is None:
        yield _unknown(name)
        return
    yield from _params(maker, name, params, at, ignored=("max_grad_norm",))
    stage = stage_of(config)
    if stage and not maker.with_zero and not is_on(config, "zero_allow_untested_optimizer"):
        yield error(
            "optimizer",
            f"{at}.type",
            f"DeepSpeed refuses {name[:60]} with ZeRO: it is not tested",
            "set `zero_allow_untested_optimizer: true`, or `type: AdamW`",
        )


def _unknown(name: str) -> Finding:
    makers = table().optimizers
    if name.lower().replace("_", "") in _REMOVED:
        text = f"`{name}` is not an optimizer of DeepSpeed {table().version}: it was removed"
        return error("optimizer", "optimizer.type", text, "use `AdamW`")
    exact = [known for known in makers if known.lower() == name.lower()]
    hint = f"did you mean `{exact[0]}`?" if exact else nearest(name.lower(), makers)
    text = f"there is no optimizer `{name[:60]}` in DeepSpeed or torch.optim"
    return error("optimizer", "optimizer.type", text, hint or "such as `AdamW`")


def scheduler(config: Config) -> Iterator[Finding]:
    """Check the scheduler."""
    section, at = section_at(config, "scheduler"), "scheduler"
    name, makers = section.get("type"), table().schedulers
    if not section or (name is not None and not isinstance(name, str)):
        return
    if name is None:
        yield error("missing", f"{at}.type", "is missing: there would be no scheduler")
        return
    maker = makers.get(name)
    if maker is None:
        own = [known for known, each in makers.items() if not each.is_torch]
        hint = nearest(name, makers) or f"known: {', '.join(own)}"
        text = f"there is no scheduler `{name[:60]}`"
        yield error("scheduler", f"{at}.type", text, hint)
        return
    params = section_at(section, "params")
    if "params" not in section:
        yield error("missing", f"{at}.params", "is missing: DeepSpeed needs it", "`{}` will do")
    yield from _params(maker, name, params, at)
    if maker.is_torch and (stage_of(config) or _is_half(config)):
        yield error(
            "scheduler",
            f"{at}.type",
            f"torch's {name} refuses the optimizer that DeepSpeed makes with ZeRO, fp16 or bf16",
            "use `WarmupCosineLR` or another of DeepSpeed's own",
        )
    yield from _times(config, params, at)


def _is_half(config: Config) -> bool:
    return any(is_on(config, f"{name}.enabled") for name in ("fp16", "bf16", "bfloat16"))


def _times(config: Config, params: Config, at: str) -> Iterator[Finding]:
    """A warm-up that never ends, and a rate that two sections give."""
    total, warmup = params.get("total_num_steps"), params.get("warmup_num_steps", 1000)
    if isinstance(total, int) and isinstance(warmup, int) and warmup > total:
        text = (
            f"the warm-up of {shown(warmup)} steps is longer than the whole run of {shown(total)}"
        )
        yield error("combination", f"{at}.params.warmup_num_steps", text)
    rate, highest = number_at(config, "optimizer.params.lr"), params.get("warmup_max_lr")
    if rate is not None and isinstance(highest, float) and rate != highest:
        text = f"{shown(highest)} is not the optimizer's lr, {shown(rate)}, and is what counts"
        yield warning("combination", f"{at}.params.warmup_max_lr", text, "make them equal")


def _params(
    maker: Maker, name: str, params: Config, at: str, ignored: tuple[str, ...] = ()
) -> Iterator[Finding]:
    if maker.open:
        return
    for key, value in params.items():
        path = f"{at}.params.{key}"
        if key in ignored:
            continue
        if key not in maker.params:
            hint = {"learning_rate": "did you mean `lr`?"}.get(key) or nearest(key, maker.params)
            yield error("unknown key", path, f"{name} has no parameter `{key[:60]}`", hint)
        elif value != "auto":
            wrong = problem(maker.params[key], value)
            if wrong:
                yield error("value", path, wrong)
    for key in maker.required:
        if key not in params:
            yield error("missing", f"{at}.params.{key}", f"{name} needs it")
