"""Data that every machine has: Python's own sources, scikit-learn's digits, sums.

The first trainings of every task run on these, with no download. Functions of the standard library
become questions and answers, labelled texts, preferences and sequences, by the task.
"""

from __future__ import annotations

import ast
import dis
import io
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

_Found = Iterator[tuple[str, dict[str, Any]]]
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_PACKAGES = ("asyncio", "email", "multiprocessing", "unittest", "xml")


def stdlib_records(task: str, files: tuple[Path, ...]) -> _Found:
    """Records for a task, from the functions of the standard library's files."""
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated escapes in old modules
            try:
                tree = ast.parse(file.read_bytes())
            except SyntaxError:
                continue  # a few files are written for another version on purpose
            if task == "sequence":
                yield from _opcodes(file, compile(tree, str(file), "exec"))
                continue
        make = _MAKERS[task]
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                record = make(file, node)
                if record is not None:
                    yield f"{file}:{node.lineno}", record


def digits() -> _Found:
    """Yield the 1797 images (8 × 8) of handwritten digits that come with scikit-learn, as PNG."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    brightest = 16  # of load_digits' own scale
    for number, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        image = io.BytesIO()
        Image.fromarray((pixels * (255 / brightest)).astype("uint8")).save(image, "png")
        yield f"digits:{number}", {"image": image.getvalue(), "label": str(label)}


def arithmetic() -> _Found:
    """Yield the sums of two numbers below ten, with the answers; each is one digit."""
    sums = [(left, right) for left in range(10) for right in range(10 - left)]
    for number, (left, right) in enumerate(sums):
        yield f"arithmetic:{number}", {"prompt": f"{left}+{right}=", "answer": str(left + right)}


def _summary(node: _Function) -> str | None:
    """The first line of a function's docstring."""
    text = ast.get_docstring(node)
    return text.splitlines()[0].strip() or None if text and text.strip() else None


def _signature(node: _Function) -> str:
    return f"def {node.name}({ast.unparse(node.args)}):"


def _answer(file: Path, node: _Function) -> dict[str, Any] | None:
    summary = _summary(node)
    if summary is None:
        return None
    return {"prompt": _signature(node) + "\n", "completion": summary}


def _preference(file: Path, node: _Function) -> dict[str, Any] | None:
    """What a function does is better said in words than in code."""
    summary, body = _summary(node), node.body[-1]
    if summary is None:
        return None
    return {
        "prompt": _signature(node) + "\n",
        "chosen": summary,
        "rejected": ast.unparse(body).splitlines()[0],
    }


def _judged(file: Path, node: _Function) -> dict[str, Any] | None:
    """One of the two answers of a preference, with a label."""
    pair = _preference(file, node)
    if pair is None:
        return None
    good = node.lineno % 2 == 0
    answer = pair["chosen" if good else "rejected"]
    return {"prompt": pair["prompt"], "completion": answer, "label": good}


def _labelled(file: Path, node: _Function) -> dict[str, Any] | None:
    package = file.relative_to(sysconfig.get_paths()["stdlib"]).parts[0]
    return {"text": ast.unparse(node), "label": package} if package in _PACKAGES else None


def _opcodes(file: Path, code: CodeType) -> _Found:
    """The operations of every function's bytecode: sequences of small integers."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            items = [instruction.opcode for instruction in dis.get_instructions(constant)]
            yield f"{file}:{constant.co_firstlineno}", {"items": items}
            yield from _opcodes(file, constant)


_MAKERS: dict[str, Callable[[Path, _Function], dict[str, Any] | None]] = {
    "sft": _answer,
    "seq2seq": _answer,
    **dict.fromkeys(("dpo", "orpo", "reward"), _preference),
    "kto": _judged,
    "classify": _labelled,
}
STDLIB_TASKS = frozenset({*_MAKERS, "sequence"})
