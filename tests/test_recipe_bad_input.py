"""Bad input to the `pairs` recipes from the command line: status 2 and one line beside the progress bars, nothing written, nothing lost.

Where a part of the input is good, it is used, and every other row is a reject with its reason.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.chat_server import said, serving
from tests.compose_pictures import draw_cutouts, draw_photographs
from tests.test_bad_input import bomb, png
from tests.test_features_towers import write_tower
from tests.tiny_editors import blank_question, write_painter
from tests.tiny_models import write_model_folder
from tests.trajectory_logs import smith_row
from tests.trajectory_logs import write_rows as write_logs
from vlm_contextrl.cli import app, main
from vlm_contextrl.storage import write_rows

BAR = re.compile(r"^\S.* \d+/\d+ +\S")  # of work that had begun
HISTOGRAM = ["encoder.encoder=histogram", "low=-1"]
Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs a recipe that must fail, in a folder of its own; returns its one line. Nothing is at --out afterwards."""
    monkeypatch.chdir(tmp_path)

    def call(recipe: str, *settings: object) -> str:
        told = ["vlm-contextrl", "pairs", recipe, "--out", "out", *map(str, settings)]
        monkeypatch.setattr(sys, "argv", told)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.strip() and not BAR.match(line)]
        assert exited.value.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert output.out == ""
        assert not Path("out").exists()
        return lines[0]

    return call


def folder(kind: str, *, shown: bytes | None = None, link: str = "", n: int = 1, **fields: Any) -> Path:
    """Rows r0, r1, ... of an image folder IN. r0 shows `bad.png`: a file with these bytes, or a link. None in fields leaves one out."""
    place = Path("IN")
    place.mkdir()
    (place / "red.png").write_bytes(png("red"))
    (place / "blue.png").write_bytes(png("blue"))
    if link:
        (place / "bad.png").symlink_to(link)
    elif shown is not None:
        (place / "bad.png").write_bytes(shown)
    first = "bad.png" if link or shown is not None else "red.png"
    lines = []
    for number in range(n):
        red = number % 2 == 0
        own, other = (first if number == 0 else "red.png", "blue.png") if red else ("blue.png", "red.png")
        row = {
            "id": f"r{number}",
            "question": "What colour?",
            "answer": "red" if red else "blue",
            "licence": "CC0-1.0",
        }
        if kind == "pairs":
            row |= {
                "context_file_name": own,
                "confounder_file_name": other,
                "confounder_answer": "blue" if red else "red",
            }
        else:
            row |= {"file_name": own}
        told = row | (fields if number == 0 else {})
        lines.append(json.dumps({key: value for key, value in told.items() if value is not None}) + "\n")
    (place / "metadata.jsonl").write_text("".join(lines))
    return place


def accepted(*settings: object) -> dict[str, str]:
    """Runs a recipe that must work; the reason of every reject."""
    result = CliRunner().invoke(app, ["pairs", *map(str, settings), "--out", "out", "--json", "out.json"])
    assert result.exit_code == 0, result.output
    told = json.loads(Path("out.json").read_text())
    assert told["kept"] + told["rejects"] == told["inputs"]
    lines = Path("out/rejects.jsonl").read_text().splitlines()
    assert len(lines) == told["rejects"]
    return {value["id"]: value["reason"] for value in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("difficulty", "assistant.device"),
        ("verify", "verifier.assistant.device"),
        ("retrieve", "device"),
        ("retrieve", "encoder.device"),
        ("edit", "editor.device"),
        ("edit", "writer.device"),
    ],
)
@pytest.mark.parametrize("device", ["cuda:63", "gpu"])
def test_a_device_that_is_not_here(command: str, setting: str, device: str, refused: Refused) -> None:
    """Told at once: the editor named here would have to be fetched first."""
    place = folder("pairs" if command in ("difficulty", "verify") else "questions")
    asked = {
        "difficulty": ["assistant.model.path=tinyvl"],
        "verify": ["verifier.assistant.model.path=tinyvl", "verifier.samples=1"],
        "retrieve": HISTOGRAM,
        "edit": ["editor.path=nobody/nothing", "writer.model.path=tinyvl"],
    }[command]
    line = refused(command, "--input", place, *asked, f"{setting}={device}")
    assert f"error: {setting}: no device {device!r} on this machine" in line
    assert "cpu" in line


