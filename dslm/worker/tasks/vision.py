"""Image classification, such as ViT on a folder of images, one folder a class."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dslm.recipe.schema import Recipe
from dslm.worker.data.records import first_line
from dslm.worker.metrics import Classification
from dslm.worker.tasks.base import Collate, Task, Tokenizer, cross_entropy
from dslm.worker.tasks.classify import label_of

_LARGEST = 89_478_485  # pixels, where Pillow warns of a file of kilobytes that fills memory
_MEAN = _DEVIATION = 0.5  # ViT's own scaling, to -1 … 1 (arXiv 2010.11929, its published code)


class ImageEncoder:
    """An image and a label to the bytes of its file and `label`; it is decoded when it is read."""

    packs = False

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.labels: dict[str, int] = {}
        self.notes: Counter[str] = Counter()
        self._field = recipe.data.label_field

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Sequence[int]] | str]:
        """`image` and `label` of each record."""
        return [self._of(record) for record in records]

    def _of(self, record: dict[str, Any]) -> dict[str, Sequence[int]] | str:
        from PIL import Image

        content = record.get("image")
        if isinstance(content, dict):  # as `datasets` keeps an image in a table
            content = content.get("bytes")
        try:
            if isinstance(content, Image.Image):
                stream = io.BytesIO()
                content.save(stream, "png")
                content = stream.getvalue()
            if not isinstance(content, bytes):
                return "has no `image`"
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > _LARGEST:
                    return f"is too large an image: {image.width} × {image.height}"
                image.convert("RGB")  # a rank that can't decode all of it would end the training
        except Exception as failure:  # noqa: BLE001 - Pillow's readers of broken files raise anything
            return f"is not an image that can be read: {first_line(failure)}"
        label = label_of(record, self._field, self.labels)
        return label if isinstance(label, str) else {"image": content, "label": [label]}


def _collator(recipe: Recipe, tokenizer: Tokenizer, config: Any) -> Collate:
    """Makes a batch: `pixel_values` (B, channels, size, size) and `labels` (B,)."""
    from PIL import Image

    size = int(config.image_size)
    channels = int(config.num_channels)

    def pixels(content: np.ndarray) -> torch.Tensor:
        with Image.open(io.BytesIO(content.tobytes())) as image:
            scaled = image.convert("L" if channels == 1 else "RGB").resize((size, size))
            values = np.asarray(scaled, dtype=np.float32).reshape(size, size, channels) / 255
        return torch.from_numpy((values - _MEAN) / _DEVIATION).permute(2, 0, 1)

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([pixels(sample["image"]) for sample in samples]),
            "labels": torch.tensor([int(sample["label"][0]) for sample in samples]),
        }

    return collate


VISION = Task(
    auto_class="AutoModelForImageClassification",
    encoder=ImageEncoder,
    collator=_collator,
    metric=lambda recipe, labels: Classification(labels),
    loss=cross_entropy,
    tokenizer=False,
)
