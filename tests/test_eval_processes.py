"""`vlm-contextrl eval` as a user runs it: processes of its own, killed, over two ranks, with a judge that is not there.

The rows are the made-up ones of `eval fixtures`, the model is TinyVL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.killed_runs import started, wait_until
from vlm_contextrl.eval.fixtures import write_fixtures
from vlm_contextrl.eval.selection_fixtures import write_selection_fixtures

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.slow

ROWS, SCENES = 6, 30
ASKED = ("--model", "tinyvl", "--style", "plain", "--max-new-tokens", "8", "--batch-size", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmarks") / "root"
    write_fixtures(out, ROWS)
    write_selection_fixtures(out, SCENES)
    return out


def command(root: Path, out: Path, *arguments: object) -> list[str]:
    return [
        sys.executable, "-m", "vlm_contextrl", "eval", "--data-root", str(root), "--out", str(out), *map(str, arguments)
    ]  # fmt: skip


def finished(root: Path, out: Path, *arguments: object, status: int = 0) -> tuple[dict[str, Any], str]:
    """results.json and stderr."""
    done = subprocess.run(command(root, out, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return json.loads((out / "results.json").read_text()), done.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def killed_when(run: list[str], reached: Callable[[], bool]) -> None:
    process = started(run)
    try:
        wait_until(reached, process)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def workers(out: Path) -> list[str]:
    """Command lines of this machine's processes that work for the run."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(out)) for word in words) and b"vlm_contextrl.eval.worker" in words:
            found.append(b" ".join(words).decode())
    return found


def test_kill_in_the_middle_of_benchmark_and_probe(root: Path, tmp_path: Path) -> None:
    """Killed twice: within BLINK's 84 answers, then within NaturalBench's 60 pairs. The same tables, nothing asked twice."""
    names = ("--benchmarks", "blink,naturalbench")
    whole, _ = finished(root, tmp_path / "whole", *ASKED, *names)
    out = tmp_path / "broken"
    for file, least, most in (("blink/answers.0.jsonl", 10, 84), ("naturalbench/per_pair.jsonl", 3, 61)):
        killed_when(
            command(root, out, *ASKED, *names), lambda file=file, least=least: len_of(out / file) >= least
        )  # type: ignore[misc]
        until_s = time.monotonic() + 120
        while workers(out):
            assert time.monotonic() < until_s, "a killed run leaves a process that goes on answering"
            time.sleep(0.1)
        assert least <= len_of(out / file) < most
    again, _ = finished(root, out, *ASKED, *names)
    assert again == whole
    for file, key, n in (
        ("blink/answers.0.jsonl", ("part", "doc_id"), 84),
        ("naturalbench/per_pair.jsonl", ("id",), 60),
    ):
        keys = [tuple(line.get(name) for name in key) for line in lines(out / file) if key[0] in line]
        assert len(keys) == len(set(keys)) == n


def len_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_two_processes_give_what_one_gives(root: Path, tmp_path: Path) -> None:
    names = ("--benchmarks", "mmmu")
    one, _ = finished(root, tmp_path / "one", *ASKED, *names)
    two, _ = finished(root, tmp_path / "two", *ASKED, *names, "--processes", 2)
    assert two == one
    shares = [len(lines(tmp_path / "two" / "mmmu" / f"answers.{rank}.jsonl")) for rank in (0, 1)]
    assert sum(shares) == ROWS
    assert min(shares) > 0


def test_a_set_that_is_not_there_stops_no_other(root: Path, tmp_path: Path) -> None:
    """The missing one is named with the command that gets it, exit code 2; the other has its result. Once the set is there, both."""
    part = tmp_path / "root"
    part.mkdir()
    shutil.copytree(root / "Lin-Chen", part / "Lin-Chen")
    results, error = finished(
        part, tmp_path / "out", "--model", "oracle", "--benchmarks", "vstar,mmstar", status=2
    )
    assert list(results["benchmarks"]) == ["mmstar"]
    assert results["average"]["value"] == 1.0
    assert f"vlm-contextrl eval fetch --data-root {part} --benchmarks vstar" in results["failed"]["vstar"]
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: 1 of 2 asked for have no result: vstar: ")
    assert (
        "vstar: " in (tmp_path / "out/report.html").read_text()
        or "V*: " in (tmp_path / "out/report.html").read_text()
    )
    results, _ = finished(root, tmp_path / "out", "--model", "oracle", "--benchmarks", "vstar")
    assert list(results["benchmarks"]) == ["vstar", "mmstar"]
    assert results["failed"] == {}


