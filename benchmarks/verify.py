"""`dslm verify`: all planted faults, and layouts that must pass: what was found, in which time."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.worker.planted import FAULTS, MOE
from tests.worker.test_verify import fault_found, verified

_SFT, _BF16 = "quickstart-sft", {"precision": "bf16"}
_LORA = {"lora": "{rank: 4}"}
_GPT2 = {
    "model.architecture": "{model_type: gpt2, vocab_size: 1024, n_embd: 64, n_layer: 2, n_head: 4}"
}
_QWEN = {
    "model.architecture": "{model_type: qwen3, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, head_dim: 16}"
}
_GEMMA = {
    "model.architecture": "{model_type: gemma2, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, head_dim: 16}"
}
# families, stages, precisions, adapters, experts, packing, accumulation
LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("quickstart", {"parallel.zero_stage": stage}) for stage in (0, 1, 2, 3)),
    *(("quickstart", {"parallel.zero_stage": stage, **_BF16}) for stage in (0, 1, 2, 3)),
    ("quickstart", {"parallel.zero_stage": 2, "parallel.offload": "optimizer"}),
    ("quickstart", {"parallel.zero_stage": 3, "parallel.offload": "all"}),
    ("quickstart", {"parallel.zero_stage": 2, "model.activation_checkpointing": "true"}),
    ("quickstart", {"parallel.zero_stage": 1, "data.packing": "false"}),
    ("quickstart", {"parallel.zero_stage": 2, "batch.global_size": 16, "batch.micro_size": 1}),
    ("quickstart", {"parallel.zero_stage": 2, "model.attention": "eager"}),
    ("quickstart", {"parallel.zero_stage": 1, "data.sharding": "hash"}),
    ("quickstart", {"parallel.zero_stage": 2, **MOE}),
    ("quickstart", {"parallel.zero_stage": 3, **MOE}),
    ("quickstart", {"parallel.zero_stage": 2, **_GPT2}),
    ("quickstart", {"parallel.zero_stage": 3, **_QWEN}),
    ("quickstart", {"parallel.zero_stage": 2, **_GEMMA, **_BF16}),
    (_SFT, {"parallel.zero_stage": 2}),
    ("quickstart-mlm", {"parallel.zero_stage": 1}),
    ("quickstart-seq2seq", {"parallel.zero_stage": 2}),
    ("quickstart-classify", {"parallel.zero_stage": 2}),
    ("quickstart-sequence", {"parallel.zero_stage": 3}),
    ("quickstart-vision", {"parallel.zero_stage": 1}),
)


def report() -> str:
    """Faults found of those planted, layouts passed of those verified; medians of the times."""
    missed, alarms, seconds = [], [], []
    for name in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            missed += [text] if (text := fault_found(name, Path(folder))) else []
            _tell(f"{name}: {'MISSED ' + text[-600:] if text else 'found'}")
    for recipe, given in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            code, found, said = verified(Path(folder), recipe, given)
            seconds.append(time.monotonic() - start)
            wrong = code != 0 or not found.get("same")
            alarms += [f"{recipe} {given}: {said[-2000:]}"] if wrong else []
            told = json.dumps(found.get("differences", ""))[:900] + said[-900:]
            _tell(f"{recipe} {given}: {'ALARM ' + told if wrong else 'passed'}")
    return (
        "## Verifying a layout\n\n"
        f"Two CPU ranks: {len(FAULTS) - len(missed)} of {len(FAULTS)} planted faults found and "
        f"named, {len(LAYOUTS) - len(alarms)} of {len(LAYOUTS)} recipes × layouts passed. "
        f"A verification that passes took {max(seconds):.0f} s at most (its ranks started warm).\n"
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.stdout.write(report())
