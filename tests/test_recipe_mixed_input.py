"""Recipes over a folder that holds both kinds of rows, broken ones among them, and over what an earlier recipe left: every line of the
input is kept, or is a reject with its reason, or the command says in one line why it does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from tests.test_recipe_bad_input import Refused, refused  # noqa: F401  # a fixture
from vlm_contextrl.cli import app

COLOURS = ("red", "blue", "green", "purple")


def guess(text: str, images: list[Image.Image], seed: int) -> str:
    """Half of the time red."""
    return "red" if seed % 2 else "blue"


COMMANDS = {
    "dedupe": ["near_images=false"],
    "decontaminate": ["against=[benchmark]", "near_images=false"],
    "difficulty": [f"assistant.function={__name__}:guess", "pass_rate.low=0", "pass_rate.high=1"],
}
RATE_PAIRS = ["assistant.model.path=tinyvl", "margin.low=-1000", "margin.high=1000"]
LICENCE = {"licence": "CC0-1.0"}


def draw(file: Path, colour: str, left: int) -> None:
    picture = Image.new("RGB", (56, 56), "white")
    ImageDraw.Draw(picture).rectangle((left, 8, left + 20, 28), fill=colour)
    picture.save(file)


def question(row_id: str, colour: str = "red", **fields: Any) -> dict[str, Any]:
    return {
        "id": row_id,
        "question": "Colour?",
        "answer": colour,
        "file_name": f"{colour}.png",
        **LICENCE,
        **fields,
    }


def pair(row_id: str, colour: str = "red", other: str = "blue", **fields: Any) -> dict[str, Any]:
    sides = {"context_file_name": f"{colour}.png", "confounder_file_name": f"{other}.png"}
    return {
        "id": row_id,
        "question": "Colour?",
        "answer": colour,
        "confounder_answer": other,
        **sides,
        **LICENCE,
        **fields,
    }


GOOD = {
    "questions": [question(f"q{i}", colour) for i, colour in enumerate(COLOURS)],
    "pairs": [pair("p0"), pair("p1", "green", "purple"), pair("p2", "blue", "green")],
}
# Row and what its reject says. None in a row leaves the key out.
BROKEN = {
    "questions": [
        (question("q gone", file_name="gone.png"), "image file gone.png not found"),
        (question("q no answer", answer=None), "no answer"),
        (question("q no licence", licence=None), "provenance['licence'] is None"),
        (question("q damaged", file_name="damaged.png"), "image damaged.png"),
        (question("q outside", file_name="../red.png"), "../red.png is outside the data folder"),
    ],
    "pairs": [
        (pair("p gone", confounder_file_name="gone.png"), "image file gone.png not found"),
        (pair("p one side", context_file_name=None), "no context_file_name"),
        (pair("p no licence", licence=None), "provenance['licence'] is None"),
        (pair("p same", confounder_file_name="red.png"), "have the same pixels"),
        (pair("p same answer", confounder_answer="red"), "confounder_answer"),
    ],
}  # fmt: skip


def mixed(*rows: dict[str, Any]) -> Path:
    """An image folder with these rows and one line that is no row."""
    folder = Path("IN")
    folder.mkdir()
    for i, colour in enumerate(COLOURS):
        draw(folder / f"{colour}.png", colour, 8 * i)
    (folder / "damaged.png").write_bytes((folder / "red.png").read_bytes()[:60])
    Path("benchmark").mkdir()
    draw(Path("benchmark/black.png"), "black", 30)
    lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, "no row"]) + "\n")
    return folder


def interleaved(good: list[dict[str, Any]], bad: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The broken row comes first."""
    return [row for n in range(max(len(good), len(bad))) for row in (*bad[n : n + 1], *good[n : n + 1])]


