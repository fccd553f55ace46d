"""Packing: many documents into samples of one length, none seeing another.

Works on lengths alone, so it never holds a token: which pieces go together, in what order. Legend:
N samples, L tokens in a sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

IGNORED = -100  # label of a token that is not predicted, as transformers' losses have it


def pieces_of(lengths: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every piece of every document, in tokens from the first document's start.

    A document longer than L (`length`) is cut into pieces of L and a rest.
    """
    ends = np.cumsum(lengths)
    counts = -(-lengths // length)
    documents = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = (ends - lengths)[documents] + within * length
    return starts, np.minimum(starts + length, ends[documents])


def best_fit(sizes: np.ndarray, length: int) -> list[list[int]]:
    """Put pieces together into samples of at most L (`length`) tokens, the longest piece first.

    Each piece goes where it leaves the least space free.

    Returns:
        For each of the N samples the indices of its pieces.

    Source: best fit over the free space left, as in arXiv 2404.10830, section 3.
    """
    samples: list[list[int]] = []
    free: list[list[int]] = [[] for _ in range(length + 1)]  # samples by the space left in them
    spaces = 0  # bit s is set while some sample has s tokens of space left
    sizes_list = sizes.tolist()
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = sizes_list[index]
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            target = free[space].pop()
            if not free[space]:
                spaces &= ~(1 << space)
        else:
            space, target = length, len(samples)
            samples.append([])
        samples[target].append(index)
        left = space - size
        if left:
            free[left].append(target)
            spaces |= 1 << left
    return samples


def packed_sample(stored: dict[str, Any], length: int, pad: int) -> dict[str, torch.Tensor]:
    """One packed sample as it goes to the model: `input_ids`, `position_ids`, `labels`, all (L,).

    Args:
        stored: `input_ids` and `lengths` of the pieces in it; `mask`, if there, says which tokens
            are predicted.
        length: L; what is missing is padding, a document of its own.
        pad: id of the padding token.

    Neither padding nor the first token of a piece is predicted from what stands before it.
    """
    tokens = np.full(length, pad, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    labels = np.full(length, IGNORED, dtype=np.int64)
    used = len(stored["input_ids"])
    tokens[:used] = stored["input_ids"]
    sizes = np.append(stored["lengths"], length - used)
    starts = np.cumsum(sizes) - sizes
    positions[:] = np.arange(length) - np.repeat(starts, sizes)
    predicted = positions[:used] > 0
    if "mask" in stored:
        predicted &= stored["mask"].astype(bool)
    labels[:used] = np.where(predicted, tokens[:used], IGNORED)
    return {
        "input_ids": torch.from_numpy(tokens),
        "position_ids": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
    }
