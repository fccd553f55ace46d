"""Commands reach other hosts word for word."""

from __future__ import annotations

import sys

import pytest

from dslm.launch.sites.slurm.launch import SRUN
from dslm.reach.remote import remote_argv, run_everywhere, run_on

ODD = ["a b", "'", '"', "$HOME", "`id`", "$(id)", ";reboot", "a\nb", "\\", "*", "~", "", "ü", "-x"]
ECHO = [sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))"]


def test_a_name_that_is_none_reaches_no_shell() -> None:
    for name in ("-oProxyCommand=reboot", "w1;reboot", "$(reboot)", "w1 w2", ""):
        with pytest.raises(ValueError, match="not a host name"):
            remote_argv(name, ["true"])


def test_srun_gets_the_words_themselves() -> None:
    assert remote_argv("w1", ["a b", "$HOME"], SRUN)[-3:] == ["--", "a b", "$HOME"]


def test_this_machine_needs_no_ssh() -> None:
    answer = run_on("localhost", ["cat"], said="hello", seconds=10)
    assert (answer.ok, answer.stdout) == (True, "hello")


def test_what_takes_too_long_is_ended() -> None:
    answer = run_on("localhost", ["sleep", "60"], seconds=0.3)
    assert answer.exit_code is None
    assert answer.seconds < 30


def test_nobody_is_asked_when_there_is_nobody() -> None:
    assert run_everywhere([], ["true"], seconds=1) == []
