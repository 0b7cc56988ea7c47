"""`pairs retrieve` as it is run: killed and run again, on two processes, by the command, on third-party data, at 50,000 vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.killed_runs import finish, kill_at
from tests.real_rows import licence_of, with_png
from tests.test_features_towers import write_tower
from vlm_contextrl.cli import app
from vlm_contextrl.config import validate
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.retrieve import RetrieveConfig, run, speed
from vlm_contextrl.pairs import EncodedImage, QuestionRow
from vlm_contextrl.storage import read_manifest, read_pairs, write_rows

SMALL_PARTS = {"batch_size": 4, "low": 0.0}

# As the command, but in small parts, and it waits to be killed in each of the three stages.
KILLABLE_RUN = """
import sys
from pathlib import Path
from tests.killed_runs import killable
from vlm_contextrl.config import validate
from vlm_contextrl.data_recipes.features import cache, encoders
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.retrieve import RetrieveConfig, candidates, facts, run

cache.PART_IMAGES, candidates.PART_ROWS = 4, 8
for step in (facts.ReadFacts, cache._EncodeNew, candidates._Search):
    step.__call__ = killable(step.__call__)
run(validate(RetrieveConfig, {"batch_size": 4, "low": 0.0}, "config"), Path(sys.argv[1]), Path(sys.argv[2]), Engine())
"""


def make_questions(folder: Path, count: int = 96) -> Path:
    """Noise of few colours; 8 questions, 3 answers."""

    def row(n: int) -> QuestionRow:
        pixels = np.random.default_rng(n).integers(3, size=(24, 24, 3), dtype=np.uint8) * 100
        return QuestionRow(
            id=f"q{n}",
            query=f"Question {n % 8}?",
            answer=str(n % 3),
            images=(EncodedImage.from_image(Image.fromarray(pixels)),),
            provenance={"licence": "CC0-1.0"},
        )

    write_rows((row(n) for n in range(count)), folder, recipe="noise", config={})
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_questions(tmp_path_factory.mktemp("retrieve") / "questions")


@pytest.fixture(scope="module")
def unbroken(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run gives."""
    out = tmp_path_factory.mktemp("unbroken") / "pairs"
    run(validate(RetrieveConfig, SMALL_PARTS, "config"), questions, out, Engine())
    return out


def same_dataset(left: Path, right: Path) -> bool:
    same_rejects = [
        (folder / "rejects.jsonl").read_text() if (folder / "rejects.jsonl").exists() else ""
        for folder in (left, right)
    ]
    told = [[pair.provenance for pair in read_pairs(folder)] for folder in (left, right)]
    hashes = [read_manifest(folder).content_hash for folder in (left, right)]
    return same_rejects[0] == same_rejects[1] and told[0] == told[1] and hashes[0] == hashes[1]