COMMANDS: dict[str, tuple[str, list[str]]] = {
    "retrieve": ("questions", HISTOGRAM),
    "dedupe": ("questions", []),
    "decontaminate": ("questions", ["against=[benchmark]"]),
    "difficulty": ("pairs", ["assistant.model.path=tinyvl"]),
    "verify": ("pairs", []),
}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no licence": (
        {"licence": None},
        "line 1: provenance['licence'] is None, expected the source's licence as a text; name it in the row, or give one for all",
    ),
    "bomb": ({"shown": bomb()}, "line 1: image bad.png: Image size (10000000000 pixels) exceeds limit"),
    "link": ({"link": "../outside.png"}, "line 1: bad.png is outside the data folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("recipe", COMMANDS)
def test_an_input_without_a_usable_row(refused: Refused, recipe: str, fault: str) -> None:
    """File, line, id, what was found and what was expected; and of the kind of rows that the file holds."""
    kind, settings = COMMANDS[recipe]
    Path("benchmark").mkdir()
    Path("outside.png").write_bytes(png("red"))
    fields, message = FAULTS[fault]
    line = refused(recipe, "--input", folder(kind, **fields), *settings)
    assert (
        f"IN/metadata.jsonl: no usable {kind} (1 unusable rows, 0 of the other kind); the first unusable one is 'r0'"
        in line
    )
    assert f"IN/metadata.jsonl: {message}" in line
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize("fault", [*FAULTS, "one id"])
@pytest.mark.usefixtures("refused")
def test_other_rows_are_used_and_the_bad_one_is_a_reject(fault: str) -> None:
    """Of r0 to r3 the first is bad, or has the id of the second."""
    Path("outside.png").write_bytes(png("red"))
    fields, message = FAULTS.get(fault, ({"id": "r1"}, "line 2: duplicate id, an earlier row has it"))
    rejects = accepted(
        "verify",
        "--input",
        folder("pairs", n=4, **fields),
        "bounds.changed_fraction_max=1",
        "bounds.ssim_min=-1",
    )
    ((row_id, reason),) = rejects.items()
    assert row_id == ("r1" if fault == "one id" else "r0")
    assert reason.startswith(f"unreadable: IN/metadata.jsonl: {message}")


@pytest.mark.usefixtures("refused")
def test_two_trajectories_with_one_id() -> None:
    write_logs(Path("logs/rows.jsonl"), [smith_row("sign"), smith_row("sign"), smith_row("digits")])
    rejects = accepted("trajectories", "--input", "logs", "max_lexical_accuracy=1", "min_issue_similarity=0")
    (reason,) = rejects.values()
    assert reason == "duplicate_id: rows.jsonl line 2 has the id of rows.jsonl line 1, expected unique ids"


def test_trajectories_that_cannot_be_used(refused: Refused) -> None:
    """Without a licence, and behind a link; the table of filters is not shown, for nothing came so far."""
    write_logs(Path("logs/rows.jsonl"), [smith_row("sign", license=None), smith_row("digits", license=None)])
    line = refused("trajectories", "--input", "logs")
    assert "all 2 inputs were rejected (no_licence 2)" in line
    assert (
        "no_licence: rows.jsonl: line 1 names none; expected a licence field, or licence=NAME for all" in line
    )
    Path("linked").mkdir()
    Path("linked/rows.jsonl").symlink_to("../logs/rows.jsonl")
    line = refused("trajectories", "--input", "linked")
    assert "'rows.jsonl': unreadable: is a link out of the folder, expected a file in it" in line


def test_photographs_that_cannot_be_used(refused: Refused) -> None:
    """No licence, a bomb, a link out of the folder; beside a good one they are rejects."""
    draw_cutouts(Path("cutouts"))
    draw_photographs(Path("photographs"), 1)
    compose = ["photographs=photographs", "cutouts=cutouts", "count=2", "size_px=112", "control_pairs=0"]
    line = refused("compose", *compose)
    advice = "expected one in licences.csv, view0.licence, LICENSE or photograph_licence"
    assert (
        f"photographs: no usable file, expected photographs (1 files were refused, the first: view0.png: no licence, {advice})"
        in line
    )
    Path("photographs/bomb.png").write_bytes(bomb())
    Path("photographs/link.png").symlink_to("../cutouts/toys/ball.png")
    licences = ["photograph_licence=CC0-1.0", "cutout_licence=CC0-1.0"]
    found = accepted("compose", *compose, *licences)
    assert list(found) == ["photographs/bomb.png", "photographs/link.png"]
    assert "exceeds limit" in found["photographs/bomb.png"]
    assert "link.png is outside the data folder" in found["photographs/link.png"]
    assert "no such folder, expected the folder of photographs" in refused_again(
        refused, "compose", *compose, "photographs=gone"
    )


def refused_again(refused: Refused, *told: object) -> str:
    """After a run that made `out`."""
    shutil.rmtree("out")
    return refused(*told)


# ---- endpoints


@pytest.fixture
def endpoint() -> Iterator[Callable[[str], str]]:
    """URL of a server that is late, talks nonsense, is out of order, or works, as it is told."""
    mode = ""

    def reply(request: dict[str, Any], number: int) -> tuple[int, str]:
        if mode == "late":
            time.sleep(0.6)
        return 500 if mode == "broken" else 200, said("7") if mode == "well" else "<html>Welcome</html>"

    with serving(reply) as server:

        def told(new: str) -> str:
            nonlocal mode
            mode = new
            return server.url

        yield told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("late", "no answer within 0.3 s (prompt "),
        (
            "nonsense",
            "answered '<html>Welcome</html>', expected choices[0].message.content; is it OpenAI-compatible?",
        ),
        ("broken", "status 500: <html>Welcome</html> (prompt "),
    ],
)
def test_endpoints(refused: Refused, endpoint: Callable[[str], str], mode: str, message: str) -> None:
    """The writer, the verifier, the rated model and the judge; then the endpoint works, and the same command goes on."""
    url = endpoint(mode)
    patience = f"timeout_s={0.3 if mode == 'late' else 60}"
    how = [f"endpoint={url}", "endpoint_model=vlm", "retries=0"]
    write_rows(map(blank_question, range(2)), Path("blank"), recipe="blank", config={})
    write_logs(Path("logs/rows.jsonl"), [smith_row("sign"), smith_row("digits")])
    write_painter(Path("painter"))
    rated = [
        "--input",
        "blank",
        *(f"assistant.{told}" for told in how),
        "pass_rate.low=0",
        "pass_rate.high=1",
    ]
    commands: dict[str, list[object]] = {
        "edit": ["--input", "blank", "editor.path=painter", "editor.trust_remote_code=true"],
        "verify": ["--input", folder("pairs"), "bounds=null"],
        "trajectories": ["--input", "logs", "max_lexical_accuracy=1", "min_issue_similarity=0"],
    }
    for recipe, who in (("edit", "writer"), ("verify", "verifier.assistant"), ("trajectories", "judge")):
        asked = [f"{who}.{told}" for told in (*how, patience)]
        line = refused(recipe, *commands[recipe], *asked)
        assert f"error: {url}/chat/completions: {message}" in line
        shutil.rmtree(".out.parts")
    assert message in refused("difficulty", *rated, f"assistant.{patience}")
    endpoint("well")
    assert CliRunner().invoke(app, ["pairs", "difficulty", "--out", "out", *rated]).exit_code == 0


