"""The benchmark of the app on few pairs: it measures what it names."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_bench_measures_every_answer() -> None:
    from vlm_contextrl.app.speed import REPEATS, run

    result = run(200, 32)
    assert (result["pairs"], result["side_px"]) == (200, 32)
    counts = {name: len(times) for name, times in result["seconds"].items()}
    answers = ("filter", "filter a histogram", "search", "next", "decide")
    assert counts == {"open": 3, **dict.fromkeys(answers, REPEATS)}
    assert all(second > 0 for times in result["seconds"].values() for second in times)