@pytest.mark.parametrize("stage", ["facts/part-*", "features/*/vectors-*.npz", "search/*/part-*"])
def test_killed_and_run_again_is_as_unbroken(
    stage: str, questions: Path, unbroken: Path, tmp_path: Path
) -> None:
    """kill -9 after three parts of reading, encoding and searching; the second run goes on, and the result is the same."""
    out, work = tmp_path / "pairs", tmp_path / ".pairs.parts"
    command = [sys.executable, "-c", KILLABLE_RUN, str(questions), str(out)]
    assert len(kill_at(command, work, stage, 3)) >= 3
    assert not out.exists()
    finish(command)
    assert same_dataset(out, unbroken)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_parts_that_are_there_are_not_made_again(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped before it writes leaves all its parts; the next one reads, encodes and searches nothing."""
    from vlm_contextrl.data_recipes.features import cache
    from vlm_contextrl.data_recipes.retrieve import candidates, facts, recipe

    class Stopped(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    config = validate(RetrieveConfig, SMALL_PARTS, "config")
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "write_result", stop)
        with pytest.raises(Stopped):
            run(config, questions, tmp_path / "pairs", Engine())
    for kind in (facts.ReadFacts, cache._EncodeNew, candidates._Search):
        monkeypatch.setattr(kind, "__call__", stop)
    assert run(config, questions, tmp_path / "pairs", Engine())["pairs"] > 0


def test_two_processes_give_what_one_gives(questions: Path, unbroken: Path, tmp_path: Path) -> None:
    run(validate(RetrieveConfig, SMALL_PARTS, "config"), questions, tmp_path / "pairs", Engine(workers=2))
    assert same_dataset(tmp_path / "pairs", unbroken)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_ray_gives_what_one_process_gives(questions: Path, unbroken: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run(validate(RetrieveConfig, SMALL_PARTS, "config"), questions, tmp_path / "pairs", Engine("ray", 2))
    assert same_dataset(tmp_path / "pairs", unbroken)


def test_the_command_with_a_tiny_tower(questions: Path, tmp_path: Path) -> None:
    """A random DINOv2: the folder, its name in the provenance, and the keys of --json."""
    tower = write_tower("dinov2", tmp_path / "tower")
    settings = ["encoder.encoder=transformers", f"encoder.path={tower}", "low=-1", "max_pairs_per_image=1"]
    paths = [
        "--input",
        str(questions),
        "--out",
        str(tmp_path / "pairs"),
        "--json",
        str(tmp_path / "out.json"),
    ]
    result = CliRunner().invoke(app, ["pairs", "retrieve", *paths, *settings])
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out.json").read_text())
    assert {
        "pairs",
        "inputs",
        "kept",
        "rejects",
        "rejected",
        "same_group_precision",
        "possible",
        "recall",
        "rows_per_s",
    } <= told.keys()
    pairs = read_pairs(tmp_path / "pairs")
    assert len(pairs) == told["pairs"] > 0
    assert pairs[0].provenance["encoder"] == f"transformers: {tower}"


# ---- third-party data


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["histogram", "pixels"])
@pytest.mark.parametrize(
    ("name", "groups"),
    [("nlvr_dev", 230), ("dynamath_pairs", 167), ("puzzlevqa_dev", 60), ("shapes_trainsmall_val", 22)],
)
def test_pairs_of_third_party_sets_join_one_group(
    name: str, groups: int, encoder: str, realdata: Path, tmp_path: Path
) -> None:
    """Every pair joins two images of one pair_group with different answers. With an open window and a high cap every group that can gives
    one, and every row that can is in one, repeated pictures aside."""
    source = realdata / name
    folder = with_png(source, tmp_path / name) if name.startswith("shapes") else source
    by_id = {
        row["id"]: row
        for row in map(json.loads, (source / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    }
    for name_of_run, values in (("default", {}), ("open", {"low": -1.0, "max_pairs_per_image": 64})):
        told = {
            "licence": licence_of(source),
            "encoder": {"encoder": encoder},
            "cache": tmp_path / "cache",
            **values,
        }
        config = validate(RetrieveConfig, told, "config")
        out = tmp_path / name_of_run
        summary = run(config, folder, out, Engine())
        for pair in read_pairs(out):
            left, right = (by_id[row_id] for row_id in pair.provenance["made_from"])
            assert left["pair_group"] == right["pair_group"]
            assert left["question"] == right["question"]
            assert left["answer"] != right["answer"]
        assert summary["same_group_precision"] == 1.0
        assert summary["kept"] + summary["rejects"] == summary["inputs"] == len(by_id)
        keys = ("pairs", "inputs", "kept", "rejected", "possible", "recall", "rows_per_s")
        print(f"{name}, {encoder}, {name_of_run}: {json.dumps({key: summary[key] for key in keys})}")
    assert summary["recall"]["groups"] == 1.0
    possible = summary["possible"]["rows"]
    assert round(summary["recall"]["rows"] * possible) + summary["rejected"].get("repeats", 0) == possible
    assert summary["possible"]["groups"] == groups


# ---- size


@pytest.mark.slow
def test_fifty_thousand_vectors_fit_in_two_gigabytes() -> None:
    found = speed._apart(speed._measure_recipe, 50_000, 128, 50_000)
    print(found)
    assert found["peak_mib"] < 2000
    assert found["pairs"] > 10_000


def test_tiles_find_what_the_whole_matrix_finds() -> None:
    vectors, labels = speed.synthetic(200, 16)
    assert speed._shared(speed.search("tiles", vectors, labels), speed.one_piece(vectors, labels)) == 1.0


@pytest.mark.slow
def test_bench_retrieve(tmp_path: Path) -> None:
    """Small, but every part of it; the tiles find what the whole matrix finds."""
    arguments = [
        "--rows",
        "300",
        "--dimensions",
        "16",
        "--side-rows",
        "200",
        "--json",
        str(tmp_path / "bench.json"),
    ]
    result = CliRunner().invoke(app, ["bench", "retrieve", *arguments])
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["side_by_side"]["recall"]["tiles"] == 1.0
    assert told["projection"]["rows"] == 200_000
    assert told["one_block"]["rows_per_s"] > 0
    assert "rows/s" in result.output
