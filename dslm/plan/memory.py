"""Memory of one rank, itemised, and of one host: from a shape and a strategy to bytes.

Plain numbers; nothing is measured here and nothing is chosen. Model states follow what DeepSpeed
0.19 keeps (engine.get_data_types, stage_1_and_2.py, stage3.py, bf16_optimizer.py); activations
follow what autograd saves of transformers' layers.

Legend: Ψ parameters, N data-parallel ranks, e bytes of an element of the compute format, b micro
batch, s sequence length, H hidden size, I intermediate size, A heads × head size, K key-value
heads × head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from dslm.plan.shape import ModelShape
from dslm.plan.strategy import Strategy
from dslm.recipe.schema import Recipe

FP32 = 4
# Bytes of optimizer state per trained parameter beside the fp32 copy: two moments, or fewer.
STATE_BYTES = {"adamw": 8, "adam": 8, "sgd": 0, "adafactor": 0, "lion": 4, "muon": 4}
# A CUDA context with cuBLAS and NCCL's buffers: 0.5 to 0.9 GiB as nvidia-smi shows it.
CONTEXT_BYTES = {"cuda": int(0.8 * 2**30), "rocm": int(0.8 * 2**30), "cpu": int(0.5 * 2**30)}
# What a plan leaves free: the allocator's fragmentation, and what no formula knows.
MARGIN = 0.06


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on a rank's device by item, the peak of each phase, and bytes on each host."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    context: int
    phases: dict[str, int]
    host: int

    @property
    def total(self) -> int:
        """The highest phase."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: self.phases[phase])


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes of model states on a device and, offloaded, on the host; of one rank."""

    parameters: int
    gradients: int
    optimizer: int
    host_parameters: int = 0
    host_optimizer: int = 0


def model_states(
    trained: int,
    *,
    frozen: int = 0,
    precision: str = "bf16",
    optimizer: str = "adamw",
    stage: int = 0,
    ranks: int = 1,
    offload: str = "none",
) -> States:
    """Parameters, gradients and optimizer state of one rank.

    Source: ZeRO (arXiv 1910.02054), section 3 and table 1, for mixed precision: 2Ψ + 2Ψ + KΨ with
    K = 12 for Adam; in fp32, DeepSpeed's stages 1 and 2 keep a second copy of their partition.
    """
    element = FP32 if precision == "fp32" else 2
    all_ = trained + frozen
    share = -(-trained // ranks)  # every rank holds the same, rounded up
    parameters = element * (-(-all_ // ranks) if stage == 3 else all_)
    # without ZeRO, DeepSpeed accumulates bf16 gradients in fp32 (engine.get_data_types)
    gradient = FP32 if stage == 0 and precision == "bf16" else element
    gradients = gradient * (share if stage >= 2 else trained)
    copies = 0 if stage == 0 and precision == "fp32" else FP32
    state = (STATE_BYTES[optimizer] + copies) * (share if stage >= 1 else trained)
    host_parameters = host_optimizer = 0
    if offload != "none":
        host_optimizer = state + FP32 * share  # and the gradients that the host's step reads
        state = 0
    if offload in ("all", "nvme"):
        host_parameters, parameters = parameters, 0
        gradients = 0
    if offload == "nvme":
        host_parameters = host_optimizer = 0
    return States(
        parameters=parameters,
        gradients=gradients,
        optimizer=state,
        host_parameters=host_parameters,
        host_optimizer=host_optimizer,
    )


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Trained parameters with adapters on every linear layer of the decoder."""
    h, i, a, k = shape.hidden_size, shape.intermediate_size, shape.attention_width, shape.kv_width
    attention = (h + a) * 2 + (h + k) * 2
    mlp = (h + i) * (3 if shape.gated_mlp else 2)
    return rank * (attention + mlp) * (shape.layers + shape.encoder_layers)


