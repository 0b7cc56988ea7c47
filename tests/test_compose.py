"""Composed pairs: answers read off the described scenes by a second reader, pixels, seeds, controls on the whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.compose_pictures import config_of, draw_cutouts, draw_photographs
from vlm_contextrl.answers import score_answer
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.compose import ComposeConfig, run
from vlm_contextrl.data_recipes.compose.blending import Blending, draw, lit, painted
from vlm_contextrl.data_recipes.compose.questions import COUNT_WEIGHTS, COUNTS, KINDS
from vlm_contextrl.data_recipes.compose.recipe import ComposeStep
from vlm_contextrl.data_recipes.compose.scenes import COLOURS, EDITS, Scene, Space, Thing, scene_hash
from vlm_contextrl.data_recipes.compose.sources import Catalogue, Cutout, Photograph, read_catalogue
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_pairs, verify_folder

Things = list[dict[str, Any]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    draw_cutouts(folder / "cutouts")
    draw_photographs(folder / "photographs")
    return folder


def step_of(config: ComposeConfig) -> ComposeStep:
    catalogue, _ = read_catalogue(config)
    return ComposeStep(config, catalogue)


@pytest.fixture(scope="module")
def made(sources: Path) -> list[ContrastivePair]:
    """160 pairs of 128 px."""
    return [row for outcome in step_of(config_of(sources))(range(160)) for row in outcome.rows]


# ------------------------------------------------------------ the second reader: query and boxes -> answer


def read_answer(query: str, things: Things) -> str:
    """The answer in plain words; knows the wording and the boxes only."""
    labels = {thing["label"] for thing in things}

    def of(label: str) -> dict[str, Any]:
        return next(thing for thing in things if thing["label"] == label)

    if found := re.match(r"(?:Does the picture show|Can you see) (?:an?) (.+?)(?: in the picture)?\?", query):
        return "yes" if found[1] in labels else "no"
    if found := re.match(
        r"(?:How many|Count the) (\w+?)(?:e?s)?(?: are in the picture\?|\. How many are there\?)$", query
    ):
        return str(sum(re.fullmatch(rf"{found[1]}e?", thing["label"]) is not None for thing in things))
    if found := re.match(
        r"(?:Which of these is|Of these, which one is) (farthest to the )?(left|right|highest|lowest)", query
    ):
        key = {
            "left": lambda t: t["left"],
            "right": lambda t: -t["left"] - t["width"],
            "highest": lambda t: t["top"],
            "lowest": lambda t: -t["top"] - t["height"],
        }[found[2]]
        return str(min(things, key=key)["label"])
    if found := re.match(
        r"Is the (.+) (left or right|right or left|above or below|below or above)(?: of)? the (.+)\?", query
    ):
        a, b = of(found[1]), of(found[3])
        if "left" in found[2]:
            return "left" if a["left"] + a["width"] <= b["left"] else "right"
        return "above" if a["top"] + a["height"] <= b["top"] else "below"
    if found := re.match(r"Is the (.+) (left of|right of|above|below) the (.+)\?", query):
        a, b = of(found[1]), of(found[3])
        truth = {
            "left of": a["left"] < b["left"],
            "right of": a["left"] > b["left"],
            "above": a["top"] < b["top"],
            "below": a["top"] > b["top"],
        }
        return "yes" if truth[found[2]] else "no"
    if found := re.match(r"Which (.+) the picture, the (.+) or the (.+)\?", query):
        pair = sorted((of(found[2]), of(found[3])), key=lambda t: t["area"])
        return str(pair["more" in found[1] or "bigger" in found[1]]["label"])
    if found := re.match(r"In this picture, is the (.+) (bigger|smaller) than the (.+)\?", query):
        bigger = of(found[1])["area"] > of(found[3])["area"]
        return "yes" if bigger == (found[2] == "bigger") else "no"
    if found := re.match(r"(?:What|Which) colour is the (.+)\?", query):
        return str(of(found[1])["colour"])
    found = re.match(r"Is the (.+) (\w+)\?", query)
    assert found, query
    return "yes" if of(found[1])["colour"] == found[2] else "no"


def said(pair: ContrastivePair, answer: str | None) -> str:
    """The text behind an option letter."""
    assert answer is not None
    return pair.options["ABCD".index(answer)] if pair.answer_type == "choice" else answer


def scenes_of(pair: ContrastivePair) -> tuple[Things, Things]:
    """Objects of context and confounder."""
    sides = pair.provenance["scene_before"]["things"], pair.provenance["scene_after"]["things"]
    return sides[::-1] if pair.provenance["edited"] == "context" else sides


def test_a_second_reader_finds_every_answer_on_both_sides(made: list[ContrastivePair]) -> None:
    kinds: Counter[str] = Counter()
    for pair in made:
        kinds[pair.provenance["question_type"]] += 1
        for things, answer in zip(scenes_of(pair), (pair.answer, pair.confounder_answer), strict=True):
            if pair.provenance["question_type"] == "which":
                named = pair.options or re.findall(r"the (\w+)(?=,| or|\?)", pair.query)
                shown = [label for label in named if label in {t["label"] for t in things}]
                assert shown == [said(pair, answer)]
            else:
                assert read_answer(pair.query, things) == said(pair, answer), pair
    assert set(kinds) == {kind for group in KINDS.values() for kind in group}


def test_answers_score_as_right_and_the_other_side_as_wrong(made: list[ContrastivePair]) -> None:
    for pair in made:
        assert score_answer(pair.answer, pair.answer, pair.answer_type, pair.options)
        assert not score_answer(pair.confounder_answer or "", pair.answer, pair.answer_type, pair.options)


def test_objects_are_inside_and_apart(made: list[ContrastivePair]) -> None:
    """Boxes keep 2% of the side from the border and from each other: 2 px or more at 128 x 96."""
    for pair in made:
        scene = pair.provenance["scene_before"]
        for things in scenes_of(pair):
            for index, a in enumerate(things):
                assert a["left"] >= 2
                assert a["top"] >= 2
                assert a["left"] + a["width"] <= scene["width"] - 2
                assert a["top"] + a["height"] <= scene["height"] - 2
                for b in things[:index]:
                    apart = max(
                        b["left"] - a["left"] - a["width"], a["left"] - b["left"] - b["width"],
                        b["top"] - a["top"] - a["height"], a["top"] - b["top"] - b["height"],
                    )  # fmt: skip
                    assert apart >= 2


def test_exactly_one_object_differs_and_as_the_edit_says(made: list[ContrastivePair]) -> None:
    changed = {
        "replaced": {"label", "cutout", "left", "top", "width", "height", "area"},
        "moved": {"left", "top"},
        "recoloured": {"colour"},
        "resized": {"left", "top", "width", "height", "area"},
    }
    edits: Counter[str] = Counter()
    for pair in made:
        before, after = (pair.provenance[f"scene_{side}"]["things"] for side in ("before", "after"))
        edit = pair.provenance["edit"]
        edits[edit] += 1
        if edit == "removed":
            assert after == before[1:]
            continue
        assert after[1:] == before[1:]
        assert {key for key in before[0] if before[0][key] != after[0][key]} <= changed[edit]
    assert set(edits) == set(EDITS)


def test_pixels_differ_only_where_the_edited_object_is_or_was(made: list[ContrastivePair]) -> None:
    """The soft edge reaches at most 4 px beyond a box."""
    for pair in made[:60]:
        assert isinstance(pair.context, EncodedImage)
        assert isinstance(pair.confounder, EncodedImage)
        pictures = [np.asarray(side.decode()) for side in (pair.context, pair.confounder)]
        differs = (pictures[0] != pictures[1]).any(axis=-1)
        assert differs.mean() == pytest.approx(pair.provenance["changed_fraction"], abs=1e-6) != 0
        things = [pair.provenance[f"scene_{side}"]["things"] for side in ("before", "after")]
        for thing in (t for t in (*things[0], *things[1]) if (t in things[0]) != (t in things[1])):
            left, top = max(0, thing["left"] - 4), max(0, thing["top"] - 4)
            right, bottom = thing["left"] + thing["width"] + 4, thing["top"] + thing["height"] + 4
            differs[top:bottom, left:right] = False
        assert not differs.any()


def test_a_pair_depends_on_seed_and_number_only(sources: Path) -> None:
    step = step_of(config_of(sources))
    alone, among = step([7])[0], step([3, 7, 5])[1]
    assert alone == among
    assert step_of(config_of(sources, count=9, control_pairs=3))([7])[0].rows == alone.rows
    assert step_of(config_of(sources, seed=1))([7])[0].rows != alone.rows


def test_half_of_the_edited_pictures_are_contexts(made: list[ContrastivePair]) -> None:
    """160 fair coins: 80 with a standard deviation of 6.3; four of them are 25."""
    assert len(made) == 160
    edited = Counter(pair.provenance["edited"] for pair in made)
    assert abs(edited["context"] - 80) <= 25


def test_counts_are_balanced_by_their_weights(sources: Path) -> None:
    """Pairs k, k+1 with weights 8, 1, 8: the answers 1..4 have the shares 8, 9, 9, 8 of 34; 400 answers, five deviations are 0.11."""
    config = config_of(sources, edits=["removed"], choice_share=0.0, size_px=192, largest=0.2)
    step, answers = step_of(config), Counter[str]()
    for index in range(200):
        rng = Random(index)
        draft = step.draft("removed", "count", 0, rng.choices(COUNTS, COUNT_WEIGHTS)[0] + 1, rng)
        if draft:
            answers.update((draft.asked.answer, draft.asked.other_answer))
    total = sum(answers.values())
    assert total >= 380
    for word, share in zip("1234", (8, 9, 9, 8), strict=True):
        assert answers[word] / total == pytest.approx(share / 34, abs=0.11)


def test_run_writes_a_dataset_and_says_what_it_holds(sources: Path, tmp_path: Path) -> None:
    config = config_of(sources, control_pairs=50, count=60)
    summary = run(config, tmp_path / "out", Engine())
    assert summary["inputs"] == summary["kept"] + summary["rejects"] == 60
    assert verify_folder(tmp_path / "out").rows == summary["rows"] == summary["kept"]
    assert summary["sources"] == {"photographs": 3, "cutouts": 6, "labels": 5, "refused": 0}
    assert summary["licences"] == {"CC0-1.0; CC-BY-4.0": 60}
    assert sum(summary["edits"].values()) == sum(summary["question_types"].values()) == 60
    assert summary["trace_control"]["n"] == 50
    assert not summary["trace_control"]["found_trace"]
    assert summary["blind_answers"]["low"] <= summary["blind_answers"]["chance"] + 0.1
    json.dumps(summary, allow_nan=False)


def test_rows_tell_their_making(made: list[ContrastivePair], sources: Path) -> None:
    from hashlib import sha256

    for pair in made[:10]:
        told = pair.provenance
        assert told["scene"] == scene_hash(told["scene_before"])
        assert told["source"][0] == f"photographs/{told['scene_before']['photograph']}"
        used = {t["cutout"] for side in ("before", "after") for t in told[f"scene_{side}"]["things"]}
        assert {name.removeprefix("cutouts/") for name in told["source"][1:]} == used
        for name, digest in zip(told["source"], told["sha256"], strict=True):
            assert sha256((sources / name).read_bytes()).hexdigest() == digest
        assert told["licence"] == "CC0-1.0; CC-BY-4.0"
        assert told["photograph_licence"] == "CC0-1.0"
        assert told["cutout_licences"] == ["CC-BY-4.0"] * len(used)
        assert told["seed"] == 0


@pytest.mark.slow
def test_two_workers_make_the_same_dataset(sources: Path, tmp_path: Path) -> None:
    config = config_of(sources, count=24, batch_size=5)
    one = run(config, tmp_path / "one", Engine())
    two = run(config, tmp_path / "two", Engine("local", 2))
    assert one["content_hash"] == two["content_hash"]


def test_a_source_that_changes_under_way_rejects_its_pairs(tmp_path: Path) -> None:
    draw_cutouts(tmp_path / "cutouts")
    draw_photographs(tmp_path / "photographs", count=1)
    step = step_of(config_of(tmp_path))
    draw_photographs(tmp_path / "photographs", count=1, size_px=(160, 160))
    assert [outcome.reason for outcome in step([0])] == [
        "unreadable_source: view0.png: changed since the run began, expected the same bytes"
    ]


def test_what_cannot_be_seen_is_a_reject(tmp_path: Path) -> None:
    """A red photograph shows neither a red ball nor a red box."""
    for name in ("photographs", "cutouts"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (160, 120), "#ff5040").save(tmp_path / "photographs/red.png")
    for name in ("ball", "crate"):
        cutout = Image.new("RGBA", (90, 90))
        cutout.paste("#ff5040", (10, 10, 80, 80))
        cutout.save(tmp_path / f"cutouts/{name}.png")
    config = config_of(tmp_path, edits=["removed"])
    assert step_of(config)([0])[0].reason == (
        "no_contrast: in 20 tries over red.png some object always hardly showed, expected all to stand out"
    )


def test_what_cannot_be_asked_is_a_reject(tmp_path: Path) -> None:
    """Two labels leave nothing to replace one of two objects by, but everything else can be asked."""
    draw_photographs(tmp_path / "photographs", count=1)
    draw_cutouts(tmp_path / "cutouts")
    for name in ("signs/arrow.png", "tools/hammer.png", "sky/star_01_mirror.png"):
        (tmp_path / "cutouts" / name).unlink()
    config = config_of(tmp_path, count=60)
    summary = run(config, tmp_path / "out", Engine())
    assert summary["rejected"].keys() == {"no_scene"}
    assert summary["kept"] + summary["rejects"] == 60
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert all(
        reason.startswith("no_scene: 400 tries gave none for extreme with an object replaced")
        for reason in reasons
    )
    assert len(read_pairs(tmp_path / "out")) == summary["kept"]


# ------------------------------------------------------------ numbers by hand


def test_a_size_is_the_root_of_the_opaque_share() -> None:
    """A picture of 400 x 100 has s = 200. A cut-out of 50 x 100, half opaque, at size 0.25: an opaque area of 50^2 = 2500, a box
    of 5000 = 50 x 100; at size 0.125 a box of 1250 = 25 x 50."""
    catalogue = Catalogue(
        (Photograph("p", "", "x", 400, 100),), (Cutout("c", "", "x", "cup", "", (0, 0, 50, 100), 0.5),)
    )
    space, scene = Space(catalogue, 400, 0.1, 0.3), Scene(0, 400, 100, ())
    whole, half = space._thing(scene, "cup", 0, 0.25), space._thing(scene, "cup", 0, 0.125)
    assert whole
    assert half
    assert (whole.width, whole.height, whole.area) == (50, 100, 2500)
    assert (half.width, half.height, half.area) == (25, 50, 625)
    assert space._thing(scene, "cup", 0, 0.26) is None  # 104 high


def test_light_moves_the_mean_part_of_the_way() -> None:
    """A grey object of 100 before a grey background of 180 at strength 0.25: 100 + 20 = 120; at strength 1 it stops 45 further on."""
    colour, alpha = np.full((4, 4, 3), 100, np.float32), np.ones((4, 4, 1), np.float32)
    around = np.full((9, 3), 180, np.float32)
    assert lit(colour, alpha, around, 0.25, keep_hue=False) == pytest.approx(120, abs=0.01)
    assert lit(colour, alpha, around, 1.0, keep_hue=False) == pytest.approx(145, abs=0.01)
    assert lit(colour, alpha, around, 0.0, keep_hue=False) == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("name", COLOURS)
def test_paint_keeps_its_hue_in_shade_and_light(name: str) -> None:
    """An object of even luminance gets exactly the paint; in others the strongest channel of the paint stays the strongest."""
    alpha = np.ones((2, 2, 1), np.float32)
    even = painted(np.full((2, 2, 3), 90, np.float32), alpha, COLOURS[name])
    assert even == pytest.approx(np.broadcast_to(COLOURS[name], (2, 2, 3)), abs=0.5)
    ramp = painted(np.array([[[20] * 3, [90] * 3], [[160] * 3, [250] * 3]], np.float32), alpha, COLOURS[name])
    assert (ramp.argmax(axis=-1) == np.argmax(COLOURS[name])).all()


def test_hidden_colour_stays_out_of_the_edge() -> None:
    """A black square whose transparent pixels are white, on black: without premultiplication its edge would shine."""
    cutout = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    cutout.paste((0, 0, 0, 255), (0, 0, 20, 40))
    scene = Scene(0, 100, 100, (Thing("a", 0, 20, 20, 60, 60, 1800),))
    picture = draw(scene, Image.new("RGB", (100, 100)), {0: cutout}, Blending(1.5, 0.0))
    assert np.asarray(picture).max() <= 1


def test_no_objects_give_the_photograph() -> None:
    photograph = Image.effect_noise((50, 40), 60).convert("RGB")
    picture = draw(Scene(0, 50, 40, ()), photograph, {}, Blending(0.7, 0.35))
    assert picture.tobytes() == photograph.tobytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["largest=0.12"], "expected largest to be at least 1.3 times smallest"),
        (["edits=[moved, moved]"], "edits names one twice; name each once"),
        (["edit=[moved]"], "unknown key 'edit'; did you mean 'edits'?"),
        (["edits=[painted]"], "edits.0"),
    ],
)
def test_bad_settings_are_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ComposeConfig, None, ["photographs=a", "cutouts=b", *settings])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_settings_are_the_defaults() -> None:
    """`batch_size` is not in the file: it is no setting to start from."""
    file = Path(__file__).parents[1] / "configs/recipes/compose.yaml"
    defaults = ComposeConfig.model_validate({"photographs": "photographs", "cutouts": "cutouts"})
    assert load_config(ComposeConfig, file) == defaults
