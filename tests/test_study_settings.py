"""Study files: how an arm's configuration comes about, and that a mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_contextrl.config import SelectionTerm
from vlm_contextrl.errors import ConfigError, DataError, InputError
from vlm_contextrl.storage import read_pairs, write_rows
from vlm_contextrl.study.cells import Cell, plan_cells
from vlm_contextrl.study.data import Rows, check_data, check_inputs, make_data, plan_data
from vlm_contextrl.study.run import run_study
from vlm_contextrl.study.settings import StudyConfig, as_overrides, load_study

STUDY: dict[str, Any] = {
    "name": "s",
    "base": "tiny_grpo",
    "arms": {"grpo": {}, "contextrl": "tiny_contextrl"},
    "seeds": [1, 2],
    "steps": 3,
    "render": {
        "domains": ["charts"], "left_out": ["dials"], "pairs": 12, "questions": 12, "test_share": 0.4,
        "left_out_pairs": 4, "left_out_questions": 4, "size_px": 56,
    },
    "quick": {"seeds": [1], "render": {"pairs": 10}, "render.questions": 10},
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in (STUDY | changes).items() if v is not None}, sort_keys=False)
    )
    return path


def plan(folder: Path, **changes: Any) -> dict[str, Cell]:
    """The cells by name, but for the untrained model."""
    path = write(folder, **changes)
    study = load_study(path)
    cells = plan_cells(study, plan_data(study, folder / "out"), path.parent, folder / "out")
    return {cell.name: cell for cell in cells}


# ---------------------------------------------------------------- arms


def test_cells_are_arms_times_seeds_and_the_untrained_model_first(tmp_path: Path) -> None:
    cells = plan(tmp_path)
    assert list(cells) == ["untrained", "grpo-1", "contextrl-1", "grpo-2", "contextrl-2"]
    config = cells["contextrl-2"].config
    assert (config.name, config.seed, config.steps) == ("s-contextrl-2", 2, 3)
    assert cells["contextrl-2"].run_dir == tmp_path / "out/cells/contextrl-2"
    assert config.data.pairs == tmp_path / "out/data/split/pairs/train"
    assert config.data.eval_pairs == tmp_path / "out/data/watched/pairs"
    assert set(cells["grpo-1"].measured) == {"held_out", "left_out"}
    assert any(isinstance(term, SelectionTerm) for term in config.objective)


def test_layers_of_an_arm(tmp_path: Path) -> None:
    """Base, the arm's own changes, settings of every arm; nested keys, dotted keys and places in a list."""
    arms = {
        "grpo": {},
        "weak": {
            "config": "tiny_contextrl",
            "objective.1.weight": 1e-05,
            "optim": {"betas": [0.8, 0.9]},
            "data.pairs": "mine",
        },
    }
    cells = plan(
        tmp_path,
        arms=arms,
        base={"config": "tiny_grpo", "optim.learning_rate": 0.25},
        settings={"optim.weight_decay": 0.5},
    )
    grpo, weak = cells["grpo-1"].config, cells["weak-1"].config
    assert (grpo.optim.learning_rate, weak.optim.learning_rate) == (0.25, 5e-4)
    assert (grpo.optim.weight_decay, weak.optim.weight_decay) == (0.5, 0.5)
    assert isinstance(weak.objective[1], SelectionTerm)
    assert weak.objective[1].weight == 1e-5
    assert weak.optim.betas == (0.8, 0.9)
    assert weak.data.pairs == Path("mine")


def test_files_beside_the_study_come_first(tmp_path: Path) -> None:
    (tmp_path / "arms").mkdir()
    shipped = Path(__file__).parents[1] / "configs/tiny_grpo.yaml"
    (tmp_path / "arms/grpo.yaml").write_text(shipped.read_text().replace("5.0e-4", "7.0e-4"))
    assert plan(tmp_path, arms={"grpo": "arms/grpo.yaml"})["grpo-1"].config.optim.learning_rate == 7e-4


def test_base_may_be_given_in_full(tmp_path: Path) -> None:
    base = yaml.safe_load((Path(__file__).parents[1] / "configs/tiny_grpo.yaml").read_text())
    assert plan(tmp_path, base=base, arms={"grpo": {}})["grpo-1"].config.optim.learning_rate == 5e-4


