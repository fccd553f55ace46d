"""Packing: many documents into samples of one length, none seeing another.

Token ids in, two arrays of shape (N, L) out: tokens and positions. A position of 0 starts a
document; the attention keeps documents apart by that, and so does the loss. Legend: N samples, L
tokens in a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack(
    documents: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack documents by best fit, longest piece first.

    A document longer than a sample is cut into pieces. Where no piece fits any more, the rest of a
    sample is padding, a document of its own.

    Args:
        documents: token ids of each document, its end-of-text token included.
        length: tokens per sample, L.
        pad: id of the padding token.

    Returns:
        Tokens and positions, both (N, L), int32; padding has position -1.

    Source: best fit over the free space left, as in arXiv 2404.10830, section 3.
    """
    pieces = [
        document[start : start + length]
        for document in documents
        for start in range(0, len(document), length)
    ]
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    bins: list[list[int]] = []
    free: list[list[int]] = [[] for _ in range(length + 1)]  # bins by the space left in them
    spaces = 0  # bit s is set while some bin has s tokens of space left
    for index in order:
        size = len(pieces[index])
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            target = free[space].pop()
            if not free[space]:
                spaces &= ~(1 << space)
        else:
            space, target = length, len(bins)
            bins.append([])
        bins[target].append(index)
        left = space - size
        if left:
            free[left].append(target)
            spaces |= 1 << left
    tokens = np.full((len(bins), length), pad, dtype=np.int32)
    positions = np.full((len(bins), length), -1, dtype=np.int32)
    for row, members in enumerate(bins):
        start = 0
        for index in members:
            piece = pieces[index]
            tokens[row, start : start + len(piece)] = piece
            positions[row, start : start + len(piece)] = np.arange(len(piece))
            start += len(piece)
    return tokens, positions


def unpacked(
    documents: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """One document a sample, cut at `length`; same arrays as `pack`."""
    tokens = np.full((len(documents), length), pad, dtype=np.int32)
    positions = np.full((len(documents), length), -1, dtype=np.int32)
    for row, document in enumerate(documents):
        piece = document[:length]
        tokens[row, : len(piece)] = piece
        positions[row, : len(piece)] = np.arange(len(piece))
    return tokens, positions
