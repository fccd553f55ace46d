"""The run directory: the owner of every path in it.

Knows names and places, not what the files say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """`runs/RECIPE-TIME/` or `-o DIR`; an absolute path."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def ds_config(self) -> Path:
        """The resolved DeepSpeed config."""
        return self.path / "ds_config.json"

    @property
    def plan(self) -> Path:
        """The prediction."""
        return self.path / "plan.json"

    @property
    def manifest(self) -> Path:
        """Versions, hosts, git state, command, attempts."""
        return self.path / "manifest.json"

    @property
    def skipped(self) -> Path:
        """The global batches that are left out since the loss jumped at them."""
        return self.path / "skipped.json"

    @property
    def verified(self) -> Path:
        """What `dslm verify` found of the layout."""
        return self.path / "verified.json"

    @property
    def events(self) -> Path:
        """The events, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def rollouts(self) -> Path:
        """Return the path of the answers that were rewarded (`dslm.run.rollouts`)."""
        return self.path / "rollouts.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint, `step-N`."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face format."""
        return self.path / "model"

    @property
    def lock(self) -> Path:
        """The lock of its owner (`dslm.run.lock`)."""
        return self.path / "lock"

    @property
    def stop_request(self) -> Path:
        """Exists when the supervisor asks the ranks to save and stop."""
        return self.path / "stop-requested"

    def logs(self, attempt: int) -> Path:
        """Folder of the logs of one attempt."""
        return self.path / "logs" / f"attempt-{attempt}"

    def attempt(self, number: int) -> Path:
        """JSON: what the ranks of one attempt need to know."""
        return self.logs(number) / "attempt.json"

    def hostfile(self, attempt: int) -> Path:
        """Return the path of the hosts of one attempt, for DeepSpeed's launcher."""
        return self.logs(attempt) / "hostfile"

    def launcher_log(self, attempt: int) -> Path:
        """Return the path of the launcher's output."""
        return self.logs(attempt) / "launcher.log"

    def stacks(self, attempt: int, rank: int) -> Path:
        """Return the path of a rank's stacks when the run made no progress."""
        return self.logs(attempt) / f"stacks-rank-{rank}.txt"

    def rank_log(self, attempt: int, rank: int) -> Path:
        """Return the path of one rank's output."""
        return self.logs(attempt) / f"rank-{rank}.log"

    def rank_status(self, attempt: int, rank: int) -> Path:
        """JSON: pid, start time, host, and, once the rank has ended by itself, its exit code."""
        return self.logs(attempt) / f"rank-{rank}.json"

    def rank_samples(self, attempt: int, rank: int) -> Path:
        """Return the path of the samples that one rank was trained on, if they are recorded."""
        return self.logs(attempt) / f"rank-{rank}.samples.jsonl"
