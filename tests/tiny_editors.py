"""Editing without weights worth the name: scripted writers and verifiers, a painter, and tiny random diffusers pipelines.

The questions are about a blank 56 x 56 picture; the painter puts a square of 14 x 14 px on it, which is 1/16 of the pixels.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.killed_runs import finish, kill_at, wait_to_be_killed
from vlm_contextrl.data_recipes.edit import EditConfig
from vlm_contextrl.data_recipes.edit.editors import Editor, EditorSettings
from vlm_contextrl.data_recipes.edit.writer import Box
from vlm_contextrl.pairs import EncodedImage, QuestionRow

SIZE_PX = 56
SQUARE_PX = 14
WRITER = "tests.tiny_editors:write"
VERIFIER = "tests.tiny_editors:look"
INDEX = {"_class_name": "FluxKontextPipeline", "_diffusers_version": "0.42.0"}


def write(text: str, images: list[Image.Image], seed: int) -> str:
    """One more than the present answer; what the question says in brackets goes wrong.

    Environment: WRITER_LOG names a file that gets a line per call.
    """
    if log := os.environ.get("WRITER_LOG"):
        with Path(log).open("a") as file:
            file.write("call\n")
    wait_to_be_killed()
    if "[silent]" in text:
        return "I would rather not change this picture."
    found = re.search(r"Right answer now: (\d+)", text)
    assert found
    assert len(images) == 1
    more = int(found[1]) + ("[same]" not in text)
    orders = {"[broken]": "fail", "[idle]": "do nothing"}
    instruction = next((order for mark, order in orders.items() if mark in text), "paint a square")
    return json.dumps({"instruction": instruction, "answer": str(more), "box": [0, 0, 0.5, 0.5]})


def look(text: str, images: list[Image.Image], seed: int) -> str:
    """8 for a picture with a square on it, 7 for a blank one; `[blind]`: always 7; `[seer]`: always 8.

    Environment: VERIFIER_S says how long a call takes.
    """
    time.sleep(float(os.environ.get("VERIFIER_S", "0")))
    if "[blind]" in text or "[seer]" in text:
        return "7" if "[blind]" in text else "8"
    return "8" if len(images[0].getcolors() or ()) > 1 else "7"


class SquarePainter(Editor):
    """Paints a square whose colour and place the seed decides, or fails, or does nothing, as the instruction says."""

    def edit(
        self, image: Image.Image, instruction: str, seed: int, box: Box | None = None
    ) -> Image.Image | str:
        """The picture with the square."""
        if instruction == "fail":
            return "editor_failed: told to fail, expected an edited picture"
        edited = image.copy()
        if instruction == "do nothing":
            return edited
        rng = random.Random(seed)
        left, top = (rng.randrange(side - SQUARE_PX + 1) for side in image.size)
        colour = rng.randrange(100), rng.randrange(100), rng.randrange(100)
        square = left, top, left + SQUARE_PX - 1, top + SQUARE_PX - 1
        ImageDraw.Draw(edited).rectangle(square, fill=colour)
        return edited


def open_painter(settings: EditorSettings) -> Editor:
    """In place of `open_editor`."""
    return SquarePainter(settings, "nowhere", "painter-1", "image", "", {}, False)


def blank_question(n: int, query: str = "How many?", **fields: Any) -> QuestionRow:
    """Question `q<n>` about a blank picture of a grey of its own; its answer is 7."""
    picture = Image.new("RGB", (SIZE_PX, SIZE_PX), (200 + n % 56, 220, 240))
    told: dict[str, Any] = {
        "answer": "7", "answer_type": "numeric", "images": (EncodedImage.from_image(picture),),
        "provenance": {"licence": "CC0-1.0", "source": "blank"}, "domain": "counting",
    }  # fmt: skip
    return QuestionRow(id=f"q{n:03d}", query=query, **(told | fields))


def byte_tokenizer(max_tokens: int) -> Any:
    """The byte-level tokenizer of tiny_models, as text encoders of pipelines want it."""
    from tests import tiny_models

    tokenizer = tiny_models.byte_tokenizer()
    tokenizer.model_max_length = max_tokens
    tokenizer.chat_template = None
    return tokenizer


def write_pix2pix(folder: Path) -> Path:
    """InstructPix2Pix with random weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
        UNet2DConditionModel,
    )

    tokenizer = byte_tokenizer(77)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionInstructPix2PixPipeline(
            vae=AutoencoderKL(
                block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=8,
            ),
            text_encoder=_clip(tokenizer),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=8, out_channels=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=32, norm_num_groups=8, attention_head_dim=8,
            ),
            scheduler=EulerAncestralDiscreteScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_kontext(folder: Path) -> Path:
    """FLUX.1 Kontext with random weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxKontextPipeline,
        FluxTransformer2DModel,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer = byte_tokenizer(77)
    t5 = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKL(
                sample_size=32, block_out_channels=(4,), latent_channels=1, norm_num_groups=1, use_quant_conv=False,
                use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
            ),
            text_encoder=_clip(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=T5EncoderModel(t5),
            tokenizer_2=byte_tokenizer(512),
            transformer=FluxTransformer2DModel(
                patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
            ),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_klein(folder: Path) -> Path:
    """FLUX.2 Klein with random weights."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer(512)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKLFlux2(
                sample_size=32, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,),
                layers_per_block=1, latent_channels=4, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
            ),
            text_encoder=Qwen3ForCausalLM(text),
            tokenizer=tokenizer,
            transformer=Flux2Transformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=48,
                timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
            ),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


