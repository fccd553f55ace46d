"""Slurm: an allocation gives hosts, srun starts ranks and reaches hosts, sbatch is the queue."""

from __future__ import annotations

from dslm.launch.sites.site import Queue, Site
from dslm.launch.sites.slurm.allocation import allocation
from dslm.launch.sites.slurm.batch import batch_script, has_gpus, submit
from dslm.launch.sites.slurm.launch import SRUN, request

SITE = Site(
    name="slurm",
    given=allocation,
    request=request,
    transport=SRUN,
    queue=Queue(has_gpus=has_gpus, script=batch_script, submit=submit),
    rank_variables=("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    # its tasks are told of a preemption, the supervisor isn't (slurm.conf(5), GraceTime)
    terminates_ranks=True,
)
