"""The list of checks is asked as a verb needs it, and what judges ask of this machine is so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from dslm.cluster.detect import local_cluster
from dslm.cluster.wrong_versions import Setting, When, WrongVersion
from dslm.decide import axes, matrix
from dslm.decide.checks import every, features, known, layout, machine, versions
from dslm.decide.checks.base import Case, Check, Problem, Verb, apart, data_problem
from dslm.decide.checks.every import Asking
from dslm.decide.job import resolve_job
from dslm.decide.model import ModelSource
from dslm.errors import DataError, DslmError, RecipeError
from dslm.plan.runnable import Sizes
from dslm.recipe.features import FEATURES, Apart
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe
from tests.decide.judged import Given
from tests.decide.test_judges import case_of

TRAIN = Asking(verb=Verb.TRAIN)


def _check(name: str, *problems: Problem, **settings: object) -> Check:
    def judge(case: Case) -> tuple[Problem, ...]:
        assert isinstance(case, Case)
        return problems

    return Check(name=name, looks_at="", judge=judge, **settings)  # type: ignore[arg-type]


PROBLEM = Problem(key="seed", message="odd", hint="even")
ROWS = (
    _check("of the recipe", Problem(key="recipe", message="")),
    _check("of the plan", Problem(key="plan", message=""), planned=True),
    _check("of the machine", Problem(key="machine", message=""), of_machine=True),
    _check("of verify", Problem(key="verify", message=""), verbs=frozenset({Verb.VERIFY})),
)


@pytest.mark.parametrize(
    ("asking", "planned", "asked"),
    [
        (TRAIN, False, ["recipe", "machine"]),
        (TRAIN, True, ["plan"]),
        (replace(TRAIN, here=False), False, ["recipe"]),
        (replace(TRAIN, here=False), True, ["plan"]),
        (Asking(verb=Verb.VERIFY), False, ["recipe", "machine", "verify"]),
        (Asking(verb=Verb.VERIFY, here=False), False, ["recipe", "verify"]),
        (replace(TRAIN, force=True, device_known=False), False, ["recipe", "machine"]),
    ],
)
def test_a_verb_asks_its_checks_and_a_plan_those_of_plans(
    asking: Asking, planned: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every, "CHECKS", ROWS)
    case = case_of(Given(plan={} if planned else None))
    assert [problem.key for _, problem in every.against(case, asking)] == asked


def test_all_problems_of_a_recipe_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_recipe("quickstart", ["seed=3", "task=sft"])
    case = case_of(Given())

    def refused(*problems: Problem) -> DslmError:
        monkeypatch.setattr(every, "CHECKS", (_check("some", *problems),))
        with pytest.raises(DslmError) as caught:
            every.refuse(case, TRAIN, loaded)
        return caught.value

    monkeypatch.setattr(every, "CHECKS", ())
    every.refuse(case, TRAIN, loaded)
    one = refused(PROBLEM)
    assert type(one) is RecipeError
    assert (one.message, str(one.where), one.hint) == ("odd", "--set seed", "even")
    assert one.findings == ()
    of_data = refused(data_problem("task", "no records", "some"))
    assert type(of_data) is DataError
    assert (of_data.message, of_data.hint) == ("no records", "some")
    both = refused(PROBLEM, data_problem("task", "no records"))
    assert type(both) is RecipeError
    assert both.message == "2 problems were found in this recipe"
    assert [(f.message, str(f.where), f.hint) for f in both.findings] == [
        ("odd", "--set seed", "even"), ("no records", "--set task", ""),
    ]  # fmt: skip


def test_a_key_is_the_files_where_a_file_says_the_model(tmp_path: Path) -> None:
    case = case_of(Given())
    assert case.at("hidden_size") == "model.architecture.hidden_size"
    from_file = replace(case, source=ModelSource(file=tmp_path / "config.json"))
    assert from_file.at("hidden_size") == "model.name"


def test_permits_are_what_no_check_refuses() -> None:
    case = case_of(Given(hosts=(4,)))
    permits = layout.permits_of(case.source)

    def permitted(given: Given, **sizes: int) -> bool:
        of = case_of(given)
        return layout.permits_of(of.source)(of.recipe, of.cluster, Sizes(**sizes))

    dense, experts = Given(hosts=(4,)), Given(
        "model.architecture.model_type=mixtral model.architecture.num_local_experts=4", hosts=(4,)
    )  # fmt: skip
    assert permits(case.recipe, case.cluster, Sizes())
    assert permitted(dense, tensor=2)
    assert not permitted(dense, tensor=3)  # of 4 heads
    assert permitted(dense, sequence=2)
    assert not permitted(dense, sequence=3)
    assert not permitted(dense, expert=2)  # it has none
    assert permitted(experts, expert=2)
    assert not permitted(experts, tensor=2)  # whose layers DeepSpeed can't share
    # whatever the recipe asks for
    assert permitted(Given("parallel.tensor=3", hosts=(4,)), tensor=2)
    assert not permitted(Given("parallel.tensor=2", hosts=(4,)), tensor=3)
    unknown = Given("model.init=pretrained model.name=no-one/has-this", hosts=(4,))
    assert permitted(unknown)


def test_a_feature_needs_its_file_of_deepspeed_and_its_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, elsewhere = case_of(Given()), case_of(Given(here=False))
    plain = replace(FEATURES[0], what="a thing", home="", torch="")

    def told(**more: Any) -> list[tuple[str, str]]:
        return list(features._version(case, replace(plain, **more)))

    deepspeed = importlib.metadata.version("deepspeed")
    assert told() == []
    assert told(home="runtime/engine.py", torch="2.6") == []
    assert told(home="nowhere.py") == [
        (f"DeepSpeed {deepspeed} has no a thing (nowhere.py)", "pip install --upgrade deepspeed")
    ]
    assert told(torch="99.1") == [("a thing needs torch 99.1", "pip install --upgrade torch")]
    assert [*features._version(elsewhere, replace(plain, home="nowhere.py", torch="99.1"))] == []
    for release, enough in (("2.6.1+cu128", True), ("2.5.9", False), ("2.10", True), ("3.0", True)):
        with monkeypatch.context() as patch:
            patch.setattr(features, "installed_release", {"torch": release}.get)
            assert (told(torch="2.6") == []) is enough
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _: None)
        assert told(home="nowhere.py") == []  # other hosts have it, perhaps
        patch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
        assert told(home="nowhere.py") == []
    with monkeypatch.context() as patch:
        patch.setattr(features, "installed_release", {}.get)
        assert told(torch="99.1") == []


def test_a_header_is_looked_for_where_compilers_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in machine._COMPILER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert not machine._header("dslm-has-it.h")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "dslm-has-it.h").touch()
    for name, value in (
        ("CPATH", f"/nowhere:{tmp_path}/include"), ("CPLUS_INCLUDE_PATH", f"{tmp_path}/include"),
        ("CFLAGS", f"-O2 -I{tmp_path}/include"), ("CONDA_PREFIX", str(tmp_path)),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert machine._header("dslm-has-it.h"), name
    assert machine._header("stdio.h")


@pytest.mark.parametrize(
    ("library", "header", "writable", "told"),
    [
        (True, True, True, []),
        (False, True, True, ["parallel.offload: libaio is not installed"]),
        (True, False, True, ["parallel.offload: the headers of libaio"]),
        (False, False, True, ["parallel.offload: libaio is not installed"]),
        (True, True, False, ["parallel.nvme_path: the folder"]),
        (False, True, False, ["parallel.nvme_path: the folder", "parallel.offload: libaio is not"]),
    ],
)
def test_a_disk_needs_libaio_its_header_and_the_right_to_write(
    library: bool, header: bool, writable: bool, told: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "ctypes.util.find_library",
        lambda name: "libaio.so.1" if library and name == "aio" else None,
    )
    monkeypatch.setattr(machine, "_header", lambda name: header and name == "libaio.h")
    monkeypatch.setattr(
        os, "access", lambda path, mode: writable or path != tmp_path or mode != os.W_OK
    )
    sets = f"parallel.zero_stage=3 parallel.offload=nvme parallel.nvme_path={tmp_path}"
    found = list(machine._nvme(case_of(Given(sets))))
    assert len(found) == len(told)
    for said, begins in zip(found, told, strict=True):
        assert f"{said.key}: {said.message}".startswith(begins)
        of_disk = said.key == "parallel.nvme_path"
        assert said.hint == ("its owner can change that" if of_disk else "apt install libaio-dev")


def _seen(given: Given) -> Setting:
    case = case_of(given)
    assert case.strategy is not None
    return versions.setting_of(case.recipe, case.strategy, case.cluster, case.source)


def test_wrong_versions_see_what_is_trained() -> None:
    plan = {"zero_stage": 3, "offload": "all", "gradient_accumulation_steps": 2}
    sets = (
        "precision=bf16 model.compile=true model.liger=true optimizer.name=lion deepspeed.a.b=1 "
        "parallel.zeropp=true parallel.zero_stage=3"
    )
    seen = _seen(Given(sets, device="h100", hosts=(2, 1), plan=plan))
    assert seen == Setting(
        stage=3, precision="bf16", ranks=3, offload="all", accumulates=True, clips=True,
        on_cpu=False, compile=True, liger=True, zeropp=True, pretrained=False, task="pretrain",
        optimizer="lion", model_type="llama", deepspeed={"a.b": 1},
    )  # fmt: skip
    plain = _seen(Given(plan={}))
    assert plain == Setting(
        stage=2, precision="fp32", ranks=2, clips=True, on_cpu=True, task="pretrain",
        optimizer="adamw", model_type="llama",
    )  # fmt: skip
    for sets, device, liger in (
        ("model.liger=auto", "h100", True), ("model.liger=auto", "cpu", False),
        ("model.liger=false", "h100", False), ("model.liger=true", "cpu", True),
    ):  # fmt: skip
        setting = _seen(Given(sets, device=device, plan={}))
        assert setting.liger is liger
    assert not _seen(Given("optimizer.grad_clip=0", plan={})).clips
    unknown = Given("model.init=pretrained model.name=no-one/has-this", plan={})
    setting = _seen(unknown)
    assert (setting.pretrained, setting.model_type) == (True, "")


SURE = WrongVersion(
    id="sure", package="dslm-a", when=When(stages=(2,)), wrong="is wrong", avoid="seed=1",
    source="here", below="2.0",
)  # fmt: skip
PERHAPS = replace(SURE, id="perhaps", package="dslm-b", also="at times", avoid="seed", below="")
OTHER = replace(SURE, id="other", when=When(stages=(3,)))


@pytest.mark.parametrize(
    ("sets", "plan", "refused", "doubted"),
    [
        ("", {}, ["sure"], ["perhaps"]),
        ("", {"zero_stage": 3}, ["other"], []),
        ("", {"zero_stage": 1}, [], []),
        ("guards.on_trouble=warn", {}, [], ["sure", "perhaps"]),
        ("", None, [], []),
    ],
)
def test_what_is_sure_is_refused_and_what_may_be_is_said(
    sets: str, plan: dict[str, object] | None, refused: list[str], doubted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "dslm.cluster.wrong_versions.wrong_versions", lambda: (SURE, PERHAPS, OTHER)
    )
    monkeypatch.setattr(
        "dslm.cluster.wrong_versions.installed_release", {"dslm-a": "1.0", "dslm-b": "3.0"}.get
    )
    case = case_of(Given(sets, plan=plan))
    said = {
        "sure": "dslm-a 1.0: is wrong; here",
        "perhaps": "dslm-b 3.0: is wrong (at times); here",
        "other": "dslm-a 1.0: is wrong; here",
    }
    problems = list(versions._known_wrong(case))
    assert [problem.message for problem in problems] == [said[name] for name in refused]
    assert versions.doubts(case) == [said[name] for name in doubted]
    for problem in problems:
        assert problem.key == "seed"
        assert problem.hint == (
            "pip install 'dslm-a>=2.0', or `--set seed=1`; "
            "`--set guards.on_trouble=warn` trains all the same"
        )


def test_what_is_avoided_by_a_key_alone_is_refused_at_that_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = replace(SURE, avoid="model.compile", below="")
    monkeypatch.setattr("dslm.cluster.wrong_versions.wrong_versions", lambda: (bare,))
    monkeypatch.setattr("dslm.cluster.wrong_versions.installed_release", {"dslm-a": "1.0"}.get)
    (problem,) = versions._known_wrong(case_of(Given(plan={})))
    assert problem.key == "model.compile"
    assert problem.hint.startswith("another `model.compile`; ")


@pytest.mark.parametrize(("stage", "met"), [(1, []), (2, ["sure", "perhaps"])])
def test_a_resolved_job_knows_what_it_meets(
    stage: int, met: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dslm.decide.job.profile_of", lambda *args, **more: (None, "not traced"))
    monkeypatch.setattr(
        "dslm.cluster.wrong_versions.wrong_versions",
        lambda: (replace(SURE, when=When(stages=(2,), ranks=2, model_types=("llama",))), PERHAPS),
    )
    monkeypatch.setattr(
        "dslm.cluster.wrong_versions.installed_release", {"dslm-a": "1.0", "dslm-b": "3.0"}.get
    )
    loaded = load_recipe("quickstart", [f"parallel.zero_stage={stage}"])
    job = resolve_job(loaded, local_cluster(ranks=2))
    assert versions.known_of(job) == tuple(
        {"sure": "dslm-a 1.0: is wrong; here", "perhaps": "dslm-b 3.0: is wrong (at times); here"}[
            name
        ]
        for name in met
    )


@pytest.mark.parametrize(
    ("feature", "plan", "key", "what"),
    [
        (axes.PLAIN, {}, "parallel.zero_stage", "training"),
        (
            "model.activation_checkpointing=true",
            {"activation_checkpointing": True},
            "model.activation_checkpointing",
            "`model.activation_checkpointing=true`",
        ),
    ],
)
def test_what_failed_is_found_in_what_the_plan_chose(
    feature: str, plan: dict[str, object], key: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = axes.Cell("cpu", "llama", feature, "fp32", 2)
    outcome = matrix.Outcome(matrix.Result.FAILED.value, "", "it stops")
    found = matrix.filled(
        matrix.Matrix(made="today", versions={"deepspeed": "1.0"}), {cell: outcome}
    )
    monkeypatch.setattr(matrix, "recorded", lambda: found)
    monkeypatch.setattr(matrix, "installed", lambda: {"deepspeed": "1.0"})
    (problem,) = known._known(case_of(Given(plan=plan)))
    assert problem.key == key
    assert problem.message.startswith(f"{what} fails with a model of type `llama`")
    other = {"activation_checkpointing": not plan.get("activation_checkpointing")}
    assert list(known._known(case_of(Given(plan={**plan, **other})))) == []


def test_a_table_of_what_clashes_is_judged_row_by_row() -> None:
    def by_seed(recipe: Recipe) -> object:
        return recipe.seed == 42

    rows = (
        Apart("seed", by_seed, "never 42", "41"),
        Apart("task", lambda recipe: recipe.task == "sft", "never sft", ""),
        Apart("model", by_seed, "nor its model", ""),
    )
    found = list(apart(rows)(case_of(Given())))
    assert [(each.key, each.message, each.hint) for each in found] == [
        ("seed", "never 42", "41"), ("model", "nor its model", ""),
    ]  # fmt: skip
