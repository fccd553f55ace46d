"""How much DeepSpeed sends in one message."""

from __future__ import annotations

from dslm.profile.value import Profile

# elements: 25 MiB in fp32 (torch, nn/parallel/distributed.py, _DEFAULT_BUCKET_CAP_MB)
_SMALLEST = 6_553_600


def bucket_elements(profile: Profile | None) -> int:
    """Elements in DeepSpeed's communication buckets.

    Source: transformers' integrations/deepspeed.py, trainer_config_finalize: hidden size squared;
    at least what torch's DistributedDataParallel has, since smaller messages only cost latency.
    """
    if profile is None:
        return 5 * 10**8  # DeepSpeed's own default
    return max(_SMALLEST, profile.hidden_size**2)
