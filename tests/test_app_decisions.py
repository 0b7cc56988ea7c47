"""The decision log: nothing is lost, nothing is mixed, the last word of each annotator stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vlm_contextrl.app.decisions import DecisionLog
from vlm_contextrl.errors import DataError, InputError

ROOT = Path(__file__).parents[1]
HASH = "0123456789abcdef" * 4


@pytest.fixture
def log(tmp_path: Path) -> DecisionLog:
    return opened(tmp_path)


def opened(folder: Path) -> DecisionLog:
    return DecisionLog(folder / "decisions", folder / "pairs", HASH)


def lines(log: DecisionLog) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.file.read_text().splitlines()]


def test_a_decision_is_one_line(log: DecisionLog) -> None:
    (line_id,) = log.decide(" Ada  L ", ["a/1"], "reject", " wrong\nanswer ")
    (line,) = lines(log)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "id": line_id, "dataset": HASH, "pair": "a/1", "annotator": "Ada L", "decision": "reject", "reason": "wrong answer",
    }  # fmt: skip


def test_states(log: DecisionLog) -> None:
    """The last decision of each annotator stands; a skip counts only where nobody accepted or rejected."""
    assert log.state("p") == "undecided"
    log.decide("ada", ["p"], "skip")
    assert log.state("p") == "skipped"
    log.decide("ada", ["p"], "accept")
    assert log.state("p") == "accepted"
    log.decide("bob", ["p"], "skip")
    assert log.state("p") == "accepted"
    log.decide("bob", ["p"], "reject", "unclear")
    assert log.state("p") == "disputed"
    log.decide("ada", ["p"], "reject", "unclear")
    assert log.state("p") == "rejected"
    assert [(d.annotator, d.decision) for d in log.standing("p")] == [("bob", "reject"), ("ada", "reject")]


def test_undo_gives_back_what_stood_before(log: DecisionLog) -> None:
    first = log.decide("ada", ["p"], "accept")
    second = log.decide("ada", ["p"], "reject", "unclear")
    assert log.undo("ada", second) == ["p"]
    assert log.state("p") == "accepted"
    assert log.undo("ada", second) == []  # undone already
    assert log.undo("ada", first) == ["p"]
    assert log.state("p") == "undecided"
    assert [line["decision"] for line in lines(log)] == ["accept", "reject", "undo", "undo"]


def test_nobody_undoes_for_another(log: DecisionLog) -> None:
    mine = log.decide("ada", ["p", "q"], "accept")
    assert log.undo("bob", mine) == []
    assert log.undo("ada", ["unknown"]) == []
    assert len(lines(log)) == 2


def test_many_at_once_and_undone_at_once(log: DecisionLog) -> None:
    ids = log.decide("ada", [f"p{n}" for n in range(100)], "accept")
    assert len(set(ids)) == 100
    assert log.undo("ada", ids) == [f"p{n}" for n in range(100)]
    assert {log.state(f"p{n}") for n in range(100)} == {"undecided"}


@pytest.mark.parametrize(
    ("annotator", "verdict", "reason", "said"),
    [
        ("", "accept", "", "annotator is empty"),
        (" \t ", "accept", "", "annotator is empty"),
        ("a" * 61, "accept", "", "61 characters"),
        ("a\x00b", "accept", "", "cannot be shown"),
        ("a\ud800", "accept", "", "cannot be shown"),
        ("ada", "delete", "", "expected accept, reject or skip"),
        ("ada", "undo", "", "expected accept, reject or skip"),
        ("ada", "reject", " ", "needs a reason"),
        ("ada", "reject", "x" * 501, "501 characters"),
    ],
)
def test_what_cannot_be_written_is_refused(
    log: DecisionLog, annotator: str, verdict: str, reason: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        log.decide(annotator, ["p"], verdict, reason)
    assert not log.file.exists()


def test_folder_inside_the_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    for folder in (tmp_path / "pairs", tmp_path / "pairs" / "deep", tmp_path / "x" / ".." / "pairs"):
        with pytest.raises(InputError, match="lies in the dataset"):
            DecisionLog(folder, tmp_path / "pairs", HASH)
    (tmp_path / "link").symlink_to(tmp_path / "pairs")
    with pytest.raises(InputError, match="lies in the dataset"):
        DecisionLog(tmp_path / "link", tmp_path / "pairs", HASH)
    assert not any((tmp_path / "pairs").iterdir())


def test_a_restart_knows_everything_and_cuts_a_torn_line(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.decide("ada", ["p"], "accept")
    with log.file.open("ab") as file:
        file.write(b'{"id": "torn", "pai')
    again = opened(tmp_path)
    assert again.state("p") == "accepted"
    again.decide("ada", ["q"], "skip")
    assert [line["pair"] for line in lines(again)] == ["p", "q"]
    assert opened(tmp_path).state("q") == "skipped"


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"nonsense\n", "not JSON"), (b"[1]\n", "expected an object"), (b'{"id": "x"}\n', "expected an object")],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    log = opened(tmp_path)
    log.decide("ada", ["p"], "accept")
    size = log.file.stat().st_size
    with log.file.open("ab") as file:
        file.write(line)
    with pytest.raises(DataError, match=f"byte {size}.*{said}"):
        opened(tmp_path)


def test_decisions_on_another_dataset_are_refused(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.decide("ada", ["p"], "accept")
    other = DecisionLog(tmp_path / "decisions", tmp_path / "pairs", "f" * 64)
    assert other.state("p") == "undecided"
    log.file.replace(other.file)
    with pytest.raises(DataError, match="is about the dataset 0123456789abcdef"):
        DecisionLog(tmp_path / "decisions", tmp_path / "pairs", "f" * 64)


def test_two_servers_see_each_other(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    one.decide("ada", ["p"], "accept")
    assert other.state("p") == "undecided"
    other.refresh()
    assert other.state("p") == "accepted"
    seen, touched = other.changed_since(0)
    assert (seen, touched) == (1, ["p"])
    assert other.changed_since(seen) == (1, [])


def test_a_file_that_was_cleared_is_read_anew(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.decide("ada", ["p"], "accept")
    log.file.write_bytes(b"")
    log.refresh()
    assert log.state("p") == "undecided"


def test_two_reviewers_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    """Two logs (two servers), two threads each, 40 decisions each, every fifth undone: all of it is there, in whole lines."""
    logs = [opened(tmp_path), opened(tmp_path)]

    def review(log: DecisionLog, annotator: str) -> None:
        for n in range(40):
            ids = log.decide(annotator, [f"p{n}"], "accept")
            if n % 5 == 0:
                assert log.undo(annotator, ids) == [f"p{n}"]

    threads = [threading.Thread(target=review, args=(logs[n % 2], f"reviewer {n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = lines(logs[0])
    assert len(written) == 4 * (40 + 8)
    assert len({line["id"] for line in written}) == len(written)
    fresh = opened(tmp_path)
    for n in range(40):
        expected = [] if n % 5 == 0 else [f"reviewer {r}" for r in range(4)]
        assert sorted(d.annotator for d in fresh.standing(f"p{n}")) == expected


WRITER = """
import sys
from pathlib import Path
from vlm_contextrl.app.decisions import DecisionLog
folder = Path(sys.argv[1])
log = DecisionLog(folder / "decisions", folder / "pairs", sys.argv[2])
for n in range(100_000):
    log.decide("ada", [f"p{n}"], "accept")
    print(n, flush=True)  # acknowledged
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), HASH], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().splitlines()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    acknowledged = 20 + len([line for line in rest if line])
    log = opened(tmp_path)
    assert {log.state(f"p{n}") for n in range(acknowledged)} == {"accepted"}
    log.decide("bob", ["p0"], "accept")  # the lock of the dead is free
