"""Chat messages in Qwen's own conventions, read by qwen-vl-utils.

A content part may name an image by path, file:// URL, base64 data URL or PIL image, and carry `min_pixels`, `max_pixels`,
`resized_height` and `resized_width` of its own (https://github.com/QwenLM/Qwen2.5-VL, qwen-vl-utils). Those images come back resized and
are not resized again. http(s) images are refused unless asked for: nothing is fetched that the user did not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_contextrl.errors import DataError, MissingExtraError
from vlm_contextrl.processing import EncodedPrompt, Processor


def encode_messages(
    processor: Processor,
    messages: Sequence[Mapping[str, Any]],
    *,
    prefill: str = "",
    allow_urls: bool = False,
) -> EncodedPrompt:
    """One prompt from Qwen messages. Raises MissingExtraError without qwen-vl-utils, DataError for videos and unreadable images."""
    try:
        from qwen_vl_utils import process_vision_info
    except ImportError as error:
        raise MissingExtraError(
            f"Qwen's message conventions need qwen-vl-utils ({error}): pip install 'vlm-contextrl[qwen]'"
        ) from error
    parts = [
        part for message in messages if not isinstance(message["content"], str) for part in message["content"]
    ]
    if any("video" in part for part in parts):
        raise DataError("messages hold a video; expected still images only")
    urls = [part.get("image") or part.get("image_url") for part in parts]
    web = [url for url in urls if isinstance(url, str) and url.startswith(("http://", "https://"))]
    if web and not allow_urls:
        raise DataError(f"messages name {web[0]!r} on the web; download it, or pass allow_urls=True")
    try:
        images, _ = process_vision_info(list(messages), image_patch_size=processor.image_processor.patch_size)
    except (OSError, ValueError, AssertionError) as error:
        raise DataError(f"messages: an image cannot be read: {error}") from error
    return processor.encode(
        messages, [processor.process_image(image, resize=False) for image in images or ()], prefill
    )
