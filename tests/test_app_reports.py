"""The pages of the dataset and of a run: what they say, that they survive what is broken or half written, and that they follow a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.app_browser import serving
from tests.app_data import break_picture, colour_pair, write_pairs
from vlm_contextrl.app.catalogue import open_catalogue
from vlm_contextrl.app.reports import Reports
from vlm_contextrl.app.run_view import run_page, run_version, run_words
from vlm_contextrl.errors import DataError

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "<script>document.title='run'</script>"


def append(run: Path, stream: str, *records: dict[str, Any], torn: str = "") -> None:
    with (run / f"{stream}.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.write(torn)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five steps of eight; a sixth line is being written."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        "name: small\nsteps: 8\nobjective:\n- {term: selection_loss, weight: 0.1, clip_value: 5.0}\n"
    )
    metrics = [
        {"step": n, "reward_mean": n / 10, "selection_accuracy": 0.5, "margin": 0.1} for n in range(1, 6)
    ]
    append(run, "metrics", *metrics, torn='{"step": 6, "rew')
    append(run, "timings", *({"step": n, "rollout_s": 1.0, "update_s": 0.5} for n in range(1, 6)))
    held_out = {"value": 0.6, "n": 10, "low": 0.4, "high": 0.8}
    append(run, "evals", {"step": 4, "selection_accuracy": held_out})
    answers = {"completions": ["red", EVIL], "rewards": [1.0, 0.0]}
    append(run, "samples", *({"step": n, "query": f"q{n}", "answer": "red", **answers} for n in (1, 5, 5)))
    return run


def reports(folder: Path, **arguments: Any) -> Reports:
    return Reports(open_catalogue(folder), arguments.pop("run", None), **arguments)


def test_page_of_a_run_that_trains(run: Path) -> None:
    page = run_page(run)
    assert "Run small" in page
    assert "Step 5 of 8, not finished." in page
    assert "1.50 (mean of the last 5)" in page  # 1 s of rollout and half a second of update
    assert page.count("<span>step 5</span>") == 2
    assert "q1" not in page  # only the last step's samples
    assert "held-out pairs" in page
    assert "<script" not in page


def test_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    assert run_words(tmp_path) == "No step yet."
    assert "No step was recorded." in run_page(tmp_path)


def test_version_follows_the_run(run: Path) -> None:
    before = run_version(run)
    assert run_version(run) == before
    append(run, "metrics", torn='ard_mean": 0.6}\n')
    assert run_version(run) != before
    assert "Step 6 of 8" in run_words(run)


def test_finished_run(run: Path) -> None:
    (run / "final").mkdir()
    assert run_words(run) == "Step 5 of 8, finished."


@pytest.mark.parametrize(
    ("name", "text"), [("metrics.jsonl", "nonsense\n"), ("config.yaml", "{"), ("samples.jsonl", "x\n")]
)
def test_a_run_that_cannot_be_read_says_which_file(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(DataError, match=name):
        run_page(run)
    pages = Reports.__new__(Reports)
    Reports.__init__(pages, open_catalogue(write_pairs(run / "pairs", [colour_pair(0)])), run)
    assert name in pages.run_report()


def test_page_of_the_dataset_tells_the_balance_when_it_is_measured(tmp_path: Path) -> None:
    may_go_on = threading.Event()

    def balance(path: Path) -> dict[str, Any]:
        may_go_on.wait(20)
        return {"unbalanced": [], "answers": {"majority_share": 0.25, "n": 4, "templates": 1}}

    pages = reports(write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(4)]), balance=balance)
    assert pages.dataset_version() == "measuring"
    assert "CC0-1.0" in pages.dataset()
    assert "Measuring" in pages.dataset_words()
    may_go_on.set()
    assert pages._thread is not None
    pages._thread.join()
    assert pages.dataset_version() == "complete"
    assert pages.dataset_words() == ""
    assert "25.0%" in pages.dataset()


def test_a_broken_row_or_a_foreign_format_leaves_a_page(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(3)])
    break_picture(folder, "n1")

    def balance(path: Path) -> dict[str, Any]:
        raise DataError("row 1: no image")

    pages = reports(folder, balance=balance)
    assert "Domains" in pages.dataset()
    assert "Contact sheet" not in pages.dataset()
    assert pages._thread is not None
    pages._thread.join()
    assert pages.dataset_words() == "Balance: cannot be measured: row 1: no image"


def test_without_a_run(tmp_path: Path) -> None:
    pages = reports(write_pairs(tmp_path / "pairs", [colour_pair(0)]))
    assert (pages.run_version(), pages.run_words()) == ("", "")
    assert "--run DIR" in pages.run_report()
    assert pages.dataset_version() == "complete"


# ---------------------------------------------------------------- in the browser


@pytest.fixture
def address(tmp_path: Path, run: Path) -> Iterator[str]:
    from vlm_contextrl.app.server import application, open_room
    from vlm_contextrl.app.settings import AppSettings

    folder = write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(6)])
    break_picture(folder, "n5")
    room = open_room(AppSettings(pairs=folder, run=run))
    room.catalogue.examine()
    with serving(application(room)) as opened:
        yield opened
    room.close()


@pytest.mark.slow
def test_tabs(address: str, run: Path, page: Page) -> None:
    from playwright.sync_api import expect

    page.goto(address)
    expect(page.locator("#card .tags a")).to_be_visible()
    page.get_by_role("tab", name="Dataset").click()
    expect(page.locator("#dataset-words")).to_contain_text("1 broken rows")
    expect(page.locator("#dataset-words")).to_contain_text("n5")
    dataset = page.frame_locator("#dataset-frame iframe")
    expect(dataset.get_by_role("heading", name="pairs", exact=True)).to_be_visible()
    expect(dataset.get_by_role("figure", name="Domains")).to_be_visible()
    page.get_by_role("tab", name="Run").click()
    report = page.frame_locator("#run-frame iframe")
    expect(report.get_by_role("heading", name="Run small")).to_be_visible()
    expect(page.locator("#run-words")).to_contain_text("Step 5 of 8")
    append(run, "metrics", torn='ard_mean": 0.6}\n')  # the run goes on
    expect(page.locator("#run-words")).to_contain_text("Step 6 of 8")
    expect(report.get_by_text("Step 6 of 8")).to_be_visible()
