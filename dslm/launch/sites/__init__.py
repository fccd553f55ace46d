"""The table of sites: a module and a row for each.

`--launcher` names a row; a row with a queue is what an option such as `--slurm` submits to.
"""

from __future__ import annotations

from collections.abc import Mapping

from dslm.cluster.hosts import Host
from dslm.errors import OptionError, Where, did_you_mean
from dslm.launch.sites import local, openmpi, pdsh, slurm
from dslm.launch.sites.site import Queue, Site

SITES: dict[str, Site] = {
    site.name: site for site in (local.SITE, pdsh.SITE, openmpi.SITE, slurm.SITE)
}


def site_named(name: str) -> Site:
    """Return a site by its name.

    Raises:
        OptionError: the name is unknown.
    """
    if name not in SITES:
        raise OptionError(
            f"there is no launcher `{name}`",
            where=Where(key="--launcher"),
            hint=did_you_mean(name, SITES) or f"there are: {', '.join(SITES)}",
        )
    return SITES[name]


def allocation(variables: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the hosts that a batch system has given to this process; None outside of any job.

    Raises:
        HostfileError: the environment names some, but what it says can't be understood.
    """
    found = (site.given(variables) for site in SITES.values())
    return next((given for given in found if given is not None), None)


def queue_of(name: str) -> Queue:
    """Return the queue of a site.

    Raises:
        OptionError: it has none.
    """
    queue = site_named(name).queue
    if queue is None:
        raise OptionError(f"`{name}` has no queue to submit to", where=Where(key=f"--{name}"))
    return queue
