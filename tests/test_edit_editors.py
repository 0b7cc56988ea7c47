"""Pipelines by what they take: found, refused and called; from stand-ins, see test_edit_pipelines.py for real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests import tiny_editors
from tests.tiny_editors import INDEX
from vlm_contextrl.data_recipes.edit import Editor, EditorSettings, editors, open_editor
from vlm_contextrl.data_recipes.edit.editors import mask
from vlm_contextrl.errors import CheckpointError, ConfigError, InputError, MissingExtraError

PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


# ---- what a pipeline takes, from stand-ins with the signatures of diffusers


class InstructPix2Pix:
    def __call__(
        self, prompt=None, image=None, num_inference_steps=100, guidance_scale=7.5, image_guidance_scale=1.5, negative_prompt=None,
        num_images_per_prompt=1, generator=None, latents=None, output_type="pil", return_dict=True, **kwargs,
    ):  # fmt: skip
        pass


class Klein:
    def __call__(self, image=None, prompt=None, num_inference_steps=50, guidance_scale=4.0, generator=None):
        pass


class Inpainting:
    def __call__(self, prompt, image, mask_image, negative_prompt="", strength=0.6, generator=None):
        pass


class ManyPictures:
    def __call__(self, images, prompt, generator=None):
        pass


class TextToImage:
    def __call__(self, prompt, num_inference_steps=50, generator=None):
        pass


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (InstructPix2Pix, Klein, Inpainting, ManyPictures, TextToImage)
    package = SimpleNamespace(__version__="0.42.0", **{entry.__name__: entry for entry in found})
    monkeypatch.setattr(editors, "diffusers", lambda: package)


def index_folder(folder: Path, class_name: str, **components: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": class_name, **components}))
    return folder


def opened(folder: Path, class_name: str, **settings: Any) -> Editor:
    return open_editor(EditorSettings(path=str(index_folder(folder, class_name)), **settings))


@pytest.mark.usefixtures("stand_ins")
def test_arguments_follow_the_signature(tmp_path: Path) -> None:
    """A negative prompt, a mask and steps are given to those that take them."""
    pix2pix = opened(tmp_path / "a", "InstructPix2Pix", steps=4, arguments={"image_guidance_scale": 2})
    assert (pix2pix.image_argument, pix2pix.mask_argument) == ("image", "")
    assert pix2pix.further == {"image_guidance_scale": 2, "negative_prompt": " ", "num_inference_steps": 4}
    klein = opened(tmp_path / "b", "Klein", arguments={"guidance_scale": 3})
    assert klein.further == {"guidance_scale": 3}
    assert opened(tmp_path / "c", "Inpainting").mask_argument == "mask_image"
    assert opened(tmp_path / "d", "ManyPictures").image_argument == "images"


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("class_name", "settings", "message"),
    [
        ("Klein", {"arguments": {"true_cfg_scale": 4}}, "true_cfg_scale: is no argument of Klein, expected some of guidance_scale"),
        ("Klein", {"arguments": {"generator": 1}}, r"editor.arguments.generator: is set by the recipe, expected some of guidance_scale"),
        ("InstructPix2Pix", {"arguments": {"kwargs": {}}}, "set by the recipe, expected some of guidance_scale, image_guidance_scale$"),
        ("Inpainting", {"steps": 4}, "editor.steps: Inpainting takes no number of steps; remove it"),
        ("TextToImage", {}, "TextToImage takes no picture with a prompt; expected an editing pipeline such as"),
        ("Klein", {"revision": "main"}, "editor.revision: .* is a folder, which has none; remove it"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(
    tmp_path: Path, class_name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path / "pipeline", class_name, **settings)


@pytest.mark.usefixtures("stand_ins")
def test_folders_that_are_no_pipeline(tmp_path: Path) -> None:
    """Each in one line, before anything heavy is loaded."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"architectures": []}')
    code = tiny_editors.write_painter(tmp_path / "code")
    component = index_folder(tmp_path / "component", "Klein")
    (component / "unet").mkdir()
    (component / "unet" / "own.py").write_text("")
    cases = {
        tmp_path / "missing": "missing: no such folder, expected a diffusers pipeline",
        "./missing": "./missing: no such folder",
        "one": "one: no such folder",
        tmp_path / "empty": "empty: no model_index.json, expected the folder of a diffusers pipeline",
        tmp_path / "broken": r"broken: model_index.json cannot be read \(Expecting property name",
        tmp_path / "model": "model: model_index.json names no _class_name",
        index_folder(
            tmp_path / "unknown", "Later"
        ): "'Later' is no pipeline of diffusers 0.42.0; install the version",
        code: r"comes with code of its own \(painter.py\); refused, set editor.trust_remote_code=true",
        component: r"comes with code of its own \(unet/own.py\); refused",
    }
    for path, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            open_editor(EditorSettings(path=str(path)))


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlm-contextrl\[edit\]'"):
        opened(tmp_path / "pipeline", "Klein")


@pytest.mark.usefixtures("stand_ins")
def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image-Edit's processor has a part for videos, which needs it; image processors and pipelines without one do not."""
    monkeypatch.setattr("transformers.utils.import_utils.is_torchvision_available", lambda: False)
    parts: dict[str, Any] = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "processor": [None, None],
    }
    open_editor(EditorSettings(path=str(index_folder(tmp_path / "klein", "Klein", **parts))))
    parts["processor"] = ["transformers", "Qwen2VLProcessor"]
    folder = index_folder(tmp_path / "qwen", "Klein", **parts)
    with pytest.raises(MissingExtraError) as caught:
        open_editor(EditorSettings(path=str(folder)))
    assert str(caught.value) == (
        f"{folder}: its Qwen2VLProcessor needs torchvision, which is not installed: pip install torchvision, in the build for your torch "
        "(for the CPU: --index-url https://download.pytorch.org/whl/cpu)"
    )
    monkeypatch.setattr("transformers.utils.import_utils.is_torchvision_available", lambda: True)
    open_editor(EditorSettings(path=str(folder)))