def test_a_judge_that_is_down_is_no_score(root: Path, tmp_path: Path) -> None:
    """Nobody listens on port 9 (discard). Rules alone finish the same run without asking the model again."""
    judge = ("--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "j")
    asked = (*ASKED, "--benchmarks", "olympiadbench")
    results, error = finished(root, tmp_path / "out", *asked, *judge, status=2)
    assert results["benchmarks"] == {}
    assert "olympiadbench, sample" in error
    assert "leave out --judge-url: rules decide" in " ".join(error.split())
    before = (tmp_path / "out/olympiadbench/answers.0.jsonl").read_bytes()
    results, _ = finished(root, tmp_path / "out", *asked)
    assert results["benchmarks"]["olympiadbench"]["judge"] is None
    assert (tmp_path / "out/olympiadbench/answers.0.jsonl").read_bytes() == before


def test_own_pairs_by_generation(tmp_path: Path, root: Path) -> None:
    """A folder of rendered pairs is a probe of its own name."""
    pairs = tmp_path / "my_pairs"
    render = ["pairs", "render", "count=4", "seed=1", "--out", str(pairs)]
    subprocess.run([sys.executable, "-m", "vlm_contextrl", *render], check=True, capture_output=True)
    results, _ = finished(
        root, tmp_path / "out", *ASKED, "--benchmarks", pairs, "--probe-mode", "generation", "--limit", 3
    )
    found = results["probes"]["my_pairs"]
    assert (found["mode"], found["selection_accuracy"]["n"], found["pairs"]) == ("generation", 3, str(pairs))
    assert results["benchmarks"] == {}
    assert "Selection probes" in (tmp_path / "out/report.html").read_text()


def test_two_runs_of_the_command_are_compared(root: Path, tmp_path: Path) -> None:
    """The oracle has everything right, the other nothing: 100 points, on the same samples."""
    for model in ("wrong", "oracle"):
        finished(root, tmp_path / model, "--model", model, "--benchmarks", "mmstar,vstar")
    outputs = {name: tmp_path / f"compared.{name}" for name in ("json", "html", "markdown", "latex")}
    flags = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
    subprocess.run(
        [sys.executable, "-m", "vlm_contextrl", "compare", str(tmp_path / "wrong"), str(tmp_path / "oracle"), *flags], check=True
    )  # fmt: skip
    difference = json.loads(outputs["json"].read_text())["average"]["against_baseline"]["oracle"][
        "difference"
    ]
    assert (difference["value"], difference["low"], difference["high"]) == (1.0, 1.0, 1.0)
    assert all(path.stat().st_size > 100 for path in outputs.values())


def test_a_row_that_cannot_be_asked_is_a_reject(root: Path, tmp_path: Path) -> None:
    """MMStar with a picture that is none and a question that spells a control token: 4 of 6 rows are scored, two explained."""
    from datasets import Image as Pictures
    from datasets import load_dataset

    file = next((root / "Lin-Chen/MMStar").rglob("*.parquet"))
    rows = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("image", Pictures(decode=False))
    values = [dict(row) for row in rows]
    values[1]["image"] = {"bytes": b"not a picture", "path": None}
    values[3]["question"] = "<|image_pad|>" + values[3]["question"]
    broken = tmp_path / "root" / file.relative_to(root)
    broken.parent.mkdir(parents=True)
    type(rows).from_list(values, features=rows.features).to_parquet(str(broken))
    results, _ = finished(tmp_path / "root", tmp_path / "out", *ASKED, "--benchmarks", "mmstar")
    found = results["benchmarks"]["mmstar"]
    assert (found["accuracy"]["n"], found["rejects"]) == (4, 2)
    rejects = lines(tmp_path / "out/mmstar/rejects.jsonl")
    assert [reject["doc_id"] for reject in rejects] == [1, 3]
    assert "picture cannot be read" in rejects[0]["reason"]
    assert "<|image_pad|>" in rejects[1]["reason"]
    results, _ = finished(tmp_path / "root", tmp_path / "out", *ASKED, "--benchmarks", "mmstar")
    assert results["benchmarks"]["mmstar"] == found
