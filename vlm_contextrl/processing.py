"""From chat messages and images to token ids and patches, without torchvision.

`AutoProcessor` of the Qwen-VL families insists on a video processor and thereby on torchvision. A tokenizer, an image processor and
the expansion of image placeholders are all that still images need, and the packed forward wants them one prompt at a time anyway.
The chat template is the model's own.

Shapes: T prompt tokens; N patches of one image; D values of one patch (channels * temporal_patch * patch * patch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vlm_contextrl.errors import CheckpointError, DataError, first_line
from vlm_contextrl.images import image_size
from vlm_contextrl.pairs import EncodedImage


@dataclass(frozen=True)
class ProcessedImage:
    """One image as the vision tower takes it. Patches are cut when asked for: cached features need none."""

    key: str  # hash of the image and of every setting that shapes the patches
    grid_thw: tuple[int, int, int]
    n_tokens: int  # placeholders it takes in the prompt
    load: Callable[[], Tensor]
    comes_again: bool = True  # or else its features are not worth a place in the cache

    @property
    def patches_ND(self) -> Tensor:
        return self.load()


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for the model."""

    ids_T: Tensor
    images: tuple[ProcessedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.ids_T)


class Processor:
    """Tokenizer and image processor of one model folder."""

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        image_token_id: int,
        chat_template_kwargs: Mapping[str, Any] = {},
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_token_id = image_token_id
        self.image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        self.chat_template_kwargs = dict(chat_template_kwargs)
        settings = {k: v for k, v in sorted(image_processor.to_dict().items()) if k != "image_processor_type"}
        self._settings = repr((type(image_processor).__name__, settings)).encode()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        return tuple({self.tokenizer.eos_token_id, self.tokenizer.pad_token_id} - {None})

    def process_image(
        self, image: Image.Image | EncodedImage, where: str = "image", *, resize: bool = True
    ) -> ProcessedImage:
        """Qwen's rule: sides become multiples of patch * merge within the pixel bounds, then normalised patches.

        Only the header of an encoded image is read here. Raises DataError, naming `where`, for what is not an image.
        """
        picture: Callable[[], Image.Image]
        if isinstance(image, EncodedImage):
            encoded = image
            size, content = image_size(encoded.data, where), encoded.data
            picture = partial(encoded.decode, where)
        else:
            rgb = image.convert("RGB")
            size, content = rgb.size, repr(rgb.size).encode() + rgb.tobytes()
            picture = rgb.copy
        width, height = size
        settings = self.image_processor
        if resize:
            height, width = self._resized(height, width, where)
        grid = (1, height // settings.patch_size, width // settings.patch_size)

        def load() -> Tensor:
            out = settings(images=[picture()], do_resize=resize, return_tensors="pt")
            assert tuple(out["image_grid_thw"][0].tolist()) == grid
            patches: Tensor = out["pixel_values"]
            return patches

        key = hashlib.sha256(self._settings + repr(grid).encode() + content).hexdigest()
        return ProcessedImage(key, grid, grid[1] * grid[2] // settings.merge_size**2, load)

    def _resized(self, height_px: int, width_px: int, where: str) -> tuple[int, int]:
        settings = self.image_processor
        factor = settings.patch_size * settings.merge_size
        bounds = {"min_pixels": settings.size["shortest_edge"], "max_pixels": settings.size["longest_edge"]}
        try:
            resized: tuple[int, int] = smart_resize(height_px, width_px, factor=factor, **bounds)
        except ValueError as error:
            raise DataError(f"{where}: {error}; crop or drop the image") from None
        return resized

    def encode(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[ProcessedImage], prefill: str = ""
    ) -> EncodedPrompt:
        """Apply the chat template, give every image its placeholders, tokenize.

        `prefill` is the start of the assistant's turn. Raises DataError when the messages name another number of images than given, or
        when their text spells a special token.
        """
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        pieces = (text + prefill).split(self.image_token)
        if len(pieces) != len(images) + 1:
            raise DataError(
                f"prompt holds {len(pieces) - 1} image placeholders, {len(images)} images were given: the query or the contexts must not "
                f"spell {self.image_token!r}"
            )
        full = pieces[0] + "".join(
            self.image_token * image.n_tokens + piece for image, piece in zip(images, pieces[1:], strict=True)
        )
        ids = self.tokenizer(full, add_special_tokens=False)["input_ids"]
        return EncodedPrompt(torch.tensor(ids, dtype=torch.long), tuple(images))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out.

        A thinking template opens the thought in the prompt; the completion is told with it, or a thought that was cut would read as
        an answer.
        """
        return self.opened_thought + str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def opened_thought(self) -> str:
        """`<think>` when the template's start of the assistant's turn leaves one open, else nothing."""
        turn = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        given, opened = (
            self.tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=add, **self.chat_template_kwargs
            )
            for add in (False, True)
        )
        start = opened.removeprefix(given)
        return "<think>" if start.rfind("<think>") > start.rfind("</think>") else ""

    def save(self, folder: str) -> None:
        """Write tokenizer and image processor beside the weights."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def load_processor(
    folder: str,
    image_token_id: int,
    *,
    revision: str = "main",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, Any] = {},
) -> Processor:
    """Read tokenizer and image processor of a model folder or hub id. Pixel bounds override the folder's when given."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=revision, trust_remote_code=trust_remote_code
        )
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: tokenizer or image processor cannot be read: {first_line(error)}"
        ) from error
    size = dict(image_processor.size)
    size.update(
        {k: v for k, v in (("shortest_edge", min_pixels), ("longest_edge", max_pixels)) if v is not None}
    )
    image_processor.size = size
    if tokenizer.chat_template is None:
        raise CheckpointError(f"{folder}: the tokenizer has no chat template; use an instruction-tuned model")
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise CheckpointError(f"{folder}: the tokenizer has no {name}; name one in tokenizer_config.json")
    return Processor(tokenizer, image_processor, image_token_id, chat_template_kwargs)
