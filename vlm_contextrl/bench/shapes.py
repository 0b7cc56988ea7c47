"""Random Qwen2.5-VL models of a chosen shape and prompts of an exact length, built in memory.

The tokenizer is the embedded model's. Its end token is one that neither side samples, so that every completion has the same length.
Matrices are scaled up after they are drawn: attention is then sharp enough for a wrong mask or position to show in the parity check.

Shapes: G completions per prompt, T prompt tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_contextrl import attention
from vlm_contextrl.models import LANGUAGE_LINEAR, resolve
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.probe import option_ids, selection_prompt
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor
from vlm_contextrl.prompts import vqa_messages

PATCH_PX, MERGE = 14, 2
LORA_RANK = 8


@dataclass(frozen=True)
class Shape:
    """What is benched: a model and the rows that it is trained on."""

    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 2
    intermediate: int = 768
    vocab: int = 8192
    vision_hidden: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    vision_intermediate: int = 256
    image_px: int = 448  # side of a square image
    prompt_tokens: int = 300  # P, its image included
    completions: int = 8  # G
    completion_tokens: int = 32  # C

    @property
    def image_tokens(self) -> int:
        return (self.image_px // (PATCH_PX * MERGE)) ** 2

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def rho(self) -> float:
        """Tokens of G repeated prompts with their completions over tokens of one shared prompt: G(P+C)/(P+GC)."""
        P, G, C = self.prompt_tokens, self.completions, self.completion_tokens
        return G * (P + C) / (P + G * C)


def bench_processor(shape: Shape) -> Processor:
    """The embedded model's tokenizer, and an image processor that leaves images of the benched size as they are."""
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer: Any = AutoTokenizer.from_pretrained(resolve("tinyvl"))
    tokenizer.eos_token = tokenizer.pad_token = "<|vision_pad|>"
    size = {"shortest_edge": shape.image_px**2, "longest_edge": shape.image_px**2}
    image_processor = Qwen2VLImageProcessorPil(patch_size=PATCH_PX, merge_size=MERGE, size=size)
    return Processor(tokenizer, image_processor, tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def random_model(shape: Shape, processor: Processor, seed: int = 0) -> Any:
    """A float32 model with LoRA of rank 8 on the linear layers of its language model, as PEFT wraps it."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    attention.register()
    ids, half = processor.tokenizer.convert_tokens_to_ids, shape.head_dim // 2
    text = {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocab,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
        },
    }  # fmt: skip
    vision = {
        "depth": shape.vision_layers, "hidden_size": shape.vision_hidden, "num_heads": shape.vision_heads,
        "intermediate_size": shape.vision_intermediate, "patch_size": PATCH_PX, "spatial_merge_size": MERGE,
        "temporal_patch_size": 2, "window_size": 112, "out_hidden_size": shape.hidden, "hidden_act": "silu",
        "fullatt_block_indexes": [shape.vision_layers - 1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=processor.image_token_id,
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(3.0)
        lora = LoraConfig(r=LORA_RANK, target_modules=LANGUAGE_LINEAR, task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero as PEFT starts them: half of the adapters would have no gradient
                torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def with_our_engine(model: Any) -> Any:
    """The same model with packed attention in its language model and fused adapters."""
    from vlm_contextrl.fused_lora import fuse_adapters

    fuse_adapters(model)
    base = model.get_base_model()
    base.set_attn_implementation({"text_config": attention.PACKED, "vision_config": "sdpa"})
    return model


def noise_image(seed: int, width_px: int, height_px: int | None = None) -> Image.Image:
    """A picture of random pixels."""
    size = (height_px or width_px, width_px, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def cut(image: ProcessedImage) -> ProcessedImage:
    """The image with its patches cut once, for measurements that leave the image processor out."""
    patches = image.patches_ND
    return ProcessedImage(image.key, image.grid_thw, image.n_tokens, lambda: patches)


def query_of_length(shape: Shape, processor: Processor) -> str:
    """A query that makes the prompt of one image `prompt_tokens` long."""
    image = processor.process_image(noise_image(0, shape.image_px))
    query = "How many circles are there?"
    for _ in range(shape.prompt_tokens):
        if len(processor.encode(vqa_messages(query, 1, style="plain"), [image])) >= shape.prompt_tokens:
            break
        query += "?"
    assert len(processor.encode(vqa_messages(query, 1, style="plain"), [image])) == shape.prompt_tokens
    return query


def question(shape: Shape, processor: Processor, seed: int) -> QuestionRow:
    """A question about a picture of its own."""
    image = EncodedImage.from_image(noise_image(seed, shape.image_px))
    query = query_of_length(shape, processor)
    return QuestionRow(
        id=f"q{seed}", query=query, answer="7", images=(image,), provenance={"licence": "CC0-1.0"}
    )


def pair(shape: Shape, seed: int) -> ContrastivePair:
    """A pair that can be asked in both directions."""
    context, confounder = (
        EncodedImage.from_image(noise_image(1000 + 2 * seed + i, shape.image_px)) for i in range(2)
    )
    return ContrastivePair(
        id=f"p{seed}",
        query="How many circles are there?",
        answer="7",
        confounder_answer="8",
        context=context,
        confounder=confounder,
        provenance={"licence": "CC0-1.0"},
    )


def given_completions(shape: Shape, seed: int = 0) -> list[Tensor]:
    """G completions of C tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.completions, shape.completion_tokens)
    return list(torch.randint(300, shape.vocab, size, generator=generator))


def prompt_of(row: QuestionRow, processor: Processor) -> EncodedPrompt:
    """The prompt of a question, patches cut beforehand."""
    images = [cut(processor.process_image(image)) for image in row.images]
    return processor.encode(vqa_messages(row.query, len(images), row.options, style="plain"), images)


def selection_prompts(
    processor: Processor, pairs: Sequence[ContrastivePair], *, both_ways: bool, patches_cut: bool
) -> tuple[list[EncodedPrompt], list[int]]:
    """Selection prompts of pairs, the context first, and the option ids. both_ways: each followed by the other direction over the same
    order of its images, which B supports. patches_cut: beforehand; else anew for every use, as a naive batch does."""
    prompts = []
    for each in pairs:
        assert isinstance(each.context, EncodedImage)
        assert isinstance(each.confounder, EncodedImage)
        shown = [processor.process_image(image.decode()) for image in (each.context, each.confounder)]
        if patches_cut:
            shown = [cut(image) for image in shown]
        prompts.append(selection_prompt(processor, each, shown))
        if both_ways:
            reverse = each.reversed()
            assert reverse is not None
            prompts.append(selection_prompt(processor, reverse, shown))
    return prompts, option_ids(processor, pairs)
