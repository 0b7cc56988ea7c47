"""Train a tiny editing model on one CPU core, for trying `pairs edit` without a download.

    python examples/tiny_editor.py --out my/tiny_editor --minutes 18

InstructPix2Pix (arXiv 2211.09800) in the ordinary folder of diffusers, so `vlm-contextrl pairs edit ... editor.path=my/tiny_editor` loads
it like any other. It knows the rendered domain `objects` at 64 x 64 px and one kind of order: "turn red into blue". Its training pairs
are drawn on the way, each once. `write` and `look` are writer and verifier for questions of the domain.

A fifth of the time goes to the autoencoder (mean squared error, a little noise on the latents), the rest to text encoder and UNet. These
predict the clean latents of the edited picture (`prediction_type` "sample") from noised ones; what an edit changes weighs more. After
2,500 steps most objects take the new colour, ordered or not; after 5,400 and 6,100 (18 minutes of two machines) another object
took it in 1 and in about 18 of 30 edits, so bound the box around the change (`bounds.changed_box_max`).

What it leaves out: classifier-free guidance (nothing is dropped in training, so `guidance_scale` must be 1), `reencode` (the autoencoder
is an AutoencoderTiny, which has no distribution of latents), other sizes, domains and orders.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from vlm_contextrl.data_recipes.render import DOMAINS
from vlm_contextrl.data_recipes.render.canvas import COLOURS, PALETTE
from vlm_contextrl.data_recipes.render.object_scene import SHAPES, SIZES, Objects, Thing

OBJECTS = DOMAINS["objects"]
SIZE_PX = 64
CELL_PX = 21
MAX_TOKENS = 5
BATCH = 8
CROP_PX = 32  # of what the autoencoder learns from
LATENT_NOISE = 0.05
WARMUP_SHARE = 0.03


def write(text: str, images: list[Image.Image], seed: int) -> str:
    """The writer, `writer.function=tiny_editor:write`: another colour than the present one, drawn by the seed."""
    shapes, colours = "|".join(SHAPES), "|".join(COLOURS)
    found = re.search(rf"Question: .*\b(?:{shapes})\b.*\nRight answer now: ({colours})\n", text)
    if not found:
        return "This editor changes colours only."
    new = Random(seed).choice([colour for colour in COLOURS if colour != found[1]])
    return json.dumps({"instruction": f"turn {found[1]} into {new}", "answer": new})


def look(text: str, images: list[Image.Image], seed: int) -> str:
    """The verifier, `verifier.assistant.function=tiny_editor:look`: the colour of the one object that has the shape in question.

    An object is what differs from the background in one of the nine cells. Its shape is the one whose drawing overlaps it best, by an
    intersection over union of at least 0.7, and its colour the nearest of its median, at most 60 levels away in each channel.
    """
    asked = re.search("|".join(SHAPES), text)
    seen: list[str] = []
    for patch, mask in _cells(images[0].convert("RGB").resize((SIZE_PX, SIZE_PX))):
        overlap = {shape: _overlap(mask, _drawn(shape)) for shape in SHAPES if mask.mean() > 0.05}
        shape = max(overlap, key=lambda name: overlap[name], default="")
        if asked and shape == asked[0] and overlap[shape] > 0.7:
            distance = {name: abs(np.median(patch[mask], 0) - PALETTE[name]).max() for name in COLOURS}
            colour = min(distance, key=lambda name: distance[name])
            seen.append(colour if distance[colour] <= 60 else "unclear colour")
    return seen[0] if len(seen) == 1 else f"{len(seen)} such objects"


def _cells(picture: Image.Image) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels of each of the nine cells, and which of them are not background."""
    values = np.asarray(picture, float)
    for cell in np.ndindex(3, 3):
        top, left = (max(0, round((1 / 6 + place / 3) * SIZE_PX) - CELL_PX // 2) for place in cell)
        patch = values[top : top + CELL_PX, left : left + CELL_PX]
        yield patch, abs(patch - np.median(values, (0, 1))).max(2) > 60


@lru_cache
def _drawn(shape: str) -> np.ndarray:
    """(N, CELL_PX, CELL_PX), true where the shape is: in either size, shifted by up to 2 px."""
    scenes = (Objects("white", (Thing(shape, "blue", size, 1, 1, 0.0, 0.0),)) for size in SIZES)
    masks = [list(_cells(OBJECTS.draw(scene, SIZE_PX)))[4][1] for scene in scenes]
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    return np.stack([np.roll(mask, shift, (0, 1)) for mask in masks for shift in shifts])


def _overlap(mask: np.ndarray, drawn: np.ndarray) -> float:
    """The best intersection over union."""
    return float(((drawn & mask).sum((1, 2)) / (drawn | mask).sum((1, 2))).max())


def examples(seed: int) -> Iterator[tuple[Image.Image, Image.Image, str]]:
    """(picture, edited picture, order) without end."""
    rng = Random(f"tiny editor {seed}")
    while True:
        scene, question = OBJECTS.ask("colour", rng, choice_share=0)
        assert isinstance(scene, Objects)
        old, new = question.answer, rng.choice([colour for colour in COLOURS if colour != question.answer])
        things = (replace(thing, colour=new) if thing.colour == old else thing for thing in scene.things)
        edited = replace(scene, things=tuple(things))
        yield OBJECTS.draw(scene, SIZE_PX), OBJECTS.draw(edited, SIZE_PX), f"turn {old} into {new}"


def pixels(pictures: list[Image.Image]) -> Tensor:
    """(N, 3, SIZE_PX, SIZE_PX) from -1 to 1."""
    values = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1


def new_pipeline() -> StableDiffusionInstructPix2PixPipeline:
    """Untrained: latents of 8 channels at a quarter of the size, 0.1 M parameters of autoencoder, 2 M of the rest."""
    words = ["<pad>", "<unk>", "turn", "into", *COLOURS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]  # tokenizers' stubs
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=MAX_TOKENS
    )
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS, projection_dim=64, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    vae = AutoencoderTiny(
        encoder_block_out_channels=(24,) * 3, decoder_block_out_channels=(24,) * 3, num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0), latent_channels=8,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIZE_PX // 4, in_channels=16, out_channels=8, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, norm_num_groups=8, attention_head_dim=4,
    )  # fmt: skip
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.nn.init.constant_(vae.decoder.layers[-1].bias, 0.93)  # start from a pale page
    vae.decoder.layers[-1].weight.data.mul_(0.1)
    scheduler = DDIMScheduler(
        prediction_type="sample", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    return StableDiffusionInstructPix2PixPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def train(
    name: str, parameters: list[Tensor], loss_of: Callable[[], Tensor], rate: float, minutes: float
) -> None:
    """AdamW until the processor time is over, whatever runs beside it, at least one step. The rate rises to `rate`, then falls to 1%."""
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-3)
    start_s, share = time.process_time(), 0.0
    losses: list[float] = []
    while not losses or share < 1:
        share = min(1.0, (time.process_time() - start_s) / max(60 * minutes, 1e-9))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (share + 1e-3) / WARMUP_SHARE) * (0.01 + 0.99 * (1 - share**2) ** 2)
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 500 == 0 or share == 1:
            print(
                f"{name}: {share:.0%} of {minutes:g} min, step {len(losses)}, loss {np.mean(losses[-500:]):.4f}",
                flush=True,
            )


