"""Planted faults among good pairs: which of them `pairs verify` reports, by id, and that it reports nothing else.

    60  good         rendered pairs, as they are
    20  unchanged    the confounder is the context with noise of at most one grey level
    20  everything   the confounder is a negative, noise, another scene on a dark ground, or a picture of soft blots
    20  label        10 with the answers exchanged, 10 whose confounder supports the same answer as the context

The verifier is a script that knows what every picture shows. It fails when it is asked about a picture that the exact checks should have
kept from it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.tiny_models import noise_image
from vlm_contextrl.data_recipes.curate.verify import VerifyConfig, question_prompt, run
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.render import RenderConfig, render_pairs
from vlm_contextrl.errors import InputError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_pairs, verify_folder, write_rows

SIZE_PX = 112
SCRIPT = """
import json
from pathlib import Path
from vlm_contextrl.images import pixel_hash

FOLDER = Path(__file__).parent
KNOWN = json.loads((FOLDER / "known.json").read_text())

def answer(text, images, seed):
    key = f"{pixel_hash(images[0])} {text}"
    if (FOLDER / "broken").exists() and key == (FOLDER / "broken").read_text():
        raise RuntimeError("out of order")
    with (FOLDER / "asked").open("a") as log:
        log.write(json.dumps(key) + "\\n")
    return KNOWN[key]
"""


def picture(pair: ContrastivePair) -> Image.Image:
    assert isinstance(pair.context, EncodedImage)
    return pair.context.decode()


def with_noise(image: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-1, 2, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image).astype(int) + noise).clip(0, 255).astype(np.uint8))


def with_dot(image: Image.Image) -> Image.Image:
    """A grey dot in a corner, which changes no answer."""
    image = image.copy()
    image.paste((128, 128, 128), (0, 0, 3, 3))
    return image


def replaced(pairs: list[ContrastivePair], n: int) -> Image.Image:
    """Another picture in the place of the edited one."""
    size = (SIZE_PX, SIZE_PX)
    return [
        lambda: ImageOps.invert(picture(pairs[n])),
        lambda: noise_image(n, *size),
        lambda: ImageOps.invert(picture(pairs[n - 1])),
        lambda: noise_image(n, 6, 6).resize(size, Image.Resampling.BICUBIC),
    ][n % 4]()


@pytest.fixture(scope="module")
def pairs() -> list[ContrastivePair]:
    """The 120 pairs, faults among good ones."""
    good = [
        replace(p, id=f"good-{i:02d}")
        for i, p in enumerate(render_pairs(RenderConfig(count=60, size_px=SIZE_PX, seed=1)))
    ]
    other = list(render_pairs(RenderConfig(count=60, size_px=SIZE_PX, seed=2)))
    faults = []
    for n in range(20):
        unchanged = EncodedImage.from_image(with_noise(picture(other[n]), n))
        faults.append(replace(other[n], id=f"unchanged-{n:02d}", confounder=unchanged))
        everything = EncodedImage.from_image(replaced(other[20:40], n))
        faults.append(replace(other[20 + n], id=f"everything-{n:02d}", confounder=everything))
        label = replace(other[40 + n], id=f"label-{n:02d}")
        if n < 10:
            assert label.confounder_answer
            label = replace(label, answer=label.confounder_answer, confounder_answer=label.answer)
        else:
            label = replace(label, confounder=EncodedImage.from_image(with_dot(picture(label))))
        faults.append(label)
    return [row for i in range(60) for row in (good[i], faults[i])]


@pytest.fixture
def verifier(
    pairs: list[ContrastivePair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Path:
    """The folder of a module `known_SOMETHING` that answers for the good pairs and the wrong labels."""
    folder = tmp_path / "script"
    folder.mkdir()
    known = {}
    for pair in pairs:
        fault, number = pair.id.split("-")
        answers = [pair.answer, pair.confounder_answer]
        if fault in ("unchanged", "everything"):
            continue
        if fault == "label":
            answers = answers[::-1] if int(number) < 10 else [pair.answer, pair.answer]
        for side, answer in zip((pair.context, pair.confounder), answers, strict=True):
            assert isinstance(side, EncodedImage)
            known[f"{side.pixel_hash()} {question_prompt('', pair, [side], 'direct').text}"] = answer
    (folder / "known.json").write_text(json.dumps(known))
    (folder / f"{module_name(request)}.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def module_name(request: pytest.FixtureRequest) -> str:
    return f"known_{request.node.name}"


@pytest.fixture
def verify(
    pairs: list[ContrastivePair], verifier: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., dict[str, Any]]:
    """Runs the command with the script as verifier."""
    write_rows(pairs, tmp_path / "in", recipe="render", config={})
    settings = {"verifier": {"assistant": {"function": f"{module_name(request)}:answer"}}, "batch_rows": 16}

    def call(out: Path, engine: Engine = Engine()) -> dict[str, Any]:  # noqa: B008  # frozen
        return run(VerifyConfig.model_validate(settings), tmp_path / "in", out, engine)

    return call


def rejected_ids(out: Path) -> dict[str, set[str]]:
    """Ids per code."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in (out / "rejects.jsonl").read_text().splitlines():
        reject = json.loads(line)
        found[reject["reason"].partition(":")[0]].add(reject["id"])
    return dict(found)