def test_quick_changes_the_file_and_the_command_line_changes_quick(tmp_path: Path) -> None:
    path = write(tmp_path)
    study = load_study(path, ["render.questions=11"], quick=True)
    assert study.seeds == [1]
    assert study.render is not None
    assert (study.render.pairs, study.render.questions, study.render.left_out_pairs) == (10, 11, 4)
    assert load_study(path).seeds == [1, 2]


def test_only_some_arms(tmp_path: Path) -> None:
    assert list(plan(tmp_path, only=["grpo"])) == ["untrained", "grpo-1", "grpo-2"]


def test_changes_as_overrides() -> None:
    assert list(as_overrides({"a": {"b": 1, "c": {}}, "d.e": None, "f": [{"g": 1e-9}]})) == [
        "a.b=1", "a.c={}", "d.e=null", 'f=[{"g": 1e-09}]',
    ]  # fmt: skip


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, r"study.yaml: unknown key 'sedes'; did you mean 'seeds'\?"),
        ({"render": STUDY["render"] | {"domain": []}}, "unknown key 'render.domain'; did you mean 'domains'"),
        ({"arms": {"grpo": {"optim.learning_rat": 1}}}, "arm 'grpo': .*unknown key 'optim.learning_rat'; did you mean 'learning_rate'"),
        ({"arms": {"grpo": {}, "x": "no_such"}}, "arm 'x': no_such: no such file and no shipped configuration"),
        ({"arms": {"grpo": {}, "x": {"objective.7.weight": 1}}}, "arm 'x': .*objective.7.weight does not lead to a setting"),
        ({"settings": {"steps": -1}, "steps": None}, "arm 'grpo': .*steps: .*greater than or equal to 1"),
        ({"arms": {"grpo": {}, "x": {"rollout.prompts_per_step": 48}}}, "arm 'x': updates is 6, expected 3 as in 'grpo'"),
        ({"arms": {"a": {}}}, "baseline: 'grpo' is none of the arms that are run .a."),
        ({"only": ["contxt"]}, "only: no arm 'contxt'; arms are grpo, contextrl"),
        ({"only": ["contextrl"]}, "baseline: 'grpo' is none of the arms"),
        ({"seeds": [1, 1]}, "seeds: a seed is named twice"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, -1]}, "seeds.1: .*greater than or equal to 0"),
        ({"arms": {"../x": {}}}, "arms"),
        ({"arms": {"grpo": {}, "lr_0.1": {}}}, "arms.lr_0.1"),
        ({"render": None}, "give exactly one of `render` and `folders`"),
        ({"render": STUDY["render"] | {"left_out_pairs": 0}}, "render: give left_out, left_out_pairs and left_out_questions together"),
        ({"render": STUDY["render"] | {"left_out": ["charts"]}}, "render: left_out: 'charts' is among the domains that are trained on"),
        ({"render": STUDY["render"] | {"domains": ["chart"]}}, "render: domains.0: "),
        ({"probes": ["a/x", "b/x"]}, "probes: two folders have the same name"),
        ({"probes": ["no/such"]}, "no/such"),
        ({"render": None, "folders": {"questions": "q"}}, "folders.pairs is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run_study(write(tmp_path, **change), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_quick_needs_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no `quick` settings"):
        load_study(write(tmp_path, quick={}), quick=True)


def test_a_cell_that_was_made_otherwise_is_refused(tmp_path: Path) -> None:
    cell = plan(tmp_path)["grpo-1"]
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "config.yaml").write_text(yaml.safe_dump(cell.config.model_dump(mode="json")))
    assert plan(tmp_path, seeds=[1, 2, 3])["grpo-1"].config == cell.config
    with pytest.raises(ConfigError, match=r"grpo-1: .*\(steps\).*or name another folder with --out"):
        plan(tmp_path, steps=4)


# ---------------------------------------------------------------- data


def study_of(folder: Path, **changes: Any) -> StudyConfig:
    return load_study(write(folder, **changes))


