"""Every environment variable that dslm reads or sets, each with a sentence.

Knows names, not values: whoever reads one passes the value on as an argument.
"""

from __future__ import annotations

RUN = "DSLM_RUN"
"""Run directory, for the ranks."""
ATTEMPT = "DSLM_ATTEMPT"
"""Number of the attempt, from 1, for the ranks."""
SUPERVISOR = "DSLM_SUPERVISOR"
"""`PID:START_TIME` of the supervisor on this host: a rank that sees it gone ends itself."""
DS_CONFIG = "DSLM_DS_CONFIG"
"""Path of the resolved DeepSpeed JSON, for scripts started by `dslm launch`."""
ACCELERATOR = "DS_ACCELERATOR"
"""DeepSpeed's own choice of accelerator; dslm sets `cpu` where there is none."""
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""Which CUDA devices may be used."""
THREADS = "OMP_NUM_THREADS"
"""CPU threads per rank; set so that the ranks of a host don't fight over cores."""

# How each launcher tells a rank who it is: rank, local rank, world size.
RANK_VARIABLES = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
)
