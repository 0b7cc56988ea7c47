"""Charts of the report: positions and counts worked out by hand, gaps where values are missing."""

from __future__ import annotations

import math

import pytest

from tests.page_reader import Page, accuracy
from vlm_contextrl.report.chart_parts import MISSING, Scale, finite, number, padded, ticks
from vlm_contextrl.report.charts import (
    Dot,
    Series,
    bar_chart,
    bin_edges,
    count_bins,
    histogram,
    line_chart,
    moving_mean,
)


def test_scale_is_linear_and_may_run_downwards() -> None:
    """0.25 of the way from 180 up to 10: 180 - 0.25 * 170 = 137.5."""
    assert Scale(0, 1, 180, 10)(0.25) == 137.5
    assert Scale(0, 1, 180, 10).middle == 95


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-7, 7, [-5, 0, 5]),
        (1, 120, [50, 100]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_numbers_for_people() -> None:
    assert number(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert number(-0.001) == "0.00"
    assert number(None) == MISSING
    assert [finite(v) for v in (1, math.nan, math.inf, None, True, "1")] == [
        1.0,
        None,
        None,
        None,
        None,
        None,
    ]


def test_range_is_padded_and_never_empty() -> None:
    """6% of 10 at both ends; a single value gets 5% of itself, zero gets 0.05."""
    assert padded(0, 10) == (-0.6, 10.6)
    assert padded(2, 2) == (1.9, 2.1)
    assert padded(0, 0) == (-0.05, 0.05)


def test_moving_mean() -> None:
    """Over 3: the ends have two neighbours, a missing value is left out, a lonely gap stays."""
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, None), (4.0, 6.0)]
    assert moving_mean(points, 3) == [(1.0, 1.5), (2.0, 1.5), (3.0, 4.0), (4.0, 6.0)]
    assert moving_mean([(1.0, None)], 3) == [(1.0, None)]


def test_bins_are_symmetric_and_round() -> None:
    """6.2 / 12 = 0.517 per bin, rounded up to 1: seven bins on each side."""
    assert bin_edges(6.2) == [float(v) for v in range(-7, 8)]
    assert bin_edges(0.0)[0] == -bin_edges(0.0)[-1]


def test_counts_per_bin() -> None:
    """Edges -1, 0, 1: zero goes to the right, 1 to the last bin, NaN nowhere."""
    assert count_bins([-1.0, -0.5, 0.0, 1.0, math.nan], [-1.0, 0.0, 1.0]) == [2, 2]


def test_line_positions() -> None:
    """Steps 1..3 over units 50..368, values 0..1 over 180..10: the middle point is (209, 95)."""
    series = Series("s", "after", [(1, 0.0), (2, 0.5), (3, 1.0)])
    page = Page(line_chart("c", "Caption", [series], x_label="step", y_label="share", y_range=(0, 1)))
    assert page.named("path", "curve")[0]["d"] == "M50 180L209 95L368 10"
    assert "s: 0.00 at step 1, 1.00 at step 3" in page.text


def test_line_has_gaps_where_values_are_missing() -> None:
    series = Series("s", "after", [(1, 0.0), (2, None), (3, 1.0)])
    page = Page(line_chart("c", "Caption", [series], x_label="step", y_label="share", y_range=(0, 1)))
    assert page.named("path", "raw")[0]["d"] == "M50 180M368 10"


def test_dots_carry_their_interval() -> None:
    """0.5 with 0.25 to 0.75 on 180..10: the whisker runs from 137.5 to 52.5."""
    series = Series("held out", "wrong", dots=[Dot(1, 0.5, 0.25, 0.75)])
    page = Page(line_chart("c", "Caption", [series], x_label="step", y_label="share", y_range=(0, 1)))
    whisker = page.named("line", "whisker")[0]
    assert (whisker["y1"], whisker["y2"]) == ("137.5", "52.5")
    assert page.named("circle")[0]["cy"] == "95"


def test_bar_widths_and_whiskers() -> None:
    """100% are 310 units from x = 6: 50% is 155 wide, 40% to 60% run from 130 to 192."""
    rows = [("objects", accuracy(0.5, 0.4, 0.6), accuracy(1.0, 1.0, 1.0))]
    page = Page(bar_chart("c", "Caption", rows, x_label="%"))
    widths = [a["width"] for a in page.named("rect", "fill") if a["height"] == "11"]
    assert widths == ["155", "310"]
    assert str(page.named("path", "whisker")[0]["d"]).startswith("M130 37.5H192M130 ")
    assert "50.0% (40.0 to 60.0), n = 100" in page.text


def test_bar_without_a_value_says_so() -> None:
    page = Page(bar_chart("c", "Caption", [("objects", None, accuracy(0.5))], x_label="%"))
    assert "no data" in page.text
    assert len([a for a in page.named("rect", "fill") if a["height"] == "11"]) == 1
    assert "Nothing was recorded" in bar_chart("c", "Caption", [("x", None, accuracy(None))], x_label="%")


def test_histogram_bars() -> None:
    """Margins 0.5 and 0.5 before, bins of 0.1 from -1 to 1 (reach 1): one bar of height two."""
    page = Page(
        histogram("c", "Caption", [0.5, 0.5], [-1.0, 1.0], x_label="margin", y_label="pairs", clip=0.8)
    )
    assert len(page.named("rect", "before")) == 1
    assert len(page.named("rect", "after")) == 2
    assert len(page.named("line", "reference")) == 2
    assert "the clip, ±0.8" in page.text
    far = histogram("c", "Caption", [0.5], [1.0], x_label="margin", y_label="pairs", clip=5)
    assert "the clip" not in far
    assert "before: 2 of 2 margins above zero, mean 0.50; after: 1 of 2" in page.text


def test_charts_without_values() -> None:
    assert "Nothing was recorded" in line_chart("c", "C", [Series("s", "after")], x_label="x", y_label="y")
    assert "Nothing was recorded" in histogram("c", "C", [], [math.nan], x_label="x", y_label="y")
