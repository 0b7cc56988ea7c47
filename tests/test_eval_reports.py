"""Pages and tables of runs: complete, escaped, nothing fetched; what is missing is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.eval_runs import sample, samples, save_picture, write_run
from tests.page_reader import Page
from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.eval.compare import compare_runs
from vlm_contextrl.eval.compare_report import compare_page, p_words
from vlm_contextrl.eval.interval_chart import Line, Mark, interval_chart
from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.run_report import write_run_report
from vlm_contextrl.eval.tables import latex_table, markdown_table, rows
from vlm_contextrl.report.chart_parts import WIDTH

NASTY = "<script>alert('x')</script> & \"quoted\""
PART = "mathvista_testmini_cot"


def nasty(number: int, correct: bool, **changes: Any) -> dict[str, Any]:
    """A sample whose every text would run as a script if it were not escaped."""
    fields = {
        "question": NASTY,
        "options": [NASTY, "square"],
        "category": NASTY,
        "completion": NASTY,
        "extracted": NASTY,
    }
    return sample(PART, number, correct, **{**fields, **changes})  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """60 samples of MathVista: 1 to 20 became right, 0 became wrong. Sample 0 has a picture, sample 1 names one that is not there."""
    folders = [tmp_path / "base & co", tmp_path / "<b>trained"]
    for folder, trained in zip(folders, (False, True), strict=True):
        of_run = [nasty(i, (i == 0) != trained if i <= 20 else i % 2 == 0) for i in range(60)]
        of_run[0]["picture"] = save_picture(folder, "mathvista", "0.jpg")
        of_run[1]["picture"] = "gone.jpg"
        write_run(folder, {"mathvista": of_run}, model=NASTY)
    return folders


def checked(html: str) -> Page:
    """The page, if it is well formed, loads nothing, runs nothing and lets no text of the data become a tag."""
    page = Page(html)
    assert not page.named("script")
    assert not page.named("b")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert "default-src 'none'" in html
    identifiers = [str(tag["id"]) for _, tag in page.tags if tag.get("id")]
    assert len(identifiers) == len(set(identifiers))
    return page


# ---------------------------------------------------------------- comparison


def test_compare_page(runs: list[Path]) -> None:
    page = checked(compare_page(compare_runs(runs, shown=30)))
    assert len(page.named("article")) == 21
    assert len(page.named("span", "lost")) == 1
    (picture,) = page.named("img")
    assert str(picture["src"]).startswith("data:image/jpeg;base64,/9j/")
    assert (picture["width"], picture["height"]) == ("48", "32")
    for words in (
        "<b>trained against base & co", "20 became right, 1 became wrong", "+31.7", "better", "p < 0.001", NASTY,
        "No picture was kept.", "image file gone.jpg not found", "A. <script>", "B. square", "How to read this", "max_new_tokens",
    ):  # fmt: skip
        assert words in page.text, words
    assert "Before you read the numbers" not in page.text


def test_no_more_than_asked_for_is_shown(runs: list[Path]) -> None:
    """Four of 20 that became right and the one that became wrong; another seed, other samples."""
    shown = compare_runs(runs, shown=4).shown["mathvista", "<b>trained"]
    assert [change.after["correct"] for change in shown] == [True] * 4 + [False]
    assert shown == compare_runs(runs, shown=4).shown["mathvista", "<b>trained"]
    assert shown != compare_runs(runs, shown=4, seed=1).shown["mathvista", "<b>trained"]
    assert "What changed" not in checked(compare_page(compare_runs(runs))).text


def test_long_completions_are_folded(tmp_path: Path) -> None:
    """The end, where the answer stands, is seen; all of it is behind a click."""
    long = f"START {'think ' * 100}{NASTY} \\boxed{{A}}"
    first = write_run(tmp_path / "a", {"mathvista": [nasty(0, False, completion=long, truncated=True)]})
    second = write_run(tmp_path / "b", {"mathvista": [nasty(0, True, completion="")]})
    html = compare_page(compare_runs([first, second], shown=1))
    page = checked(html)
    assert html.count("START") == 1
    assert html.count(r"\boxed{A}") == 2
    for words in (f"all {len(long):,} characters", "cut at the length limit", "(empty)"):
        assert words in page.text, words


def test_what_limits_the_comparison_is_said_first(tmp_path: Path) -> None:
    cut = [sample(PART, i, True, truncated=i < 5) for i in range(10)]
    first = write_run(tmp_path / "a", {"mathvista": cut, "vstar": samples("vstar", [1])})
    second = write_run(tmp_path / "b", {"mathvista": cut[:8]}, style="direct", failed={"vstar": NASTY})
    text = checked(compare_page(compare_runs([first, second], allow_different_settings=True))).text
    for words in (
        "Before you read the numbers", "mathvista: style differs, 'reasoning' in a, 'direct' in b",
        "vstar is left out: failed in b (<script>",
        f"2 samples of a are not in all runs and not compared: {PART}/8", "62.5% of the answers of a were cut",
    ):  # fmt: skip
        assert words in text, words


def test_several_runs_on_one_page(runs: list[Path], tmp_path: Path) -> None:
    third = write_run(tmp_path / "third", {"mathvista": [nasty(i, False) for i in range(60)]}, model=NASTY)
    page = checked(compare_page(compare_runs([*runs, third], shown=2)))
    for words in (
        "third against base & co",
        "<b>trained against base & co",
        "What changed in third",
        "worse",
    ):
        assert words in page.text, words
    assert len(page.named("article")) == 2 + 1 + 2


def test_a_picture_outside_the_run_is_not_read(runs: list[Path], tmp_path: Path) -> None:
    save_picture(tmp_path, "elsewhere", "x.jpg")
    rows_of = {"mathvista": [nasty(0, False, picture="../../../elsewhere/pictures/x.jpg")]}
    first, second = (write_run(tmp_path / name, rows_of) for name in ("in", "in2"))
    (second / "mathvista" / "samples.jsonl").write_text(
        (first / "mathvista" / "samples.jsonl").read_text().replace('"correct": false', '"correct": true')
    )
    page = checked(compare_page(compare_runs([first, second], shown=1)))
    assert not page.named("img")
    assert "outside the data folder" in page.text


def test_p_in_words() -> None:
    assert [p_words(p) for p in (0.00099, 0.001, 0.0314, 1.0)] == [
        "p < 0.001",
        "p = 0.001",
        "p = 0.031",
        "p = 1.000",
    ]


# ---------------------------------------------------------------- one run


def test_run_page_of_all_twelve(tmp_path: Path) -> None:
    """Every benchmark has 3 of 4 right, so the average is 75%; two categories in two of them; stock 40% where there is a stock metric."""
    answers = {
        name: [
            {**s, "category": (NASTY if i % 2 else "plain") * (name in ("vstar", "mmmu"))}
            for i, s in enumerate(samples(name, [1, 1, 1, 0]))
        ]
        for name in BENCHMARKS
    }  # fmt: skip
    run = write_run(tmp_path / "run", answers, stock=0.4, model=NASTY)
    write_run_report(run, tmp_path / "run.html")
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    page = checked(html)
    for benchmark in BENCHMARKS.values():
        assert benchmark.title in page.text
    assert "12 of 12 benchmarks, 48 samples" in page.text
    assert len(page.named("article")) == 12 * 4
    assert page.text.count("40.0% (") == 3 * sum(b.stock is not None for b in BENCHMARKS.values())
    assert "asks a judge model" in page.text
    assert page.text.count("2 categories") == 2
    assert "Without a result" not in page.text
    big = re.findall(r'<p class="big">([^<]*)</p>', html)
    assert big[:2] == ["75.0%", "0.0%"]
    assert len(page.named("circle", "after")) >= 13


def test_run_page_names_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", {"mathvista": samples("mathvista", [1, 0])}, failed={"vstar": f"no data at {NASTY}"}, limit=2
    )  # fmt: skip
    write_run_report(run, tmp_path / "run.html")
    page = checked((tmp_path / "run.html").read_text(encoding="utf-8"))
    for words in (
        "Without a result", "V*: no data at <script>", "not run: MathVerse", "only the first 2 samples of each task", "1 of 12",
    ):  # fmt: skip
        assert words in page.text, words


def test_run_page_of_a_run_without_results(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, failed={"vstar": "no data"})
    write_run_report(run, tmp_path / "run.html")
    text = checked((tmp_path / "run.html").read_text(encoding="utf-8")).text
    assert "0 of 12 benchmarks" in text
    assert "V*: no data" in text


def test_run_page_shares_its_average_with_the_results(tmp_path: Path) -> None:
    """Means of 1/2 (V*) and 1 (MathVista): 75%."""
    run = write_run(
        tmp_path / "run", {"mathvista": samples("mathvista", [1] * 6), "vstar": samples("vstar", [1, 0])}
    )
    write_run_report(run, tmp_path / "run.html")
    assert '<p class="big">75.0%</p>' in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_run_page_of_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_run_report(tmp_path / "none", tmp_path / "x.html")
    run = write_run(tmp_path / "run", {"vstar": samples("vstar", [1])})
    (run / "vstar" / "samples.jsonl").write_text("{")
    with pytest.raises(DataError, match="samples.jsonl, line 1: not JSON"):
        write_run_report(run, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


# ---------------------------------------------------------------- chart and tables


def test_chart_places_values_and_band() -> None:
    """0 to 100 on 10 to 364 units: 50 is at 187; the band of 10 to both sides of zero starts at the axis."""
    marks = [Mark("after", 50, "fifty", 0, 100)]
    html = interval_chart("c", NASTY, [Line(NASTY, "w", marks)], x_label="%", x_range=(0, 100))
    assert 'cx="187"' in html
    assert f'd="M10 23H{WIDTH - 16}' in html
    assert "<script>" not in html
    band = interval_chart("c", "C", [Line("a", "", marks, 10)], x_label="", x_range=(-100, 100))
    assert re.findall(r'<rect style="[^"]*" x="([\d.]+)" y="\d+" width="([\d.]+)"', band) == [
        ("169.3", "35.4")
    ]
    assert "Nothing was recorded" in interval_chart("c", "C", [Line("a", "", [])], x_label="")


def comparison(tmp_path: Path, *others: list[int], name: str = "b") -> dict[str, Any]:
    paths = [tmp_path / "a", *(tmp_path / f"{name}{i}" for i in range(len(others)))]
    for path, right in zip(paths, ([1] * 20 + [0] * 20, *others), strict=True):
        write_run(path, {"vstar": samples("vstar", right)})
    return compare_runs(paths).result


def test_bold_is_the_best_only_where_it_is_no_noise(tmp_path: Path) -> None:
    """Of 40 samples 10 more (p = 0.002) is bold, 3 more is not; the baseline is bold where all others are worse; ties share it."""
    better, slightly, worse = [1] * 30 + [0] * 10, [1] * 23 + [0] * 17, [1] * 10 + [0] * 30
    for others, bold in (
        ([better], {"b0"}), ([slightly], set()), ([worse], {"a"}), ([worse, slightly], set()), ([better, slightly], {"b0"}),
        ([better, better], {"b0", "b1"}), ([worse, worse], {"a"}),
    ):  # fmt: skip
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        assert {row.bold for row in rows(comparison(folder, *others))} == {frozenset(bold)}


def test_tables_have_equal_rows(tmp_path: Path) -> None:
    """Three runs and four published columns: name, n, baseline, two times run and difference, four."""
    result = comparison(tmp_path, [1] * 30 + [0] * 10, [1] * 20 + [0] * 20)
    lines = [line for line in markdown_table(result).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {12}
    assert lines[2].startswith("| V\\* | 40 | 50.0 | **75.0** | +25.0 [")
    assert lines[2].endswith("| 50.0 | +0.0 [0.0, 0.0] | 70.1 | 70.7 | 71.7 | 73.3 |")
    assert lines[0].count("(published, other harness)") == 4
    latex = latex_table(result)
    table_rows = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count(" & ") for line in table_rows} == {10}
    assert r"\begin{tabular}{lrrrrrrrrrr}" in latex
    assert r"\multicolumn{4}{c}{published, other harness}" in latex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){8-11}"):
        assert rule in latex
    assert latex.count("{") == latex.count("}")


def test_names_are_escaped(tmp_path: Path) -> None:
    result = comparison(tmp_path, [1] * 20 + [0] * 20, name="100%_|*\\$&#{x}~^<")
    assert r"100%\_\|\*\\$&\#\{x\}\~^\<0" in markdown_table(result)
    escaped = r"100\%\_\textbar{}*\textbackslash{}\$\&\#\{x\}\textasciitilde{}\textasciicircum{}\textless{}0"
    assert escaped in latex_table(result)


def test_tables_without_published_numbers(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, {"vstar": samples("vstar", [1, 0])}, model="tinyvl") for name in "ab"]
    result = compare_runs(paths).result
    assert "published" not in markdown_table(result)
    assert "multicolumn" not in latex_table(result)
