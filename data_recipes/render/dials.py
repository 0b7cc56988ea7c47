"""Clocks (whole and half hours) and gauges (0 to 10 with a red zone)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import (
    BACKGROUNDS,
    BLACK,
    MIDDLE,
    PALE,
    PALETTE,
    WHITE,
    Canvas,
    on_circle,
)
from vlm_contextrl.data_recipes.render.scene import Ask, Asker, Domain, Kind, Scene, to, words, yes_no

HOURS = tuple(range(1, 13))
MINUTES = (0, 30)
TIMES = tuple(f"{hour}:{minute:02d}" for hour in HOURS for minute in MINUTES)
READINGS = tuple(range(11))
HAND_COLOURS = ("red", "blue", "green")
ZONE_LENGTH = 4
GAUGE_START, GAUGE_STEP = -135.0, 27.0


@dataclass(frozen=True)
class Clock(Scene):
    """A clock face; `hand` is the colour of the minute hand."""

    kind: ClassVar[str] = "clock"
    hour: int
    minute: int
    hand: str
    x: float
    y: float

    @property
    def time(self) -> str:
        """The time as it is written, e.g. 7:30."""
        return f"{self.hour}:{self.minute:02d}"


@dataclass(frozen=True)
class Gauge(Scene):
    """A round gauge; the red zone covers the readings zone .. zone + 3."""

    kind: ClassVar[str] = "gauge"
    reading: int
    zone: int
    x: float
    y: float

    @property
    def in_zone(self) -> bool:
        """Whether the needle points into the red zone."""
        return self.zone <= self.reading < self.zone + ZONE_LENGTH


def _place(rng: Random) -> tuple[float, float]:
    return round(rng.uniform(0.485, 0.515), 3), round(rng.uniform(0.485, 0.515), 3)


def sample_clock(rng: Random) -> Clock:
    """Any of the 24 times."""
    background = rng.choice(tuple(BACKGROUNDS))
    return Clock(background, rng.choice(HOURS), rng.choice(MINUTES), rng.choice(HAND_COLOURS), *_place(rng))


def sample_gauge(rng: Random) -> Gauge:
    """Any reading, the red zone anywhere."""
    return Gauge(
        rng.choice(tuple(BACKGROUNDS)), rng.choice(READINGS), rng.randint(0, 11 - ZONE_LENGTH), *_place(rng)
    )


def draw_clock(scene: Clock, canvas: Canvas) -> None:
    """Numbers 12, 3, 6, 9, ticks between; a short thick black hour hand, a long coloured minute hand."""
    centre = scene.x, scene.y
    canvas.disc(centre, 0.48, WHITE)
    canvas.ring(centre, 0.48, 0.025, BLACK)
    for hour in HOURS:
        if hour % 3 == 0:
            canvas.text(on_circle(centre, 0.37, 30 * hour), str(hour), 0.125)
        else:
            canvas.spoke(centre, 0.38, 0.46, 30 * hour, 0.022, BLACK)
    canvas.line([centre, on_circle(centre, 0.285, 6 * scene.minute)], 0.03, PALETTE[scene.hand])
    canvas.line([centre, on_circle(centre, 0.2, 30 * scene.hour + scene.minute / 2)], 0.06, BLACK)
    canvas.disc(centre, 0.04, BLACK)


def draw_gauge(scene: Gauge, canvas: Canvas) -> None:
    """A rim with a tick per unit and the numbers 0, 5, 10; the red zone lies on the rim."""
    centre = scene.x, scene.y
    canvas.disc(centre, 0.48, WHITE)
    canvas.arc(centre, 0.48, GAUGE_START, GAUGE_START + 10 * GAUGE_STEP, 0.085, PALE)
    red_from = GAUGE_START + GAUGE_STEP * max(scene.zone - 0.5, 0)
    red_to = GAUGE_START + GAUGE_STEP * min(scene.zone + ZONE_LENGTH - 0.5, 10)
    canvas.arc(centre, 0.48, red_from, red_to, 0.085, PALETTE["red"])
    canvas.ring(centre, 0.48, 0.012, MIDDLE)
    for reading in READINGS:
        angle = GAUGE_START + GAUGE_STEP * reading
        canvas.spoke(centre, 0.39 if reading % 5 else 0.36, 0.475, angle, 0.018, BLACK)
    angle = GAUGE_START + GAUGE_STEP * scene.reading
    base = on_circle(centre, 0.045, angle - 90), on_circle(centre, 0.045, angle + 90)
    canvas.polygon([*base, on_circle(centre, 0.42, angle)], PALETTE["blue"])
    canvas.disc(centre, 0.055, PALETTE["blue"])
    for reading in (0, 5, 10):  # over the needle, so that no number is ever hidden
        canvas.text(on_circle(centre, 0.28, GAUGE_START + GAUGE_STEP * reading), str(reading), 0.125)


def facts_clock(scene: Clock) -> list[str]:
    """The time."""
    return [f"time {scene.time}", f"{scene.hand} minute hand"]


def facts_gauge(scene: Gauge) -> list[str]:
    """The reading and the red zone."""
    return [f"needle at {scene.reading}", f"red zone {scene.zone} to {scene.zone + ZONE_LENGTH - 1}"]


def ask_time(scene: Clock, rng: Random) -> Ask[Clock]:
    """The time."""
    return Ask(
        query=words(rng, ("What time does the clock show?", "What time is it?", "Read the clock.")),
        answer_of=lambda other: other.time,
        answer_type="exact",
        answer=scene.time,
        alternatives=tuple(
            to(f"{hour}:{minute:02d}", replace(scene, hour=hour, minute=minute))
            for hour in HOURS
            for minute in MINUTES
            if (hour, minute) != (scene.hour, scene.minute)
        ),
        vocabulary=TIMES,
    )


def ask_hour(scene: Clock, rng: Random) -> Ask[Clock]:
    """The hour that has struck; the edit moves the hour hand only."""
    templates = (
        "Which hour does the clock show?",
        "Which hour did the clock strike last?",
        "What is the hour on the clock?",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: str(other.hour),
        answer_type="numeric",
        answer=str(scene.hour),
        alternatives=tuple(to(str(hour), replace(scene, hour=hour)) for hour in HOURS if hour != scene.hour),
        vocabulary=tuple(str(hour) for hour in HOURS),
    )


def ask_half(scene: Clock, rng: Random) -> Ask[Clock]:
    """Whether it is half past; the edit turns the clock by half an hour."""
    half = scene.minute == 30
    return Ask(
        query=words(
            rng,
            (
                "Does the clock show half past?",
                "Is it half past the hour?",
                "Does the minute hand point to 6?",
            ),
        ),
        answer_of=lambda other: yes_no(other.minute == 30),
        answer_type="boolean",
        answer=yes_no(half),
        alternatives=(to(yes_no(not half), replace(scene, minute=0 if half else 30)),),
    )


def ask_reading(scene: Gauge, rng: Random) -> Ask[Gauge]:
    """The number the needle points to."""
    templates = (
        "What value does the gauge show?",
        "Which number does the needle point to?",
        "Read the gauge.",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: str(other.reading),
        answer_type="numeric",
        answer=str(scene.reading),
        alternatives=tuple(
            to(str(reading), replace(scene, reading=reading))
            for reading in READINGS
            if reading != scene.reading
        ),
        vocabulary=tuple(str(reading) for reading in READINGS),
    )


def ask_zone(scene: Gauge, rng: Random) -> Ask[Gauge]:
    """Whether the needle is in the red zone; the edit turns the needle."""
    templates = (
        "Is the needle in the red zone?",
        "Does the needle point to the red zone?",
        "Is the gauge in the red?",
    )
    turned = [replace(scene, reading=reading) for reading in READINGS]
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: yes_no(other.in_zone),
        answer_type="boolean",
        answer=yes_no(scene.in_zone),
        alternatives=tuple(
            to(yes_no(other.in_zone), other) for other in turned if other.in_zone != scene.in_zone
        ),
    )


def ask_above(scene: Gauge, rng: Random) -> Ask[Gauge] | None:
    """Whether the gauge shows more than a number that it does not show itself."""
    limit = rng.randint(2, 8)
    if scene.reading == limit:
        return None
    now = scene.reading > limit
    templates = ("Does the gauge show more than {n}?", "Is the value above {n}?", "Is the needle past {n}?")
    return Ask(
        query=words(rng, templates, n=str(limit)),
        answer_of=lambda other: None if other.reading == limit else yes_no(other.reading > limit),
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=tuple(
            to(yes_no(not now), replace(scene, reading=reading))
            for reading in READINGS
            if reading != limit and (reading > limit) != now
        ),
    )


YES_NO = ("yes", "no")
DIALS = Domain(
    "dials",
    (
        Kind(
            "clock",
            "a clock: ",
            sample_clock,
            draw_clock,
            facts_clock,
            (
                Asker("clock_time", ask_time),
                Asker("clock_hour", ask_hour),
                Asker("clock_half", ask_half, YES_NO),
            ),
        ),
        Kind(
            "gauge",
            "a gauge: ",
            sample_gauge,
            draw_gauge,
            facts_gauge,
            (
                Asker("gauge_value", ask_reading),
                Asker("gauge_zone", ask_zone, YES_NO),
                Asker("gauge_above", ask_above, YES_NO),
            ),
        ),
    ),
)
