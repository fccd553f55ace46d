"""`dslm verify`: all planted faults, and layouts that must pass: what was found, in which time."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.worker.planted import FAULTS
from tests.worker.planting import ALBERT, BF16, LORA, MISTRAL, MOE
from tests.worker.test_loading import CASES, not_refused
from tests.worker.test_loading import LAYOUTS as ON_LAYOUTS
from tests.worker.test_verify import fault_found, verified

_SFT = "quickstart-sft"
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
_MUON = {"optimizer.name": "muon", "optimizer.grad_clip": 0}
_LION = {"optimizer.name": "lion", "parallel.offload": "optimizer"}
_MIXTRAL = {
    "model.architecture": "{model_type: mixtral, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, num_local_experts: 4, num_experts_per_tok: 2}"
}
_OLMOE = {
    "model.architecture": "{model_type: olmoe, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, num_experts: 8, "
    "num_experts_per_tok: 2}"
}
_GPT_OSS = {
    "model.architecture": "{model_type: gpt_oss, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, head_dim: 16, num_local_experts: 4, num_experts_per_tok: 2}",
    "data.packing": "false",
}
_DEEPSEEK = {
    "model.architecture": "{model_type: deepseek_v3, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, moe_intermediate_size: 32, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 4, n_routed_experts: 8, "
    "num_experts_per_tok: 2, n_group: 2, topk_group: 1, q_lora_rank: 16, kv_lora_rank: 16, "
    "qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16, first_k_dense_replace: 1}"
}
_MANY_WORDS = {"model.tokenizer": "{vocab_size: 9000}", "model.architecture.vocab_size": 9000}
# families, stages, precisions, adapters, experts, packing, accumulation
LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("quickstart", {"parallel.zero_stage": stage}) for stage in (0, 1, 2, 3)),
    *(("quickstart", {"parallel.zero_stage": stage, **BF16}) for stage in (0, 1, 2, 3)),
    ("quickstart", {"parallel.zero_stage": 2, "parallel.offload": "optimizer"}),
    ("quickstart", {"parallel.zero_stage": 3, "parallel.offload": "all"}),
    ("quickstart", {"parallel.zero_stage": 2, "model.activation_checkpointing": "true"}),
    ("quickstart", {"parallel.zero_stage": 1, "data.packing": "false"}),
    ("quickstart", {"parallel.zero_stage": 2, "batch.global_size": 16, "batch.micro_size": 1}),
    ("quickstart", {"parallel.zero_stage": 2, "model.attention": "eager"}),
    ("quickstart", {"parallel.zero_stage": 1, "data.sharding": "hash"}),
    ("quickstart", {"parallel.zero_stage": 2, **MOE}),
    ("quickstart", {"parallel.zero_stage": 3, **MOE}),
    *(
        ("quickstart", {"parallel.zero_stage": stage, **mixture, **BF16})
        for stage in (2, 3)
        for mixture in (MOE, _MIXTRAL, _OLMOE, _GPT_OSS, _DEEPSEEK)
    ),
    ("quickstart", {"parallel.zero_stage": 2, **_GPT2}),
    ("quickstart", {"parallel.zero_stage": 3, **_QWEN}),
    ("quickstart", {"parallel.zero_stage": 2, **_GEMMA, **BF16}),
    (_SFT, {"parallel.zero_stage": 2}),
    ("quickstart-mlm", {"parallel.zero_stage": 1}),
    ("quickstart-seq2seq", {"parallel.zero_stage": 2}),
    ("quickstart-classify", {"parallel.zero_stage": 2, "data.max_documents": 2000}),
    ("quickstart-sequence", {"parallel.zero_stage": 3}),
    ("quickstart-vision", {"parallel.zero_stage": 1}),
    ("quickstart", {"parallel.zero_stage": 2, **LORA}),
    ("quickstart", {"parallel.zero_stage": 3, **LORA, **BF16}),
    ("quickstart", {"parallel.zero_stage": 2, **MISTRAL}),
    ("quickstart-mlm", {"parallel.zero_stage": 2, **ALBERT}),
    ("quickstart", {"parallel.zero_stage": 1, "optimizer.name": "sgd"}),
    ("quickstart", {"parallel.zero_stage": 2, "optimizer.name": "adam"}),
    ("quickstart", {"parallel.zero_stage": 0, "optimizer.name": "adafactor"}),
    ("quickstart", {"parallel.zero_stage": 2, "optimizer.name": "adafactor"}),
    *(("quickstart", {"parallel.zero_stage": stage, **_MUON}) for stage in (0, 1, 2, 3)),
    ("quickstart", {"parallel.zero_stage": 3, **_MUON, **BF16}),
    ("quickstart", {"parallel.zero_stage": 2, **_LION}),
    ("quickstart", {"parallel.zero_stage": 3, **_LION, **BF16}),
    ("quickstart", {"parallel.zero_stage": 2, "training_args.label_smoothing_factor": 0.1}),
    ("quickstart", {"parallel.zero_stage": 2, **_MANY_WORDS}),
    ("quickstart-dpo", {"parallel.zero_stage": 2}),
    ("quickstart-dpo", {"parallel.zero_stage": 3, **LORA, **BF16}),
    ("quickstart-dpo", {"parallel.zero_stage": 1, "reference": "precomputed"}),
    ("quickstart-kto", {"parallel.zero_stage": 2}),
    ("quickstart-orpo", {"parallel.zero_stage": 1}),
    ("quickstart-reward", {"parallel.zero_stage": 3}),
    *(
        ("quickstart", {"parallel.zero_stage": stage, **LORA, **BF16, "quantize": few})
        for stage, few in ((2, "nf4"), (3, "nf4"))
    ),
    ("quickstart", {"parallel.zero_stage": 1, "parallel.tensor": 2}),
    ("quickstart", {"parallel.zero_stage": 1, "parallel.tensor": 2, **BF16}),
    ("quickstart", {"parallel.zero_stage": 1, "parallel.tensor": 2, **_QWEN}),
    ("quickstart", {"parallel.zero_stage": 2, "parallel.sequence": 2}),
    ("quickstart", {"parallel.zero_stage": 3, "parallel.sequence": 2, **BF16}),
    ("quickstart", {"parallel.zero_stage": 1, "parallel.expert": 2, **MOE}),
    ("quickstart", {"parallel.zero_stage": 2, "parallel.expert": 2, **MOE}),
    ("quickstart", {"parallel.zero_stage": 2, "parallel.expert": 2, **MOE, **BF16}),
    ("quickstart", {"parallel.zero_stage": 1, "parallel.expert": 2, **_MIXTRAL, **BF16}),
    ("quickstart", {"parallel.zero_stage": 1, "parallel.sequence": 2, "data.packing": "false"}),
)


PAGE = Path(__file__).parents[1] / "docs" / "verify.md"
_SHORT = {"parallel.": "", "zero_stage": "ZeRO", "model.architecture": "model"}


def report() -> str:
    """Faults found of those planted, layouts passed of those verified, weights refused."""
    return "## Verifying a layout\n\n" + "\n".join(part([]) for part in PARTS.values())


def faults(chosen: list[str]) -> str:
    """Plant faults; the page's table says which were found, and how."""
    rows, missed = {}, 0
    for name in chosen or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            named, said = fault_found(name, Path(folder))
        missed += named is None
        how = "**missed**" if named is None else _how(named)
        rows[name] = f"| {name} | {_where(FAULTS[name].recipe, FAULTS[name].settings)} | {how} |"
        _tell(rows[name] + (said if named is None else ""))
        write_rows("faults", rows, list(FAULTS))
    return f"Two CPU ranks: {len(rows) - missed} of {len(rows)} planted faults found and named.\n"