def test_data_is_rendered_split_and_watched(tmp_path: Path) -> None:
    """12 pairs of charts are split, 4 of dials are left out; 2 of each are looked at while training, by the name of their set."""
    from vlm_contextrl.storage import read_manifest, read_pairs

    study = study_of(tmp_path, eval_rows=2)
    data = plan_data(study, tmp_path / "out")
    make_data(study, data, tmp_path / "out")
    held_out, left_out = data.measured["held_out"].pairs, data.measured["left_out"].pairs
    assert held_out is not None
    assert left_out is not None
    assert data.trained.pairs is not None
    counts = [read_manifest(folder).rows for folder in (data.trained.pairs, held_out)]
    assert sum(counts) == 12
    assert read_manifest(held_out).domains == {"charts": counts[1]}
    assert read_manifest(left_out).domains == {"dials": 4}
    assert data.watched.pairs is not None
    watched = read_pairs(data.watched.pairs)
    assert [pair.domain for pair in watched] == ["held_out"] * 2 + ["left_out"] * 2
    assert [pair.id for pair in watched[:2]] == [pair.id for pair in read_pairs(held_out)[:2]]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    make_data(study, data, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"render": STUDY["render"] | {"pairs": 13}}, "rendered/pairs: made with count = 12, the study now says 13; name another"),
        ({"render": STUDY["render"] | {"test_share": 0.5}}, "made with fractions"),
        ({"eval_rows": 3}, "watched/pairs: made with first_rows = 200, the study now says 3"),
    ],
)  # fmt: skip
def test_data_that_was_made_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    study = study_of(tmp_path)
    make_data(study, plan_data(study, tmp_path / "out"), tmp_path / "out")
    other = study_of(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        make_data(other, plan_data(other, tmp_path / "out"), tmp_path / "out")


def test_folders_that_are_there(tmp_path: Path, pairs_folder: Path, questions_folder: Path) -> None:
    given = {
        "questions": questions_folder,
        "pairs": pairs_folder,
        "held_out_questions": questions_folder,
        "held_out_pairs": pairs_folder,
    }
    folders = {name: str(path) for name, path in given.items()}
    study = study_of(tmp_path, render=None, folders=folders, probes=[str(pairs_folder)], quick={})
    check_data(study)
    data = plan_data(study, tmp_path / "out")
    assert list(data.measured) == ["held_out", "probe_pairs"]
    assert data.measured["probe_pairs"].questions is None
    make_data(study, data, tmp_path / "out")
    assert data.watched.questions is not None
    assert data.watched.questions.is_dir()

    swapped = study_of(tmp_path, render=None, folders=folders | {"pairs": str(questions_folder)}, quick={})
    with pytest.raises(DataError, match="folders.pairs: .* holds questions, expected pairs"):
        check_data(swapped)


def test_folders_that_were_changed_are_refused(
    tmp_path: Path, pairs_folder: Path, questions_folder: Path
) -> None:
    """Finished cells would otherwise stand beside cells that are trained on, or measured by, other rows. A set that is new is noted."""
    data = {"arm grpo": Rows(questions_folder, pairs_folder), "held_out": Rows(questions_folder, None)}
    check_inputs(data, tmp_path)
    check_inputs(data | {"probe_x": Rows(None, pairs_folder)}, tmp_path)
    assert list(json.loads((tmp_path / "inputs.json").read_text())) == [
        "arm grpo questions", "arm grpo pairs", "held_out questions", "probe_x pairs",
    ]  # fmt: skip
    fewer = tmp_path / "fewer"
    write_rows(list(read_pairs(pairs_folder))[:2], fewer, recipe="x", config={})
    for name in ("arm grpo", "probe_x"):
        with pytest.raises(
            InputError, match=f"fewer: holds other pairs than when .* was begun .{name}.; restore them"
        ):
            check_inputs({name: Rows(None, fewer)}, tmp_path)


def test_the_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    """Nothing of it is touched."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.yaml").write_text("name: other\n")
    with pytest.raises(InputError, match="holds the study 'other', not"):
        run_study(write(tmp_path), out)
    assert (out / "study.yaml").read_text() == "name: other\n"
    (out / "study.yaml").write_text("- {")
    with pytest.raises(InputError, match="study.yaml: cannot be read"):
        run_study(write(tmp_path), out)


def test_a_place_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        run_study(write(tmp_path), tmp_path / "file/out")


def test_a_name_of_digits(tmp_path: Path) -> None:
    assert plan(tmp_path, name="2026")["grpo-1"].config.name == "2026-grpo-1"


def test_ids_that_two_measured_sets_share_are_refused(
    tmp_path: Path, pairs_folder: Path, questions_folder: Path
) -> None:
    folders = {
        f"{side}{kind}": str(folder)
        for side in ("", "held_out_", "left_out_")
        for kind, folder in (("questions", questions_folder), ("pairs", pairs_folder))
    }
    study = study_of(tmp_path, render=None, folders=folders, quick={})
    with pytest.raises(DataError, match="24 rows have ids that other measured rows have"):
        make_data(study, plan_data(study, tmp_path / "out"), tmp_path / "out")
