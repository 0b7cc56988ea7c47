"""Steps over rows: everything accounted for, resumed after a kill, the same wherever it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.killed_runs import kill_at, wait_to_be_killed
from vlm_contextrl.data_recipes.inputs import provenance, question_input
from vlm_contextrl.data_recipes.pipeline import Engine, Outcome, compute_parts, reason_counts, run_step
from vlm_contextrl.errors import ContextRLError, DataError
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.storage import read_questions, verify_folder


@dataclass(frozen=True)
class KeepEven:
    """Keeps rows with an even number; leaves a line per call, which shows what was computed how often."""

    log: Path

    def __call__(self, rows: Sequence[QuestionRow]) -> list[Outcome]:
        wait_to_be_killed()
        with self.log.open("a") as log:
            log.write("".join(f"{row.id}\n" for row in rows))
        return [self._one(row) for row in rows]

    def _one(self, row: QuestionRow) -> Outcome:
        number = int(row.id.rpartition("-")[2])
        if number % 2:
            return Outcome(row.id, reason=f"odd: {number}, expected an even number")
        return Outcome(row.id, (replace(row, provenance=provenance(row, kept_for="being even")),))


class KeepNone:
    """Rejects everything."""

    def __call__(self, rows: Sequence[QuestionRow]) -> list[Outcome]:
        return [Outcome(row.id, reason="none: 0, expected 1") for row in rows]


def run(folder: Path, out: Path, log: Path, engine: Engine = Engine(), **changed: Any) -> dict[str, Any]:  # noqa: B008  # frozen
    read = question_input(folder)
    step: Any = changed.pop("step", KeepEven(log))
    settings: dict[str, Any] = {
        "recipe": "even",
        "config": {"a": 1},
        "batch_size": 5,
        "input_hash": read.content_hash,
        **changed,
    }
    return run_step(step, read.rows, out, engine=engine, **settings)


def test_everything_is_accounted_for(questions_folder: Path, tmp_path: Path) -> None:
    """24 rows numbered 0 to 23: 12 are kept in their order, 12 are rejected."""
    summary = run(questions_folder, tmp_path / "out", tmp_path / "log")
    assert (summary["inputs"], summary["kept"], summary["rejects"], summary["rows"]) == (24, 12, 12, 12)
    assert summary["rejected"] == {"odd": 12}
    verify_folder(tmp_path / "out")
    kept = read_questions(tmp_path / "out")
    expected = [row for row in read_questions(questions_folder) if int(row.id[-6:]) % 2 == 0]
    assert [row.id for row in kept] == [row.id for row in expected]
    assert kept[0].provenance["made_from"] == [expected[0].id]
    assert kept[0].provenance["licence"] == expected[0].provenance["licence"]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [int(reject["id"][-6:]) for reject in rejects] == list(range(1, 24, 2))
    assert not list(tmp_path.glob(".*"))  # nothing is left of the parts


def test_two_processes_give_the_same(questions_folder: Path, tmp_path: Path) -> None:
    one = run(questions_folder, tmp_path / "one", tmp_path / "log1")
    two = run(questions_folder, tmp_path / "two", tmp_path / "log2", Engine(workers=2))
    assert one["content_hash"] == two["content_hash"]
    assert (tmp_path / "one/rejects.jsonl").read_bytes() == (tmp_path / "two/rejects.jsonl").read_bytes()
    assert sorted((tmp_path / "log1").read_text().split()) == sorted((tmp_path / "log2").read_text().split())


@dataclass(frozen=True)
class FailsOnce(KeepEven):
    """Raises an error of the user's at row 13 until a file says that it was mended."""

    def _one(self, row: QuestionRow) -> Outcome:
        if row.id.endswith("13") and not self.log.with_suffix(".mended").exists():
            raise DataError("the endpoint is out of order")
        return super()._one(row)


def test_goes_on_after_an_error(questions_folder: Path, tmp_path: Path) -> None:
    """The batch of row 13 is the third of five: two batches are not computed again."""
    log, expected = tmp_path / "log", run(questions_folder, tmp_path / "whole", tmp_path / "log0")
    for _ in range(2):
        with pytest.raises(DataError, match="out of order"):
            run(questions_folder, tmp_path / "out", log, step=FailsOnce(log))
    log.with_suffix(".mended").touch()
    log.write_text("")
    found = run(questions_folder, tmp_path / "out", log, step=FailsOnce(log))
    assert len(log.read_text().split()) == 14
    assert found["content_hash"] == expected["content_hash"]
    assert (tmp_path / "out/rejects.jsonl").read_bytes() == (tmp_path / "whole/rejects.jsonl").read_bytes()


def test_killed_and_resumed(questions_folder: Path, tmp_path: Path) -> None:
    """SIGKILL after some batches: the finished dataset is that of the unbroken run, no row twice, none missing."""
    expected = run(questions_folder, tmp_path / "whole", tmp_path / "log0")
    log, parts = tmp_path / "log", tmp_path / ".out.parts"
    program = (
        "import sys; from pathlib import Path; from tests.test_pipeline import KeepEven, run; "
        "run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), step=KeepEven(Path(sys.argv[3])))"
    )
    arguments = [str(questions_folder), str(tmp_path / "out"), str(log)]
    finished = len(kill_at([sys.executable, "-c", program, *arguments], parts, "part-*", 2))
    assert 2 <= finished < 5
    assert not (tmp_path / "out").exists()
    log.write_text("")
    found = run(questions_folder, tmp_path / "out", log)
    assert len(log.read_text().split()) == 24 - 5 * finished
    assert found["content_hash"] == expected["content_hash"]
    assert (tmp_path / "out/rejects.jsonl").read_bytes() == (tmp_path / "whole/rejects.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"a": 2}}, r"config\.a \(1, now 2\)"),
        ({"batch_size": 6}, r"batch_size \(5, now 6\)"),
        ({"input_hash": "x"}, "input "),
    ],
)
def test_other_settings_do_not_go_on(
    change: dict[str, Any], named: str, questions_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="out of order"):
        run(questions_folder, tmp_path / "out", tmp_path / "log", step=FailsOnce(tmp_path / "log"))
    with pytest.raises(DataError, match=f"unfinished work with another {named}.*remove the folder"):
        run(questions_folder, tmp_path / "out", tmp_path / "log", **change)


