"""The page and the picture of a dataset folder: complete, escaped, nothing fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.page_reader import Page
from vlm_contextrl.dataset_report.cards import choose_rows
from vlm_contextrl.dataset_report.charts import MAX_BARS, count_chart, share_chart, value_chart, value_edges
from vlm_contextrl.dataset_report.contact_sheet import CARD_PX, GAP_PX, _from_difference, contact_sheet
from vlm_contextrl.dataset_report.page import dataset_page
from vlm_contextrl.dataset_report.stats import reject_code, stats
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.storage import write_rows

NASTY = "<script>alert('x')</script> & \"quoted\""


def picture(*rgb: int, spot: bool = False) -> EncodedImage:
    image = Image.new("RGB", (40, 30), rgb)
    if spot:
        image.paste((9, 9, 9), (10, 10, 14, 16))
    return EncodedImage.from_image(image)


def pair(number: int, **changes: Any) -> ContrastivePair:
    fields: dict[str, Any] = {
        "id": f"p{number}",
        "query": NASTY,
        "answer": f"{NASTY} {number}",
        "confounder_answer": None if number % 2 else "other",
        "context": picture(number, 0, 0),
        "confounder": picture(number, 0, 0, spot=True),
        "domain": NASTY if number % 2 else "plain",
        "recipe": NASTY,
        "provenance": {"licence": NASTY, "changed_fraction": 0.02 * number, "similarity": 0.9, "note": NASTY},
        "verdicts": {"verifier": {NASTY: 0.987654321}},
    }
    return ContrastivePair(**{**fields, **changes})


BALANCE = {
    "answers": {"majority_share": 0.5, "n": 8, "templates": 1},
    "edited": {"share": 1.0, "n": 8, "domains": {NASTY: {"share": 1.0, "n": 4}}},
    "cues": {"brightness": {"share": 0.5, "n": 8}, "pixels": {"share": None, "n": 0}},
    "unbalanced": [
        {"name": "edited", "text": f"{NASTY} is edited", "ids_n": 20, "ids": [NASTY, *map(str, range(19))]}
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rejects = [("r1", f"same_pixels: {NASTY}"), ("r2", "same_pixels: again"), ("r3", "no colon at all")]
    write_rows(
        [pair(n) for n in range(8)], tmp_path / "data", recipe=NASTY, config={NASTY: NASTY}, rejects=rejects
    )
    return tmp_path / "data"


def test_the_page_is_complete_and_fetches_nothing(folder: Path) -> None:
    html = dataset_page(folder, balance=BALANCE)
    page = Page(html)
    assert not page.named("script")
    assert NASTY in page.text
    assert "<script" not in html
    policy = next(tag for tag in page.named("meta") if tag.get("http-equiv"))
    assert str(policy["content"]).startswith("default-src 'none'")
    sources = [str(tag["src"]) for tag in page.named("img")]
    assert len(sources) == 16
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    identifiers = [str(tag["id"]) for _, tag in page.tags if tag.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for words in (
        "8 pairs, 3 candidates rejected", "Changed area", "Similarity of context", "same_pixels", "What gives the answer away",
        "right in 50.0% of 8 rows", "Contact sheet", "supports other", "does not support it", "0.9877", "Verdicts", "Provenance of p0",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.named("span", "outline")) == 16
    assert page.named("input")[0]["id"] == "outlines"


def test_the_page_of_texts_and_of_questions(tmp_path: Path) -> None:
    texts = [
        pair(n, context=f"{NASTY} {n}", confounder=f"log {n}", provenance={"licence": "MIT"})
        for n in range(2)
    ]
    write_rows(texts, tmp_path / "texts", recipe="made", config={})
    page = Page(dataset_page(tmp_path / "texts"))
    assert len(page.named("pre")) == 4 + 1
    assert not page.named("img")
    questions = [
        QuestionRow(
            id=f"q{n}", query="Which?", answer="B", options=(NASTY, "y"), answer_type="choice", context_text="Read." if n else "",
            images=tuple(picture(n, i, 0) for i in range(n)), provenance={"licence": "MIT"},
        )
        for n in range(3)
    ]  # fmt: skip
    write_rows(questions, tmp_path / "questions", recipe="made", config={})
    page = Page(dataset_page(tmp_path / "questions"))
    assert len(page.named("img")) == 3
    assert "3 questions" in page.text
    assert "Outline what differs" not in page.text


def test_a_page_of_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dataset"):
        dataset_page(tmp_path)


def test_rare_groups_are_shown_first() -> None:
    """Two of 20 rows are of another domain: of six drawn rows both are there, whatever the seed."""
    groups = [("common", "r")] * 9 + [("rare", "r")] * 2 + [("common", "r")] * 9
    for seed in range(5):
        chosen = choose_rows(groups, 6, seed)
        assert len(set(chosen)) == 6
        assert {9, 10} < set(chosen)
    assert choose_rows(groups, 6, 0) == choose_rows(groups, 6, 0) != choose_rows(groups, 6, 1)
    assert len(choose_rows(groups, 50, 0)) == 20


def test_stats_count_rejects_by_code(folder: Path) -> None:
    found = stats(folder)
    assert found["rejected"] == {"same_pixels": 2, "other": 1}
    assert (found["similarity"]["n"], found["similarity"]["median"]) == (8, 0.9)
    assert reject_code("low_similarity: 0.1, expected 0.5") == "low_similarity"
    assert reject_code("/data/x.jsonl: line 3: no answer") == "other"
    (folder / "rejects.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"rejects.jsonl: line 1 is no reject"):
        stats(folder)


def test_bars_are_as_long_as_counts(folder: Path) -> None:
    """368 units for the largest of 4, so 92 for 1; shares of 8 rows."""
    html = count_chart("c", "Counts", {"a": 4, "b": 1}, 8)
    assert re.findall(r'width="([\d.]+)"', html) == ["368", "92"]
    assert "4 \N{MIDDLE DOT} 50.0%" in html
    many = count_chart("c", "Counts", {str(n): 1 for n in range(MAX_BARS + 5)}, 17)
    assert "5 others" in many
    assert many.count("<rect") == MAX_BARS
    assert "Nothing was recorded" in count_chart("c", "Counts", {}, 0)


def test_histogram_of_values() -> None:
    """0 to 0.24 in bins of 0.01: 0.005 and 0.0099 in the first, 0.24 in the last."""
    edges = value_edges(0.0, 0.24)
    assert (edges[0], edges[1], edges[-1], len(edges)) == (0.0, 0.01, 0.24, 25)
    html = value_chart("v", "Values", [0.005, 0.0099, 0.24, float("nan")], x_label="share", y_label="pairs")
    assert html.count("<rect") == 2
    assert "median 0.010" in html
    assert value_edges(0.5, 0.5)[0] <= 0.5 < value_edges(0.5, 0.5)[-1]
    assert "Nothing was recorded" in value_chart("v", "Values", [], x_label="", y_label="")


def test_shares_start_at_one_half() -> None:
    """From 50% to 75% is a quarter of 348 units, to the right; to 25% the same, to the left."""
    shares = {
        "right": {"share": 0.75, "n": 8},
        "left": {"share": 0.25, "n": 8},
        "none": {"share": None, "n": 0},
    }
    html = share_chart("s", "Shares", shares, ["left"])
    bars = re.findall(r'class="fill (\w+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html)
    assert bars == [("after", "190", "87"), ("wrong", "103", "87")]


def test_contact_sheet(folder: Path, tmp_path: Path) -> None:
    """Eight rows in lines of three: cards of equal width, what differs outlined in black and white."""
    sheet = contact_sheet(folder, shown=8)
    assert sheet.width == 3 * CARD_PX + 4 * GAP_PX
    assert sheet.getpixel((0, 0)) == (246, 246, 243)
    assert contact_sheet(folder, shown=1).width == CARD_PX + 2 * GAP_PX
    colours = {colour for _, colour in contact_sheet(folder, shown=1).getcolors(1 << 24) or []}
    assert {(255, 255, 255), (0, 0, 0), (9, 9, 9)} <= colours
    long = "word " * 200 + "x" * 3000
    rows = [
        pair(0, query=long, context="a " * 3000, confounder=long),
        pair(1, options=("x", "y"), answer="A", answer_type="choice"),
    ]
    write_rows(rows, tmp_path / "long", recipe="made", config={})
    assert contact_sheet(tmp_path / "long").height < 2000


def test_texts_are_shown_from_where_they_differ() -> None:
    assert _from_difference("a\nb\nc\nd", "a\nb\nx\nd") == (
        "\N{HORIZONTAL ELLIPSIS}\nb\nc\nd",
        "\N{HORIZONTAL ELLIPSIS}\nb\nx\nd",
    )
    assert _from_difference("a", "a\nb") == ("a", "a\nb")
    assert _from_difference("x\nb", "y\nb") == ("x\nb", "y\nb")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line; status, stdout, stderr."""
    import sys

    from vlm_contextrl.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm-contextrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


