"""The report page: text escaped, nothing fetched, missing values survived, colours readable."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from PIL import Image

from tests.page_reader import Page, accuracy
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.report.gallery import (
    OUTCOMES,
    SHOWN,
    Example,
    Sample,
    changed_box,
    choose,
    example_card,
    outcome,
    pair_box,
    sample_card,
)
from vlm_contextrl.report.numbers import verdict
from vlm_contextrl.report.page import ReportData, render_report
from vlm_contextrl.report.style import CSS

NASTY = "<script>alert('x')</script> & \"quoted\""


def picture(colour: str, spot: tuple[int, int] | None = None) -> Image.Image:
    image = Image.new("RGB", (10, 20), colour)
    if spot:
        image.putpixel(spot, (0, 0, 0))
    return image


def pair(**changes: Any) -> ContrastivePair:
    fields: dict[str, Any] = {
        "id": "p1",
        "query": "How many stars?",
        "answer": "2",
        "confounder_answer": "3",
        "context": EncodedImage.from_image(picture("red")),
        "confounder": EncodedImage.from_image(picture("red", (3, 4))),
        "domain": "objects",
        "provenance": {"licence": "CC0-1.0", "edit": "star becomes heart", "edited": "context"},
    }
    return ContrastivePair(**(fields | changes))


def full_data() -> ReportData:
    measures = {
        "vqa_accuracy": accuracy(0.5, 0.4, 0.6),
        "selection_accuracy": accuracy(0.75, 0.7, 0.8),
        "order_consistent_accuracy": accuracy(0.5, 0.4, 0.6),
        "same_image_control": accuracy(0.5, 0.5, 0.5),
        "group_accuracy": accuracy(None, n=0),
        "mean_margin": accuracy(1.25, 1.0, 1.5),
        "position_bias": accuracy(-0.02, -0.04, 0.01),
    }
    domain = {
        side: {"vqa": accuracy(0.5, 0.4, 0.6), "selection": accuracy(0.6, 0.5, 0.7)}
        for side in ("base", "final")
    }
    return ReportData(
        title="A run",
        lead="Of a model.",
        summary={
            "base": measures,
            "final": measures,
            "vqa_gain": {"value": 0.02, "low": 0.01, "high": 0.03},
            "selection_gain": {"value": 0.3, "low": 0.2, "high": 0.4},
            "per_domain": {"objects": domain},
        },
        metrics=[{"step": s, "reward_mean": 0.1 * s, "margin": s, "selection_accuracy": 0.5, "outside_clip_right": 0.1,
                  "outside_clip_wrong": 0.0} for s in range(1, 6)],
        evals=[{"step": 5, "selection_accuracy": accuracy(0.75, 0.7, 0.8), "vqa_accuracy": accuracy(0.5, 0.4, 0.6)}],
        margins_before=[-0.5, 0.5],
        margins_after=[2.0, 4.0],
        examples=[Example(pair(), (-1.0, 0.5), (2.0, 3.0)), Example(pair(id="p2"), (-1.0, 0.5), (-2.0, 3.0))],
        outcomes={"learned": 1, "still wrong": 1},
        samples=[Sample(1, "What colour?", "red", ["red", "red", "blue"], [1.0, 1.0, 0.0])],
        config={"objective": [{"term": "selection_loss", "weight": 0.5, "clip_value": 5.0, "orders": "both"}]},
        facts={"hardware": "2 CPU cores"},
    )  # fmt: skip


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.03, "better"), (-0.03, -0.01, "worse"), (-0.01, 0.03, "no clear change")],
)
def test_verdict_needs_an_interval_off_zero(low: float, high: float, word: str) -> None:
    assert word in verdict({"value": 0.02, "low": low, "high": high})
    assert verdict({}) == "No comparison was recorded."


# ---------------------------------------------------------------- examples


def test_outcomes_need_both_orders() -> None:
    assert outcome((-1, 1), (1, 1)) == "learned"
    assert outcome((1, 1), (1, 0)) == "lost"
    assert outcome((-1, 1), (1, -1)) == "still wrong"
    assert outcome((1, 1), (1, 1)) == "right throughout"


def test_changed_box() -> None:
    """Pixel (3, 4) of 10 x 20: from (0.3, 0.2) to (0.4, 0.25), 0.02 wider on all sides."""
    box = changed_box(picture("red"), picture("red", (3, 4)))
    assert box == pytest.approx((0.28, 0.18, 0.42, 0.27))
    assert changed_box(picture("red"), picture("red")) is None
    assert changed_box(picture("red"), Image.new("RGB", (5, 5))) is None


def test_the_box_that_exact_checks_found() -> None:
    """Pixels 2 to 4 and 5 to 9 of 10 x 20, 0.02 wider on all sides; what is no such box is not used."""
    first, second = picture("red"), picture("red", (3, 4))
    measured = pair(verdicts={"exact": {"changed_box_px": [2, 5, 4, 9]}})
    assert pair_box(measured, first, second) == pytest.approx((0.18, 0.23, 0.42, 0.47))
    for odd in ({"changed_box_px": None}, {"changed_box_px": [1, 2]}, "odd"):
        assert pair_box(pair(verdicts={"exact": odd}), first, second) == changed_box(first, second)


def test_examples_hold_failures_and_mix_domains() -> None:
    domains = ["objects"] * 20 + ["dials"]
    before = [{"domain": d, "margins": [-1.0, -1.0]} for d in domains] * 2
    after = [{"domain": d, "margins": [1.0, 1.0]} for d in domains] + [
        {"domain": d, "margins": [-1.0, 1.0]} for d in domains
    ]
    counts, chosen = choose(before, after)
    assert counts == {"learned": 21, "still wrong": 21, "lost": 0, "right throughout": 0}
    shown = [outcome(before[i]["margins"], after[i]["margins"]) for i in chosen]
    assert [shown.count(name) for name in OUTCOMES] == [SHOWN["learned"], SHOWN["still wrong"], 0, 0]
    assert "dials" in {before[i]["domain"] for i in chosen[: SHOWN["learned"]]}
    assert choose(before, after) == (counts, chosen)


def test_example_card_shows_both_orders_and_the_region() -> None:
    page = Page(example_card(Example(pair(), (-1.0, 0.5), (2.0, 3.0))))
    assert page.text.count("right picture is") == 2
    for shown in (
        "\N{MINUS SIGN}1.00",
        "0.50",
        "2.00",
        "3.00",
        "Edit (left picture): star becomes heart",
        "learned",
    ):
        assert shown in page.text
    assert len(page.named("img")) == 2
    assert page.named("span", "outline")[0]["style"] == "left:28.0%;top:18.0%;width:14.0%;height:9.0%"
    assert [a["aria-label"] for a in page.named("span") if a.get("role") == "img"] == [
        "wrong",
        "right",
        "right",
        "right",
    ]


def test_example_card_of_texts_and_unknown_confounder_answer() -> None:
    card = example_card(
        Example(
            pair(context="line <1>", confounder="line <2>", confounder_answer=None), (1.0, 1.0), (1.0, 1.0)
        )
    )
    page = Page(card)
    assert "line <1>" in page.text
    assert "does not support it" in page.text
    assert not page.named("img")


def test_large_pictures_are_made_smaller() -> None:
    wide = EncodedImage.from_image(Image.new("RGB", (900, 450), "red"))
    image = Page(sample_card(Sample(1, "q", "a", [], [], (), wide))).named("img")[0]
    assert (image["width"], image["height"]) == ("448", "224")


def test_equal_completions_are_counted() -> None:
    page = Page(sample_card(Sample(3, "What?", "A", ["A", "", "A"], [1.0, 0.0, 1.0], ("red", "blue"))))
    assert "2 \N{MULTIPLICATION SIGN}, reward 1.00" in page.text
    assert "(empty)" in page.text
    assert "A. red" in page.text


# ---------------------------------------------------------------- the page


def test_page_has_every_part() -> None:
    page = Page(render_report(full_data()))
    for shown in (
        "A run", "Of a model.", "50.0%", "+30.0 points (95% interval 20.0 to 40.0): better", "2606.17053", "2602.22623",
        "Selection accuracy", "All measures", "Margins of the held-out pairs", "Pairs outside the clip", "Pairs to look at",
        "1 pair, wrong in at least one order", "Answers sampled while training", "2 CPU cores", "selection_loss",
    ):  # fmt: skip
        assert shown in page.text, shown


def test_every_drawing_is_described_and_ids_are_unique() -> None:
    page = Page(render_report(full_data()))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    drawings = [a for a in page.named("svg") if a.get("aria-hidden") != "true"]
    assert len(drawings) >= 7
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(str(drawing["aria-labelledby"]).split()) <= set(ids)
    assert all(a.get("alt") for a in page.named("img"))


def test_text_from_data_is_escaped_everywhere() -> None:
    nasty = pair(
        query=NASTY, answer=NASTY, confounder_answer=NASTY + "2", domain=NASTY, options=(NASTY,),
        provenance={"licence": "x", "edit": NASTY},
    )  # fmt: skip
    summary: Mapping[str, Any] = {
        "base": {"vqa_accuracy": {"value": 0.5, "n": NASTY}},
        "per_domain": {NASTY: {}},
    }
    data = ReportData(
        title=NASTY, lead=NASTY, summary=summary, examples=[Example(nasty, (1, 1), (1, 1))],
        samples=[Sample(1, NASTY, NASTY, [NASTY], [0.0])], config={NASTY: NASTY}, facts={NASTY: NASTY},
    )  # fmt: skip
    html = render_report(data)
    assert "<script" not in html
    page = Page(html)
    assert not page.named("script")
    assert page.text.count("alert('x')") >= 12
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_page_fetches_nothing() -> None:
    html = render_report(full_data())
    page = Page(html)
    assert not re.search(r"https?:|@import|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert str(attributes.get(name) or "data:").startswith("data:")
    assert set(re.findall(r"url\((.*?)\)", html)) == {"#hatch"}
    policy = next(
        a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none'")


def test_page_of_an_empty_run() -> None:
    page = Page(render_report(ReportData(title="Nothing yet")))
    assert "No step was recorded" in page.text
    assert "measures selection and does not train it" in page.text


def test_page_survives_missing_and_infinite_values() -> None:
    metrics = [
        {"step": 1},
        {"step": 2, "reward_mean": math.nan, "margin": None},
        {"reward_mean": 1.0},
        {"step": 3, "margin": 1},
    ]
    summary = {
        "base": None,
        "final": {"vqa_accuracy": {"value": None}},
        "per_domain": {"x": {"base": None}},
        "vqa_gain": None,
    }
    evals = [{"step": 3, "selection_accuracy": {"value": 0.5}}, {"vqa_accuracy": accuracy(0.5, 0.4, 0.6)}]
    page = Page(render_report(ReportData(title="t", metrics=metrics, evals=evals, summary=summary)))
    assert "nan" not in page.text.lower()
    assert "Mean margin" in page.text


def test_page_is_the_same_for_the_same_records() -> None:
    assert render_report(full_data()) == render_report(full_data())


# ---------------------------------------------------------------- colours


def palettes() -> Iterator[dict[str, str]]:
    """The light colours, then the dark ones."""
    for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL):
        yield dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))


def contrast(first: str, second: str) -> float:
    """Ratio of relative luminances, WCAG 2.2."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


@pytest.mark.parametrize("palette", list(palettes()), ids=["light", "dark"])
def test_colours_are_readable(palette: dict[str, str]) -> None:
    """WCAG 2.2: 4.5 for text, 3 for what is drawn."""
    for text in ("ink", "soft", "after", "wrong"):
        for ground in ("card", "page", "tint"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    assert contrast(palette["before"], palette["card"]) >= 3
