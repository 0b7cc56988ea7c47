"""Shuffled passes that go on exactly where a checkpoint left them."""

from __future__ import annotations

import pytest

from vlm_contextrl.streams import ShuffledStream


def test_every_pass_holds_every_index_once() -> None:
    stream = ShuffledStream(7, seed=0, name="questions")
    passes = [stream.take(7) for _ in range(3)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_chunks_cross_the_end_of_a_pass() -> None:
    """Taking 5 at a time or all at once is the same sequence."""
    stream, whole = ShuffledStream(7, 0, "q"), ShuffledStream(7, 0, "q").take(21)
    chunks = [stream.take(n) for n in (5, 5, 1, 0, 10)]
    assert [i for chunk in chunks for i in chunk] == whole
    assert stream.position == 21


@pytest.mark.parametrize("position", [0, 3, 6, 7, 8, 20])
def test_position_is_the_whole_state(position: int) -> None:
    whole, resumed = ShuffledStream(7, 3, "q").take(30), ShuffledStream(7, 3, "q")
    resumed.position = position
    assert resumed.take(30 - position) == whole[position:]


def test_going_back_repeats() -> None:
    stream = ShuffledStream(4, 0, "q")
    first = stream.take(10)
    stream.position = 2
    assert stream.take(8) == first[2:]


def test_seed_and_name_give_orders_of_their_own() -> None:
    orders = {
        tuple(ShuffledStream(20, seed, name).take(20)) for seed in (0, 1) for name in ("pairs", "questions")
    }
    assert len(orders) == 4


def test_one_item() -> None:
    assert ShuffledStream(1, 0, "q").take(4) == [0, 0, 0, 0]
