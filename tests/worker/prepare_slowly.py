"""A rank of the test of waiting: prepares data in a process group that soon loses its patience.

    python -m tests.worker.prepare_slowly RANK PORT FILE SECONDS

Tokenising takes that long; how many records, what is told of it and at last `together` go to
stdout.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dslm.recipe.load import load_recipe
from dslm.worker.data.prepare import prepare
from dslm.worker.data.tokenizer import train_tokenizer
from dslm.worker.tasks import task_of
from dslm.worker.train import wait_for_all

PATIENCE = 3.0  # seconds that a collective may take


def main() -> None:
    rank, port, file, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2,
        timeout=timedelta(seconds=PATIENCE),
    )  # fmt: skip
    settings = [f"data.train={file}", "data.eval=0", "data.max_documents=null"]
    recipe = load_recipe("quickstart", settings).recipe
    tokenizer = train_tokenizer(["alpha beta"], 300)
    encoder = task_of(recipe).encoder(recipe, tokenizer)
    encode = encoder.encode

    def slowly(records: list[dict[str, Any]]) -> Any:
        time.sleep(seconds)
        print(rank, "encoding", len(records), flush=True)
        return encode(records)

    encoder.encode = slowly  # type: ignore[method-assign]
    dist.barrier()  # both have come so far
    prepare(recipe, encoder, tokenizer, lambda detail: print(rank, detail, flush=True))
    wait_for_all()
    dist.all_reduce(torch.zeros(1))
    print(rank, "together", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