@pytest.mark.usefixtures("stand_ins")
def test_a_changed_folder_is_another_revision(tmp_path: Path) -> None:
    """A setting, or the size of a file."""
    folder = tmp_path / "pipeline"
    revisions = [opened(folder, "Klein").revision, opened(folder, "Klein").revision]
    (folder / "config.json").write_text('{"a": 1}')
    revisions.append(opened(folder, "Klein").revision)
    (folder / "config.json").write_text('{"a": 2}')
    revisions.append(opened(folder, "Klein").revision)
    assert revisions[0] == revisions[1]
    assert len(set(revisions)) == 3


def test_a_hub_id_is_fetched_as_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the snapshot's folder is the commit."""
    snapshot = tmp_path / "snapshots" / "4f1c"
    snapshot.parent.mkdir()
    index_folder(snapshot, "Klein")
    asked: list[Any] = []

    def download(path: str, **options: Any) -> str:
        asked.append((path, options))
        return str(snapshot)

    package = SimpleNamespace(Klein=Klein, DiffusionPipeline=SimpleNamespace(download=download))
    monkeypatch.setattr(editors, "diffusers", lambda: package)
    editor = open_editor(EditorSettings(path="some/model", revision="main"))
    assert (editor.folder, editor.revision) == (str(snapshot), "4f1c")
    assert asked == [
        ("some/model", {"revision": "main", "use_safetensors": True, "trust_remote_code": False})
    ]


# ---- how it is called, from a recorder in place of the pipeline


class Recorder:
    """Takes any call and returns, or raises, what it was given."""

    def __init__(self, result: Any) -> None:
        self.result, self.call = result, {}

    def __call__(self, **call: Any) -> Any:
        self.call = call
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def recording(result: Any, image_argument: str = "image", mask_argument: str = "") -> tuple[Editor, Recorder]:
    editor = Editor(
        EditorSettings(path="x"), "x", "1", image_argument, mask_argument, {"guidance_scale": 3}, False
    )
    recorder = Recorder(result)
    editor.__dict__["pipeline"] = recorder
    return editor, recorder


def test_the_call() -> None:
    made = SimpleNamespace(images=[PICTURE])
    editor, recorder = recording(made, mask_argument="mask_image")
    assert editor.edit(PICTURE, "paint", seed=7, box=(0, 0, 0.5, 0.25)) == PICTURE
    assert recorder.call["generator"].initial_seed() == 7
    assert recorder.call["mask_image"].getbbox() == (0, 0, 32, 16)
    given = {name: recorder.call[name] for name in ("image", "prompt", "guidance_scale")}
    assert given == {"image": PICTURE, "prompt": "paint", "guidance_scale": 3}
    editor, recorder = recording(made, image_argument="images")
    editor.edit(PICTURE, "paint", seed=7, box=(0, 0, 0.5, 0.25))
    assert recorder.call.keys() == {"images", "prompt", "guidance_scale", "generator"}
    assert recorder.call["images"] == [PICTURE]


def test_masks() -> None:
    """Of 10 x 20 px the box covers 2 to 5 across and 5 to 10 down: 3 x 5 = 15 px. A box is never thinner than a pixel."""
    assert mask((10, 20), (0.2, 0.25, 0.5, 0.5)).histogram()[255] == 15
    assert mask((10, 20), (0.2, 0.25, 0.21, 0.26)).histogram()[255] == 1
    assert mask((10, 20), (0.99, 0.99, 1, 1)).histogram()[255] == 1
    assert mask((10, 20), None).histogram()[255] == 200


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (
            ValueError("height must be divisible by 16"),
            "editor_failed: height must be divisible by 16, expected",
        ),
        (
            RuntimeError("Kernel size can't be greater\nthan 3"),
            "editor_failed: Kernel size can't be greater, expected",
        ),
        (SimpleNamespace(images=[PICTURE], nsfw_content_detected=[True]), "editor_withheld: "),
    ],
)
def test_a_picture_that_cannot_be_edited_is_a_reject(result: Any, code: str) -> None:
    editor, _ = recording(result)
    reason = editor.edit(PICTURE, "paint", 0)
    assert isinstance(reason, str)
    assert reason.startswith(code)


def test_a_device_that_gives_up_stops_the_run() -> None:
    """What a rerun could do better must not become a reject."""
    import torch

    editor, _ = recording(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"))
    with pytest.raises(
        InputError, match=r"x: CUDA out of memory.; try editor.dtype=bfloat16, editor.offload=true"
    ):
        editor.edit(PICTURE, "paint", 0)


@pytest.mark.parametrize(
    "result", [SimpleNamespace(frames=[[PICTURE]]), SimpleNamespace(images=[]), (PICTURE,)]
)
def test_a_pipeline_that_gives_no_picture(result: Any) -> None:
    editor, _ = recording(result)
    with pytest.raises(ConfigError, match="gives no picture, expected a pipeline that edits one"):
        editor.edit(PICTURE, "paint", 0)
