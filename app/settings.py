"""What the app is started with, checked before anything is loaded."""

from __future__ import annotations

import getpass
import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from vlm_contextrl.errors import InputError

PASSWORD_VARIABLE = "VLM_CONTEXTRL_PASSWORD"
MIN_PASSWORD_CHARACTERS = 8
MAX_UPLOAD = "20mb"


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """pairs: the dataset. adapters: folders of adapters or whole models, compared with the plain model. decisions: folder of the log;
    None is beside the dataset. password: whoever has it may do everything; "" is allowed on the loopback only."""

    pairs: Path
    model: str = ""
    adapters: tuple[Path, ...] = ()
    run: Path | None = None
    decisions: Path | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    password: str = field(default="", repr=False)
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.password and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host}: other machines could reach the app, expected a password in {PASSWORD_VARIABLE} "
                "or --password-file; or leave --host out"
            )
        if self.password and len(self.password) < MIN_PASSWORD_CHARACTERS:
            raise InputError(
                f"the password has {len(self.password)} characters, expected at least {MIN_PASSWORD_CHARACTERS}"
            )
        if self.adapters and not self.model:
            raise InputError("--adapter without --model: name the model that the adapter belongs to")
        for adapter in self.adapters:
            if not any((adapter / name).is_file() for name in ("adapter_config.json", "config.json")):
                raise InputError(
                    f"{adapter}: no adapter_config.json and no config.json; expected a folder that training wrote"
                )
        if self.run is not None and not self.run.is_dir():
            raise InputError(f"{self.run}: no such folder, expected a run directory")

    @property
    def decisions_folder(self) -> Path:
        """Where decisions and exports go."""
        pairs = self.pairs.resolve()
        return self.decisions or pairs.with_name(f"{pairs.name}-decisions")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def find_password(file: Path | None) -> str:
    """From a file, or from the environment; never from the command line, which other users of the machine can read."""
    if file is None:
        return os.environ.get(PASSWORD_VARIABLE, "")
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}), expected a file with a password") from error
    if not found:
        raise InputError(f"{file}: is empty, expected a password")
    return found


def user_name() -> str:
    """Of whoever started the app; empty when the system does not say."""
    try:
        return getpass.getuser()[:60]
    except (OSError, KeyError, ImportError):
        return ""
