"""What a recipe may say: frozen types, one sentence under each field.

These types are the only source of the validation, of the JSON Schema for editors
(`dslm recipes schema`) and of the reference in docs/recipe.md. They know nothing of YAML, of the
cluster and of DeepSpeed. `auto` is a value of the recipe only: it is resolved before launch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from dslm.recipe.rewarding import Reward, Rollout
from dslm.recipe.values import (
    STRICT,
    Environment,
    Few,
    Flag,
    Misfit,
    Name,
    NotNegative,
    Portion,
    Positive,
    PositiveInt,
    PositiveShare,
    Seconds,
    Seed,
    Share,
    Stage,
    VocabularySize,
    Whole,
)

Auto = Literal["auto"]
Task = Literal[
    "pretrain", "mlm", "sft", "dpo", "orpo", "kto", "reward", "grpo", "seq2seq", "classify",
    "vision", "sequence", "script",
]  # fmt: skip


class Section(BaseModel):
    """A part of a recipe: frozen, and every key that it doesn't know is an error."""

    model_config = STRICT


class TokenizerTraining(Section):
    """A byte-level BPE tokenizer, trained on the training data once and kept with the run."""

    vocab_size: VocabularySize = 4096
    """Entries of the vocabulary, the 256 bytes and the special tokens included."""
    documents: PositiveInt = 2000
    """How many training documents it is trained on, at most."""


class Model(Section):
    """The model."""

    name: Name | None = None
    """Hub name or local folder, for the weights (`init: pretrained`) and the tokenizer."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """`pretrained` loads weights; `scratch` draws them, and needs `architecture`."""
    architecture: dict[str, Any] = {}
    """`model_type` and the sizes as transformers' config of that type names them."""
    tokenizer: Name | TokenizerTraining | None = None
    """Hub name or folder, or `{vocab_size: N}` to train one; the model's own when absent."""
    revision: Name = "main"
    """Git revision on the Hub."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; auto: flash-attn when installed on CUDA, else SDPA."""
    liger: Flag | Auto = "auto"
    """Liger kernels; auto: when installed and on CUDA."""
    compile: Flag = False
    """torch.compile the model."""
    deepcompile: Flag = False
    """torch.compile the model with DeepSpeed's own passes (DeepCompile), on CUDA."""
    chunked_loss: Flag = False
    """Compute the loss of a few tokens at a time: less memory for a large vocabulary."""
    activation_checkpointing: Flag | Auto = "auto"
    """Recompute activations in the backward pass instead of keeping them."""
    long_context: Flag = False
    """Switch on what saves memory with long samples: recomputation and the three keys that follow,
    where they are `auto` and as far as each goes."""
    tiled_mlp: Flag | Auto = "auto"
    """Compute each MLP a tile of tokens at a time, and again in the backward pass."""
    tiled_loss: Flag | Auto = "auto"
    """Compute logits and loss a tile of tokens at a time: all logits are never there."""
    offload_activations: Flag | Auto = "auto"
    """Keep what activations are recomputed from in the host's memory."""
    trust_remote_code: Flag = False
    """Run Python code that comes with the model: only for authors you trust."""
    new_parameters: list[Name] = []
    """Patterns of parameters that need not be in the files of a pretrained model, such as
    `score.*`, the head of a classifier. Any other that isn't found there ends the run."""

    @model_validator(mode="after")
    def _has_a_source(self) -> Model:
        if self.init == "pretrained" and not self.name:
            raise Misfit("`init: pretrained` needs `name`, a Hub name or a folder", "name", "init")
        if self.init == "scratch" and not self.architecture:
            raise Misfit(
                "`init: scratch` needs `architecture`, with its `model_type`",
                *("architecture", "init"),
            )
        kind = self.architecture.get("model_type")
        if self.architecture and not (isinstance(kind, str) and kind.strip()):
            raise Misfit("`architecture` needs `model_type`, such as `llama`", "architecture")
        return self


Format = Literal[
    "preference", "labelled", "sharegpt", "messages", "prompt_completion", "alpaca", "prompts"
]
FieldName = Literal[
    "messages", "tools", "system", "prompt", "completion", "chosen", "rejected", "label",
    "instruction", "input", "output", "answer",
]  # fmt: skip


class Source(Section):
    """One of several data sources, with its weight in the mixture."""

    path: Name
    """File, folder, glob pattern, `stdlib` or Hub data set."""
    weight: Positive = 1.0
    """How often an epoch shows its samples: 2 twice, 0.5 every other one."""
    name: Name | None = None
    """Configuration of a Hub data set."""
    split: Name = "train"
    """Split of a Hub data set."""
    format: Format | None = None
    """Shape of its records; `data.format` when absent."""
    fields: dict[FieldName, Name] = {}
    """dslm's names of fields, and its records' own; on top of `data.fields`."""


