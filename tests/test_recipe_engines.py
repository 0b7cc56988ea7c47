"""`pairs dedupe`, `decontaminate`, `verify`, `difficulty`, `trajectories` and `compose` from the command line: the same dataset on local
processes, on Ray, and after `kill -9`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.compose_pictures import draw_cutouts, draw_photographs
from tests.killed_runs import PATIENCE_S, command, finish, kill_at, small_parts, started, wait_until
from tests.test_dedupe import near_copy, rendered
from tests.tiny_editors import SQUARE_PX, VERIFIER, blank_question
from tests.trajectory_logs import smith_row
from tests.trajectory_logs import write_rows as write_logs
from vlm_contextrl.cli import app
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_manifest, read_rows, verify_folder, write_rows

RECIPES = ("dedupe", "decontaminate", "verify", "difficulty", "trajectories", "compose")
Outputs = Callable[[str], Path]


def coin(text: str, images: list[Image.Image], seed: int) -> str:
    """Says 7, which is right, in half of the cases."""
    return "7" if random.Random(seed).random() < 0.5 else "9"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 questions about 12 rendered pairs with 6 exact and 6 near copies, a benchmark that holds 5 of the pictures, 12 edited pairs,
    a third of which asks a verifier that sees nothing, 11 logs of agents, photographs and cut-outs."""
    folder = tmp_path_factory.mktemp("inputs")
    good = [question for pair in rendered(12) for question in pair.questions()]
    copies = [replace(row, id=f"copy-{row.id}") for row in good[:6]]
    near = [
        replace(row, id=f"near-{row.id}", images=(near_copy(row.images[0], "jpeg60"),)) for row in good[6:12]
    ]
    write_rows([*good, *copies, *near], folder / "questions", recipe="render", config={})
    (folder / "benchmark").mkdir()
    for n, row in enumerate(good[10:15]):
        shown = row.images[0] if n % 2 else near_copy(row.images[0], "brighter")
        shown.decode().save(folder / "benchmark" / f"{n}.png")
    write_rows(map(edited_pair, range(12)), folder / "pairs", recipe="edit", config={})
    write_rows(map(blank_question, range(12)), folder / "blank", recipe="blank", config={})
    logs = [smith_row(task, commit=f"{n:08x}") for n in range(6) for task in ("sign", "digits")]
    write_logs(folder / "logs" / "rows.jsonl", logs[:-1])
    draw_cutouts(folder / "cutouts")
    draw_photographs(folder / "photographs", 2)
    return folder


def edited_pair(n: int) -> ContrastivePair:
    """A blank picture and the same one with a square, as tiny_editors.look tells them apart."""
    row = blank_question(n)
    picture = row.images[0].decode()
    picture.paste((n, 80, 40), (n, n, n + SQUARE_PX, n + SQUARE_PX))
    return ContrastivePair(
        id=f"p{n:03d}", query="How many?" + " [blind]" * (n % 3 == 2), answer="7", answer_type="numeric", context=row.images[0],
        confounder=EncodedImage.from_image(picture), confounder_answer="8", recipe="edit", provenance=row.provenance,
    )  # fmt: skip


def arguments(recipe: str, inputs: Path, out: Path) -> list[str]:
    """The command without its engine."""
    told = {
        "dedupe": ["--input", inputs / "questions"],
        "decontaminate": ["--input", inputs / "questions", f"against=[{inputs / 'benchmark'}]"],
        "verify": ["--input", inputs / "pairs", f"verifier.assistant.function={VERIFIER}", "batch_rows=2"],
        "difficulty": [
            "--input", inputs / "blank", f"assistant.function={__name__}:coin", "samples=2", "batch_rows=2"
        ],
        "trajectories": [
            "--input", inputs / "logs", "judge.function=tests.trajectory_logs:agreeing_judge", "batch_size=1", "max_lexical_accuracy=1",
            "min_issue_similarity=0",
        ],
        "compose": [
            f"photographs={inputs / 'photographs'}", f"cutouts={inputs / 'cutouts'}", "photograph_licence=CC0-1.0",
            "cutout_licence=CC-BY-4.0", "size_px=112", "count=12", "batch_size=2", "control_pairs=0",
        ],
    }  # fmt: skip
    return ["pairs", recipe, "--out", str(out), *map(str, told[recipe])]


