"""Known failures are recognised from what the field's tools really print."""

from __future__ import annotations

import pytest

from dslm.launch.diagnose import catalogue, find

SAMPLES = {
    "gpu-memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has",  # noqa: E501
    "host-memory": "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes.",  # noqa: E501
    "shared-memory": "RuntimeError: DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",  # noqa: E501
    "disk-full": "OSError: [Errno 28] No space left on device",
    "port-in-use": "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",  # noqa: E501
    "rendezvous-timeout": "torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cpu//0/0",  # noqa: E501
    "peer-lost": "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:21312",  # noqa: E501
    "nccl": "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, unhandled system error, NCCL version 2.21.5\nncclSystemError: System call failed",  # noqa: E501
    "no-cuda-runtime": "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",  # noqa: E501
    "jit-build": "RuntimeError: Error building extension 'cpu_adam'",
    "nan-loss-scale": "Exception: Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.",  # noqa: E501
    "hub-offline": "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.",  # noqa: E501
    "hub-permission": "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)",  # noqa: E501
    "shape-mismatch": "RuntimeError: Error(s) in loading state_dict for LlamaForCausalLM:\n\tsize mismatch for model.embed_tokens.weight",  # noqa: E501
    "world-size": "ZeRORuntimeException: The checkpoint being loaded used a DP world size of 2 but the current world size is 1.",  # noqa: E501
    "tied-weights": "RuntimeError: Some tensors share memory, this will lead to duplicate memory on disk",  # noqa: E501
    "batch-triangle": "AssertionError: Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * gradient_acc_step * world_size 16 != 8 * 1 * 1",  # noqa: E501
    "wrong-key": "pydantic_core._pydantic_core.ValidationError: 1 validation error for DeepSpeedZeroConfig\nstag\n  Extra inputs are not permitted",  # noqa: E501
    "missing-package": "ModuleNotFoundError: No module named 'flash_attn'",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_failure_is_recognised(name: str) -> None:
    found = find(SAMPLES[name])
    assert found is not None
    assert found.id == name


def test_every_entry_has_a_sample_a_remedy_and_a_source() -> None:
    assert {failure.id for failure in catalogue()} == set(SAMPLES)
    for failure in catalogue():
        assert failure.remedy
        assert failure.source


def test_what_is_not_known_is_not_explained() -> None:
    assert find("ZeroDivisionError: division by zero") is None
