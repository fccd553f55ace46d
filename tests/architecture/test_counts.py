"""A count of one has no plural: whatever is counted for people is counted by `number_of`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PLURAL = re.compile(
    r" (?:CPU )?(answers|batches|bytes|checks|cores|devices|documents|errors|experts|files|"
    r"findings|GPUs|heads|hosts|layers|problems|processes|prompts|ranks|records|runs|samples|slots|steps|"
    r"tokens|trials)\b"
)
# what is written of two and more only
MANY = {
    "dslm/cli/screens/measured.py: {found.ranks} ranks": "links are between two and more",
    "dslm/cluster/detect.py: {asked} ranks": "more than there are",
    "dslm/cluster/hostfile.py: {host.name} slots": "a word of hostfiles",
    "dslm/cluster/hostfile.py: {name} slots": "a word of hostfiles",
    "dslm/cluster/hostfile.py: {shortened(name)} slots": "a word of hostfiles",
    "dslm/cluster/nvidia.py: {len(matching)} devices": "several match",
    "dslm/cluster/select.py: {num_gpus} ranks": "more than a host has",
    "dslm/cluster/select.py: {num_nodes} hosts": "more than there are",
    "dslm/cluster/wrong_versions.py: {when.ranks} ranks": "two or more",
    "dslm/decide/advice.py: {ranks} ranks": "two or more",
    "dslm/decide/checks/every.py: {len(found)} problems": "two or more",
    "dslm/decide/checks/layout.py: {length} tokens": "not a multiple",
    "dslm/decide/checks/layout.py: {sizes} tokens": "numbers of two and more",
    "dslm/decide/checks/layout.py: {size} ranks": "that share",
    "dslm/decide/checks/model.py: {heads} heads": "that don't divide",
    "dslm/decide/checks/model.py: {wanted} tokens": "longer than the model's",
    "dslm/decide/checks/rewards.py: {group} answers": "at least two",
    "dslm/launch/sites/slurm/allocation.py: {_MOST_HOSTS} hosts": "many",
    "dslm/launch/sites/slurm/allocation.py: {len(names)} hosts": "not as many as the counts",
    "dslm/lifecycle/links.py: {len(fleet.cluster.hosts)} hosts": "two or more",
    "dslm/plan/search.py: {inner} ranks": "that share",
    "dslm/reach/checks.py: {host.slots} slots": "more than four times the cores",
    "dslm/reach/probe.py: {size} bytes": "a limit",
    "dslm/recipe/load.py: {len(found)} problems": "two or more",
    "dslm/run/words.py: {len(line)} bytes": "too many",
    "dslm/worker/data/chat_tokens.py: {len(answers)} answers": "some are not marked",
    "dslm/worker/data/chat_tokens.py: {length} tokens": "some are not marked",
    "dslm/worker/measure.py: {request['ranks']} ranks": "two or more",
    "dslm/worker/rl/prompts.py: {len(ids)} tokens": "a prompt that is too long",
    "dslm/worker/tasks/dpo.py: {self._length} tokens": "a sample",
    "dslm/worker/tasks/kto.py: {self._length} tokens": "a sample",
    "dslm/worker/tasks/sft.py: {self._length} tokens": "a sample",
    "dslm/zero/making.py: {shown(warmup)} steps": "longer than the run",
}


def _counted(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    found = _PLURAL.match(str(text.value))
                    if found:
                        yield f"{{{ast.unparse(value.value)}}}{found[0]}"


def test_what_is_counted_has_no_plural_where_it_is_one() -> None:
    files = sorted((ROOT / "dslm").rglob("*.py"))
    assert len(files) > 100
    found = {
        f"{file.relative_to(ROOT)}: {each}"
        for file in files
        for each in _counted(file)
        if not each.startswith(("{number_of(", "{render_count("))
    }
    assert found == MANY.keys()
