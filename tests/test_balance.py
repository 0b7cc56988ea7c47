"""Balance: figures by hand, planted cues found with their pairs, and no alarm for balanced sets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.data_recipes.curate import balance as module
from vlm_contextrl.data_recipes.curate.balance import balance, balance_of, cues, holm, template, two_sided_p
from vlm_contextrl.data_recipes.render import RenderConfig, render_pairs
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.storage import write_rows


def pair(
    number: int, context: EncodedImage | str, confounder: EncodedImage | str, **provenance: Any
) -> ContrastivePair:
    return ContrastivePair(
        id=f"p{number}",
        query="Which?",
        answer="a",
        context=context,
        confounder=confounder,
        domain="d",
        provenance={"licence": "CC0-1.0", **provenance},
    )


def flat(red: int, size: tuple[int, int] = (4, 4)) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", size, (red, 0, 0)))


def test_p_by_hand() -> None:
    """Ten tosses: no head 2 * 1/1024, one head at most 2 * 11/1024, five heads more than 1 and so 1."""
    assert two_sided_p(0, 10) == two_sided_p(10, 10) == 2 / 1024
    assert two_sided_p(1, 10) == two_sided_p(9, 10) == 22 / 1024
    assert two_sided_p(5, 10) == two_sided_p(0, 0) == 1


def test_p_of_many_tosses_is_the_exact_one() -> None:
    """The exact sum of whole numbers over 2^n against the sum of logarithms that takes over above 1000 tosses."""
    for n, k in ((1200, 540), (3000, 1400), (3000, 1500), (1001, 0)):
        exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n)
        assert two_sided_p(k, n) == pytest.approx(exact, rel=1e-9)


def test_holm_by_hand() -> None:
    """Smallest first: 3 * 0.01, then 2 * 0.03, then 1 * 0.04, which may not be below the 0.06 before it."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_false_alarms_by_hand() -> None:
    """A fair coin is called unfair when p <= 0.01 / 6, the least of Holm's bounds for six cues: after 10 tosses never (the least p is
    2/1024), after 20 for at most 2 or at least 18 heads, 2 * (1 + 20 + 190) / 2^20 = 0.0004; six times that is at most 1% for any n."""
    bound = module.ALPHA / 6

    def rate(n: int) -> float:
        return sum(math.comb(n, k) for k in range(n + 1) if two_sided_p(k, n) <= bound) / 2**n

    assert rate(10) == 0
    assert rate(20) == 2 * 211 / 2**20
    assert all(6 * rate(n) <= module.ALPHA for n in (30, 60, 100, 500))


def test_answer_prior_by_hand() -> None:
    """Template "how many of # dots?": answers 2 2 2 3 4, so 3 of 5 by the most frequent. Options count by their text: B and A below are
    both "red", 5 of 5. Together 8 of 10. The template of four rows says nothing."""

    def question(
        number: int, query: str, answer: str, domain: str, options: tuple[str, ...] = ()
    ) -> QuestionRow:
        kind: Any = "choice" if options else "exact"
        provenance = {"licence": "CC0-1.0"}
        return QuestionRow(
            id=str(number),
            query=query,
            answer=answer,
            domain=domain,
            options=options,
            answer_type=kind,
            provenance=provenance,
        )

    rows = [question(n, f"How many of  {n + 9} dots?", answer, "dots") for n, answer in enumerate("22234")]
    rows += [question(5 + n, "Colour?", "B", "hues", ("blue", "red")) for n in range(3)]
    rows += [question(8 + n, "colour?", "A", "hues", ("red", "blue")) for n in range(2)]
    rows += [question(10 + n, "Rare?", "yes", "dots") for n in range(4)]
    found = balance_of(rows)
    assert found["answers"] == {
        "majority_share": 0.8,
        "n": 10,
        "templates": 2,
        "domains": {
            "dots": {"majority_share": 0.6, "n": 5, "templates": 1},
            "hues": {"majority_share": 1.0, "n": 5, "templates": 1},
        },
    }
    assert (found["edited"], found["cues"], found["unbalanced"]) == (None, None, [])
    assert balance_of(rows[-4:])["answers"] is None
    assert template("In 1,000 or 2.5 %?") == "in # or # %?"