Sources = Name | Annotated[list[Name | Source], Field(min_length=1, max_length=10_000)]


class Data(Section):
    """The data, and how it becomes samples."""

    train: Sources | None = None
    """Files, folders, glob patterns (text, code, jsonl, json, csv, parquet, arrow, images; .gz and
    .zst too), a Hub name, `stdlib` (Python's own sources, found on every machine), `digits`
    (scikit-learn's handwritten digits) or `arithmetic` (sums to answer)."""
    eval: Sources | Share = 0.0
    """Sources to evaluate on, or the share of documents held out by hash of their content."""
    text_field: Name = "text"
    """Field of a record that holds its text."""
    label_field: Name = "label"
    """Field of a record that holds its label."""
    format: Format | Auto = "auto"
    """Shape of the records of chats, answers and preferences; auto: recognised by their fields."""
    fields: dict[FieldName, Name] = {}
    """dslm's names of fields, and the records' own: `{prompt: question, completion: answer}`."""
    chat_template: Name | None = None
    """How chats are written: a file, `chatml`, or the preset whose tokenizer's template it is; the
    tokenizer's own when absent."""
    answers: Literal["all", "last"] = "all"
    """Which answers of a chat are learnt (task sft)."""
    sequence_length: Annotated[PositiveInt, Field(le=10**9)] = 1024
    """Tokens per sample."""
    packing: Flag = True
    """Put several documents into one sample, none seeing another."""
    sharding: Literal["interleaved", "range", "hash"] = "interleaved"
    """Which rank reads which sample: in turn, in contiguous pieces, or by hash of the sample."""
    mlm_probability: PositiveShare = 0.15
    """Share of tokens that are masked (task mlm)."""
    max_documents: PositiveInt | None = None
    """Read at most this many documents."""
    key_field: Name | None = None
    """Field that identifies a record, for the held-out share and sharding by hash; else all of it
    does."""
    deduplicate: Flag = False
    """Leave out exact duplicates of a document; they are counted."""
    shards: Few = 1
    """Files that the prepared data is written to."""
    shard_by: Literal["range", "hash"] = "range"
    """Assign documents to files as contiguous pieces, or by a stable hash of their keys."""
    on_error: Literal["skip", "fail"] = "skip"
    """Skip and count bad records, or fail at the first one, before training starts."""
    workers: Annotated[Whole, Field(le=1024)] = 0
    """Background processes that read samples, per rank."""


class Batch(Section):
    """How many sequences make a step; the global size is the same whatever the cluster."""

    global_size: Annotated[PositiveInt, Field(le=10**7)] = 32
    """Sequences per optimizer step, over all ranks."""
    micro_size: Few | Auto = "auto"
    """Sequences per rank per forward pass."""


class Parallel(Section):
    """How state is partitioned over the ranks."""

    zero_stage: Stage | Auto = "auto"
    """What ZeRO partitions: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    offload: Literal["none", "optimizer", "all", "nvme"] | Auto = "none"
    """What is kept off the accelerator: optimizer state, or parameters too, on CPU or NVMe."""
    nvme_path: Name | None = None
    """Folder on a local NVMe disk, for `offload: nvme`."""
    offload_ratio: Portion = 1.0
    """Share of the optimizer's state that `offload` moves; the rest stays (Twin-Flow, stage 3)."""
    super_offload: Flag = False
    """Update the offloaded state while the backward pass goes on (SuperOffload, stage 3)."""
    zenflow: Flag = False
    """Update the most important columns on the device at once, the others offloaded (ZenFlow)."""
    zeropp: Flag = False
    """All of ZeRO++ (stage 3): the three keys that follow."""
    hpz: Flag | Auto = False
    """A second partition of the parameters inside each host, for the backward pass (hpZ); auto:
    where it is faster."""
    quantized_weights: Flag = False
    """Send gathered parameters in 8 bits (qwZ)."""
    quantized_gradients: Flag = False
    """Send reduced gradients in 4 bits (qgZ)."""
    overlap: Flag | Auto = "auto"
    """Communicate beside the computation; auto: on an accelerator, at stages 1 to 3."""
    tensor: Few | Auto = 1
    """Ranks that share each layer's matrices (DeepSpeed AutoTP); auto: what is fastest."""
    sequence: Few | Auto = 1
    """Ranks that share each sequence (DeepSpeed Ulysses); auto: what is fastest."""
    expert: Few | Auto = 1
    """Ranks that share the experts of each layer (DeepSpeed AutoEP), of a mixture of experts; auto:
    what is fastest."""
    ranks: Few | Auto = "auto"
    """Ranks per host; auto: every accelerator, or one on a CPU."""