def layer_activations(shape: ModelShape, *, element: int, tokens: int) -> int:
    """Bytes that autograd keeps of one layer for so many tokens (b × s), with fused attention.

    Source: the tensors that the backward pass of each operation reads, as in Korthikanti et al.
    (arXiv 2205.05198), section 4.1, for the layers of transformers 5: RMSNorm computes in fp32,
    and fused attention keeps its output and a number per head and token instead of s × s scores.
    """
    h, i = shape.hidden_size, shape.intermediate_size
    a, k = shape.attention_width, shape.kv_width
    if shape.gated_mlp:
        # each norm: its input in fp32, the normalised input, and what it gives to the linear layers
        norms = shape.norms_per_layer * h * (3 * FP32 if element == FP32 else FP32 + 2 * element)
        mlp = 4 * i * element  # gate, its activation, up, their product
    else:
        norms = shape.norms_per_layer * h * 2 * element  # input and output
        mlp = 2 * i * element
    if shape.qk_norm:
        norms += (a + k) * (FP32 + element)
    attention = (2 * a + 2 * k) * element + FP32 * shape.heads
    dropout = 2 * h if shape.dropout else 0  # two masks of a byte
    return tokens * (norms + attention + mlp + dropout)


def logits_bytes(shape: ModelShape, *, element: int, tokens: int) -> int:
    """Bytes at the peak of the loss: the logits, their fp32 copy, the log-probabilities.

    Source: transformers' loss_utils.ForCausalLMLoss, which computes in fp32.
    """
    return tokens * shape.vocab_size * ((0 if element == FP32 else element) + 2 * FP32)


def estimate(
    recipe: Recipe,
    shape: ModelShape,
    strategy: Strategy,
    *,
    device_kind: str,
    ranks_per_host: int,
    buckets: int,
) -> Memory:
    """The memory of a run.

    Args:
        recipe: precision, optimizer, sequence length, LoRA.
        shape: the model's shape.
        strategy: how it is partitioned, with every size resolved.
        device_kind: cpu, cuda or rocm.
        ranks_per_host: how many ranks share a host's memory.
        buckets: elements in each of DeepSpeed's communication buckets.
    """
    element = FP32 if recipe.precision == "fp32" else 2
    total = shape.parameters // strategy.tensor_parallel
    trained, frozen = total, 0
    if recipe.lora is not None:
        trained, frozen = lora_parameters(shape, recipe.lora.rank), total
    states = model_states(
        trained,
        frozen=frozen,
        precision=recipe.precision,
        optimizer=recipe.optimizer.name,
        stage=strategy.zero_stage,
        ranks=strategy.data_parallel_size * strategy.sequence_parallel,
        offload=strategy.offload,
    )
    length = 1 if recipe.task == "vision" else recipe.data.sequence_length
    tokens = strategy.micro_batch_size * length // strategy.sequence_parallel
    layers = shape.layers + shape.encoder_layers
    one_layer = layer_activations(shape, element=element, tokens=tokens)
    boundary = tokens * shape.hidden_size * element
    if strategy.activation_checkpointing:
        activations = layers * boundary + one_layer
    else:
        activations = layers * one_layer
    logits = logits_bytes(shape, element=element, tokens=tokens)
    buffers = _buffers(shape, strategy, element=element, trained=trained, buckets=buckets)
    context = CONTEXT_BYTES[device_kind]
    resident = states.parameters + states.optimizer + context
    share = -(-trained // strategy.data_parallel_size) if strategy.zero_stage else trained
    # the optimizer's step reads gradients in fp32: a copy of the partition in mixed precision,
    # but for bf16 without ZeRO, whose gradients are in fp32 already
    has_copy = element != FP32 and not (strategy.zero_stage == 0 and recipe.precision == "bf16")
    step = FP32 * share if strategy.offload == "none" and has_copy else 0
    phases = {
        "init": resident,
        "forward": resident + states.gradients + activations + logits + buffers,
        "backward": resident + states.gradients + activations + logits + buffers,
        "step": resident + states.gradients + step,
    }
    host = ranks_per_host * (states.host_parameters + states.host_optimizer)
    return Memory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        context=context,
        phases=phases,
        host=host,
    )


def _buffers(
    shape: ModelShape, strategy: Strategy, *, element: int, trained: int, buckets: int
) -> int:
    """DeepSpeed's communication buffers: two reduce buckets, and at stage 3 the gathered layers."""
    reduce = min(buckets, trained) * element
    if strategy.zero_stage == 0:
        return reduce
    if strategy.zero_stage < 3:
        return 2 * reduce
    head = shape.vocab_size * shape.hidden_size
    gathered = max(head, 2 * shape.layer_parameters) + shape.layer_parameters
    return 2 * reduce + element * gathered