def done(*told: object, out: str = "out") -> tuple[dict[str, Any], dict[str, str]]:
    """Runs a recipe that must work; its summary, and the reason of every reject."""
    result = CliRunner().invoke(app, ["pairs", *map(str, told), "--out", out, "--json", f"{out}.json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(Path(f"{out}.json").read_text())
    assert summary["kept"] + summary["rejects"] == summary["inputs"]
    assert sum(summary["rejected"].values()) == summary["rejects"]
    file = Path(out, "rejects.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert len(lines) == summary["rejects"]
    return summary, {line["id"]: line["reason"] for line in lines}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("good", GOOD)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("refused")
def test_broken_rows_of_either_kind_are_rejects(command: str, good: str, broken: str) -> None:
    """Five broken rows and a line that is none beside four questions or three pairs: six rejects, each with what is wrong with it."""
    bad = [row for row, _ in BROKEN[broken]]
    folder = mixed(*interleaved(GOOD[good], bad))
    settings = RATE_PAIRS if (command, good) == ("difficulty", "pairs") else COMMANDS[command]
    summary, reasons = done(command, "--input", folder, *settings)
    assert (summary["inputs"], summary["kept"]) == (len(GOOD[good]) + 6, len(GOOD[good]))
    assert summary["rejected"] == {"unreadable": 6}
    assert {row["id"] for row in bad} < set(reasons)
    for row, said in BROKEN[broken]:
        assert said in reasons[row["id"]]
        assert reasons[row["id"]].startswith("unreadable: IN/metadata.jsonl: line ")
    assert any("'no row' is not a JSON object" in reason for reason in reasons.values())


@pytest.mark.usefixtures("refused")
def test_recipes_for_one_kind_count_the_rows_of_the_other() -> None:
    """`verify` takes the three pairs and `retrieve` the four questions of 18 lines; the rest are rejects."""
    bad = [row for kind in BROKEN for row, _ in BROKEN[kind]]
    folder = mixed(*interleaved(GOOD["pairs"] + GOOD["questions"], bad))
    summary, reasons = done("verify", "--input", folder, out="verified")
    assert (summary["inputs"], summary["kept"]) == (18, 3)
    assert reasons["q0"].endswith("one of the questions, expected pairs; read questions by themselves")
    near = ["encoder.encoder=histogram", "low=-1"]
    summary, reasons = done("retrieve", "--input", folder, *near, out="retrieved")
    assert summary["inputs"] == 18
    assert "p same" in reasons
    assert reasons["p0"].endswith("one of the pairs, expected questions; read pairs by themselves")


@pytest.mark.parametrize("command", COMMANDS)
def test_usable_rows_of_both_kinds(refused: Refused, command: str) -> None:  # noqa: F811
    line = refused(command, "--input", mixed(*GOOD["pairs"], *GOOD["questions"]), *COMMANDS[command])
    assert (
        line
        == "error: IN: holds 4 questions and 3 pairs, expected rows of one kind; give them in two folders"
    )


def test_what_an_earlier_recipe_rejected_is_no_input(refused: Refused) -> None:  # noqa: F811
    """Four of ten lines are left by the first recipe and are all that the next ones see; `stats` counts the rejects of the folder that it
    is given, and says so when some of their lines are lost."""
    folder = mixed(*interleaved(GOOD["questions"], [row for row, _ in BROKEN["pairs"]]))
    done("dedupe", "--input", folder, *COMMANDS["dedupe"], out="first")
    for command in ("decontaminate", "difficulty"):
        summary, reasons = done(command, "--input", "first", *COMMANDS[command], out=command)
        assert (summary["inputs"], summary["kept"], reasons) == (4, 4, {})
    assert CliRunner().invoke(app, ["pairs", "stats", "--input", "first", "--json", "s.json"]).exit_code == 0
    told = json.loads(Path("s.json").read_text())
    assert (told["rows"], told["rejects"], told["rejected"]) == (4, 6, {"unreadable": 6})
    rejects = Path("first/rejects.jsonl")
    rejects.write_text("".join(rejects.read_text().splitlines(keepends=True)[:-1]))
    result = CliRunner().invoke(app, ["pairs", "stats", "--input", "first"])
    assert str(result.exception) == "first/rejects.jsonl: 5 rejects, expected the 6 of manifest.json"
    result = CliRunner().invoke(app, ["pairs", "stats", "--input", str(folder)])
    advice = "make a dataset of metadata.jsonl with `vlm-contextrl pairs import`"
    assert str(result.exception) == f"IN: incomplete dataset, no manifest.json ({advice})"
    Path("IN/metadata.jsonl").rename("IN/mine.jsonl")
    Path("IN/more.jsonl").touch()
    line = refused("dedupe", "--input", "IN")
    assert line.endswith("no manifest.json (name one of IN/mine.jsonl, IN/more.jsonl)")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dataset_that_was_changed_after_writing(refused: Refused, command: str) -> None:  # noqa: F811
    """A row of ours that no longer holds stops the recipe; `import` keeps the others."""
    done("dedupe", "--input", mixed(*GOOD["questions"]), *COMMANDS["dedupe"], out="mine")
    (file,) = Path("mine").glob("*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[1]["images"][0]["bytes"] = b"nonsense"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    line = refused(command, "--input", "mine", *COMMANDS[command])
    assert f"error: {file}: row 1: images[0]: 8 bytes starting with b'nonsense' are no image" in line
    assert line.endswith("; `vlm-contextrl pairs import` keeps the other rows")
    summary, reasons = done("import", "--input", "mine", out="mended")
    assert (summary["kept"], list(reasons)) == (3, ["mine-1"])