def test_commands(run: Run, tmp_path: Path, pairs_folder: Path) -> None:
    """stats with a page and a picture, export, import: files are written, errors are one line."""
    files = {name: tmp_path / f"x.{name}" for name in ("html", "png", "json")}
    status, out, err = run(
        "pairs",
        "stats",
        "--input",
        pairs_folder,
        "--html",
        files["html"],
        "--sheet",
        files["png"],
        "--json",
        files["json"],
    )
    assert (status, err) == (0, "")
    assert "24 pairs, 0 rejects" in " ".join(out.split())
    assert len(Page(files["html"].read_text(encoding="utf-8")).named("article")) == 24
    with Image.open(files["png"]) as sheet:
        assert sheet.width == 3 * CARD_PX + 4 * GAP_PX
    found = json.loads(files["json"].read_text())
    assert set(found["balance"]) >= {"cues", "unbalanced"}
    assert (
        run(
            "pairs",
            "export",
            "--input",
            pairs_folder,
            "--out",
            tmp_path / "trl",
            "--to",
            "trl",
            "--json",
            files["json"],
        )[0]
        == 0
    )
    assert json.loads(files["json"].read_text())["rows"] == 24
    status, out, err = run("pairs", "import", "--input", tmp_path / "trl", "--out", tmp_path / "back")
    assert (status, err) == (0, "")
    assert "kept: 24" in out
    status, _, err = run("pairs", "import", "--input", tmp_path / "none", "--out", tmp_path / "other")
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = run("pairs", "stats", "--input", pairs_folder, "--html", tmp_path / "no" / "x.html")
    assert (status, err.count("\n")) == (2, 1)
