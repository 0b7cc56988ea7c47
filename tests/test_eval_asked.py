"""What `--benchmarks` names, and what a run refuses before any process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_contextrl.errors import ConfigError
from vlm_contextrl.eval.asked import chosen
from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.runs import evaluate
from vlm_contextrl.eval.selection_sets import SELECTION_SETS
from vlm_contextrl.eval.settings import EvalSettings


def test_all_are_the_twelve() -> None:
    assert [asked.name for asked in chosen("all")] == list(BENCHMARKS)
    assert len(BENCHMARKS) == 12


def test_names_of_every_kind_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs" / "held_out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = chosen("vstar, probes,mmvp,pairs/held_out,vstar")
    assert [(asked.name, asked.kind) for asked in found] == [
        ("vstar", "benchmark"), *((name, "probe") for name in SELECTION_SETS), ("held_out", "probe"),
    ]  # fmt: skip
    assert found[-1].source == "pairs/held_out"
    assert [asked.kind for asked in chosen("niah,longbench_v2")] == ["long_text", "long_text"]


def test_parts_to_fetch(tmp_path: Path) -> None:
    """BLINK has fourteen, a published probe and LongBench one, needles and own pairs none."""
    (tmp_path / "own").mkdir()
    found = chosen(f"blink,mmvp,longbench_v2,niah,{tmp_path / 'own'}")
    assert [len(asked.parts) for asked in found] == [14, 1, 1, 0, 0]


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    for folder in ("a/pairs", "b/pairs", "mmstar"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ConfigError, match="a/pairs and .*b/pairs would both be written to pairs; rename one"):
        chosen(f"{tmp_path}/a/pairs,{tmp_path}/b/pairs")
    with pytest.raises(ConfigError, match="mmstar and .*/mmstar would both be written to mmstar"):
        chosen(f"mmstar,{tmp_path}/mmstar")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("mmstarr", "'mmstarr' is no folder of pairs and none of all, probes, mathvista, "),
        (" , ", "no name given"),
    ],
)
def test_names_that_are_none(names: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(names)


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        ("oracle", "mmstar,mmvp", "oracle answers the benchmarks' questions only; leave out mmvp"),
        ("tinyvl", "mmstar,niah", "niah and longbench_v2 are for text models"),
    ],
)
def test_what_does_not_go_together(model: str, names: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(chosen(names), EvalSettings(model=model), tmp_path / "out")
    assert not (tmp_path / "out").exists()
