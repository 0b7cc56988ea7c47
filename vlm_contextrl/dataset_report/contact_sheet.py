"""A few rows as one picture: `pairs stats --sheet`. Cards in the look of the report: question, both sides with what differs outlined, and
below each side the answer that it supports.

Left out: letters that Pillow's own font does not have (it has Latin ones).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlm_contextrl.dataset_report.cards import choose_rows
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, Row
from vlm_contextrl.prompts import option_lines, shown_answer
from vlm_contextrl.report.gallery import pair_box
from vlm_contextrl.storage import read_rows

SHOWN = 6
COLUMNS = 3
CARD_PX, GAP_PX, PAD_PX = 640, 24, 26
_TEXT_PX, _SMALL_PX, _QUERY_PX = 16, 22, 26
_PAGE, _CARD, _LINE, _INK, _SOFT, _SHADE = "#f6f6f3", "#ffffff", "#d8dadd", "#1b1f24", "#57606a", "#f1f1ee"
_QUERY_LINES, _OPTION_LINES = 3, 6
_DASH_PX = 7

Side = tuple[Image.Image | str, str]  # a picture or a text, and the line below it


def contact_sheet(path: Path, *, shown: int = SHOWN, seed: int = 0) -> Image.Image:
    """The picture of a dataset folder; rows as of `choose_rows`, so the first of the page. DataError as of `read_rows`."""
    _, rows = read_rows(path)
    groups = [(record["domain"], record["recipe"]) for record in rows.records(["domain", "recipe"])]
    return draw_sheet([rows[index] for index in choose_rows(groups, shown, seed)])


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """Rows as cards, `COLUMNS` beside each other."""
    cards = [_card(row) for row in rows]
    lines = [cards[start : start + COLUMNS] for start in range(0, len(cards), COLUMNS)]
    width = GAP_PX + max(len(line) for line in lines) * (CARD_PX + GAP_PX)
    heights = [max(card.height for card in line) + 2 * PAD_PX for line in lines]
    sheet = Image.new("RGB", (width, GAP_PX + sum(heights) + GAP_PX * len(lines)), _PAGE)
    draw = ImageDraw.Draw(sheet)
    top = GAP_PX
    for line, height in zip(lines, heights, strict=True):
        for column, card in enumerate(line):
            left = GAP_PX + column * (CARD_PX + GAP_PX)
            draw.rounded_rectangle((left, top, left + CARD_PX, top + height), 16, _CARD, _LINE, 2)
            sheet.paste(card, (left + PAD_PX, top + PAD_PX))
        top += height + GAP_PX
    return sheet


def _card(row: Row) -> Image.Image:
    """The content of a card."""
    inner = CARD_PX - 2 * PAD_PX
    canvas = Image.new("RGB", (inner, 4000), _CARD)
    draw = ImageDraw.Draw(canvas)
    y = 0
    tags = " \N{MIDDLE DOT} ".join(dict.fromkeys(tag for tag in (row.domain, row.recipe) if tag))
    if tags:
        y = _lines(draw, [tags], y, _SMALL_PX, _SOFT)
    y = _lines(
        draw,
        _wrapped(row.query, _QUERY_PX, inner, _QUERY_LINES, bold=True),
        y + 4,
        _QUERY_PX,
        _INK,
        bold=True,
    )
    options = [line for line in option_lines(row.options).splitlines() if line]
    if options:
        y = _lines(
            draw,
            _wrapped(" \N{MIDDLE DOT} ".join(options), _SMALL_PX, inner, _OPTION_LINES),
            y + 4,
            _SMALL_PX,
            _SOFT,
        )
    sides, box = _sides(row)
    y += 14
    width = (inner - 16 * (len(sides) - 1)) // max(2, len(sides))
    bottom = y
    for column, (content, below) in enumerate(sides):
        left = column * (width + 16)
        end = _side(canvas, content, box, left, y, width)
        caption = _wrapped(below, _SMALL_PX, width, 2, bold=True)
        bottom = max(
            bottom, _lines(draw, caption, end + 6, _SMALL_PX, _SOFT, bold=True, left=left, width=width)
        )
    return canvas.crop((0, 0, inner, bottom))


def _sides(row: Row) -> tuple[list[Side], tuple[float, float, float, float] | None]:
    answer = shown_answer(row.answer, row.options)
    if isinstance(row, ContrastivePair):
        other = row.confounder_answer
        below = (answer, "another answer" if other is None else shown_answer(other, row.options))
        if isinstance(row.context, EncodedImage) and isinstance(row.confounder, EncodedImage):
            first, second = row.context.decode(), row.confounder.decode()
            return [(first, below[0]), (second, below[1])], pair_box(row, first, second)
        first_text, second_text = _from_difference(str(row.context), str(row.confounder))
        return [(first_text, below[0]), (second_text, below[1])], None
    pictures: list[Side] = [(image.decode(), "") for image in row.images[:3]]
    sides = pictures or [(row.context_text, "")]
    return [(sides[0][0], answer), *sides[1:]], None


def _from_difference(first: str, second: str) -> tuple[str, str]:
    """Two texts from one line before the first that differs."""
    lines = first.splitlines(), second.splitlines()
    same = next((n for n, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), 0)
    start = max(0, same - 1)
    before = ["\N{HORIZONTAL ELLIPSIS}"] if start else []
    return "\n".join([*before, *lines[0][start:]]), "\n".join([*before, *lines[1][start:]])


def _side(
    canvas: Image.Image,
    content: Image.Image | str,
    box: tuple[float, float, float, float] | None,
    left: int,
    top: int,
    width: int,
) -> int:
    """Draw a picture or a text into a square of `width`; where it ends."""
    if isinstance(content, str):
        draw = ImageDraw.Draw(canvas)
        draw.rounded_rectangle((left, top, left + width, top + width), 8, _SHADE)
        most = (width - 16) // _line_px(_TEXT_PX)
        lines: list[str] = []
        for part in content.splitlines()[:most]:
            lines += _wrapped(part, _TEXT_PX, width - 20, most)
        _lines(draw, lines[:most], top + 8, _TEXT_PX, _INK, left=left + 10)
        return top + width
    scale = width / max(content.size)
    size = [max(1, round(side * scale)) for side in content.size]  # a strip of one pixel stays one
    picture = content.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
    place = (left + (width - picture.width) // 2, top)
    if box is not None:
        _outline(picture, box)
    canvas.paste(picture, place)
    return top + picture.height


def _outline(picture: Image.Image, box: tuple[float, float, float, float]) -> None:
    """A dashed frame in black and white, seen on any ground."""
    draw = ImageDraw.Draw(picture)
    right_px, bottom_px = picture.width - 2, picture.height - 2
    left, top = (min(int(edge * size), size - 2) for edge, size in zip(box[:2], picture.size, strict=True))
    right, bottom = min(int(box[2] * picture.width), right_px), min(int(box[3] * picture.height), bottom_px)
    draw.rectangle((left, top, right, bottom), outline="white", width=3)
    for start in range(left, right, 2 * _DASH_PX):
        for y in (top, bottom - 2):
            draw.rectangle((start, y, min(start + _DASH_PX, right), y + 2), fill="black")
    for start in range(top, bottom, 2 * _DASH_PX):
        for x in (left, right - 2):
            draw.rectangle((x, start, x + 2, min(start + _DASH_PX, bottom)), fill="black")


def _lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    top: int,
    size_px: int,
    colour: str,
    *,
    bold: bool = False,
    left: int = 0,
    width: int = 0,
) -> int:
    """Draw lines of text, centred when `width` is given; where they end."""
    font = _font(size_px)
    for line in lines:
        x = left + max(0, (width - int(font.getlength(line))) // 2) if width else left
        draw.text((x, top), line, fill=colour, font=font, stroke_width=0.45 if bold else 0)
        top += _line_px(size_px)
    return top


def _wrapped(text: str, size_px: int, width: int, most: int, *, bold: bool = False) -> list[str]:
    """Lines no wider than `width` pixels; an ellipsis where there are more than `most`."""
    font = _font(size_px)
    room = width - (4 if bold else 0)
    lines = [""]
    for word in text.split():
        while word and len(lines) <= most:
            fitting = f"{lines[-1]} {word}".strip()
            if font.getlength(fitting) <= room:
                lines[-1], word = fitting, ""
            elif lines[-1]:
                lines.append("")
            else:
                cut = max(
                    1, bisect_right(range(1, len(word)), room, key=lambda n: int(font.getlength(word[:n])))
                )
                lines[-1], word = word[:cut], word[cut:]
                lines.append("")
    lines = [line for line in lines if line]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]}\N{HORIZONTAL ELLIPSIS}"]
    return lines


def _line_px(size_px: int) -> int:
    return round(1.35 * size_px)


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
