"""The one place where device, number format and threads are chosen; after it, CPU and GPU run the same code."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def choose_device(wanted: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu; a device that is named and not there is a ValueError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in there.items() if present)
    if not there.get(wanted, False):
        present = ", ".join(name for name, present in there.items() if present)
        raise ValueError(f"device: {wanted} is not here (this machine has {present}): say `auto` or one of these")
    return torch.device(wanted)


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


def describe(device: torch.device) -> str:
    """The device in words, for the record."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
