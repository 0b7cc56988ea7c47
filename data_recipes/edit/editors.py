"""Diffusion pipelines that edit a picture as told, used by what they can do and not by what they are called.

The signature of `pipeline.__call__` says which argument takes the picture (`image`, `images` or `input_images`), whether there is a mask
and a negative prompt, and which further arguments a user may give: guidance has a name of its own in every family (`guidance_scale`,
`true_cfg_scale`, `image_guidance_scale`), so it is given by name in `arguments`, and a name that the pipeline does not take is refused.
Known to fit: InstructPix2Pix, QwenImageEdit, QwenImageEditPlus, FluxKontext, Flux2, Flux2Klein, and their inpainting forms.

`open_editor` reads the pipeline's index only, so a mistake shows before any weight is loaded; a worker loads the weights when it edits
its first picture. Weights come from safetensors. Code that comes with a pipeline is refused unless the user allows it.

What it leaves out: several pictures per call (a result would depend on its batch), pipelines that make a video of a picture, and those
that want the picture named in the prompt (OmniGen).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from inspect import signature
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.edit.writer import Box
from vlm_contextrl.data_recipes.fingerprints import folder_fingerprint
from vlm_contextrl.devices import check_device
from vlm_contextrl.errors import CheckpointError, ConfigError, InputError, MissingExtraError, first_line

INDEX_NAME = "model_index.json"
IMAGE_ARGUMENTS = ("image", "images", "input_images")  # the last two take a list
MASK_ARGUMENTS = ("mask_image", "mask")
# What the recipe gives itself, and what would change the kind or the number of results.
OWN_ARGUMENTS = {
    "self", "prompt", *IMAGE_ARGUMENTS, *MASK_ARGUMENTS, "num_inference_steps", "negative_prompt", "generator", "latents",
    "num_images_per_prompt", "output_type", "return_dict", "args", "kwargs",
}  # fmt: skip


class EditorSettings(Record):
    """Which pipeline edits, and how."""

    path: str = Field(
        description="diffusers pipeline: a local folder or a hub id, e.g. Qwen/Qwen-Image-Edit-2509"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    device: str = Field("cpu", description="device of the pipeline")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of the weights"
    )
    offload: bool = Field(
        False, description="keep the parts that are not at work in host memory: less device memory, slower"
    )
    steps: int | None = Field(None, ge=1, description="denoising steps (default: the pipeline's own)")
    negative_prompt: str = Field(
        " ",
        description="what the picture should not show; given to pipelines that take one (Qwen's guidance needs one, if only a blank)",
    )
    arguments: dict[str, Any] = Field(
        {},
        description="further arguments of the pipeline's call, by name, e.g. guidance_scale or true_cfg_scale",
    )
    trust_remote_code: bool = Field(False, description="allow code that comes with the pipeline")


@dataclass
class Editor:
    """A pipeline, loaded when it is first used. Picklable.

    folder: of the pipeline, on this machine; revision: a commit of the hub, or a fingerprint of a local folder.
    image_argument, mask_argument: how the pipeline takes picture and mask ("" for no mask); further: the call's other arguments.
    """

    settings: EditorSettings
    folder: str
    revision: str
    image_argument: str
    mask_argument: str
    further: dict[str, Any]
    has_autoencoder: bool

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def pipeline(self) -> Any:
        """The loaded pipeline on its device."""
        return _load(self.settings, self.folder)

    def edit(
        self, image: Image.Image, instruction: str, seed: int, box: Box | None = None
    ) -> Image.Image | str:
        """The picture after the edit, in the pipeline's own size, or the reason why there is none.

        box: what a masked edit may change, as shares; None for everything. The same arguments give the same picture.
        Raises InputError when the device gives up, e.g. for want of memory.
        """
        import torch

        pipeline = self.pipeline  # whose failure to load is no failure to edit
        picture = image if self.image_argument == "image" else [image]
        call = {self.image_argument: picture, "prompt": instruction, **self.further}
        if self.mask_argument:
            call[self.mask_argument] = mask(image.size, box)
        call["generator"] = torch.Generator(self.settings.device).manual_seed(seed)
        try:
            made = pipeline(**call)
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            advice = "try editor.dtype=bfloat16, editor.offload=true or smaller pictures (max_pixels)"
            raise InputError(f"{self.settings.path}: {first_line(error)}; {advice}") from error
        except TypeError as error:
            found = ", ".join(sorted(call))
            raise ConfigError(
                f"editor.arguments: {first_line(error)} (the pipeline was given {found})"
            ) from error
        except (ValueError, RuntimeError) as error:
            # A picture or an instruction that this pipeline cannot take.
            return f"editor_failed: {first_line(error)}, expected an edited picture"
        if any(getattr(made, "nsfw_content_detected", None) or ()):
            return "editor_withheld: the safety checker blackened the picture, expected an edited one"
        pictures = getattr(made, "images", None)
        if not isinstance(pictures, list) or not pictures or not isinstance(pictures[0], Image.Image):
            raise ConfigError(
                f"editor.path {self.settings.path}: gives no picture, expected a pipeline that edits one"
            )
        return pictures[0].convert("RGB")

    def through_autoencoder(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The picture as the pipeline's autoencoder gives it back at `size` (width, height), unedited."""
        import torch

        pipeline, vae = self.pipeline, self.pipeline.vae
        pixels = pipeline.image_processor.preprocess(image.resize(size, Image.Resampling.LANCZOS))
        pixels = pixels.to(self.settings.device, vae.dtype)
        is_video = any(weight.dim() == 5 for weight in vae.encoder.parameters())  # Qwen's sees one frame
        with torch.no_grad():
            latents = vae.encode(pixels.unsqueeze(2) if is_video else pixels).latent_dist.mode()
            pixels = vae.decode(latents).sample
        made: Image.Image = pipeline.image_processor.postprocess(pixels[:, :, 0] if is_video else pixels)[0]
        return made.convert("RGB")


