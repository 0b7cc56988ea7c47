"""Whether a device that a setting names is here."""

from __future__ import annotations

from pydantic import BaseModel

from vlm_contextrl.errors import ConfigError, first_line


def check_device(device: str, setting: str) -> None:
    """ConfigError when torch cannot use the device on this machine. setting: its name, for the message."""
    if device == "cpu":
        return
    import torch

    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device in here or (device == "cuda" and len(here) > 1):
        return
    why = ""
    try:
        asked = torch.device(device)
        if asked.type not in ("cpu", "cuda", "meta"):  # other makes of accelerator
            torch.empty(0, device=asked)
            return
    except (RuntimeError, AssertionError, ImportError) as error:
        why = f" ({first_line(error):.100})"
    raise ConfigError(
        f"{setting}: no device {device!r} on this machine{why}, only {', '.join(here)}; name one of these"
    )


def check_devices(settings: BaseModel, prefix: str = "") -> None:
    """`check_device` of every `device` in nested settings, but `auto` and those of a model that is not named."""
    for name, value in settings:
        if isinstance(value, BaseModel):
            check_devices(value, f"{prefix}{name}.")
        elif name == "device" and value != "auto" and getattr(settings, "model", settings) is not None:
            check_device(value, prefix + name)