# ---- pipelines and models


def test_pipeline_folders_that_are_none(refused: Refused) -> None:
    """Before anything is asked or loaded. The name of no folder may be that of a pipeline on the hub, which is looked for there."""
    write_rows([blank_question(0)], Path("blank"), recipe="blank", config={})
    Path("empty").mkdir()
    write_painter(Path("painter"))
    cases = {
        "empty": "error: empty: no model_index.json, expected the folder of a diffusers pipeline",
        "./gone": "error: ./gone: no such folder, expected a diffusers pipeline",
        "some/gone": "error: some/gone: no such folder, and cannot be fetched from the hub (",
        "painter": "error: painter: comes with code of its own (painter.py); refused, set editor.trust_remote_code=true to run it",
    }
    for path, message in cases.items():
        assert message in refused("edit", "--input", "blank", "writer.function=a:b", f"editor.path={path}")
        assert not list(Path().glob(".out*"))


def with_own_code(place: Path) -> Path:
    """A model folder that asks for its own code, which would leave a file `ran`."""
    (place / "code.py").write_text(f"open({str(place.parent.resolve() / 'ran')!r}, 'w')\n")
    config = json.loads((place / "config.json").read_text())
    own = {"model_type": "my_own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (place / "config.json").write_text(json.dumps(config | own))
    return place


def test_models_that_need_code_of_their_own(refused: Refused) -> None:
    """An encoder, a vision-language model and a text encoder; the code is never run."""
    tower = with_own_code(write_tower("dinov2", Path("tower")))
    model = with_own_code(write_model_folder("qwen2_5_vl", Path("model")))
    questions = ["--input", folder("questions", n=2)]
    write_logs(Path("logs/rows.jsonl"), [smith_row("sign"), smith_row("digits")])
    own = (
        f"error: {tower}: model cannot be loaded: it brings its own code, which is refused; "
        "set encoder.trust_remote_code=true if you trust it"
    )
    assert refused("retrieve", *questions, "encoder.encoder=transformers", f"encoder.path={tower}") == own
    shutil.rmtree(".out.parts")
    assert (
        refused("dedupe", *questions, "near.encoder.encoder=transformers", f"near.encoder.path={tower}")
        == own
    )
    shutil.rmtree(".out.parts")
    line = refused("difficulty", *questions, f"assistant.model.path={model}")
    assert (
        f"error: {model}: config.json names model type 'my_own' and code of its own (code.Config), " in line
    )
    assert "use a model of type qwen2_5_vl or qwen3_vl, which needs none" in line
    shutil.rmtree(".out.parts")
    line = refused("trajectories", "--input", "logs", f"issue_encoder={model}")
    assert f"issue_encoder: {model} cannot be read (The repository {model} contains custom code" in line
    assert line.endswith("expected a folder of a text encoder without code of its own")
    assert not Path("ran").exists()