def mask(size: tuple[int, int], box: Box | None) -> Image.Image:
    """White where the picture of `size` (width, height) may change, black elsewhere."""
    if box is None:
        return Image.new("L", size, 255)
    (width, height), (left, top, right, bottom) = size, box
    x, y = min(round(left * width), width - 1), min(round(top * height), height - 1)
    white = Image.new("L", size, 0)
    white.paste(255, (x, y, max(round(right * width), x + 1), max(round(bottom * height), y + 1)))
    return white


def open_editor(settings: EditorSettings) -> Editor:
    """Find the pipeline and see what it takes; a hub id is downloaded.

    Raises CheckpointError when there is no such pipeline or it needs code of its own, ConfigError for an argument that it does not take,
    MissingExtraError without diffusers, or without torchvision where the pipeline needs it.
    """
    folder, revision = _find(settings)
    index = _read_index(settings.path, folder)
    _check_torchvision(settings.path, index)
    call = _call_of(settings, folder, index)
    takes = signature(call).parameters
    image_argument = next((name for name in IMAGE_ARGUMENTS if name in takes), "")
    if not image_argument or "prompt" not in takes:
        raise ConfigError(
            f"editor.path {settings.path}: {index['_class_name']} takes no picture with a prompt; expected an editing pipeline such as "
            "QwenImageEditPlusPipeline, FluxKontextPipeline or StableDiffusionInstructPix2PixPipeline"
        )
    further = _further_arguments(settings, list(takes), str(index["_class_name"]))
    mask_argument = next((name for name in MASK_ARGUMENTS if name in takes), "")
    return Editor(settings, str(folder), revision, image_argument, mask_argument, further, "vae" in index)


def diffusers() -> Any:
    """The package; MissingExtraError without it."""
    try:
        import diffusers as package
    except ImportError as error:
        raise MissingExtraError(
            "pairs edit needs diffusers, which is not installed: pip install 'vlm-contextrl[edit]'"
        ) from error
    return package


