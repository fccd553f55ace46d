"""Each private name of a library that dslm uses is what it was; a new one must be guarded here."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer._completion_shared
from deepspeed.module_inject.layers import TensorParallel_Layer
from deepspeed.runtime import config as deepspeed_config
from deepspeed.runtime.engine import DeepSpeedEngine, EngineTimers
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups, mixed_precision_linkage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _python_dispatch, _pytree
from torch.utils.flop_counter import flop_registry
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    modeling_utils,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import output_capturing
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

ROOT = Path(__file__).parents[2]
# documented, though they begin with an underscore
PUBLIC = {"_exit", "_current_frames"}
# what Python and torch themselves write into a class
_OF_EVERY_CLASS = {"_abc_impl", "_is_protocol", "_backward_cls"}


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _attention_of_a_model() -> bool:
    config = AutoConfig.for_model(
        "bert", hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8,
        vocab_size=8, max_position_embeddings=8,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    return model.config._attn_implementation == "eager"


def _llama() -> Any:
    config = AutoConfig.for_model(
        "llama", hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8,
        vocab_size=8, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).base_model


def _names_a_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    names = [tensor.untyped_storage()._cdata for tensor in (one, one[:1], other)]
    return names[0] == names[1] != names[2]


GUARDS = {
    "_optimizer_step": lambda: (
        _parameters(DeepSpeedZeroOptimizer_Stage3._optimizer_step) == ["self", "sub_group_id"]
    ),
    "_load_state_dict_into_zero3_model": lambda: (
        _parameters(modeling_utils._load_state_dict_into_zero3_model)[:2]
        == ["model_to_load", "state_dict"]
    ),
    "_save_optimizer_and_scheduler": lambda: (
        _parameters(Trainer._save_optimizer_and_scheduler) == ["self", "output_dir"]
    ),
    "_save_rng_state": lambda: _parameters(Trainer._save_rng_state) == ["self", "output_dir"],
    "_untyped_storage": lambda: (
        torch.storage.TypedStorage(
            wrap_storage=torch.zeros(3).untyped_storage(), dtype=torch.float32, _internal=True
        )._untyped_storage.nbytes()
        == 12
    ),
    "_attn_implementation": _attention_of_a_model,
    "_REMOVED_TOP_LEVEL_CONFIG_KEYS": lambda: (
        len(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS) > 0
    ),
    "_REMOVED_ZERO_CONFIG_KEYS": lambda: len(deepspeed_config._REMOVED_ZERO_CONFIG_KEYS) > 0,
    "_all_values": lambda: all(dtype._all_values[1:] for dtype in deepspeed_config.DtypeEnum),
    # the tracer, dslm.worker.trace
    "_supports_flash_attn": lambda: isinstance(LlamaForCausalLM._supports_flash_attn, bool),
    # dslm.worker.layout
    "_supports_sdpa": lambda: LlamaForCausalLM._supports_sdpa is True,
    "_can_set_attn_implementation": LlamaForCausalLM._can_set_attn_implementation,
    "_CAN_RECORD_REGISTRY": lambda: (
        isinstance(output_capturing._CAN_RECORD_REGISTRY, dict)
        and modeling_utils._CAN_RECORD_REGISTRY is output_capturing._CAN_RECORD_REGISTRY
    ),
    "_tp_partition": lambda: (
        _parameters(TensorParallel_Layer._tp_partition) == ["self", "params_list"]
        and _parameters(TensorParallel_Layer.gather_params) == ["self", "params_list"]
    ),
    "_lazy_init_hp_params_optimizer_state": lambda: callable(
        DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state
    ),
    "_get_expert_parallel_group": lambda: (
        _parameters(groups._get_expert_parallel_group) == ["group_name"]
    ),
    # dslm.cli.complete
    "_completion_scripts": lambda: (
        "    return 0\n" in typer._completion_shared._completion_scripts["bash"]
    ),
    "_global_mapping": lambda: "sdpa" in ALL_ATTENTION_FUNCTIONS._global_mapping,
    "_schema": lambda: (
        torch.ops.aten.add_.Tensor._schema.is_mutable
        and not torch.ops.aten.add.Tensor._schema.is_mutable
    ),
    "_overloadpacket": lambda: torch.ops.aten.mm.default._overloadpacket in flop_registry,
    "_cdata": lambda: _names_a_storage(torch.zeros(2), torch.zeros(2)),
    "_scaled_dot_product_attention_math": lambda: callable(
        torch.ops.aten._scaled_dot_product_attention_math
    ),
    # overridden, not called: TRL would tokenise what dslm has prepared
    "_prepare_dataset": lambda: callable(DPOTrainer._prepare_dataset),
    "_precompute_ref_logps": lambda: (
        _parameters(DPOTrainer._precompute_ref_logps)[:2] == ["self", "dataset"]
        and _parameters(KTOTrainer._precompute_ref_logps)[:2] == ["self", "dataset"]
    ),
    # dslm.worker.tasks.kto: what it is called with, and with which names in a batch
    "_compute_kl_logps": lambda: (
        _parameters(KTOTrainer._compute_kl_logps) == ["self", "model", "batch"]
        and all(
            f'"{name}"' in inspect.getsource(KTOTrainer._compute_loss)
            for name in ("KL_input_ids", "KL_attention_mask", "KL_completion_mask", "ref_KL_logps")
        )
    ),
    # dslm.worker.rl.trainer: overridden, and read where answers are recorded
    "_tokenize_prompts": lambda: (
        _parameters(GRPOTrainer._tokenize_prompts) == ["self", "prompts"]
        and "prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)"
        in inspect.getsource(GRPOTrainer._generate)
    ),
    "_generate_single_turn": lambda: (
        _parameters(GRPOTrainer._generate_single_turn)[:5]
        == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"]
    ),
    "_generate_and_score_completions": lambda: (
        _parameters(GRPOTrainer._generate_and_score_completions) == ["self", "inputs"]
    ),
    "_generate": lambda: (
        "return prompt_ids, completion_ids, tool_mask, completions, logprobs"
        in inspect.getsource(GRPOTrainer._generate)
    ),
    "_calculate_rewards": lambda: (
        _parameters(GRPOTrainer._calculate_rewards)
        == ["self", "inputs", "prompts", "completions", "completion_ids_list"]
    ),
    "_load_rng_state": lambda: _parameters(Trainer._load_rng_state) == ["self", "checkpoint"],
    "_buffered_inputs": lambda: (
        "self._step % generate_every == 0 or self._buffered_inputs is None"
        in inspect.getsource(GRPOTrainer._prepare_inputs)
    ),
    "_logs": lambda: all(
        f'self._logs["{name}"].extend(' in inspect.getsource(GRPOTrainer)
        for name in ("prompt", "completion", "advantages")
    ),
    "_compute_loss": lambda: (
        _parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
        and "self._compute_loss(model, inputs)" in inspect.getsource(GRPOTrainer)
    ),
    "_tp_size": lambda: all(
        "+= num_tokens_in_batch // self._tp_size" in inspect.getsource(kind)
        for kind in (SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer)
    ),
    "_track_num_input_tokens": lambda: (
        "self.state.num_input_tokens_seen +=" in inspect.getsource(Trainer._track_num_input_tokens)
    ),
    "_metrics": lambda: "self._metrics[mode]" in inspect.getsource(GRPOTrainer.log),
    "_tokenizer": lambda: "self._tokenizer = processing_class" in inspect.getsource(GRPOTrainer),
    "_prepare_inputs": lambda: _parameters(Trainer._prepare_inputs) == ["self", "inputs"],
    "_train_batch_size": lambda: (
        "self._train_batch_size = args.train_batch_size" in inspect.getsource(Trainer.__init__)
    ),
    # overridden, so that ranks that share sequences count them once
    "_get_num_items_in_batch": lambda: (
        _parameters(Trainer._get_num_items_in_batch) == ["self", "batch_samples", "device"]
    ),
    # overridden, so that a schedule goes on with other groups of parameters
    "_load_optimizer_and_scheduler": lambda: (
        _parameters(Trainer._load_optimizer_and_scheduler) == ["self", "checkpoint"]
    ),
    # the tracer's modules of torch, and what it reads of a model
    "_set_gradient_checkpointing": lambda: (
        "gradient_checkpointing_func" in _parameters(PreTrainedModel._set_gradient_checkpointing)
    ),
    "_python_dispatch": lambda: hasattr(_python_dispatch.TorchDispatchMode, "__torch_dispatch__"),
    "_subclasses": lambda: callable(FakeTensorMode.from_tensor),
    "_index_put_impl_": lambda: (
        "Tensor?[] indices" in str(torch.ops.aten._index_put_impl_.default._schema)
    ),
    "_pytree": lambda: _pytree.tree_leaves([1, {"a": (2,)}]) == [1, 2],
    "_tp_plan": lambda: _llama()._tp_plan["layers.*.mlp.up_proj"] == "colwise",
    # dslm.worker.scores
    "_C": lambda: torch._C._distributed_c10d.__name__ == "torch._C._distributed_c10d",
    "_distributed_c10d": lambda: callable(torch._C._distributed_c10d.HashStore.get),
    "_completion_shared": lambda: typer._completion_shared.__name__.startswith("typer."),
    # dslm.worker.layout.whole: what stages 1 and 2 hang on a parameter
    "_hp_mapping": lambda: "lp_param._hp_mapping = " in inspect.getsource(mixed_precision_linkage),
    # replaced on a live engine; see dslm.worker.callbacks
    "engine_timers": lambda: (
        {"enable_micro_timers", "enable_global_timers"} <= {*_parameters(EngineTimers)}
        and "self.engine_timers = EngineTimers(" in inspect.getsource(DeepSpeedEngine)
    ),
}
# guarded, though dslm has methods and attributes of these names itself
OVERRIDDEN = {
    "_metrics", "_prepare_dataset", "_precompute_ref_logps", "_compute_kl_logps",
    "_train_batch_size", "_get_num_items_in_batch", "engine_timers", "_tokenize_prompts",
    "_generate_single_turn",
    "_generate_and_score_completions", "_load_rng_state", "_save_rng_state", "_generate",
    "_prepare_inputs", "_tokenizer", "_buffered_inputs", "_load_optimizer_and_scheduler",
    "_calculate_rewards", "_compute_loss", "_tp_size", "_track_num_input_tokens",
}  # fmt: skip


@pytest.mark.parametrize("name", GUARDS)
def test_a_private_name_is_what_dslm_takes_it_for(name: str) -> None:
    assert GUARDS[name]()


def _own_names(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def _names_of_others(tree: ast.AST) -> Iterator[str]:
    """Names that are read of something, imported from somebody, or asked for by a text."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                yield name
            case ast.ImportFrom(module=str(module), names=names) if module != "__future__":
                for name in module.split("."):
                    yield name
                for each in names:
                    yield each.name
            case ast.Import(names=names):
                for each in names:
                    yield from each.name.split(".")
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ):
                yield name


