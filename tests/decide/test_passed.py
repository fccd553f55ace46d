"""A Trainer script and the config that it is given have one value for each thing."""

from __future__ import annotations

import pytest

from dslm.cluster.detect import local_cluster
from dslm.decide.job import Job, resolve_job
from dslm.decide.passed import Passed, pass_on
from dslm.errors import OptionError
from dslm.recipe.load import load_recipe

SCRIPT = "parser = HfArgumentParser((ModelArguments, TrainingArguments))"


def _job(*overrides: str) -> Job:
    loaded = load_recipe("quickstart", overrides)
    return resolve_job(loaded, local_cluster(ranks=loaded.recipe.parallel.ranks))


def _passed(*arguments: str, text: str = SCRIPT, overrides: tuple[str, ...] = ()) -> Passed:
    job = _job(*overrides)
    return pass_on(text, arguments, job)


def _options(passed: Passed) -> dict[str, str]:
    return dict(zip(passed.arguments[::2], passed.arguments[1::2], strict=True))


def test_the_recipe_goes_before_the_defaults_of_the_script() -> None:
    passed = _passed("--block_size", "64")
    options, config = _options(passed), passed.config
    assert options["--learning_rate"] == str(config["optimizer"]["params"]["lr"]) == "0.006"
    assert options["--adam_beta2"] == str(config["optimizer"]["params"]["betas"][1]) == "0.95"
    assert options["--weight_decay"] == "0.1"
    assert options["--per_device_train_batch_size"] == "8"
    assert options["--max_steps"] == "600"
    assert options["--lr_scheduler_type"] == "cosine"
    assert "scheduler" not in config
    assert passed.yours == ()


def test_what_its_user_says_goes_before_the_recipe() -> None:
    passed = _passed("--learning-rate=1e-5", "--num_train_epochs", "1", "--bf16")
    assert set(passed.yours) == {"learning_rate"}
    options = _options(passed)
    assert not {"--learning_rate", "--max_steps", "--bf16", "--fp16"} & set(options)
    assert passed.config["optimizer"]["params"]["lr"] == 1e-5
    assert passed.config["bf16"]["enabled"] is True


@pytest.mark.parametrize(
    ("arguments", "micro", "accumulation", "total"),
    [
        (("--per_device_train_batch_size", "2"), 2, 4, 16),
        (("--gradient_accumulation_steps", "8"), 1, 8, 16),
        (("--per_device_train_batch_size=3", "--gradient_accumulation_steps=5"), 3, 5, 30),
    ],
)
def test_batch_sizes_multiply(
    arguments: tuple[str, ...], micro: int, accumulation: int, total: int
) -> None:
    passed = _passed(*arguments)
    config = passed.config
    assert config["train_micro_batch_size_per_gpu"] == micro
    assert config["gradient_accumulation_steps"] == accumulation
    assert config["train_batch_size"] == total
    named = {
        "--per_device_train_batch_size": str(micro),
        "--gradient_accumulation_steps": str(accumulation),
    }
    options = _options(passed)
    assert all(options.get(name, value) == value for name, value in named.items())


@pytest.mark.parametrize("size", ["3", "none", "0"])
def test_a_batch_that_cannot_be_split_is_refused(size: str) -> None:
    with pytest.raises(OptionError, match="per_device_train_batch_size"):
        _passed("--per_device_train_batch_size", size)


def test_a_script_that_makes_its_own_arguments_decides_itself() -> None:
    passed = _passed(text="args = TrainingArguments(deepspeed=sys.argv[2])")
    assert passed.arguments == ()
    assert passed.config["optimizer"]["params"]["lr"] == "auto"
    assert passed.config["train_batch_size"] == "auto"
    assert passed.config["zero_optimization"]["stage"] == 2


def test_another_script_gets_the_whole_config() -> None:
    job = _job()
    passed = pass_on("import deepspeed", [], job)
    assert passed.arguments == ()
    assert passed.config == job.config.values