def _further_arguments(settings: EditorSettings, takes: Sequence[str], class_name: str) -> dict[str, Any]:
    for name in settings.arguments:
        if name not in takes or name in OWN_ARGUMENTS:
            why = "is set by the recipe" if name in OWN_ARGUMENTS else f"is no argument of {class_name}"
            known = ", ".join(sorted(set(takes) - OWN_ARGUMENTS))
            raise ConfigError(f"editor.arguments.{name}: {why}, expected some of {known}")
    further = dict(settings.arguments)
    if "negative_prompt" in takes:
        further["negative_prompt"] = settings.negative_prompt
    if settings.steps is not None:
        if "num_inference_steps" not in takes:
            raise ConfigError(f"editor.steps: {class_name} takes no number of steps; remove it")
        further["num_inference_steps"] = settings.steps
    return further


def _find(settings: EditorSettings) -> tuple[Path, str]:
    """The folder of a pipeline and its revision."""
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        if settings.revision:
            raise ConfigError(f"editor.revision: {settings.path} is a folder, which has none; remove it")
        folder = folder.resolve()
        return folder, folder_fingerprint(folder)
    if folder.is_absolute() or settings.path.startswith((".", "~")) or len(folder.parts) != 2:
        raise CheckpointError(f"{settings.path}: no such folder, expected a diffusers pipeline")
    download, logger = diffusers().DiffusionPipeline.download, getLogger("diffusers")
    level = logger.level
    logger.setLevel(ERROR)  # what failed is told below, in one line
    try:
        found = download(
            settings.path,
            revision=settings.revision,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except Exception as error:  # diffusers, huggingface_hub and the network: classes of their own
        raise CheckpointError(
            f"{settings.path}: no such folder, and cannot be fetched from the hub ({first_line(error)}); expected a diffusers pipeline"
        ) from error
    finally:
        logger.setLevel(level)
    return Path(found), Path(found).name


def _read_index(path: str, folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no {INDEX_NAME}, expected the folder of a diffusers pipeline"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {INDEX_NAME} cannot be read ({first_line(error)})") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise CheckpointError(f"{path}: {INDEX_NAME} names no _class_name, expected that of a pipeline")
    return index


def _check_torchvision(path: str, index: dict[str, Any]) -> None:
    """The processors of vision-language models hold one for videos, which transformers makes with torchvision only."""
    import transformers
    from transformers.utils.import_utils import is_torchvision_available

    for part in index.values():
        match part:
            case ["transformers", str(name)] if name.endswith("Processor"):
                takes = signature(getattr(transformers, name, object).__init__).parameters
                if "video_processor" in takes and not is_torchvision_available():
                    raise MissingExtraError(
                        f"{path}: its {name} needs torchvision, which is not installed: pip install torchvision, in the build for your "
                        "torch (for the CPU: --index-url https://download.pytorch.org/whl/cpu)"
                    )


def _call_of(settings: EditorSettings, folder: Path, index: dict[str, Any]) -> Callable[..., Any]:
    """`__call__` of the pipeline's class; only code of its own makes it necessary to load the pipeline for that."""
    class_name = index["_class_name"]
    own_code = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.py"))
    if own_code and not settings.trust_remote_code:
        raise CheckpointError(
            f"{settings.path}: comes with code of its own ({', '.join(own_code)}); refused, set editor.trust_remote_code=true to run it"
        )
    if own_code:
        return type(_load(settings, str(folder))).__call__
    found = getattr(diffusers(), class_name, None) if isinstance(class_name, str) else None
    if found is None:
        raise CheckpointError(
            f"{settings.path}: {class_name!r} is no pipeline of diffusers {diffusers().__version__}; install the version that the pipeline "
            "was made with"
        )
    return found.__call__  # type: ignore[no-any-return]


def _load(settings: EditorSettings, folder: str) -> Any:
    import torch
    from transformers.utils import logging

    check_device(settings.device, "editor.device")
    for library in (diffusers().utils.logging, logging):
        library.disable_progress_bar()  # of the loading: there is one bar for all the work
    try:
        pipeline = diffusers().DiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
        )
    except Exception as error:  # diffusers, transformers, safetensors: classes of their own
        raise CheckpointError(f"{settings.path}: cannot be loaded: {first_line(error)}") from error
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # dropout would make the same seed give another picture
    pipeline.set_progress_bar_config(disable=True)
    if settings.offload and settings.device != "cpu":
        pipeline.enable_model_cpu_offload(device=settings.device)
        return pipeline
    return pipeline.to(settings.device)
