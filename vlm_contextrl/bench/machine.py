"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vlm_contextrl.bench.floor import Machine

PACKAGES = ("vlm-contextrl", "torch", "transformers", "peft", "trl")


def hardware(device: torch.device, machine: Machine) -> dict[str, Any]:
    """Name of the processor that worked, threads, and its measured best."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "cuda events" if device.type == "cuda" else "process CPU time",
        "matmul_flops_per_s": machine.flops_per_s,
        "copy_bytes_per_s": machine.bytes_per_s,
    }


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide the figures."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
