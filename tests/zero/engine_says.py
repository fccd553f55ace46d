"""What DeepSpeed's engine says of configs: each is initialised and trained for a step, on one rank.

Configs come in on stdin as a JSON list; their refusals ("" for none) go out as the last line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any


def main() -> None:
    """Ask the engine about each config."""
    import deepspeed
    import torch
    from deepspeed.utils import logger

    logger.setLevel(logging.CRITICAL)
    deepspeed.init_distributed("gloo", distributed_port=int(os.environ["MASTER_PORT"]))
    print(json.dumps([_refusal(config, deepspeed, torch) for config in json.load(sys.stdin)]))


def _refusal(config: dict[str, Any], deepspeed: Any, torch: Any) -> str:
    model = torch.nn.Linear(8, 8)
    try:
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=model.parameters(), config=config
        )
        dtype = next(engine.module.parameters()).dtype
        engine.backward(engine(torch.randn(1, 8, dtype=dtype)).float().sum())
        engine.step()
    except (Exception, Warning) as failure:  # noqa: BLE001 - whatever it is, it is a refusal
        return f"{type(failure).__name__}: {failure}"
    return ""


if __name__ == "__main__":
    main()
