"""How good a model is: on the data that a run held out, and on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from dslm.errors import InputError, Where
from dslm.recipe.load import recipe_of_run
from dslm.recipe.preferences import COMPARING
from dslm.recipe.schema import Recipe
from dslm.run.directory import RunDirectory
from dslm.worker.answer import Tell
from dslm.worker.data.prepare import Prepared, prepare
from dslm.worker.data.records import first_line
from dslm.worker.data.tokenizer import load_tokenizer
from dslm.worker.evaluate import evaluate
from dslm.worker.model import label_settings
from dslm.worker.tasks import task_of
from dslm.worker.trainer_alone import LAYOUT, reference_again, trainer_alone
from dslm.worker.use import Used, beside, load

_FIRST_BATCH = 16  # samples; halved until they fit
Scores = dict[str, dict[str, float]]  # metrics by the name of what was evaluated


def scores(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Return the scores of the model, and of the one that it is compared with."""
    run = request["run"]
    recipe = None
    if run is not None:
        of = RunDirectory(Path(run))
        recipe = recipe_of_run(of.recipe)
    own = _OwnData(recipe, Path(run), tell) if recipe is not None and request["own"] else None
    settings: dict[str, Any] = {"trusted": request["trusted"]}
    if own is not None:
        settings |= {
            "auto_class": own.task.auto_class,
            **own.task.config,
            **label_settings(own.data.labels),
        }
    first = load(request["model"], tell, **settings)
    used = [first]
    if request["against"] is not None:
        used.append(beside(first, request["against"], tell, **settings))
    return {"scores": [_scores(one, own, request, tell) for one in used]}


def _scores(used: Used, own: _OwnData | None, request: Mapping[str, Any], tell: Tell) -> Scores:
    found: Scores = {}
    with used.ready() as model:
        if own is not None:
            tell(f"{used.name}: {len(own.samples)} held-out samples")
            found["held out"] = own.measure(model, used.device)
        if request["tasks"]:
            found |= _harness(used, model, request, tell)
    return found


class _OwnData:
    """What a run is evaluated on while it trains."""

    def __init__(self, recipe: Recipe, run: Path, tell: Tell) -> None:
        self.recipe = recipe
        self.task = task_of(recipe)
        if recipe.task in COMPARING and recipe.model.init == "scratch" and _stage(run) == 3:
            raise InputError(
                f"the task `{recipe.task}` compares with the model as it began, and that was drawn "
                "at random in parts (ZeRO stage 3): it can't be made again",
                where=Where(key="model.init"),
                hint="the run itself was evaluated while it trained: `dslm runs show`",
            )
        self._trainers: dict[int, Any] = {}  # by their model, which TRL's change
        self.tokenizer = load_tokenizer(recipe, run / "tokenizer") if self.task.tokenizer else None
        self.data: Prepared = prepare(
            recipe, self.task.encoder(recipe, self.tokenizer), self.tokenizer, tell
        )
        if self.data.eval is None:
            raise InputError(
                "the run held no data out, and names none to evaluate on",
                where=Where(file=run / "recipe.yaml", key="data.eval"),
                hint="`--tasks NAME` evaluates on tasks of lm-evaluation-harness",
            )
        self.samples = self.data.eval

    def measure(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        """The task's metric over all held-out samples."""
        size = _FIRST_BATCH
        while True:
            try:
                return self._measured(model, device, size)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2

    def _measured(self, model: Any, device: torch.device, size: int) -> dict[str, float]:
        task, samples = self.task, self.samples
        collate = task.collator(self.recipe, self.tokenizer, model.config)
        settings: dict[str, Any] = {"micro_batch": size, "on_batch": lambda: None}
        trainer = self._trainer(model) if task.measure is not None else None
        if not dist.is_initialized():  # not before: transformers would take this for one of many
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        if task.measure is None:
            metric = task.metric(self.recipe, len(self.data.labels))
            return evaluate(model, samples, collate, metric, LAYOUT, device=device, **settings)
        return task.measure(trainer, task.view(samples), collate, LAYOUT, **settings)

    def _trainer(self, model: Any) -> Any:
        """The trainer of the task, made once for a model."""
        if id(model) not in self._trainers:
            given = self.recipe, self.task
            reference = (
                reference_again(*given, self.tokenizer) if self.recipe.task in COMPARING else None
            )
            self._trainers[id(model)] = trainer_alone(
                *given, model, self.tokenizer, self.samples, reference
            )
        return self._trainers[id(model)]


def _stage(run: Path) -> int:
    """The ZeRO stage of a run's newest attempt."""
    config = json.loads(RunDirectory(run).ds_config.read_text(encoding="utf-8"))
    return int(config["zero_optimization"]["stage"])


def _harness(used: Used, model: torch.nn.Module, request: Mapping[str, Any], tell: Tell) -> Scores:
    """Scores on tasks of lm-evaluation-harness, its own or those of a folder of task files."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = request["task_folder"]
    names: list[str] = request["tasks"]
    try:
        manager = TaskManager(include_path=folder, include_defaults=folder is None)
        if folder is not None and not set(names) <= set(manager.all_tasks):
            manager = TaskManager(include_path=folder)  # its own are thousands of files to read
        unknown = [name for name in names if name not in manager.all_tasks]
        if unknown:
            raise InputError(
                f"lm-evaluation-harness has no task `{unknown[0]}`",
                where=Where(key="--tasks"),
                hint=f"`lm-eval ls tasks` lists them; {_own_tasks(folder)}",
            )
        tell(f"{used.name}: {', '.join(names)}")
        made = simple_evaluate(
            model=HFLM(
                pretrained=model,
                tokenizer=used.tokenizer,
                batch_size=request["batch"] or _FIRST_BATCH // 2,
            ),
            tasks=names,
            task_manager=manager,
            limit=request["limit"],
            apply_chat_template=request["chat"],
            bootstrap_iters=0,
            log_samples=False,
        )
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as failure:  # task files are programs: whatever is wrong in one is its own
        raise InputError(
            f"the tasks can't be evaluated: {_told(failure)}",
            where=Where(key="--tasks"),
            hint="their data comes from the Hub; a task file with local data needs no network",
        ) from failure
    return {
        name: {
            metric.removesuffix(",none"): float(value)
            for metric, value in values.items()
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and "_stderr" not in metric
            and metric != "sample_len"
        }
        for name, values in made["results"].items()
    }


def _told(failure: BaseException) -> str:
    """The first line of an exception, and that of its cause: libraries put theirs around it."""
    cause = failure.__cause__
    return first_line(failure) + (f": {first_line(cause)}" if cause is not None else "")


def _own_tasks(folder: str | None) -> str:
    """Say which tasks a folder of task files has, or that there may be one."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return "`--tasks NAME --task-folder DIR` takes your own"
    own = TaskManager(include_path=folder, include_defaults=False).all_tasks
    return f"{folder} has {', '.join(own) or 'none that can be read'}"
