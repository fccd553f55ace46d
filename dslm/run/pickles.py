"""Which names a checkpoint's pickles ask for, read without making anything; torch-free.

Unpickling calls what a file names, so a checkpoint that somebody else wrote may run code. dslm's
ranks load tensors and plain values only (`dslm.worker.tensors_only`), whoever wrote them; this is
how the launcher finds out beforehand what they would refuse. Reads torch's archives and bare
pickles; knows nothing of what is in a checkpoint.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

STATE_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Harmless types of DeepSpeed's that its checkpoints hold beside tensors."""

# What torch itself takes under `weights_only`, and numpy's state of random numbers. Names that pass
# here and not there are refused by the rank.
_PLAIN = re.compile(
    r"torch\.(\w+|(cuda|sparse|cuda\.sparse|_utils|_tensor|storage|serialization|nn\.parameter)\.\w+)"
    r"|numpy\.((_core|core)\.multiarray\.(_reconstruct|scalar)|ndarray|dtype|dtypes\.\w+)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|bytearray|complex|getattr)"
)
_PICKLES = (".pt", ".pth", ".bin", ".pkl")
_ARCHIVE = b"PK\x03\x04"  # how torch tells an archive, which it writes uncompressed


def foreign_names(files: Iterable[Path]) -> dict[Path, list[str]]:
    """The names in files that are neither tensors nor plain values; only files that have some.

    Args:
        files: of a checkpoint; those that torch wouldn't load are passed over.
    """
    asked = {file: names_in(file) for file in files if file.suffix in _PICKLES}
    foreign = {file: [n for n in names if not _is_harmless(n)] for file, names in asked.items()}
    return {file: names for file, names in foreign.items() if names}


def names_in(file: Path) -> list[str]:
    """Return every name that the pickles of a file ask for, in order, each once.

    A file that can't be read to its end gives the names until there: torch will not get further.

    Raises:
        OSError: it can't be opened.
    """
    asked: dict[str, None] = {}
    with file.open("rb") as stream:
        if stream.read(len(_ARCHIVE)) != _ARCHIVE:
            stream.seek(0)
            _read(stream, asked)
            return list(asked)
        try:
            with zipfile.ZipFile(stream) as archive:
                for entry in archive.infolist():
                    if entry.filename.endswith(".pkl") and not entry.compress_type:
                        _read(io.BytesIO(archive.read(entry)), asked)
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return list(asked)
    return list(asked)


def _is_harmless(name: str) -> bool:
    return name in STATE_CLASSES or _PLAIN.fullmatch(name) is not None


def _read(stream: IO[bytes], asked: dict[str, None]) -> None:
    """Note the names of one pickle after another."""
    try:
        while True:
            _Names(stream, asked).load()
    except Exception:  # noqa: BLE001 - of any kind: bytes of a stranger
        return


class _Names(pickle.Unpickler):
    """Gives a stand-in for whatever a pickle names: nothing is imported, nothing is called."""

    def __init__(self, stream: IO[bytes], asked: dict[str, None]) -> None:
        super().__init__(stream)
        self._asked = asked

    def find_class(self, module: str, name: str) -> object:
        self._asked[f"{module}.{name}"] = None
        return _Anything

    def persistent_load(self, pid: object) -> object:
        return _Anything()


class _Anything:
    """Takes every argument, item and state that a pickle may give."""

    def __new__(cls, *args: object, **kwargs: object) -> _Anything:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> _Anything:
        return _Anything()

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...

    def add(self, value: object) -> None: ...
