"""What is installed, and does it work together?

Every check has a state: `ok`, `note` (something is absent or worth knowing, nothing fails), `broken`
(something that this package needs does not work). Versions are held against the ranges that the installed
package declares, so they cannot drift from pyproject.toml.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from vlm_contextrl.errors import ContextRLError

DISTRIBUTION = "vlm-contextrl"
DEVELOPMENT_EXTRA = "dev"
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding; `advice` says what to do about it."""

    state: Literal["ok", "note", "broken"]
    found: str
    advice: str = ""


def examine() -> dict[str, Any]:
    """{"ok": whether nothing is broken, "checks": {name: {state, found, advice}}}."""
    checks: dict[str, Check] = {
        "python": _python(),
        "system": _system(),
        "memory": _memory(),
        "disk": _disk(),
    }
    checks |= _requirements()
    # torchvision before anything that imports transformers: a broken one explains what fails after it.
    probes: dict[str, Callable[[], Check]] = {
        "torchvision": _torchvision,
        "device": _device,
        "bfloat16": _bfloat16,
        "attention": _attention,
        "embedded model": _embedded_model,
    }
    for name, probe in probes.items():
        checks[name] = _guarded(probe)
    return {
        "ok": all(check.state != "broken" for check in checks.values()),
        "checks": {name: asdict(check) for name, check in checks.items()},
    }


def _guarded(probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:  # a broken installation raises anything, and finding that is the purpose here
        return Check(
            "broken", f"{type(error).__name__}: {_first_line(error)}", "see the checks above, then reinstall"
        )


def _python() -> Check:
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Check("ok", f"{found} at {sys.executable}")
    return Check("broken", f"{found}, expected {wanted}", "make a new environment with a newer Python")


def _system() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("ok", f"{platform.platform()}, {usable} CPU cores")


def _memory() -> Check:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = (page * os.sysconf(name) / GIB for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return Check("note", "not known on this system")
    return Check("ok", f"{free:.1f} GiB unused of {total:.1f} GiB")


def _disk() -> Check:
    usage = shutil.disk_usage(Path.cwd())
    return Check("ok", f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} GiB at {Path.cwd()}")


def _requirements() -> dict[str, Check]:
    """Base packages, then those of the extras."""
    from packaging.requirements import Requirement

    checks: dict[str, Check] = {}
    declared = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            checks[requirement.name] = _version(requirement, "")
    for extra in extras:
        for requirement in declared:
            of_extra = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
            if of_extra and extra != DEVELOPMENT_EXTRA and requirement.name not in (*checks, "torchvision"):
                checks[requirement.name] = _version(requirement, extra)
    return checks


def _version(requirement: Any, extra: str) -> Check:
    install = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{requirement}'"
    belongs = f" (extra {extra})" if extra else ""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check("note" if extra else "broken", f"not installed{belongs}", install)
    if requirement.specifier.contains(found, prereleases=True):
        return Check("ok", f"{found}{belongs}")
    return Check(
        "note" if extra else "broken", f"{found}{belongs}, expected {requirement.specifier}", install
    )


def _torchvision() -> Check:
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return Check("ok", "not installed, and not needed (extra qwen brings it)")
    try:
        import_module("torchvision")
    except Exception as error:  # RuntimeError from torch's operator registry, or a missing library
        import torch

        kind = (
            "a build for CUDA beside torch for the CPU"
            if torch.version.cuda is None
            else f"torch is {torch.__version__}"
        )
        return Check(
            "broken",
            f"{version} does not import ({_first_line(error)}); {kind}; transformers fails with it",
            "pip uninstall torchvision",
        )
    return Check("ok", version)


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")
    if torch.version.cuda:
        advice = "install the NVIDIA driver, or torch for the CPU"
        return Check("note", f"CPU; torch is built for CUDA {torch.version.cuda} and finds no device", advice)
    return Check("ok", "CPU; torch is built without CUDA")


def _bfloat16() -> Check:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
    return Check("ok", "native") if native else Check("note", "emulated, slower than float32")


def _attention() -> Check:
    import torch

    from vlm_contextrl import attention
    from vlm_contextrl.packed_kernels import choose_kernel

    attention.register()
    kernel = choose_kernel("auto", "cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    return Check("ok", f"{kernel.name} over packed groups ({kernel.reason})")


def _embedded_model() -> Check:
    from vlm_contextrl.config import ModelSettings
    from vlm_contextrl.models import load_policy, resolve

    folder = Path(resolve("tinyvl"))
    advice = (
        f"reinstall, or in a checkout: {DISTRIBUTION} tinyvl build --out {files('vlm_contextrl') / 'tinyvl'}"
    )
    if not folder.is_dir():
        return Check("broken", f"{folder} is missing", advice)
    try:
        policy = load_policy(ModelSettings(), trainable=False)
    except ContextRLError as error:
        return Check("broken", str(error), advice)
    size = sum(parameter.numel() for parameter in policy.parameters())
    return Check("ok", f"tinyvl, {size / 1e6:.1f} M parameters, {folder}")


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error).strip(), maxsplit=1)[0]