@pytest.fixture(scope="module")
def unbroken(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outputs]:
    """What an undisturbed local process makes."""
    folder = tmp_path_factory.mktemp("unbroken")

    def made(recipe: str) -> Path:
        out = folder / recipe
        if not out.exists():
            run(*arguments(recipe, inputs, out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch.setattr)
        yield made


def run(*told: str) -> None:
    """The command in this process."""
    result = CliRunner().invoke(app, told)
    assert result.exit_code == 0, result.output + str(result.exception)


def contents(out: Path) -> dict[str, Any]:
    """Everything about a dataset that may not depend on where and how often it was made."""
    verify_folder(out)
    _, rows = read_rows(out)
    rejects = (out / "rejects.jsonl").read_text().splitlines() if (out / "rejects.jsonl").exists() else []
    return {
        "hash": read_manifest(out).content_hash,
        "rows": [(row.id, row.provenance, row.verdicts) for row in rows],
        "rejects": [json.loads(line) for line in rejects],
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_inputs_try_every_recipe(recipe: str, unbroken: Outputs) -> None:
    """Rows and rejects, as many as planted; nothing is left of the work."""
    found = contents(unbroken(recipe))
    codes = [reject["reason"].partition(":")[0] for reject in found["rejects"]]
    expected: dict[str, tuple[int, dict[str, int]]] = {
        "dedupe": (24, {"duplicate_image": 6, "near_duplicate": 6}),
        "decontaminate": (29, {"benchmark_image": 2, "near_benchmark_image": 5}),
        "verify": (8, {"right_on_confounder": 4}),
        "trajectories": (5, {"no_same_commit": 1}),
        "compose": (12, {}),
    }
    if recipe in expected:
        assert (len(found["rows"]), {code: codes.count(code) for code in codes}) == expected[recipe]
    else:  # coins
        assert (
            len(found["rows"])
            > 0
            < codes.count("too_easy") + codes.count("too_hard")
            == 12 - len(found["rows"])
        )
    assert not list(unbroken(recipe).parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its own settings
@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_workers_make_what_one_makes(
    recipe: str, engine: str, inputs: Path, unbroken: Outputs, tmp_path: Path
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    run(*arguments(recipe, inputs, tmp_path / "out"), "--engine", engine, "--workers", "2")
    assert contents(tmp_path / "out") == contents(unbroken(recipe))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "stage", "count"),
    [
        ("dedupe", ".out.parts/facts/part-*", 3),
        ("dedupe", ".out.parts/features/*/vectors-*.npz", 2),
        ("dedupe", ".out.parts/compared/part-*", 1),
        ("dedupe", ".out.*.unfinished", 1),
        ("decontaminate", ".out.parts/benchmark/part-*", 1),
        ("decontaminate", ".out.parts/compared/part-*", 1),
        ("verify", ".out.parts/part-*", 3),
        ("verify", ".out.*.unfinished", 1),
        ("difficulty", ".out.parts/part-*", 3),
        ("compose", ".out.parts/part-*", 3),
    ],
)
def test_killed_and_given_again(
    recipe: str, stage: str, count: int, inputs: Path, unbroken: Outputs, tmp_path: Path
) -> None:
    """`kill -9` in the midst of every stage, then the same command, which is killed once more a part later, and again: no row twice, none
    missing, what was done is not done again, and nothing is left of the first runs."""
    told = command(*arguments(recipe, inputs, tmp_path / "out"))
    done = kill_at(told, tmp_path, stage, count)
    assert len(done) >= count
    assert not (tmp_path / "out").exists()
    times_ns = {path: path.stat().st_mtime_ns for path in done}
    if ".parts" in stage:
        kill_at(told, tmp_path, stage, len(done) + 1)
        assert {path: path.stat().st_mtime_ns for path in done} == times_ns
    finish(told)
    assert contents(tmp_path / "out") == contents(unbroken(recipe))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the children of a process in /proc")
def test_workers_end_with_a_killed_run(inputs: Path, unbroken: Outputs, tmp_path: Path) -> None:
    """They would go on writing into the folder of the next run, and hold memory for ever."""
    told = command(*arguments("verify", inputs, tmp_path / "out"), "--workers", "2")
    process = started(told, VERIFIER_S="0.5")  # so that there is work left when they are counted
    try:
        wait_until(lambda: len(list(tmp_path.glob(".out.parts/part-*"))) >= 2, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
    assert len(children) >= 2
    process.wait()
    again = started(told)
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), again)
    assert again.wait(timeout=PATIENCE_S) == 0
    assert contents(tmp_path / "out") == contents(unbroken("verify"))
