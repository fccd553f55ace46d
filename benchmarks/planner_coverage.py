"""How many of transformers' model types are planned exactly.

Every type in the tables of causal, masked, sequence-to-sequence and classifying models that builds
from its default config, with few layers: the profile's parameters against the built model's, its
bytes against a whole pass under FakeTensorMode, at a depth, samples and a length that were not
traced. The pass is followed by `benchmarks.live`, which knows nothing of layers or polynomials.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXACT = 0.005
LAYERS = 6
SECONDS = 180  # for one type; those that loop over every token in Python take that long
TABLES = {
    "pretrain": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "mlm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "classify": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
# how configs call their numbers of layers
DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Covered:
    """One type: how far off its profile is, or why there is none."""

    task: str
    model_type: str
    parameters: bool = False
    off: float = 1.0
    why: str = ""
    seconds: float = 0.0
    builds: bool = True

    @property
    def exact(self) -> bool:
        """Whether parameters are right, and bytes within half a percent."""
        return self.parameters and self.off <= EXACT and not self.why


def types(task: str) -> list[str]:
    """The model types of a task's table."""
    from transformers.models.auto import modeling_auto

    return sorted(getattr(modeling_auto, TABLES[task]))


def architecture_of(model_type: str, layers: int = LAYERS) -> dict[str, Any]:
    """The default config of a type with few layers; as it is where that isn't possible."""
    from transformers import CONFIG_MAPPING

    default = CONFIG_MAPPING[model_type]()
    depths = {
        name: layers
        for name in DEPTHS
        if isinstance(getattr(default, name, None), int) and name not in default.attribute_map
        and getattr(default, name) > layers
    }  # fmt: skip
    return {"model_type": model_type, **depths}


def request_for(task: str, architecture: dict[str, Any], precision: str = "bf16") -> dict[str, Any]:
    """What a profile of an architecture is asked for, with the attention that training uses."""
    return {
        "architecture": architecture, "task": task,
        "attention": "documents" if task == "pretrain" else "auto",
        "fused_loss": False, "precision": precision, "lora": None, "device": "accelerator",
    }  # fmt: skip


def cover(task: str, model_type: str) -> Covered:
    """Trace a type and hold the profile against the whole, in fp32 where it can't have bf16."""
    row = _cover(task, model_type, "bf16")
    return _cover(task, model_type, "fp32") if "BFloat16" in row.why else row


def _cover(task: str, model_type: str, precision: str) -> Covered:
    from dslm.recipe.packs import BY_MASK
    from dslm.worker.trace.model import build
    from dslm.worker.trace.profile import profile

    start = time.monotonic()

    def ended(**values: Any) -> Covered:
        seconds = round(time.monotonic() - start, 1)
        return Covered(task=task, model_type=model_type, seconds=seconds, **values)

    try:
        with _quiet(), _limited(SECONDS):
            request = request_for(task, architecture_of(model_type), precision)
            built = build(request)
            parameters = sum(p.numel() for p in built.model.parameters())
    except Exception as failure:  # noqa: BLE001
        return ended(builds=False, why=_said(failure))
    try:
        with _quiet(), _limited(SECONDS):
            found = profile(request)
            right = found.total == parameters
            if found.why:
                return ended(parameters=right, why=found.why)
            # another number of samples, and a length beyond all that were traced
            longest = 2 * max(proof.length for proof in found.proofs)
            shape = (5, 1 if task == "vision" else min(found.max_positions or longest, longest))
            packed = found.apart.get(BY_MASK) is not False
            return ended(parameters=right, off=_off(found, build(request, packed=packed), shape))
    except Exception as failure:  # noqa: BLE001
        return ended(why=_said(failure))


def _off(found: Any, traced: Any, shape: tuple[int, int]) -> float:
    """The worst of kept, forward and backward, relative to the whole model's."""
    from dslm.profile.levels import levels

    seen = levels(found.passes["plain"], *shape)
    mine = (seen.kept, seen.forward, max(level.kept for level in seen.backward))
    return max(abs(a / b - 1) for a, b in zip(mine, whole(traced, *shape), strict=True))


def whole(
    traced: Any, samples: int, length: int, *, recompute: bool = False
) -> tuple[int, int, int]:
    """Bytes after the forward pass, and the peaks of forward and backward, gradients included."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from benchmarks.live import Live
    from dslm.worker.trace.model import batch, loss_of
    from dslm.worker.trace.standins import standing_in
    from dslm.worker.trace.timeline import Timeline
    from dslm.worker.trace.values import faking

    model = traced.model
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with faking(fake), standing_in(Timeline(), on_cpu=False):
        model.to_empty(device="cpu")
        model.tie_weights()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        live = Live()
        live.leave_out([*model.parameters(), *model.buffers()])
        with live:
            inputs = batch(traced, samples, length)
            loss = loss_of(traced)(inputs)
            gc.collect()
            kept, forward = live.now, live.peak
            live.start_phase()
            loss.backward()
            return kept, forward, live.peak


def _said(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"[:160]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def table(rows: list[Covered]) -> str:
    """How many of how many are exact, and those that aren't, with the reason."""
    lines = ["| table | types that build | exact | in % |", "|---|---|---|---|"]
    built = [row for row in rows if row.builds]
    for task in [*TABLES, None]:
        of = [row for row in built if task in (row.task, None)]
        if of:
            exact = sum(row.exact for row in of)
            lines.append(f"| {task or 'all'} | {len(of)} | {exact} | {100 * exact / len(of):.1f} |")
    lines += [
        "",
        "Not exact:",
        "",
        "| table | type | parameters | off | why |",
        "|---|---|---|---|---|",
    ]
    for row in built:
        if not row.exact:
            off = "" if row.why else f"{row.off:.2%}"
            why = row.why.replace("|", "\\|")
            lines.append(
                f"| {row.task} | {row.model_type} | {'exact' if row.parameters else 'wrong'} "
                f"| {off} | {why} |"
            )
    return "\n".join(lines) + "\n"


def run(file: Path, *wanted: str, minutes: float = math.inf) -> list[Covered]:
    """Cover the tables (or those named) and write rows to a file; what is there isn't repeated.

    After so many minutes no other type is begun.
    """
    began = time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [Covered(**row) for row in json.loads(file.read_text())] if file.is_file() else []
    done = {(row.task, row.model_type) for row in rows}
    for task in wanted or TABLES:
        for model_type in types(task):
            if (task, model_type) in done or time.monotonic() - began > 60 * minutes:
                continue
            row = cover(task, model_type)
            print(row.task, row.model_type, "exact" if row.exact else f"{row.off:.4f} {row.why}",
                  row.seconds, flush=True)  # fmt: skip
            rows.append(row)
            file.write_text(json.dumps([asdict(each) for each in rows]))
    return rows


if __name__ == "__main__":
    print(table(run(Path(sys.argv[1]), *sys.argv[3:], minutes=float(sys.argv[2]))))
