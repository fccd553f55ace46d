"""Pre-training on text: every token is predicted from those before it in its document."""

from __future__ import annotations

from typing import Any

import torch


def stack(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples into a batch: `input_ids`, `position_ids`, `labels`, all (B, L)."""
    return {
        name: torch.stack([sample[name] for sample in samples])
        for name in ("input_ids", "position_ids", "labels")
    }