def test_no_private_name_of_a_library_is_used_unguarded() -> None:
    trees = {file: ast.parse(file.read_text()) for file in (ROOT / "dslm").rglob("*.py")}
    own = set().union(*map(_own_names, trees.values()))
    used = {
        name
        for tree in trees.values()
        for name in _names_of_others(tree)
        if re.match(r"_[^_]", name) and name not in own | PUBLIC
    }
    assert len(trees) > 100
    assert used == GUARDS.keys() - OVERRIDDEN


def _overridden() -> Iterator[tuple[str, str]]:
    """Private methods and attributes of libraries' classes that classes of dslm replace."""
    for file in (ROOT / "dslm" / "worker").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if re.search(r"^class \w+\(", file.read_text(), re.MULTILINE):
            for kind in vars(importlib.import_module(name)).values():
                if isinstance(kind, type) and kind.__module__ == name:
                    bases = [base for base in kind.__mro__ if base.__module__[:5] != "dslm."]
                    for own in vars(kind):
                        if re.match(r"_[^_]", own) and any(own in vars(base) for base in bases):
                            yield f"{name}.{kind.__name__}", own


def test_no_private_method_of_a_library_is_overridden_unguarded() -> None:
    found = [(kind, name) for kind, name in _overridden() if name not in _OF_EVERY_CLASS]
    assert len(found) > 5
    assert [(kind, name) for kind, name in found if name not in GUARDS] == []
