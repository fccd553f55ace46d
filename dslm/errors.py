"""The errors that dslm raises, and the exit code of each.

    DslmError(message, where, hint)
    ├─ InputError           2   bad input: the user can fix it
    │  ├─ RecipeError           recipe, override
    │  ├─ ConfigError           DeepSpeed JSON
    │  ├─ HostfileError         hostfile, host filter
    │  ├─ DataError             data path, record
    │  └─ OptionError           command-line option, output folder
    ├─ PreflightError       3   a check of the cluster failed
    ├─ DoesNotFit           4   the plan says that it does not fit
    ├─ RunFailed            1   the run failed
    ├─ Differs              5   the layout learns something else than one process would
    └─ Interrupted        130   stopped by Ctrl-C or SIGTERM

An error is raised where the fact is known and rendered once, by `dslm.cli.app`. This module knows
nothing of how it is shown.
"""

from __future__ import annotations

import difflib
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LONGEST_WORD = 100  # the search for near ones takes time with its square
_LONGEST = 600  # letters of an unforeseen error that are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """A place in the input: a file or option, its line (from 1), the dotted key; each if known."""

    file: str | Path | None = None
    line: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = shortened(str(self.file), 300) if self.file is not None else ""
        if place.startswith("--") and self.key:
            return f"{place} {self.key}"  # an option that gave the key: `--set batch.global_size`
        if place and self.line is not None:
            place += f":{self.line}"
        if self.key:
            place = f"{place} ({self.key})" if place else self.key
        return place


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing wrong (or doubtful) in an input: where, what, and what would be right."""

    message: str
    where: Where = Where()
    hint: str = ""
    severity: str = "error"  # error | warning
    rule: str = ""  # what kind of mistake, for programs


def shortened(text: str, most: int = 80) -> str:
    """Shorten a text for a message by leaving out its middle."""
    if len(text) <= most:
        return text
    half = (most - 20) // 2
    return f"{text[:half]} … {text[-half:]} ({len(text):,} characters)"


class DslmError(Exception):
    """Anything that dslm tells its user instead of a traceback."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        where: Where | None = None,
        hint: str = "",
        findings: Iterable[Finding] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where or Where()
        self.hint = hint
        self.findings = tuple(findings)


class InputError(DslmError):
    """Bad input: nothing was launched and nothing was written."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, or an override of it, is wrong."""


class ConfigError(InputError):
    """A DeepSpeed configuration is wrong."""


class HostfileError(InputError):
    """A hostfile or a host filter is wrong."""


class DataError(InputError):
    """The data is missing, empty or unreadable."""


class OptionError(InputError):
    """A command-line option is wrong, or the output folder cannot be used."""


class PreflightError(DslmError):
    """A check of the cluster failed before the launch."""

    exit_code = 3


class DoesNotFit(DslmError):
    """The plan says that the run does not fit into memory."""

    exit_code = 4


class RunFailed(DslmError):
    """The run was launched and failed."""

    exit_code = 1


class Differs(DslmError):
    """`dslm verify` found that the layout computes something else than one process does."""

    exit_code = 5


class Interrupted(DslmError):
    """The run was stopped by a signal."""

    exit_code = 130


def unforeseen(exception: BaseException) -> DslmError:
    """Describe an error that dslm didn't foresee, and save its traceback if possible."""
    what = f"{type(exception).__name__}: {exception}".strip()
    text = "".join(traceback.format_exception(exception))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="dslm-traceback-", suffix=".txt", delete=False, encoding="utf-8",
            errors="backslashreplace",
        ) as stream:  # fmt: skip
            stream.write(text)
        hint = f"the traceback is in {stream.name}; `--debug` shows it; please report it"
    except OSError:
        hint = "`--debug` shows the traceback; please report it"
    return DslmError(f"dslm itself failed: {what[:_LONGEST]}", hint=hint)


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return the hint for a misspelt word: "did you mean `x`?", or "" when nothing is near."""
    near = difflib.get_close_matches(word[:_LONGEST_WORD], list(known), n=1, cutoff=likeness)
    return f"did you mean `{near[0]}`?" if near else ""
