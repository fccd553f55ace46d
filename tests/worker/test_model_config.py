"""The settings of a model's config, and those of its parts."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from dslm.worker.model_config import set_cache


@pytest.mark.parametrize("kind", ["llama", "gemma3", "glmasr"])
def test_no_part_keeps_a_cache(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    set_cache(config, on=False)
    assert config.get_text_config().use_cache is False
    set_cache(config, on=True)
    assert config.get_text_config().use_cache is True


def test_a_config_without_one_gets_none() -> None:
    config = AutoConfig.for_model("vit")
    set_cache(config, on=False)
    assert not hasattr(config, "use_cache")
