"""A trained model answers, chats and is evaluated, as its user would do it."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.conftest import DSLM, Dslm
from tests.support.models import small_model

pytestmark = pytest.mark.slow

_TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    """Adapters of the small model that change what it says."""
    torch.manual_seed(1)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"),
    )
    made.save_pretrained(model.parent / "adapter")
    return model.parent / "adapter"


def _expected(model: Path, question: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    made = AutoModelForCausalLM.from_pretrained(model).generate(
        ids, max_new_tokens=6, do_sample=False
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def test_answers_are_those_of_the_model_one_by_one_in_batches_and_beside_its_base(
    model: Path, adapter: Path, warm: Dslm, tmp_path: Path
) -> None:
    greedy = ("--max-tokens", "6", "--temperature", "0")
    expected = [_expected(model, question) for question in ("alpha?", "what is beta, then?")]
    one = warm("generate", str(model), "--prompt", "alpha?", *greedy)
    assert one.returncode == 0, one.stderr
    assert one.stdout == expected[0] + "\n"
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "alpha?"}\n{"messages": [{"role": "user", "content": "what is beta, then?"}]}\n'
    )
    argv = ("--file", "prompts.jsonl", "-o", "out.jsonl", "--against", str(model))
    both = warm("generate", str(adapter), *argv, *greedy)
    assert both.returncode == 0, both.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["against"] for row in rows] == expected
    assert all(row["answer"] != row["against"] for row in rows)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("generate", "MODEL"), "give `--prompt TEXT`"),
        (("generate", "./gone", "-p", "a"), "no such run"),
        (("generate", "MODEL", "-p", "a", "--raw", "--system", "b"), "no system message"),
        (("generate", "MODEL", "-p", "a", "--checkpoint", "3"), "only runs have checkpoints"),
        (("generate", "MODEL", "-p", "a", "--against", "base"), "has a base"),
        (("generate", "runs/gone", "-p", "a"), "no such run"),
        (("generate", "MODEL", "--file", "bad.jsonl"), "bad.jsonl:2"),
        (("generate", "MODEL", "-p", "a", "-o", "gone/out.jsonl"), "there is no folder gone"),
        (("generate", "MODEL", "-p", "a", "-o", "runs"), "is a folder"),
        (("generate", "HEADLESS", "-p", "a"), "`lm_head.weight`"),
        (("generate", "TORN", "-p", "a"), "can't be loaded"),
        (("generate", "BASELESS", "-p", "a"), "are for the model in `./moved`, which is not there"),
        (("evaluate", "MODEL"), "name tasks"),
        (("evaluate", "MODEL", "--limit", "3"), "without `--tasks`"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    argv: tuple[str, ...], said: str, model: Path, adapter: Path, warm: Dslm, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    (tmp_path / "runs/other").mkdir(parents=True)
    (tmp_path / "runs/other/manifest.json").touch()
    headless = tmp_path / "headless"
    if "HEADLESS" in argv:
        shutil.copytree(model, headless)
        AutoModel.from_pretrained(model).save_pretrained(headless)
    torn, baseless = tmp_path / "torn", tmp_path / "baseless"
    if "TORN" in argv:
        shutil.copytree(adapter, torn)
        os.truncate(torn / "adapter_model.safetensors", 1000)
    if "BASELESS" in argv:
        shutil.copytree(adapter, baseless)
        config = json.loads((baseless / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "./moved"
        (baseless / "adapter_config.json").write_text(json.dumps(config))
    named = {
        "MODEL": str(model), "HEADLESS": str(headless), "TORN": str(torn),
        "BASELESS": str(baseless),
    }  # fmt: skip
    done = warm(*(named.get(word, word) for word in argv))
    assert done.returncode == 2
    assert said in done.stderr


def test_a_chat_in_a_terminal(model: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [str(DSLM), "chat", str(model), "--max-tokens", "6", "--temperature", "0"],
        stdin=follower, stdout=follower, stderr=follower, cwd=tmp_path, close_fds=True,
        env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(follower)
    seen = ""

    def until(what: str | Callable[[str], bool]) -> str:
        nonlocal seen
        deadline = time.monotonic() + 120
        found = what if callable(what) else lambda text: what in text
        while not found(seen):
            assert time.monotonic() < deadline, seen
            if select.select([leader], [], [], 1)[0]:
                seen += os.read(leader, 65536).decode(errors="replace")
        told, seen = seen, ""
        return told

    def say(line: str, what: str) -> str:
        os.write(leader, line.encode() + b"\n")
        return until(lambda text: what in text.replace(line, "") and text.rstrip(" ").endswith(">"))

    try:
        until("> ")
        assert _expected(model, "alpha?")[:4] in say("alpha?", _expected(model, "alpha?")[:4])
        assert "appended" in say("/save chat.jsonl", "appended")
        say("/system be brief", "begun anew")
        say("/reset", "forgotten")
        assert "/system TEXT" in say("/help", "/exit")
        os.write(leader, b"/exit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(leader)
    chat = json.loads((tmp_path / "chat.jsonl").read_text())["messages"]
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert chat[1]["content"] == _expected(model, "alpha?")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")
def test_a_task_of_the_harness_in_a_file_needs_no_network(
    model: Path, adapter: Path, dslm: Dslm, warm: Dslm, tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    questions = tmp_path / "tasks" / "questions.jsonl"
    lines = [{"question": f"{n} + 1 =", "choices": [f" {n + 1}", f" {n}"], "label": 0}
             for n in range(9)]  # fmt: skip
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks" / "sums.yaml").write_text(_TASK.format(file=questions))
    done = dslm(  # whose libraries read the variable as they are imported
        *("evaluate", str(adapter), "--tasks", "sums", "--task-folder", "tasks", "--json"),
        *("--against", str(model)),
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for scores in (found["scores"], found["others"]):
        # one of nine questions more or less right makes a ninth
        assert re.fullmatch(r"[0-9]", str(round(scores["sums"]["acc"] * 9)))
        assert scores["sums"]["acc"] * 9 == pytest.approx(round(scores["sums"]["acc"] * 9))
    broken = tmp_path / "tasks" / "broken.jsonl"
    broken.write_text('{"question": "1 + 1 ="}\n{"question":\n')
    (tmp_path / "tasks" / "broken.yaml").write_text(
        _TASK.format(file=broken).replace("task: sums", "task: broken")
    )
    for name, said in (("nope", "has broken, sums"), ("broken", "JSON parse error")):
        refused = warm("evaluate", str(model), "--tasks", name, "--task-folder", "tasks")
        assert refused.returncode == 2
        assert said in refused.stderr
