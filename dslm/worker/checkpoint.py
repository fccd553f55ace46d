"""Write checkpoints, whole or not at all; all ranks call, rank 0 moves them to their place.

Training pauses while the state is copied in memory (`dslm.worker.snapshot`). Beside training
each rank then writes its own files, flushes them to disk and says what their checksums are; when
all have, rank 0 writes the manifest and renames the folder. Ranks talk through files here, since a
collective beside those of training could not be ordered.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from transformers.trainer import TRAINER_STATE_NAME

from dslm.recipe.schema import Checkpoint
from dslm.run.checkpoints import (
    complete_checkpoints,
    file_entries,
    remove_leftovers,
    remove_unused,
    superseded,
    write_manifest,
)
from dslm.run.directory import RunDirectory
from dslm.run.documents import (
    CheckpointManifest,
    FileEntry,
    Written,
    read_document,
    write_document,
)
from dslm.worker.model_config import set_cache
from dslm.worker.portable import write_portable
from dslm.worker.snapshot import SnapshotEngine

DESCRIPTION = "model"  # in a checkpoint: what `dslm export` needs beside the tensors
_WRITTEN = ".rank-{}.json"  # in an unfinished one: the files of a rank, once they are on disk
_LOOK_SECONDS = 0.05
# step, folder, seconds that training paused, seconds until it was complete
OnComplete = Callable[[int, Path, float, float], None]


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time."""

    def __init__(
        self,
        run: RunDirectory,
        settings: Checkpoint,
        facts: CheckpointManifest,
        on_complete: OnComplete,
        *,
        local_ranks: int,
        shared: bool = True,
    ) -> None:
        """A writer.

        Args:
            run: the run.
            settings: what the recipe says.
            facts: what every manifest says beside step and files, such as world size and stage.
            on_complete: called with each complete checkpoint.
            local_ranks: ranks of this host.
            shared: whether all ranks see the folder; else a checkpoint can't be complete anywhere,
                and none is written.
        """
        self._run = run
        self._folder = run.checkpoints
        self._settings = settings
        self._facts = facts
        self._local_ranks = local_ranks
        self._shared = shared
        self._on_complete = on_complete
        self.last_step: int | None = None  # of the last checkpoint begun
        self._finishing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, trainer: Any, eval_loss: float | None) -> float:
        """Save the state of a training at the end of a step; seconds that it stood still.

        Args:
            trainer: the Trainer.
            eval_loss: of an evaluation after this very step, if there was one.

        Raises:
            OSError: the last checkpoint or this one could not be written; older ones are untouched.
        """
        began = time.monotonic()
        self.finish()
        step = self.last_step = trainer.state.global_step
        if not self._shared:
            return 0.0
        partial = self._folder / f".step-{step}.partial"
        rank = dist.get_rank()
        if rank == 0:
            remove_leftovers(self._folder)
            partial.mkdir(parents=True)
        dist.barrier()
        engine = self._engine(trainer.model_wrapped)
        try:
            if self._facts.portable:
                write_portable(trainer, partial)
            else:
                trainer._save_optimizer_and_scheduler(str(partial))
            trainer._save_rng_state(str(partial))
            if rank == 0:
                self._describe(trainer, partial)
        except BaseException:
            if engine is not None:
                engine.discard()
            raise
        dist.barrier()
        blocked = time.monotonic() - began
        facts = replace(self._facts, step=step, eval_loss=eval_loss)

        def work() -> None:
            try:
                files = engine.write() if engine is not None else []
                _report(partial, rank, files)
                if rank == 0:
                    self._complete(partial, facts)
                    final = self._folder / f"step-{step}"
                    self._on_complete(step, final, blocked, time.monotonic() - began)
            except OSError as failure:
                self._failure = failure
                if engine is not None:
                    engine.discard()

        self._finishing = threading.Thread(target=work, name="dslm-checkpoint", daemon=True)
        self._finishing.start()
        return blocked

    def finish(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            OSError: it could not be written.
        """
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong beside training, if anything did."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _engine(self, model: Any) -> SnapshotEngine | None:
        """The engine that copies, put in place of DeepSpeed's; None: the recipe chose another."""
        if type(model.checkpoint_engine) is TorchCheckpointEngine:
            model.checkpoint_engine = SnapshotEngine(model.checkpoint_engine, self._local_ranks)
        found = model.checkpoint_engine
        return found if isinstance(found, SnapshotEngine) else None

    def _complete(self, partial: Path, facts: CheckpointManifest) -> None:
        """Wait for every rank, write the manifest, rename; then remove what is superseded."""
        known: dict[str, FileEntry] = {}
        for rank in range(facts.world_size):
            report = partial / _WRITTEN.format(rank)
            while not report.is_file():
                time.sleep(_LOOK_SECONDS)
            known |= read_document(Written, report).files
            report.unlink()
        for script in partial.glob("zero_to_*.py"):
            script.unlink()  # copies of DeepSpeed's own converters
        for path in partial.rglob("*"):
            if str(path.relative_to(partial)) not in known:
                _sync(path)
        write_manifest(partial, facts, known)
        final = self._folder / f"step-{facts.step}"
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _sync(self._folder)
        complete = complete_checkpoints(self._folder)
        for old in superseded(complete, self._settings.keep, self._settings.keep_best):
            remove_unused(old)  # one that is being exported goes after the next checkpoint

    def _describe(self, trainer: Any, partial: Path) -> None:
        """Write what a checkpoint holds beside DeepSpeed's state and the random numbers' ones."""
        describe_model(trainer, partial / DESCRIPTION)
        trainer.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        shutil.copy2(self._run.recipe, partial)


def _report(partial: Path, rank: int, files: Iterable[Path]) -> None:
    """Flush the files of a rank to disk and say, in a file, what their checksums are."""
    names = [str(file.relative_to(partial)) for file in files]
    for name in names:
        _sync(partial / name)
    written = Written(files=file_entries(partial, names))
    write_document(partial / _WRITTEN.format(rank), written)


def describe_model(trainer: Any, folder: Path) -> None:
    """Write a Hugging Face model without its tensors: configs of model and adapters, tokenizer."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = copy.deepcopy(model.config)
    set_cache(config, on=True)
    if trainer.recipe.quantize is not None:
        del config.quantization_config  # of how it was trained: the adapters are for any form of it
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    config.architectures = [type(whole).__name__]
    config.save_pretrained(folder)
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.save_pretrained(folder)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
