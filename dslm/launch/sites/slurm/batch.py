"""A batch script for Slurm that trains, and carries on by itself when its job was interrupted.

`batch_script` is pure; `submit` hands it to sbatch. What a cluster wants beyond nodes and GPUs
(partition, account, time limit) comes from sbatch's own variables, such as SBATCH_PARTITION
(sbatch(1), INPUT ENVIRONMENT VARIABLES), so dslm needs no option for any of it.

How a job ends, and what the script does about it:
- preempted: Slurm sends SIGTERM to the ranks, which tell dslm, and SIGKILL to everything after the
  partition's grace time (slurm.conf(5), GraceTime); when dslm has saved its checkpoint the script
  queues the job again;
- out of time: Slurm sends SIGTERM to the script beforehand, which passes it on, and so on as above;
- cancelled, stopped by `dslm runs stop`, done or failed: the job ends.
The same command finds the unfinished run in its directory and resumes it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

from dslm.errors import Interrupted, OptionError, RunFailed, Where
from dslm.launch.sites.site import Batch, Submitted

_SECONDS_BEFORE_END = 180  # to write a checkpoint in
_SUBMIT_SECONDS = 60

_SCRIPT = """\
#!/bin/bash
{directives}

ending=
dslm=
end_soon() {{
  ending=1
  kill -TERM "$dslm"
}}
trap end_soon TERM

{command} &
dslm=$!
wait "$dslm"
while kill -0 "$dslm" 2>/dev/null; do # a trapped signal ends `wait` early
  wait "$dslm"
done
wait "$dslm" # it may have ended right behind a signal; bash remembers how
code=$?
# a job whose script ends before the grace time is over is not queued again by Slurm itself;
# one that was cancelled does not run any more
state=$(scontrol show job "$SLURM_JOB_ID")
case "$state" in *PreemptTime=[0-9]*) ending=1 ;; esac
case "$state" in *JobState=RUNNING*) ;; *) ending= ;; esac
if [ "$code" -eq {interrupted} ] && [ -n "$ending" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def batch_script(batch: Batch) -> str:
    """Return the script, as sbatch takes it.

    Raises:
        OptionError: the run directory's name can't stand in a directive of sbatch.
    """
    output = f"{batch.run}-%j.out"
    # sbatch gives `%` and `\\` meanings of their own, and a line is a directive
    if not re.fullmatch(r"[^\\%\"\x00-\x1f]+", str(batch.run)):
        raise OptionError(
            "Slurm can't write the output of a job beside a folder of this name",
            where=Where(file=batch.run),
            hint="choose another with `-o DIR`",
        )
    options = [
        f"--job-name={re.sub(r'[^A-Za-z0-9_.-]', '_', batch.name)}",
        f"--nodes={batch.nodes}",
        f"--ntasks-per-node={batch.slots}",
        *([f"--gpus-per-node={batch.slots}"] if batch.gpus else []),
        f'--output="{output}"',
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{_SECONDS_BEFORE_END}",
    ]
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {option}" for option in options),
        interrupted=Interrupted.exit_code,
        command=shlex.join([sys.executable, "-P", "-m", "dslm", *batch.arguments]),
    )


def submit(batch: Batch) -> Submitted:
    """Write the script beside the run directory and hand it to sbatch.

    Raises:
        OptionError: there is no sbatch here, or the folder can't be written.
        RunFailed: Slurm refuses the job.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise OptionError(
            "there is no sbatch here",
            where=Where(key="--slurm"),
            hint="run this on a login node of Slurm; `--dry-run` shows the script",
        )
    file = batch.run.with_name(f"{batch.run.name}.sbatch")
    text = batch_script(batch)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as failure:
        raise OptionError(
            f"the script can't be written: {failure.strerror}", where=Where(file=file)
        ) from failure
    done = subprocess.run(
        [program, "--parsable", str(file)],
        capture_output=True,
        text=True,
        timeout=_SUBMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RunFailed(
            f"sbatch refused the job: {done.stderr.strip()}",
            where=Where(file=file),
            hint="SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT are read by sbatch",
        )
    job = done.stdout.strip().partition(";")[0]
    return Submitted(job=job, script=file, look=f"squeue --jobs {job}")


def has_gpus() -> bool:
    """Return whether Slurm has GPUs; True where it can't be asked."""
    program = shutil.which("sinfo")
    if program is None:
        return True
    asked = [program, "--noheader", "--format=%G"]
    done = subprocess.run(
        asked, capture_output=True, text=True, timeout=_SUBMIT_SECONDS, check=False
    )
    return "gpu" in done.stdout if done.returncode == 0 else True
