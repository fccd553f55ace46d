"""A training to be done later: the batch job that runs the same command line inside a queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dslm.cluster.detect import this_machine
from dslm.cluster.devices import cpu_device, device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.ready import ready_job
from dslm.errors import OptionError, Where
from dslm.launch.sites import queue_of
from dslm.launch.sites.site import Batch, Site
from dslm.lifecycle.folder import default_folder
from dslm.lifecycle.placement import Placement
from dslm.recipe.load import load_recipe


def batch_of(
    recipe: str,
    overrides: Sequence[str],
    site: Site,
    placement: Placement,
    output: Path | None,
    options: Mapping[str, int | bool | None],
) -> Batch:
    """The batch job of a training; reads the recipe, so that a wrong one isn't found hours later.

    Args:
        recipe: a preset or a file.
        overrides: `KEY=VALUE`, each.
        site: whose queue takes it, and that runs it once it is due.
        placement: where it runs; the queue chooses the hosts.
        output: the run directory; None: `runs/RECIPE-TIME`.
        options: further options of the training, by name.

    Raises:
        InputError: the recipe, its data or an option is wrong.
    """
    launcher = placement.launcher if placement.launcher != site.name else None
    _check_alone(site, {
        "--hostfile": placement.hostfile, "--include": placement.include,
        "--exclude": placement.exclude, "--launcher": launcher,
    })  # fmt: skip
    queue = queue_of(site.name)
    if placement.num_gpus is None:
        raise OptionError(
            f"`--{site.name}` needs the number of ranks per host",
            where=Where(key="--num-gpus"),
            hint=f"`--{site.name} --num-nodes 2 --num-gpus 8`",
        )
    loaded = load_recipe(recipe, overrides)
    nodes, slots, gpus = placement.num_nodes or 1, placement.num_gpus, queue.has_gpus()
    cluster, known = _cluster(nodes, slots, gpus=gpus)
    force = bool(options.get("--force"))
    ready_job(loaded, cluster, Asking(verb=Verb.TRAIN, force=force, device_known=known))
    run = (output or default_folder(loaded.name)).absolute()
    sets = [word for override in overrides for word in ("--set", override)]
    return Batch(
        name=loaded.name,
        nodes=nodes,
        slots=slots,
        gpus=gpus,
        run=run,
        arguments=(
            *("train", recipe, *sets, *_passed_on(placement, options)),
            *("--launcher", site.name, "--num-gpus", str(slots), "--output", str(run)),
        ),
    )


def _passed_on(placement: Placement, options: Mapping[str, int | bool | None]) -> list[str]:
    """The words of the options that the job's own command line repeats."""
    words: list[str] = []
    for name, value in {
        "--max-restarts": placement.max_restarts,
        "--min-nodes": placement.min_nodes,
        "--no-preflight": placement.no_preflight,
        **options,
    }.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words


def _cluster(nodes: int, slots: int, *, gpus: bool) -> tuple[Cluster, bool]:
    """The hosts that the job asks for, and whether their devices are like those here."""
    machine = this_machine()
    hosts = tuple(Host(f"host-{number}", slots) for number in range(1, nodes + 1))
    if not gpus:
        return Cluster(hosts=hosts, device=cpu_device(machine.memory_bytes // slots)), True
    if machine.accelerators:
        return Cluster(hosts=hosts, device=machine.accelerators[0]), True
    return Cluster(hosts=hosts, device=device_named("h100-80gb")), False


def _check_alone(site: Site, options: Mapping[str, str | None]) -> None:
    """Check that no option contradicts a batch job.

    Raises:
        OptionError: one does.
    """
    for name, value in options.items():
        if value is not None:
            raise OptionError(
                f"`{name}` and `--{site.name}` can't be used together: the queue chooses the hosts",
                where=Where(key=name),
                hint="`--num-nodes N --num-gpus N` say how many",
            )