def train_autoencoder(vae: AutoencoderTiny, minutes: float) -> None:
    """To give pictures back; then its scaling factor, which makes the latents' standard deviation 1."""
    source = examples(seed=0)

    def loss_of() -> Tensor:
        left, top = torch.randint(0, SIZE_PX - CROP_PX + 1, (2,)).tolist()
        given = pixels([next(source)[0] for _ in range(BATCH)])
        given = given[:, :, top : top + CROP_PX, left : left + CROP_PX]
        latents = vae.encode(given).latents
        made = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        return (made - given).square().mean() + 1e-3 * latents.square().mean()

    train("autoencoder", list(vae.parameters()), loss_of, 3e-3, minutes)
    vae.requires_grad_(False).eval()
    latents = vae.encode(pixels([next(source)[0] for _ in range(4 * BATCH)])).latents
    vae.register_to_config(scaling_factor=1 / float(latents.std()))


def train_editor(pipeline: Any, minutes: float) -> None:
    """Text encoder and UNet together. As in the pipeline, the given picture's latents are not scaled."""
    vae, scheduler = pipeline.vae, pipeline.scheduler
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    source = examples(seed=1)
    last = scheduler.config.num_train_timesteps - 1

    def loss_of() -> Tensor:
        before, after, orders = map(list, zip(*(next(source) for _ in range(BATCH)), strict=True))
        tokens = pipeline.tokenizer(orders, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            given, wanted = (vae.encode(pixels(side)).latents for side in (before, after))
        given_scaled, wanted = given * vae.config.scaling_factor, wanted * vae.config.scaling_factor
        times = torch.randint(0, last + 1, (BATCH,))
        times[: 3 * BATCH // 4] = last  # nothing but noise, where sampling starts
        noised = scheduler.add_noise(wanted, torch.randn_like(wanted), times)
        states = text_encoder(tokens.input_ids).last_hidden_state
        made = unet(torch.cat([noised, given], 1), times, states).sample
        weight = 1 + 20 * (wanted - given_scaled).abs().amax(1, keepdim=True).clamp(max=1)
        return (weight * (made - wanted).square()).mean() / weight.mean()

    unet.train()
    text_encoder.train()
    train("editor", [*unet.parameters(), *text_encoder.parameters()], loss_of, 2e-3, minutes)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument(
        "--minutes", type=float, default=18.0, help="of processor time for training, on one core"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the noise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    pipeline = new_pipeline()
    train_autoencoder(pipeline.vae, arguments.minutes / 5)
    train_editor(pipeline, 4 * arguments.minutes / 5)
    pipeline.save_pretrained(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