def test_every_planted_fault_is_reported_and_nothing_else(
    verify: Callable[..., dict[str, Any]], verifier: Path, tmp_path: Path
) -> None:
    """120 pairs in: 60 kept, 20 + 20 + 10 + 10 rejected. The verifier is asked about both sides of the 80 that pass the exact checks."""
    summary = verify(tmp_path / "out")
    print({name: summary[name] for name in ("inputs", "kept", "rejects", "rejected", "rows_per_s")})
    assert (summary["inputs"], summary["kept"], summary["rejects"], summary["rows"]) == (120, 60, 60, 60)
    assert summary["rejected"] == {
        "unchanged": 20,
        "changed_everything": 20,
        "wrong_on_context": 10,
        "right_on_confounder": 10,
    }
    assert rejected_ids(tmp_path / "out") == {
        "unchanged": {f"unchanged-{n:02d}" for n in range(20)},
        "changed_everything": {f"everything-{n:02d}" for n in range(20)},
        "wrong_on_context": {f"label-{n:02d}" for n in range(10)},
        "right_on_confounder": {f"label-{n:02d}" for n in range(10, 20)},
    }
    verify_folder(tmp_path / "out")
    kept = read_pairs(tmp_path / "out")
    assert [row.id for row in kept] == [f"good-{n:02d}" for n in range(60)]
    assert all(row.verdicts["verifier"]["confounder_answer_share"] == 1 for row in kept)
    assert len((verifier / "asked").read_text().splitlines()) == 160


def test_two_workers_and_a_run_that_goes_on_give_the_same(
    verify: Callable[..., dict[str, Any]], verifier: Path, pairs: list[ContrastivePair], tmp_path: Path
) -> None:
    """The script fails in the sixth batch of 16 pairs; once it is mended, the first five are not asked about again."""
    expected = verify(tmp_path / "whole")
    two = verify(tmp_path / "two", Engine(workers=2))
    at = next(i for i in range(5 * 16, 6 * 16) if pairs[i].id.startswith("good"))
    side = pairs[at].context
    assert isinstance(side, EncodedImage)
    (verifier / "broken").write_text(
        f"{side.pixel_hash()} {question_prompt('', pairs[at], [side], 'direct').text}"
    )
    with pytest.raises(InputError, match=f"prompt {pairs[at].id}:context: RuntimeError: out of order"):
        verify(tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    (verifier / "broken").unlink()
    (verifier / "asked").write_text("")
    resumed = verify(tmp_path / "broken")
    asked = sum(not pair.id.startswith(("unchanged", "everything")) for pair in pairs[5 * 16 :])
    assert len((verifier / "asked").read_text().splitlines()) == 2 * asked
    for found, name in ((two, "two"), (resumed, "broken")):
        assert found["content_hash"] == expected["content_hash"]
        assert (tmp_path / name / "rejects.jsonl").read_bytes() == (
            tmp_path / "whole/rejects.jsonl"
        ).read_bytes()
        assert [row.verdicts for row in read_pairs(tmp_path / name)] == [
            row.verdicts for row in read_pairs(tmp_path / "whole")
        ]
