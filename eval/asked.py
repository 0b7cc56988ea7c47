"""What `--benchmarks` names: the twelve benchmarks, selection probes, long texts.

all                  the twelve (registry.py)
probes               the published selection sets (selection_sets.py)
NAME                 one of either, or niah, longbench_v2 (long_context.py)
a folder of pairs    a probe on these pairs
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm_contextrl.errors import ConfigError
from vlm_contextrl.eval.long_context import LONG_TEXTS
from vlm_contextrl.eval.registry import BENCHMARKS, Part
from vlm_contextrl.eval.selection_sets import SELECTION_SETS

Kind = Literal["benchmark", "probe", "long_text"]


@dataclass(frozen=True)
class Asked:
    """One thing to measure. name: its folder in the run. source: what the user wrote, for a probe a set's name or a folder of pairs."""

    name: str
    title: str
    kind: Kind
    source: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it loads of published data; nothing for pairs of one's own and for generated texts."""
        if self.kind == "benchmark":
            return BENCHMARKS[self.name].parts
        if self.kind == "long_text":
            part = LONG_TEXTS[self.name].part
            return (part,) if part else ()
        return (SELECTION_SETS[self.source].part,) if self.source in SELECTION_SETS else ()


def chosen(names: str) -> list[Asked]:
    """What a comma-separated list asks for, each once. Raises ConfigError for a name that is none, and for two of one folder."""
    found: dict[str, Asked] = {}
    for name in (name.strip() for name in names.split(",") if name.strip()):
        for asked in _named(name):
            twin = found.setdefault(asked.name, asked)
            if twin != asked:
                raise ConfigError(
                    f"--benchmarks: {twin.source} and {asked.source} would both be written to {asked.name}; rename one of the folders"
                )
    if not found:
        raise ConfigError("--benchmarks: no name given; expected all, or names with commas between")
    return list(found.values())


def _named(name: str) -> Iterator[Asked]:
    if name in ("all", "probes"):
        for each in BENCHMARKS if name == "all" else SELECTION_SETS:
            yield from _named(each)
    elif name in BENCHMARKS:
        yield Asked(name, BENCHMARKS[name].title, "benchmark", name)
    elif name in SELECTION_SETS:
        yield Asked(name, SELECTION_SETS[name].title, "probe", name)
    elif name in LONG_TEXTS:
        yield Asked(name, LONG_TEXTS[name].title, "long_text", name)
    elif Path(name).is_dir():
        folder = Path(name).resolve().name
        yield Asked(folder, folder, "probe", name)
    else:
        known = ", ".join(("all", "probes", *BENCHMARKS, *SELECTION_SETS, *LONG_TEXTS))
        raise ConfigError(f"--benchmarks: {name!r} is no folder of pairs and none of {known}")
