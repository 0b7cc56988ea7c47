"""How fast the review answers on many pairs: `vlm-contextrl bench app`.

Everything that an answer of the server holds is measured, from the request to the values that would be sent: log, filter, facets, card,
both pictures decoded, compared and encoded. Not measured: the browser and the loopback.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_contextrl.app.catalogue import open_catalogue
from vlm_contextrl.app.decisions import DecisionLog
from vlm_contextrl.app.pictures import Pictures
from vlm_contextrl.app.review import Review, Session
from vlm_contextrl.app.review_tab import rendered
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import write_rows

DOMAINS = ("charts", "dials", "geometry", "objects", "tables")
REPEATS = 15


def run(pairs: int, side_px: int, watch: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Seconds of every measure, {name: [one per repeat]}, on `pairs` synthetic pairs of side_px x side_px pixels."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pairs"
        watch(f"writing {pairs} pairs")
        write_rows(_pairs(pairs, side_px), folder, recipe="bench", config={})
        watch("measuring")
        seconds = _measured(folder, Path(place) / "decisions")
    return {"pairs": pairs, "side_px": side_px, "seconds": seconds}


def _measured(folder: Path, decisions: Path) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - began)

    for _ in range(3):
        timed("open", lambda: open_catalogue(folder))
    catalogue = open_catalogue(folder)
    review = Review(catalogue, DecisionLog(decisions, folder, catalogue.content_hash))
    pictures, session = Pictures(catalogue), Session()
    review.open(session)

    def answer(action: Callable[[], None]) -> None:
        action()
        rendered(review, pictures, session)

    review.log.decide(
        "bench", catalogue.ids[: len(catalogue) // 2], "accept"
    )  # a log of thousands of lines, as in the middle of a review
    rng = random.Random(0)
    for repeat in range(REPEATS):
        timed("filter", lambda: answer(lambda: review.click(session, "domain", rng.randrange(len(DOMAINS)))))
        timed(
            "filter a histogram",
            lambda: answer(lambda: review.click(session, "similarity", rng.randrange(20))),
        )
        review.clear(session)
        words = f"thing {repeat}"
        timed("search", lambda words=words: answer(lambda: review.search(session, words)))  # type: ignore[misc]
        review.clear(session)
        review.open(session, rng.choice(catalogue.ids))
        timed("next", lambda: answer(lambda: review.step(session, 1)))
        key = catalogue.keys[session.at or 0]
        timed("decide", lambda key=key: answer(lambda: review.decide(session, key, "bench", "accept")))  # type: ignore[misc]
    pictures.close()
    return seconds


def _pairs(count: int, side_px: int) -> Iterator[ContrastivePair]:
    """Two colours on white; one row in a hundred is new to the eye, so that writing stays quick."""
    sides: list[tuple[EncodedImage, EncodedImage]] = []
    for at in range(min(count, 100)):
        images = [Image.effect_noise((side_px, side_px), 20).convert("RGB") for _ in range(1)] * 2
        changed = images[0].copy()
        changed.paste((at * 2, 90, 200), (at % side_px // 2, 4, side_px // 2, side_px // 2))
        sides.append((EncodedImage.from_image(images[0]), EncodedImage.from_image(changed)))
    for number in range(count):
        context, confounder = sides[number % len(sides)]
        yield ContrastivePair(
            id=f"pair-{number:06d}",
            query=f"Which colour has thing {number % 300} beside the {DOMAINS[number % 5]}?",
            answer="red",
            confounder_answer="blue",
            context=context,
            confounder=confounder,
            domain=DOMAINS[number % 5],
            recipe=("edit", "retrieve", "render")[number % 3],
            provenance={
                "licence": "CC0-1.0", "source": "bench", "similarity": (number * 37 % 1000) / 1000,
                "changed_fraction": (number * 61 % 997) / 997,
            },
            verdicts={"verifier": {"context_share": (number % 10) / 10, "confounder_share": (number % 7) / 10}},
        )  # fmt: skip