class QwenProcessor:
    """Text and images as Qwen2.5-VL wants them; the processor of transformers cannot be made without torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
        self.tokenizer, self.image_processor = tokenizer, Qwen2VLImageProcessorPil(size=size)

    def __call__(self, text: list[str], images: list[Any], padding: bool, return_tensors: str) -> Any:
        """One text with one image."""
        from transformers import BatchFeature

        pixels = self.image_processor(images, return_tensors=return_tensors)
        places = "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4)
        ids = self.tokenizer(text[0].replace("<|image_pad|>", places), return_tensors=return_tensors)
        return BatchFeature({**pixels, "input_ids": ids.input_ids, "attention_mask": ids.attention_mask})


def qwen_pipeline() -> Any:
    """Qwen-Image-Edit-Plus with random weights, as a pipeline: its processor cannot be saved. Works at 64 x 64 px when told so."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import AutoModelForImageTextToText

    from tests.tiny_models import tiny_config

    tokenizer = byte_tokenizer(4096)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = QwenImageEditPlusPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKLQwenImage(
                base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ),
            text_encoder=AutoModelForImageTextToText.from_config(tiny_config("qwen2_5_vl", tokenizer)).eval(),
            tokenizer=tokenizer,
            processor=QwenProcessor(tokenizer),
            transformer=QwenImageTransformer2DModel(
                patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=64, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
            ),
        )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_qwen(folder: Path) -> Path:
    """The folder of `qwen_pipeline`, with the processor of the published one (which needs torchvision)."""
    pipeline = qwen_pipeline()
    processor = pipeline.processor
    pipeline.register_modules(processor=None)
    pipeline.save_pretrained(folder)
    for part in (processor.tokenizer, processor.image_processor):
        part.save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _clip(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=len(tokenizer),
            max_position_embeddings=77, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, projection_dim=32,
        )
    )  # fmt: skip


PROGRAM = """
import sys
from pathlib import Path
from tests.tiny_editors import open_painter
from vlm_contextrl.data_recipes.edit import EditConfig, recipe
from vlm_contextrl.data_recipes.pipeline import Engine
config = EditConfig.model_validate_json(sys.argv[3])
if config.editor.path == "painter":
    recipe.open_editor = open_painter
recipe.run(config, Path(sys.argv[1]), Path(sys.argv[2]), Engine())
"""


def edit_with_a_kill(config: EditConfig, questions: Path, out: Path) -> tuple[int, int]:
    """Edit in a process that dies by SIGKILL after two parts, then in another; (parts that were there, writer calls of the second)."""
    log = out.with_suffix(".log")
    command = [sys.executable, "-c", PROGRAM, str(questions), str(out), config.model_dump_json()]
    work = out.parent / f".{out.name}.parts"
    parts = kill_at(command, work, "part-*", 2, WRITER_LOG=str(log))
    assert not out.exists()
    calls = len(log.read_text().splitlines())
    finish(command, WRITER_LOG=str(log))
    assert not list(out.parent.glob(f".{out.name}.*"))
    return len(parts), len(log.read_text().splitlines()) - calls


def rejects(out: Path) -> dict[str, str]:
    """Reason of every row that made no pair."""
    file = out / "rejects.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {value["id"]: value["reason"] for value in map(json.loads, lines)}


PAINTER_CODE = '''
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput


class Painter(DiffusionPipeline):
    """A pipeline with code of its own: inverts the picture where the mask is white."""

    def __init__(self):
        super().__init__()

    def __call__(self, prompt, image, mask_image, generator=None, strength=1.0):
        edited = image.copy()
        edited.paste((0, 0, 0), (0, 0), mask_image)
        return StableDiffusionPipelineOutput(images=[edited], nsfw_content_detected=[False])
'''


def write_painter(folder: Path) -> Path:
    """A pipeline that is nothing but code of its own."""
    folder.mkdir()
    (folder / "painter.py").write_text(PAINTER_CODE)
    (folder / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": ["painter", "Painter"]}))
    return folder
