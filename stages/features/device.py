"""The one place where device, number format and threads are chosen; after it, CPU and GPU run the same code."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h, man 3 mallopt


def choose_device(wanted: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu; a device that is named and not there is a ValueError.

    A process that torchrun started takes the CUDA device of its place on the machine; mps cannot be shared. A process
    that works on the CPU keeps its memory from then on (see `keep_memory`).
    """
    place, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available() and size == 1, "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in there.items() if present)
    if not there.get(wanted, False):
        present = ", ".join(name for name, present in there.items() if present)
        raise ValueError(f"device: {wanted} is not here (this machine has {present}): say `auto` or one of these")
    if wanted == "cuda" and place >= (devices := torch.cuda.device_count()):
        raise ValueError(f"launch.processes: this machine has {devices} CUDA devices: ask for no more processes")
    if wanted == "cpu":
        keep_memory()
    return torch.device(wanted, place) if wanted == "cuda" else torch.device(wanted)


def keep_memory() -> None:
    """Has malloc keep freed memory, up to 2 GiB, for the next tensor instead of giving it back to the system.

    Otherwise Linux hands out every large tensor of every layer page by page and zeroed: half of the time in which an
    EfficientNet looks at pictures, a twentieth of a training step (tests/benchmarks/bench_memory.py). Without glibc it
    does nothing.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(option, value)


def bring(values: Tensor, device: torch.device) -> Tensor:
    """Values from memory on their way to the device; on a GPU the copy goes on beside what is worked out meanwhile."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The format of matrix products: bfloat16 where the hardware multiplies it natively, else float32."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; sums, softmax and weights stay float32."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()


def set_threads(threads: int | None) -> int:
    """Sets torch's threads (None: all cores) and returns their number. Another number gives other last bits."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def describe(device: torch.device, processes: int = 1) -> str:
    """The device in words, for the record."""
    times = f"{processes} x " if processes > 1 else ""
    if device.type == "cuda":
        return f"{times}cuda: {torch.cuda.get_device_name(device)}"
    return f"{times}{device.type}: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