class Optimizer(Section):
    """How parameters are updated."""

    name: Literal["adamw", "adam", "sgd", "adafactor", "lion", "muon"] = "adamw"
    """The update rule."""
    lr: Positive = 2e-5
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    eps: Positive = 1e-8
    """Added to the denominator of Adam's update."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay."""
    grad_clip: NotNegative = 1.0
    """Largest norm of the global gradient; 0: no clipping."""


class Schedule(Section):
    """How the learning rate moves."""

    name: Literal["cosine", "linear", "constant", "cosine_with_min_lr", "inverse_sqrt"] = "cosine"
    """The curve after the warm-up."""
    warmup: NotNegative = 0.03
    """Below 1: share of all steps; from 1: number of steps."""

    @field_validator("warmup")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("must be a share below 1 or a whole number of steps")
        return value


class Duration(Section):
    """The length of the training: exactly one of the three."""

    steps: PositiveInt | None = None
    """Optimizer steps."""
    epochs: Positive | None = None
    """Passes over the data."""
    tokens: PositiveInt | None = None
    """Tokens, rounded up to whole steps."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Duration:
        given = [n for n in ("steps", "epochs", "tokens") if getattr(self, n) is not None]
        if len(given) != 1:
            said = " and ".join(f"`{n}`" for n in given) or "none"
            raise ValueError(f"give exactly one of `steps`, `epochs`, `tokens`; found {said}")
        return self


class Checkpoint(Section):
    """When the state of the run is saved."""

    every: PositiveInt | None = None
    """Steps between checkpoints; absent: only at the end."""
    keep: PositiveInt = 2
    """How many of the newest complete checkpoints stay on disk."""
    keep_best: Whole = 0
    """How many more stay: those with the lowest loss of an evaluation after the same step."""
    format: Literal["native", "portable"] = "native"
    """`native` is DeepSpeed's, quick to write; `portable` holds every tensor whole, for any layout.
    Where ranks share layers or experts it is portable."""
    on_stop: Flag = True
    """Save when the run is stopped by Ctrl-C or SIGTERM."""
    grace: Seconds = 30.0
    """Seconds that saving on stop may take before the processes are ended."""


class Evaluation(Section):
    """When the model is evaluated on `data.eval`."""

    every: PositiveInt | None = None
    """Steps between evaluations; absent: only at the end."""
    max_samples: PositiveInt | None = None
    """Evaluate on at most this many samples."""
    sample: str | None = None
    """A prompt that the trained model continues at the end, as a first look at it."""


class Log(Section):
    """What is recorded while training."""

    every: PositiveInt = 10
    """Steps between step events."""
    timers: Flag = True
    """Record the time in forward, backward, communication and update from DeepSpeed's timers."""
    samples: Flag = False
    """Write down which samples each rank is trained on, in `logs/attempt-A/rank-R.samples.jsonl`
    of the run."""
    report_to: list[Name] = []
    """Trackers as transformers' Trainer has them: tensorboard, wandb, mlflow, trackio."""


class Watchdog(Section):
    """When a run that makes no progress is ended."""

    timeout: Seconds | Auto = "auto"
    """Seconds without any progress while training or evaluating; a rank that computes makes some.
    auto: thirty times the usual step, at least a minute; before two steps are known, hours."""
    join: Seconds = 300.0
    """Seconds within which every rank must have started."""


class Guards(Section):
    """What is watched while training, so that a spoilt model is noticed at once."""

    on_trouble: Literal["stop", "warn"] = "stop"
    """`stop` ends the run when its numbers can't be right, and keeps the last good checkpoint;
    `warn` only says so. It decides about versions known to be wrong, too."""
    spike: Literal["warn", "rollback"] = "warn"
    """A loss far outside the recent spread: say so, or go back to the last good checkpoint and
    leave those batches out."""
    every: PositiveInt = 50
    """Steps between checks that replicas hold the same parameters."""


Modules = Annotated[list[Name], Field(min_length=1)]
PRINCIPAL = ("pissa", "olora")  # adapters that begin as a part of the model, taken out of it


