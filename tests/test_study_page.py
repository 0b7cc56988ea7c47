"""The report of a study: nothing fetched, nothing lost, positions by hand, arms told apart without colour."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.page_reader import Page
from tests.study_cells import finished_cell
from vlm_contextrl.report.chart_parts import LEFT, RIGHT, WIDTH
from vlm_contextrl.study.charts import (
    COLOURS,
    DASHES,
    MARKERS,
    Spot,
    arm_css,
    curve_chart,
    difference_chart,
    scatter,
)
from vlm_contextrl.study.curves import Band, Curves, learning_curves
from vlm_contextrl.study.page import study_page
from vlm_contextrl.study.results import summarise

NASTY = "<b>no & luck</b>"


def entry(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


@pytest.fixture
def page(tmp_path: Path) -> str:
    cells = [finished_cell(tmp_path, "grpo", 0, 0.5, 0.4, 0.3, trains=False)]
    for seed in (1, 2):
        cells.append(finished_cell(tmp_path, "grpo", seed, 0.6 + seed / 100, 0.5, 0.4))
        cells.append(finished_cell(tmp_path, "contextrl", seed, 0.7, 0.9, 0.5, step_s=20))
    result = {"name": "s", **summarise(cells, "grpo", {"papo-1": NASTY})}
    return study_page(result, learning_curves(cells), {"hardware": NASTY})


def test_page_is_whole_and_fetches_nothing(page: str) -> None:
    read = Page(page)
    assert not read.named("script")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"url\((?!#)", page)
    assert page.count("&lt;b&gt;no &amp; luck&lt;/b&gt;") == 2
    assert len(read.named("figure")) == 4 + 2 + 3 + 2  # differences, scatters, curves, cost


def test_page_shows_the_numbers(page: str) -> None:
    text = Page(page).text
    assert "2 arms, 2 seeds each" in text
    assert "+8.5 (+2.1 to +14.9)" in text  # 0.09 and 0.08: 0.085 +- 12.7062 * 0.00707107 / sqrt(2) = 0.0635
    assert "1.0 min, 2.00 times grpo" in text
    assert "papo-1 failed: <b>no & luck</b>" in text


def test_every_arm_has_a_marker_and_a_dash_of_its_own() -> None:
    assert len(set(MARKERS)) == len(set(DASHES)) == len(set(COLOURS)) == len(MARKERS)


def test_more_arms_than_colours_differ_by_marker_and_dash() -> None:
    """14 arms, as in study_ablations: no two marks of the drawing have both the style's colour and the marker in common."""
    names = [f"arm{n}" for n in range(14)]
    band = [Band(1, 0.5, 0.5, 0.5), Band(2, 0.6, 0.6, 0.6)]
    drawn = curve_chart("c", Curves("c", "y", dict.fromkeys(names, band)), names, {})
    lines = re.findall(r'class="line (arm\d+)"', drawn)
    assert len(set(lines)) == len(names)
    rules = dict(re.findall(r"svg \.(arm\d+)\{(.*?)\}", arm_css()))
    assert len({rules[line] for line in lines}) == len(names)
    spots = [Spot(name, entry(0.5 + n / 100), entry(0.5)) for n, name in enumerate(names)]
    marks = re.findall(
        r'class="mark\s+(arm\d+)"[^>]*? d="(.*?)"', scatter("s", "c", spots, None, x_label="x", y_label="y")
    )
    assert len({(rules[arm].split(";")[0], marker) for arm, marker in marks}) == len(names)


def test_scatter_by_hand() -> None:
    """x from 40 to 60, padded by 1.2 at both ends: 50 is in the middle of the drawing, 60 at (60 - 38.8) / 22.4 of it."""
    drawn = scatter(
        "s", "c", [Spot("a", entry(0.6), entry(0.5)), Spot("b", entry(None), entry(None))],
        Spot("before", entry(0.4), entry(0.4)), x_label="x", y_label="y",
    )  # fmt: skip
    x = LEFT + (60 - 38.8) / 22.4 * (WIDTH - RIGHT - LEFT)
    assert f"translate({x:.0f} " in drawn  # 351.0
    assert 'class="mark hollow"' in drawn
    assert "a: 60.0 across, 50.0 up; before: 40.0 across, 40.0 up" in drawn


def test_intervals_that_leave_the_scatter_are_cut() -> None:
    drawn = scatter("s", "c", [Spot("a", entry(0.5, -3, 4), entry(0.5))], None, x_label="x", y_label="y")
    (path,) = re.findall(r'class="spread arm0" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    assert [float(end) for end in path] == [LEFT, WIDTH - RIGHT]


def test_differences_are_drawn_about_zero() -> None:
    drawn = difference_chart(
        "d", "c", [(1, "a", entry(0.02, 0.01, 0.03)), (2, "b", entry(None))], x_label="points"
    )
    assert 'class="zero"' in drawn
    assert "+2.0 (+1.0 to +3.0)" in drawn
    assert "b: \N{EN DASH}" in drawn


def test_curves_have_line_and_band() -> None:
    curves = Curves("c", "y", {"b": [Band(1, 0.5, 0.4, 0.6), Band(2, 0.7, 0.6, 0.8)], "a": []})
    drawn = curve_chart("k", curves, ["a", "b"], {"chance": 0.5})
    assert 'class="band arm1"' in drawn
    assert 'class="line arm1"' in drawn
    assert "arm0" not in drawn
    assert "chance" in drawn


def test_nothing_to_draw_is_said() -> None:
    for drawn in (
        scatter("s", "c", [Spot("a", entry(None), entry(None))], None, x_label="x", y_label="y"),
        difference_chart("d", "c", [], x_label="points"),
        curve_chart("k", Curves("c", "y", {"a": []}), ["a"], {}),
    ):
        assert "Nothing was recorded" in drawn