def test_cues_by_hand() -> None:
    """A black and a white pixel: mean 127.5, one step of 255. Pure red: red - green 255 and (red + green) / 2 - blue 127.5 everywhere, so
    0.3 sqrt(255^2 + 127.5^2) = 85.53."""
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((1, 0), (255, 255, 255))
    side = EncodedImage.from_image(picture)
    assert cues(side) == {
        "pixels": 2, "file bytes": len(side.data), "brightness": 127.5, "colourfulness": 0.0, "sharpness": 255.0,
    }  # fmt: skip
    assert cues(flat(255))["colourfulness"] == pytest.approx(0.3 * math.hypot(255, 127.5), abs=1e-4)
    assert cues(flat(255))["sharpness"] == 0
    assert cues("four") == {"characters": 4}


def test_planted_positions_are_found(tmp_path: Path) -> None:
    """40 pairs: the confounder is always the edited side and always larger in bytes, its brightness in turn larger and smaller.

    Each of two shares is 0 of 40, p = 2 / 2^40; the edited side counts twice (overall, by domain). Brightness 20 of 40, and so
    colourfulness; pixels and sharpness never differ.
    """
    rows = []
    for number in range(40):
        low, high = flat(100), flat(110 + number)
        sides = [low, high] if number % 2 else [high, low]
        padded = EncodedImage(sides[1].data + b"\0" * 64)  # bytes after the end of a PNG are not shown
        rows.append(pair(number, sides[0], padded, edited="confounder"))
    write_rows(rows, tmp_path / "pairs", recipe="planted", config={})
    found = balance(tmp_path / "pairs")
    json.dumps(found)
    assert [finding["name"] for finding in found["unbalanced"]] == ["edited", "edited in d", "file bytes"]
    for finding in found["unbalanced"]:
        assert finding["ids"] == [row.id for row in rows]
        assert (finding["share"], finding["n"], finding["p"]) == (0.0, 40, 2 / 2**40)
    # Seven shares in all: the three of p = 2 / 2^40 are corrected by 7, 6 and 5, and never less than the one before.
    assert {finding["p_holm"] for finding in found["unbalanced"]} == {14 / 2**40}
    assert (
        found["unbalanced"][2]["text"]
        == "the confounder is larger in file bytes in 40 of 40 pairs (100.0%), p = 1.3e-11"
    )
    assert found["edited"]["domains"]["d"]["n"] == 40
    assert found["cues"]["brightness"]["share"] == 0.5
    assert found["cues"]["pixels"] == {"share": None, "n": 0, "p": 1.0, "p_holm": 1.0}


def test_planted_lengths_of_texts_are_found() -> None:
    """The context is the longer text in 19 of 20: p = 2 (1 + 20) / 2^20 = 4e-5. The one exception is not among the ids."""
    rows = [pair(n, "a b c", "a b" if n else "a b c d") for n in range(20)]
    (finding,) = balance_of(rows)["unbalanced"]
    assert (finding["name"], finding["p_holm"], finding["ids_n"]) == ("characters", 42 / 2**20, 19)
    assert finding["ids"] == [f"p{n}" for n in range(1, 20)]


def test_what_is_too_small_to_use_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """54% of 10,000 is no chance (p < 1e-14), and within 5 points of a half."""
    rows = [pair(n, "a b c", "a b" if n % 100 < 54 else "a b c d") for n in range(10_000)]
    found = balance_of(rows)
    assert found["cues"]["characters"]["p_holm"] < 1e-14
    assert found["unbalanced"] == []
    monkeypatch.setattr(module, "DEVIATION", 0.03)
    assert len(balance_of(rows)["unbalanced"]) == 1


def test_rendered_pairs_are_balanced() -> None:
    """Five domains, 300 pairs: the fair coin of the renderer leaves no cue."""
    found = balance_of(render_pairs(RenderConfig(count=300, size_px=56)))
    assert found["unbalanced"] == []
    assert found["edited"]["n"] == 300
    assert sum(domain["n"] for domain in found["edited"]["domains"].values()) == 300
    assert 0.3 < found["answers"]["majority_share"] < 0.9


def test_at_most_so_many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDS", 3)
    (finding,) = balance_of([pair(n, "a b", "a b c") for n in range(20)])["unbalanced"]
    assert (finding["ids"], finding["ids_n"]) == (["p0", "p1", "p2"], 20)
