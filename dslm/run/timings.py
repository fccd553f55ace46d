"""Timeouts of both sides of an attempt: in one place, since some must exceed others.

Invariant 4 of the design: ten seconds after a run has ended nothing of it is alive on any host. The
sums in `ENDINGS` are the longest ways there, and a test holds them to it.
"""

from __future__ import annotations

ALL_GONE_SECONDS = 10.0  # invariant 4

BEAT_SECONDS = 1.0  # a rank says how far it is
SILENT_SECONDS = 5.0  # a rank that has not said so for this long does not run
CONNECT_SECONDS = 10.0  # to connect, and to say who one is
LAST_WORD_SECONDS = 10.0  # for a slow supervisor to take a rank's last word

# Without an answer from the other host's kernel. The supervisor's is the shorter: it reports.
SUPERVISOR_GIVES_UP_SECONDS = 6.0
RANK_GIVES_UP_SECONDS = 7.5
SILENT_HOST_SECONDS = 2.5  # a kernel that is there answers every second; less than SETTLE_SECONDS
RANK_ENDS_CHILDREN_SECONDS = 1.5  # for what a rank has started to be gone, once it was killed

POLL_SECONDS = 0.2
DRAIN_SECONDS = 0.5  # once the launcher has ended, for the last words of its ranks to arrive
STACKS_SECONDS = 3.0  # to collect the stacks of a stalled run before it is ended
SETTLE_SECONDS = 3.0  # after a rank has failed the others may still say why
LEAVE_SECONDS = 3.6  # after its last word a rank still leaves Python, and its launcher sees it
REMOTE_SECONDS = 3.4  # for another host to end what is left there
TERM_SECONDS = 1.2  # between SIGTERM and SIGKILL
KILL_SECONDS = 1.2  # for what was killed to be gone

_LAUNCHER = DRAIN_SECONDS + REMOTE_SECONDS + TERM_SECONDS + KILL_SECONDS
ENDINGS = {
    "a rank failed": SETTLE_SECONDS + _LAUNCHER,
    "the run was stopped": _LAUNCHER,
    "the run is done": LEAVE_SECONDS + _LAUNCHER,
    "the supervisor's host is gone": RANK_GIVES_UP_SECONDS + RANK_ENDS_CHILDREN_SECONDS,
    "the supervisor is gone": BEAT_SECONDS + RANK_ENDS_CHILDREN_SECONDS,
}
"""Seconds from how a run ends to when nothing of it is left, at most."""