class Lora(Section):
    """Train low-rank adapters (peft) and leave the model's own parameters as they are."""

    rank: Few = 16
    """Rank of the adapters."""
    alpha: Positive = 32.0
    """Scale: the update is multiplied by alpha / rank, or by alpha / √rank with `rslora`."""
    dropout: Share = 0.0
    """Dropout before the adapters."""
    target_modules: Modules | Name = "all-linear"
    """Which linear layers get adapters: `all-linear`, names or ends of names (`[q_proj, v_proj]`),
    or a regular expression that matches whole names."""
    exclude: Modules | Name | None = None
    """Layers that get none, by names, ends of names or a regular expression."""
    modules_to_save: list[Name] = []
    """Modules that are trained whole and kept with the adapters, such as a new head."""
    rank_pattern: dict[Name, Few] = {}
    """Other ranks by end of a name or regular expression: `{q_proj: 8}`."""
    alpha_pattern: dict[Name, Positive] = {}
    """Other scales, in the same way."""
    dora: Flag = False
    """Learn the size of each weight's rows apart from their direction (DoRA)."""
    rslora: Flag = False
    """Scale by the square root of the rank, so that large ranks learn as much."""
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """How adapters begin: as no change (default, gaussian), or as the model's principal part."""
    b_lr_ratio: Positive = 1.0
    """Learning rate of the matrices B over that of A (LoRA+)."""
    adapter: Name | None = None
    """Folder of existing adapters that the training continues from; their own shape is kept."""

    @model_validator(mode="after")
    def _goes_together(self) -> Lora:
        for key in ("target_modules", "exclude", "rank_pattern", "alpha_pattern"):
            value = getattr(self, key)
            for pattern in (value,) if isinstance(value, str) else value or ():
                try:
                    re.compile(pattern)
                except re.error as failure:
                    raise Misfit(f"`{pattern}` is no regular expression: {failure}", key) from None
        if self.dora and self.init in PRINCIPAL:
            raise Misfit(f"`dora` begins as no change, and `init: {self.init}` does not", "init")
        return self


class Costs(Section):
    """What the cluster costs."""

    price: NotNegative | None = None
    """Money that an hour of one device costs, in any currency: plans then say what a run costs."""


_OFFLOAD = ("parallel.offload", "parallel.zero_stage")
_ZEROPP = ("parallel.zeropp", "parallel.zero_stage")


class Recipe(Section):
    """One training: enough to plan it, run it and repeat it."""

    description: str = ""
    """One line for people."""
    model: Model
    task: Task = "pretrain"
    """What is learnt from the data."""
    data: Data = Data()
    batch: Batch = Batch()
    parallel: Parallel = Parallel()
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of the forward and backward pass."""
    autocast: Flag = False
    """Keep parameters in fp32, and let torch compute in `precision` where that is safe."""
    lora: Lora | None = None
    """Absent: all parameters are trained."""
    reference: Literal["model", "precomputed"] = "model"
    """What preferences compare with (tasks dpo, kto): the model as it was at the start, under LoRA
    without its adapters; or its log-probabilities, computed once and kept with the prepared
    data."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the frozen model beside `lora` in 4 or 8 bits (bitsandbytes); absent: as it is."""
    rewards: Annotated[list[Reward], Field(max_length=100)] = []
    """What answers are worth (task grpo): the weighted sum of these."""
    rollout: Rollout = Rollout()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    duration: Duration = Duration(steps=1000)
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    log: Log = Log()
    watchdog: Watchdog = Watchdog()
    cluster: Costs = Costs()
    guards: Guards = Guards()
    seed: Seed = 42
    """Fixes initial weights, order of the samples and dropout."""
    environment: Environment = {}
    """Variables for the ranks; never secrets: those come from your own environment."""
    training_args: dict[str, Any] = {}
    """Passed on to transformers.TrainingArguments."""
    deepspeed: dict[str, Any] = {}
    """Merged last into the DeepSpeed config."""

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.parallel.zeropp and self.parallel.zero_stage not in (3, "auto"):
            raise Misfit("`parallel.zeropp` needs `parallel.zero_stage: 3`", *_ZEROPP)
        if self.parallel.offload == "nvme" and not self.parallel.nvme_path:
            raise Misfit("`parallel.offload: nvme` needs `parallel.nvme_path`", *_OFFLOAD)
        if self.parallel.offload in ("all", "nvme") and self.parallel.zero_stage not in (3, "auto"):
            raise Misfit(
                f"`parallel.offload: {self.parallel.offload}` needs `parallel.zero_stage: 3`",
                *_OFFLOAD,
            )
        if self.parallel.offload == "optimizer" and self.parallel.zero_stage == 0:
            raise Misfit(
                "`parallel.offload: optimizer` needs `parallel.zero_stage` 1, 2 or 3", *_OFFLOAD
            )
        return self
