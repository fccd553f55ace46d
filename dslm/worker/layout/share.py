"""A model as the ranks of a layout share it: called when it is built, before DeepSpeed has it."""

from __future__ import annotations

from transformers import PreTrainedModel

from dslm.errors import RecipeError, Where
from dslm.recipe.preferences import WHOLE_HEAD
from dslm.recipe.schema import Recipe
from dslm.worker.layout.attention import attends_plainly, use_documents
from dslm.worker.layout.experts import gather_together, let_registry_take_names
from dslm.worker.layout.ranks import Layout
from dslm.worker.layout.sequence import share_sequences
from dslm.worker.layout.tiles import tile_loss, tile_mlps


def share_model(model: PreTrainedModel, recipe: Recipe, layout: Layout, micro_batch: int) -> None:
    """Choose the attention of a model, and prepare what DeepSpeed needs to share it."""
    if recipe.model.tiled_mlp is True:
        tile_mlps(model)
    if recipe.model.tiled_loss is True:
        tile_loss(model)
    share_head(model, recipe, layout)
    if layout.expert > 1:
        let_registry_take_names()
    if layout.stage == 3:
        gather_together(model)
    if layout.sequence > 1 and not attends_plainly(model):
        raise RecipeError(
            "ranks can't share sequences of a model with this attention",
            where=Where(key="parallel.sequence"),
            hint="`--set parallel.sequence=1`",
        )
    if layout.sequence > 1:
        share_sequences(model, layout, micro_batch)
    else:
        use_documents(model, recipe)


def share_head(model: PreTrainedModel, recipe: Recipe, layout: Layout) -> None:
    """Let each rank have the whole head of a model, its reference too, where the loss takes it.

    One that is the table of tokens, too, stays whole by the config, as dslm/zero/generate.py makes
    it; any other one AutoTP leaves as it is when it takes it for one that it has replaced.
    """
    if layout.tensor > 1 and recipe.task in WHOLE_HEAD:
        model.get_output_embeddings().replaced = True