def test_settings_may_change_before_the_first_part(questions_folder: Path, tmp_path: Path) -> None:
    """A mistake that shows at once leaves nothing that binds."""
    log = tmp_path / "log"
    with pytest.raises(DataError, match="out of order"):
        run(questions_folder, tmp_path / "out", log, step=FailsOnce(log), batch_size=24)
    assert run(questions_folder, tmp_path / "out", log, config={"a": 2})["kept"] == 12


def test_an_existing_folder_is_refused_before_any_work(questions_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(DataError, match="already exists"):
        run(questions_folder, tmp_path / "out", tmp_path / "log")
    assert not (tmp_path / "log").exists()


@dataclass(frozen=True)
class Breaks(KeepEven):
    """Gives every row the same id, and row 0 an empty answer."""

    def _one(self, row: QuestionRow) -> Outcome:
        return Outcome(
            row.id,
            (replace(row, id="same", answer="" if row.id.endswith("00000") else "1", answer_type="exact"),),
        )


def test_rows_that_break_a_rule_are_rejects(questions_folder: Path, tmp_path: Path) -> None:
    """24 rows: one is invalid, one is kept, 22 repeat its id."""
    log = tmp_path / "log"
    summary = run(questions_folder, tmp_path / "out", log, step=Breaks(log))
    assert summary["rejected"] == {"invalid": 1, "duplicate_id": 22}
    assert (summary["inputs"], summary["kept"], summary["rejects"]) == (24, 1, 23)


def test_refused_inputs_count_as_inputs(questions_folder: Path, tmp_path: Path) -> None:
    summary = run(questions_folder, tmp_path / "out", tmp_path / "log", refused=[("bad", "no licence")])
    assert (summary["inputs"], summary["kept"], summary["rejects"]) == (25, 12, 13)
    assert summary["rejected"] == {"odd": 12, "unreadable": 1}


def test_an_outcome_is_rows_or_a_reason(questions_folder: Path) -> None:
    row = read_questions(questions_folder)[0]
    for rows, reason in (((), ""), ((row,), "x: y")):
        with pytest.raises(AssertionError, match="not both"):
            Outcome("a", rows, reason)
    assert reason_counts([("a", "x: 1"), ("b", "y: 2"), ("c", "x: 3: 4")]) == {"x": 2, "y": 1}


def test_parts_of_no_items(tmp_path: Path) -> None:
    parts = compute_parts(print, [], tmp_path / "parts", plan={}, batch_size=3, engine=Engine(), label="none")
    assert parts.folders == []


def test_provenance_joins_what_sources_say(questions_folder: Path) -> None:
    first, second = read_questions(questions_folder)[:2]
    first = replace(first, provenance={"licence": "MIT", "source": "a", "n": 1})
    second = replace(second, provenance={"licence": "MIT", "source": "b"})
    made = provenance(first, second, seed=3, model=None)
    version = made.pop("version")
    assert version
    assert made == {"licence": "MIT", "source": "a; b", "n": 1, "made_from": [first.id, second.id], "seed": 3}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its own settings
def test_ray_gives_the_same(questions_folder: Path, tmp_path: Path) -> None:
    """Two workers of Ray Data; an error of the user's arrives as its one line, and the work goes on after it."""
    pytest.importorskip("ray")
    expected = run(questions_folder, tmp_path / "local", tmp_path / "log0")
    log = tmp_path / "log"
    with pytest.raises(Exception, match="^the endpoint is out of order$"):
        run(questions_folder, tmp_path / "ray", log, Engine("ray", 2), step=FailsOnce(log))
    log.with_suffix(".mended").touch()
    found = run(questions_folder, tmp_path / "ray", log, Engine("ray", 2), step=FailsOnce(log))
    assert found["content_hash"] == expected["content_hash"]
    assert (tmp_path / "ray/rejects.jsonl").read_bytes() == (tmp_path / "local/rejects.jsonl").read_bytes()


def test_when_nothing_is_kept_every_reason_stands_beside(questions_folder: Path, tmp_path: Path) -> None:
    """Other settings may then be tried at the same place, and what they keep removes the file."""
    out, file = tmp_path / "out", tmp_path / "out.rejects.jsonl"
    told = r"out: nothing was kept, all 24 inputs were rejected \(none 24\), e.g. '.*': none: 0, expected 1; every reason stands in .*out"
    with pytest.raises(DataError, match=told):
        run(questions_folder, out, tmp_path / "log", step=KeepNone())
    ids = [row.id for row in read_questions(questions_folder)]
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"id": name, "reason": "none: 0, expected 1"} for name in ids
    ]
    assert not out.exists()
    assert run(questions_folder, out, tmp_path / "log", config={"a": 2})["kept"] == 12
    assert not file.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_that_does_not_start_is_one_line(
    questions_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")

    def no_start(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_start)
    with pytest.raises(
        ContextRLError,
        match=r"^--engine ray: Ray did not start \(The current node timed out during startup\.\)",
    ):
        run(questions_folder, tmp_path / "ray", tmp_path / "log", Engine("ray", 2))
