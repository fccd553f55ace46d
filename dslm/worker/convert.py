"""A checkpoint into DeepSpeed's universal format, by its own converter; started by name.

Arguments are the converter's: `--input_folder FOLDER --output_folder FOLDER …`; before them
`--trust` lets a checkpoint run code.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from dslm.worker.tensors_only import tensors_only


def main() -> None:
    """Convert."""
    from deepspeed.checkpoint import ds_to_universal

    trusted = sys.argv[1:2] == ["--trust"]
    if trusted:
        del sys.argv[1]
    with nullcontext() if trusted else tensors_only():
        ds_to_universal.main(ds_to_universal.parse_arguments())


if __name__ == "__main__":
    main()
