"""Third-party sets as probes of a study: imported questions and retrieved pairs that every cell is measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.real_rows import first_rows, licence_of, with_png
from tests.test_study import study_file
from vlm_contextrl.config import validate
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.retrieve import RetrieveConfig, run
from vlm_contextrl.foreign.imports import import_rows
from vlm_contextrl.storage import read_manifest
from vlm_contextrl.study.run import run_study


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nlvr_dev", "shapes_trainsmall_val"])
def test_third_party_probes(name: str, realdata: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    """Questions and pairs of one set, 2 arms x 2 seeds: every cell and the untrained model are measured on all of them, and the result
    has a value with its seeds for each."""
    take = with_png if name.startswith("shapes") else first_rows
    folder = take(realdata / name, tmp_path / "source", 60)
    licence = licence_of(realdata / name)
    questions, pairs = tmp_path / "third_questions", tmp_path / "third_pairs"
    import_rows(folder, questions, licence=licence)
    told = {"licence": licence, "encoder": {"encoder": "histogram"}, "cache": tmp_path / "cache", "low": 0.0}
    run(validate(RetrieveConfig, told, "config"), folder, pairs, Engine())
    study = study_file(tmp_path, tiny_model_folder)
    told_study = yaml.safe_load(study.read_text()) | {"probes": [str(questions), str(pairs)]}
    study.write_text(yaml.safe_dump(told_study, sort_keys=False))

    run_study(study, tmp_path / "out")

    result = json.loads((tmp_path / "out/study.json").read_text())
    assert result["failed"] == {}
    for found in result["arms"].values():
        assert found["measures"]["probe_third_questions"]["vqa_accuracy"]["n_seeds"] == 2
        assert found["measures"]["probe_third_pairs"]["selection_accuracy"]["n_seeds"] == 2
        assert found["minus_grpo"]["measures"]["probe_third_pairs"]["selection_accuracy"]["n_seeds"] == 2
    untrained = result["untrained"]["measures"]
    assert untrained["probe_third_questions"]["vqa_accuracy"]["n"] == read_manifest(questions).rows == 60
    assert untrained["probe_third_pairs"]["selection_accuracy"]["n"] == read_manifest(pairs).rows > 0
