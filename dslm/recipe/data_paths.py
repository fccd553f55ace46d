"""The sources in `data.train` and `data.eval`: files, a folder, a Hub name; reads no record.

Torch-free, so that a wrong path is found before anything is launched.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dslm.errors import DataError, Where, shortened
from dslm.files import expanded, is_file, is_folder
from dslm.recipe.schema import Recipe, Source

STDLIB = "stdlib"
DIGITS = "digits"
ARITHMETIC = "arithmetic"
TEXT_SUFFIXES = frozenset({
    ".txt", ".md", ".rst", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java",
    ".js", ".ts", ".html", ".css", ".sh", ".tex",
})  # fmt: skip
RECORD_SUFFIXES = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz"})
# Not the library itself: its tests, installed packages, generated tables.
_NOT_STDLIB = frozenset({"test", "tests", "site-packages", "idlelib", "__pycache__", "encodings"})
_RELATIVE = "a path in a recipe is relative to its file, one of `--set` to the current folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """One source, found: files below this machine's folders, or the name of a Hub data set."""

    path: str
    weight: float
    files: tuple[Path, ...] = ()
    hub_name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"


def origins(recipe: Recipe, key: str) -> list[DataSource]:
    """The sources of `data.train` or `data.eval` (`key`: train or eval), in the recipe's order.

    Raises:
        DataError: a path is missing, or holds no file that can be read.
    """
    known = RECORD_SUFFIXES.keys() | (IMAGE_SUFFIXES if recipe.task == "vision" else TEXT_SUFFIXES)
    return [_find(source, f"data.{key}", known) for source in sources(recipe, key)]


def sources(recipe: Recipe, key: str) -> list[Source]:
    """Return the sources in `data.train` or `data.eval`, without looking into folders."""
    value = getattr(recipe.data, key)
    if value is None or isinstance(value, float | int):
        return []
    given = [value] if isinstance(value, str) else value
    return [source if isinstance(source, Source) else Source(path=source) for source in given]


def check_data(recipe: Recipe) -> None:
    """Check that all data of a recipe is there and not empty; reads no record.

    Raises:
        DataError: naming the path and what is wrong with it.
    """
    for key in ("train", "eval"):
        for origin in origins(recipe, key):
            if origin.files and not any(file.stat().st_size for file in origin.files):
                raise DataError(f"`{origin.path}` is empty", where=Where(key=f"data.{key}"))


def suffix_of(file: Path) -> str:
    """Return the suffix that tells the format: `.jsonl` of `a.jsonl.gz`."""
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _find(source: Source, key: str, known: Set[str]) -> DataSource:
    text = source.path
    path = expanded(text)
    if text == STDLIB:
        return DataSource(path=text, weight=source.weight, files=stdlib_files())
    if text in (DIGITS, ARITHMETIC):
        return DataSource(path=text, weight=source.weight)
    if any(c in text for c in "*?["):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - absolute patterns too
        files = tuple(sorted(Path(match) for match in matches if Path(match).is_file()))
        if not files:
            raise DataError(
                f"no file matches `{text}`, looked for from {Path.cwd()}",
                where=Where(key=key),
                hint=_RELATIVE,
            )
        return DataSource(path=text, weight=source.weight, files=files)
    if is_file(path):
        return DataSource(path=text, weight=source.weight, files=(path,))
    if is_folder(path):
        files = tuple(sorted(f for f in path.rglob("*") if f.is_file() and suffix_of(f) in known))
        if not files:
            raise DataError(
                f"the folder `{text}` holds no file that can be read",
                where=Where(key=key),
                hint=f"known: {' '.join(sorted(known))}",
            )
        return DataSource(path=text, weight=source.weight, files=files)
    looks_like_a_path = path.suffix or text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_a_path:
        raise DataError(
            f"there is no file or folder `{shortened(text)}`: it was looked for in "
            f"{shortened(str(path.absolute().parent), 200)}",
            where=Where(key=key),
            hint=f"{_RELATIVE}; `stdlib`, `digits` or a Hub name like `org/name` do as well",
        )
    return DataSource(
        path=text,
        weight=source.weight,
        hub_name=text,
        hub_config=source.name,
        hub_split=source.split,
    )


@cache
def stdlib_files() -> tuple[Path, ...]:
    """Return the sources of Python's standard library on this machine, sorted by path."""
    found = []
    for folder, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
        below[:] = [name for name in below if name not in _NOT_STDLIB]  # these aren't gone into
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return tuple(sorted(found))