def layouts(chosen: list[str]) -> str:
    """Verify layouts that must pass; the page's table says what was compared."""
    rows, alarms, seconds = {}, 0, []
    for recipe, given in LAYOUTS:
        where = _where(recipe, given)
        if chosen and where not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            code, found, said = verified(Path(folder), recipe, given)
            seconds.append(time.monotonic() - start)
        good = code == 0 and found.get("same")
        alarms += not good
        told = json.dumps(found.get("differences", ""))[:900] + said[-900:]
        compared = (
            f"{found['parameters']} parameters, {found['samples']} samples, "
            f"{found['noise']:.0e}" if good else "**alarm**"
        )  # fmt: skip
        rows[where] = f"| {where} | {compared} |"
        _tell(rows[where] + ("" if good else told))
        write_rows("layouts", rows, [_where(*each) for each in LAYOUTS])
    return (
        f"Two CPU ranks: {len(rows) - alarms} of {len(rows)} recipes × layouts passed. A "
        f"verification took {max(seconds, default=0):.0f} s at most (its ranks started warm).\n"
    )


def weights(chosen: list[str]) -> str:
    """Train models whose weights are not all there, at two stages, on one rank and on two."""
    found = []
    for case in chosen or CASES:
        for stage, ranks in ON_LAYOUTS:
            with tempfile.TemporaryDirectory() as folder:
                found.append(not_refused(case, stage, ranks, Path(folder)))
            _tell(f"{case}, ZeRO {stage}, {ranks}: {found[-1] or 'refused'}")
    return (
        f"{found.count('')} of {len(found)} trainings with weights that are not all there (cases × "
        "ZeRO stages 2 and 3 × 1 and 2 ranks) were refused before the first step.\n"
    )


PARTS = {"faults": faults, "layouts": layouts, "weights": weights}


def _where(recipe: str, settings: Mapping[str, Any]) -> str:
    """A recipe and what is set in it, in few words."""
    parts = []
    for key, value in settings.items():
        if key in LORA and key != "lora":
            continue
        name = key
        for long, short in _SHORT.items():
            name = name.replace(long, short)
        kind = re.search(r"model_type: (\w+)", str(value))
        parts.append(f"{name} {kind[1] if kind else str(value).strip('{}')}")
    return ", ".join([recipe, *parts])


def _how(named: Mapping[str, Any]) -> str:
    """How a fault was found: the difference that names it."""
    ratio, more = named.get("ratio"), named["more"]
    factor = f", {ratio:.3g} times what it should be" if ratio and abs(ratio - 1) > 0.02 else ""
    others = f", and {more} more" if more else ""
    return f"{named['kind']}: {named['name']}{factor} (step {named['step']}{others})"


def write_rows(
    table: str, rows: Mapping[str, str], order: list[str], maker: str = "verify-faults"
) -> None:
    """Put rows into a table of the page; those that were not made now stay."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {table}: made by make {maker} -->\n", f"<!-- end of {table} -->"
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(end)
    lines = [line for line in old.splitlines() if line.startswith("|")]
    known = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
    known.update(rows)
    made = [known[name] for name in order if name in known]
    PAGE.write_text(before + begin + "\n".join([*lines[:2], *made]) + "\n" + end + after)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            sys.stdout.write(report())
        case [part, *chosen]:  # `faults NAME…`, `layouts`, `weights`
            sys.stdout.write(PARTS[part](chosen))
