"""A trained model answers, chats and is evaluated, as its user would do it."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from dslm.files import append_whole
from tests.conftest import DSLM, Dslm
from tests.processes import HANGS, is_alive
from tests.support.models import small_model

pytestmark = pytest.mark.slow

CTRL_C = "\x03"
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


class _Terminal:
    """A dslm that somebody sits at."""

    def __init__(self, *argv: str, cwd: Path, kind: str = "xterm") -> None:
        self._leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [str(DSLM), *argv], stdin=follower, stdout=follower, stderr=follower, cwd=cwd,
            env={**os.environ, "TERM": kind, "COLUMNS": "80"}, close_fds=True,
            preexec_fn=_with_a_terminal,
        )  # fmt: skip
        os.close(follower)
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def until(self, what: str | Callable[[str], bool]) -> str:
        """What is shown until something is."""
        deadline = time.monotonic() + HANGS
        found = what if callable(what) else lambda text: what in text
        while not found(self._seen):
            assert time.monotonic() < deadline, self._seen
            if select.select([self._leader], [], [], 1)[0]:
                self._seen += os.read(self._leader, 65536).decode(errors="replace")
        told, self._seen = self._seen, ""
        return told

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._leader, keys.encode())

    def say(self, line: str, what: str) -> str:
        """What is shown after a line, until something is and the next one is asked for."""
        self.type(f"{line}\n")
        return self.until(lambda text: what in text.replace(line, "") and asks(text))

    def ended(self) -> int:
        """The exit code, once the process has ended and everything that it started."""
        workers = psutil.Process(self.process.pid).children(recursive=True)
        while self.process.poll() is None:  # what it still says must be read
            if select.select([self._leader], [], [], 0.1)[0]:
                with suppress(OSError):
                    self._seen += os.read(self._leader, 65536).decode(errors="replace")
        assert "Traceback" not in self._seen
        assert not any(is_alive(worker) for worker in workers)
        return self.process.returncode


def _with_a_terminal() -> None:
    """Make stdin the terminal of a session of its own: Ctrl-C is a signal in it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # whoever started all of this in the background may have it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


def asks(text: str) -> bool:
    """Whether a chat asks for a line."""
    return text.rstrip(" ").endswith(">")


def test_a_chat_in_a_terminal(model: Path, tmp_path: Path) -> None:
    argv = ("chat", str(model), "--max-tokens", "6", "--temperature", "0")
    with _Terminal(*argv, cwd=tmp_path, kind="dumb") as terminal:
        terminal.until("> ")
        begin = _expected(model, "alpha?")[:4]
        assert begin in terminal.say("alpha?", begin)
        assert "appended" in terminal.say("/save chat.jsonl", "appended")
        terminal.say("/system be brief", "begun anew")
        terminal.say("/reset", "forgotten")
        assert "/system TEXT" in terminal.say("/help", "/exit")
        terminal.type("/exit\n")
        assert terminal.ended() == 0
    chat = json.loads((tmp_path / "chat.jsonl").read_text())["messages"]
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert chat[1]["content"] == _expected(model, "alpha?")


_LONG = ("--max-tokens", "100000")


def test_ctrl_c_ends_an_answer_and_twice_a_chat(model: Path, tmp_path: Path) -> None:
    with _Terminal("chat", str(model), *_LONG, "--against", str(model), cwd=tmp_path) as terminal:
        terminal.until(asks)
        for line in ("alpha?", "and then?"):
            terminal.type(f"{line}\n")
            terminal.until("[answer] ")
            terminal.until(lambda text: len(text) > 20)
            terminal.type(CTRL_C)
            terminal.until(asks)
        terminal.type(CTRL_C)
        assert "once more" in terminal.until(asks)
        terminal.type(CTRL_C)
        assert terminal.ended() == 130


@pytest.mark.parametrize("more", [(), ("-o", "out.jsonl")])
def test_ctrl_c_ends_answers_to_prompts(model: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    argv = ("generate", str(model), "--prompt", "alpha?", *more, *_LONG)
    with _Terminal(*argv, cwd=tmp_path) as terminal:
        terminal.until("answering" if more else lambda text: len(text.rsplit("\n")[-1]) > 20)
        terminal.type(CTRL_C)
        assert terminal.ended() == 130
    assert not list(tmp_path.iterdir()), "an answer that was cut off was kept"


@pytest.mark.parametrize("said", ["PyTorch", "loading /"])
def test_ctrl_c_ends_the_loading_of_a_model(model: Path, tmp_path: Path, said: str) -> None:
    with _Terminal("chat", str(model), cwd=tmp_path) as terminal:
        terminal.until(said)
        terminal.type(CTRL_C)
        assert terminal.ended() == 130


def test_answers_stay_that_were_made_before_an_interruption(model: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("alpha?\n" * 800)
    argv = ("generate", str(model), "--file", str(prompts), "-o", str(out), "--max-tokens", "9")
    with _Terminal(*argv, cwd=tmp_path) as terminal:
        terminal.until("of them so far")
        terminal.type(CTRL_C)
        said = terminal.until("800 answers")
        assert terminal.ended() == 130
    lines = out.read_text().splitlines()
    assert 8 <= len(lines) < 800
    assert {json.loads(line)["prompt"] for line in lines} == {"alpha?"}
    assert f"wrote {len(lines)} of 800 answers" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_answers_stay_that_were_made_before_the_disk_was_full(
    model: Path, warm: Dslm, tmp_path: Path
) -> None:
    prompts, disk = tmp_path / "prompts.txt", tmp_path / "disk"
    prompts.write_text("".join(f"{number} {'alpha ' * 100}\n" for number in range(20)))
    disk.mkdir()
    argv = ("generate", str(model), "--file", str(prompts), "--max-tokens", "3", "-o")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", disk], check=True)
    try:
        done = warm(*argv, "disk/out.jsonl")
        assert (done.returncode, "the disk is full" in done.stderr) == (1, True), done.stderr
        rows = [json.loads(row) for row in (disk / "out.jsonl").read_text().splitlines()]
        assert 8 < len(rows) < 20
        assert [row["prompt"].split()[0] for row in rows] == [str(n) for n in range(len(rows))]
        assert f"wrote {len(rows)} of 20 answers" in done.stderr
        again = warm(*argv, "disk/out.jsonl")
        assert (again.returncode, "already exists" in again.stderr) == (2, True), again.stderr
        for first in (True, False):  # of several lines
            with pytest.raises(OSError, match="No space"):
                append_whole(disk / ("new" if first else "out.jsonl"), "x" * 5000)
        assert [json.loads(row) for row in (disk / "out.jsonl").read_text().splitlines()] == rows
        assert [file.name for file in disk.iterdir()] == ["out.jsonl"]
    finally:
        subprocess.run(["umount", disk], check=True)


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
