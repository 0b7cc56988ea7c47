"""Small tables of numbers (lettered columns, coloured rows) and signs (word, arrow, coloured board)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import (
    BACKGROUNDS,
    BLACK,
    COLOURS,
    PALETTE,
    WHITE,
    Canvas,
    on_circle,
)
from vlm_contextrl.data_recipes.render.scene import (
    Ask,
    Asker,
    Domain,
    Kind,
    Scene,
    among,
    swap,
    to,
    words,
    yes_no,
)

LETTERS = ("A", "B", "C")
WORDS = (
    "bus",
    "zoo",
    "car",
    "gym",
    "stop",
    "exit",
    "open",
    "push",
    "pull",
    "sale",
    "taxi",
    "bank",
    "cafe",
    "park",
    "slow",
    "wait",
    "home",
    "fire",
    "food",
    "shop",
    "gate",
    "help",
    "hotel",
    "danger",
)
BOARDS = ("square", "circle", "octagon")
ARROWS = {"up": 0, "right": 90, "down": 180, "left": 270}
DARK_BOARDS = ("red", "green", "blue", "purple")
Cell = tuple[int, int]
Edit = tuple[Cell, int]  # a cell and its new number


@dataclass(frozen=True)
class Table(Scene):
    """`cells[row][column]`; numbers of one digit or of two, never mixed."""

    kind: ClassVar[str] = "table"
    rows: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Sign(Scene):
    """A board with a word above an arrow."""

    kind: ClassVar[str] = "sign"
    word: str
    colour: str
    board: str
    arrow: str
    x: float
    y: float


def _range(two_digits: bool) -> range:
    return range(10, 100) if two_digits else range(10)


def sample_table(rng: Random) -> Table:
    """2x2 to 3x3 cells, all numbers different."""
    rows, columns = rng.randint(2, 3), rng.randint(2, 3)
    numbers = rng.sample(_range(rng.random() < 0.5), rows * columns)
    cells = tuple(tuple(numbers[row * columns : (row + 1) * columns]) for row in range(rows))
    return Table(rng.choice(tuple(BACKGROUNDS)), tuple(rng.sample(COLOURS, rows)), cells)


def sample_sign(rng: Random) -> Sign:
    """Any word on any board."""
    x, y = (round(rng.uniform(0.49, 0.51), 3) for _ in range(2))
    background = rng.choice(tuple(BACKGROUNDS))
    return Sign(
        background,
        rng.choice(WORDS),
        rng.choice(COLOURS),
        rng.choice(BOARDS),
        rng.choice(tuple(ARROWS)),
        x,
        y,
    )


def draw_table(scene: Table, canvas: Canvas) -> None:
    """A ruled grid; the header row holds letters, the header column coloured cells."""
    rows, columns = len(scene.cells) + 1, len(scene.cells[0]) + 1
    left, top, width, height = 0.02, 0.02, 0.96 / columns, 0.96 / rows
    for row, colour in enumerate(scene.rows, start=1):
        canvas.box(left, top + row * height, left + width, top + (row + 1) * height, PALETTE[colour])
    canvas.box(left + width, top, 0.98, top + height, (205, 205, 205))
    canvas.box(left + width, top + height, 0.98, 0.98, WHITE)
    for edge in range(rows + 1):
        canvas.box(left - 0.008, top + edge * height - 0.008, 0.988, top + edge * height + 0.008, BLACK)
    for edge in range(columns + 1):
        canvas.box(left + edge * width - 0.008, top - 0.008, left + edge * width + 0.008, 0.988, BLACK)
    size = 0.135 if columns == 4 or rows == 4 else 0.165
    for column in range(1, columns):
        x = left + (column + 0.5) * width
        canvas.text((x, top + height / 2), LETTERS[column - 1], size)
        for row in range(1, rows):
            number = scene.cells[row - 1][column - 1]
            canvas.text((x, top + (row + 0.5) * height), str(number), size, max_width=width - 0.04)


def draw_sign(scene: Sign, canvas: Canvas) -> None:
    """The board nearly fills the picture."""
    x, y = scene.x, scene.y
    fill = PALETTE[scene.colour]
    ink = WHITE if scene.colour in DARK_BOARDS else BLACK
    if scene.board == "square":
        canvas.box(x - 0.45, y - 0.42, x + 0.45, y + 0.42, fill)
    elif scene.board == "circle":
        canvas.disc((x, y), 0.48, fill)
    else:
        canvas.polygon([on_circle((x, y), 0.5, 22.5 + 45 * corner) for corner in range(8)], fill)
    canvas.text((x, y - 0.1), scene.word.upper(), 0.2, ink, max_width=0.78)
    middle = x, y + 0.2
    turn = ARROWS[scene.arrow]
    canvas.arrow(on_circle(middle, 0.13, turn + 180), on_circle(middle, 0.14, turn), 0.06, 0.13, ink)


def facts_table(scene: Table) -> list[str]:
    """One fact per cell."""
    return [
        f"{colour} {letter} {number}"
        for colour, row in zip(scene.rows, scene.cells, strict=True)
        for letter, number in zip(LETTERS, row, strict=False)
    ]


def facts_sign(scene: Sign) -> list[str]:
    """Board, word, arrow."""
    return [f"{scene.colour} board", f"shape {scene.board}", f"word {scene.word}", f"arrow {scene.arrow}"]


def _with_cell(scene: Table, row: int, column: int, number: int) -> Table:
    return replace(scene, cells=swap(scene.cells, row, swap(scene.cells[row], column, number)))


def _numbers(scene: Table) -> list[int]:
    """Numbers of as many digits as the table holds that it does not show yet."""
    shown = {number for row in scene.cells for number in row}
    return [number for number in _range(max(shown) > 9) if number not in shown]


def ask_cell(scene: Table, rng: Random) -> Ask[Table]:
    """The number in one cell."""
    row, column = rng.randrange(len(scene.rows)), rng.randrange(len(scene.cells[0]))
    colour, letter = scene.rows[row], LETTERS[column]
    templates = (
        "What is the number in the {r} row, column {c}?",
        "Which number is in column {c} of the {r} row?",
        "Read the {r} row at {c}.",
    )

    def answer_of(other: Table) -> str | None:
        return str(other.cells[other.rows.index(colour)][column]) if colour in other.rows else None

    unused = _numbers(scene)
    return Ask(
        query=words(rng, templates, r=colour, c=letter),
        answer_of=answer_of,
        answer_type="numeric",
        answer=str(scene.cells[row][column]),
        alternatives=tuple(to(str(number), _with_cell(scene, row, column, number)) for number in unused),
        vocabulary=tuple(str(number) for number in _range(scene.cells[0][0] > 9)),
    )


def _top(numbers: Sequence[int], sign: int) -> int | None:
    signed = [sign * number for number in numbers]
    return signed.index(max(signed)) if signed.count(max(signed)) == 1 else None


def _tops(scene: Table, cells: Sequence[Cell], sign: int) -> dict[int, list[Edit]]:
    """Changes of one of these cells that move the extreme, by the index (in `cells`) of the new one."""
    numbers = [scene.cells[row][column] for row, column in cells]
    now = _top(numbers, sign)
    unused = _numbers(scene)
    found: dict[int, list[Edit]] = {}
    for index, cell in enumerate(cells):
        rest = [number for at, number in enumerate(numbers) if at != index]
        best = max(rest) if sign == 1 else min(rest)
        runner_up = numbers.index(best)
        for number in unused:
            top = index if sign * number > sign * best else runner_up
            if top != now:
                found.setdefault(top, []).append((cell, number))
    return found


def _edited(scene: Table) -> Callable[[Edit], Table]:
    return lambda edit: _with_cell(scene, *edit[0], edit[1])


def ask_row(scene: Table, rng: Random) -> Ask[Table] | None:
    """Colour of the row with the largest or smallest number in a column."""
    word, sign = rng.choice((("largest", 1), ("smallest", -1)))
    column = rng.randrange(len(scene.cells[0]))
    edits = _tops(scene, [(row, column) for row in range(len(scene.rows))], sign)

    def answer_of(other: Table) -> str | None:
        top = _top([row[column] for row in other.cells], sign)
        return None if top is None else other.rows[top]

    templates = ("Which row has the {w} number in column {c}?", "In column {c}, which row is {w}?")
    return Ask(
        query=words(rng, templates, w=word, c=LETTERS[column]),
        answer_of=answer_of,
        answer_type="exact",
        answer=str(answer_of(scene)),
        alternatives=tuple(among(scene.rows[top], found, _edited(scene)) for top, found in edits.items()),
        vocabulary=scene.rows,
    )


def ask_column(scene: Table, rng: Random) -> Ask[Table] | None:
    """Letter of the column with the largest or smallest number in a row."""
    word, sign = rng.choice((("largest", 1), ("smallest", -1)))
    if len(scene.cells[0]) < len(LETTERS):  # otherwise C would be a rare answer
        return None
    row = rng.randrange(len(scene.rows))
    edits = _tops(scene, [(row, column) for column in range(len(LETTERS))], sign)

    def answer_of(other: Table) -> str | None:
        top = _top(other.cells[row], sign)
        return None if top is None else LETTERS[top]

    templates = ("Which column has the {w} number in the {r} row?", "In the {r} row, which column is {w}?")
    return Ask(
        query=words(rng, templates, w=word, r=scene.rows[row]),
        answer_of=answer_of,
        answer_type="exact",
        answer=str(answer_of(scene)),
        alternatives=tuple(among(LETTERS[top], found, _edited(scene)) for top, found in edits.items()),
    )


def ask_compare(scene: Table, rng: Random) -> Ask[Table] | None:
    """Whether one row has the larger number in a column; the edit changes one of the two cells."""
    column = rng.randrange(len(scene.cells[0]))
    first, second = rng.sample(range(len(scene.rows)), 2)
    now = scene.cells[first][column] > scene.cells[second][column]
    x, y = scene.cells[first][column], scene.cells[second][column]
    edits: list[Edit] = [((first, column), number) for number in _numbers(scene) if (number > y) != now]
    edits += [((second, column), number) for number in _numbers(scene) if (x > number) != now]
    if not edits:
        return None
    templates = (
        "In column {c}, is {x} larger than {y}?",
        "In column {c}, is the {x} number larger than the {y} number?",
    )
    return Ask(
        query=words(rng, templates, c=LETTERS[column], x=scene.rows[first], y=scene.rows[second]),
        answer_of=lambda other: yes_no(other.cells[first][column] > other.cells[second][column]),
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=(among(yes_no(not now), edits, _edited(scene)),),
    )


def _ask_sign(
    field: str, vocabulary: tuple[str, ...], templates: tuple[str, ...], scene: Sign, rng: Random
) -> Ask[Sign]:
    now = getattr(scene, field)
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: str(getattr(other, field)),
        answer_type="exact",
        answer=now,
        alternatives=tuple(
            to(value, replace(scene, **{field: value}))  # type: ignore[arg-type]  # a field of strings
            for value in vocabulary
            if value != now
        ),
        vocabulary=vocabulary,
    )


def ask_word(scene: Sign, rng: Random) -> Ask[Sign]:
    """The word on the sign."""
    templates = ("What does the sign say?", "Which word is on the sign?", "Read the sign.")
    return _ask_sign("word", WORDS, templates, scene, rng)


def ask_colour(scene: Sign, rng: Random) -> Ask[Sign]:
    """The colour of the board; the edit keeps to colours that share an ink, so the writing stays as it is."""
    ask = _ask_sign(
        "colour", COLOURS, ("What colour is the sign?", "Which colour does the sign have?"), scene, rng
    )
    dark = scene.colour in DARK_BOARDS
    return replace(ask, alternatives=tuple(a for a in ask.alternatives if (a.answer in DARK_BOARDS) == dark))


def ask_arrow(scene: Sign, rng: Random) -> Ask[Sign]:
    """Where the arrow points."""
    templates = (
        "Which way does the arrow point?",
        "Where does the arrow on the sign point?",
        "What is the direction of the arrow?",
    )
    return _ask_sign("arrow", tuple(ARROWS), templates, scene, rng)


def ask_board(scene: Sign, rng: Random) -> Ask[Sign]:
    """The shape of the board."""
    return _ask_sign(
        "board", BOARDS, ("What shape is the sign?", "Which shape does the sign have?"), scene, rng
    )


TABLES = Domain(
    "tables",
    (
        Kind(
            "table",
            "a table: ",
            sample_table,
            draw_table,
            facts_table,
            (
                Asker("cell", ask_cell),
                Asker("row", ask_row),
                Asker("column", ask_column, LETTERS),
                Asker("cell_compare", ask_compare, ("yes", "no")),
            ),
        ),
        Kind(
            "sign",
            "a sign: ",
            sample_sign,
            draw_sign,
            facts_sign,
            (
                Asker("sign_word", ask_word),
                Asker("sign_colour", ask_colour),
                Asker("sign_arrow", ask_arrow),
                Asker("sign_shape", ask_board),
            ),
        ),
    ),
)
