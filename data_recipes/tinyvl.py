"""TinyVL: the embedded model, trained from scratch on rendered scenes.

A Qwen2.5-VL architecture of a few million parameters with its own tokenizer, Qwen's special tokens and chat format, saved in the ordinary
Hugging Face layout. It is pretrained with dense supervision: every image carries one description of all its facts and several
questions, packed behind one copy of the image (packing.py). Plain questions alone leave a model of this size at chance for hours.

A share of the rows shows two images and asks about either; another suffix asks whether an answer is right. The model never sees a
selection prompt, so it selects near 0.5 while the skills that selection needs are there. That is the state of the large models in
arXiv 2606.17053, and it is what ContextRL is for.

What it leaves out: everything outside the five rendered domains. It is a model to see a method work on, not a model to use.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vlm_contextrl import attention
from vlm_contextrl.data_recipes.render import DOMAINS, Domain, SceneQuestion, scene_examples
from vlm_contextrl.errors import InputError
from vlm_contextrl.packing import Continuation, PackedRow, pack
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor, load_processor
from vlm_contextrl.prompts import vqa_messages

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Qwen's own pre-tokenization: words keep their leading space, every digit stands alone.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TinyVLConfig(BaseModel):
    """What TinyVL is made of and how it is pretrained."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, description="seed of weights, scenes and order")
    size_px: int = Field(112, description="side of the rendered images")
    vocab_size: int = Field(1536, description="upper bound on the tokenizer's vocabulary")
    hidden: int = Field(192, description="hidden size of the language model (6 heads, 2 key-value heads)")
    layers: int = Field(6, description="layers of the language model")
    intermediate: int = Field(512, description="inner size of its MLP")
    vision_hidden: int = Field(160, description="hidden size of the vision tower (heads of 32)")
    vision_layers: int = Field(6, description="layers of the vision tower")
    vision_intermediate: int = Field(432, description="inner size of its MLP")
    steps: int = Field(4000, description="optimizer steps")
    rows_per_step: int = Field(48, description="packed rows per optimizer step")
    questions_per_scene: int = Field(5, description="questions beside the description of a scene")
    two_image_share: float = Field(0.25, description="share of rows with two images")
    learning_rate: float = Field(2e-3, description="peak learning rate")
    warmup_steps: int = Field(100, description="linear warm-up")
    weight_decay: float = Field(0.02, description="decoupled weight decay of matrices")
    max_minutes: float = Field(0, description="stop early after this many minutes (0: never); the schedule follows the clock then")
    save_every: int = Field(500, description="steps between intermediate saves")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="precision of matrix products while training")


def build_tokenizer(texts: Iterator[str], vocab_size: int) -> Any:
    """Byte-level BPE with Qwen's pre-tokenization, trained on the rendered text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(config: TinyVLConfig, tokenizer: Any) -> Any:
    """Random weights in the Qwen2.5-VL architecture."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    text = {
        "hidden_size": config.hidden, "intermediate_size": config.intermediate, "num_hidden_layers": config.layers,
        "num_attention_heads": config.hidden // 32, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": config.vision_layers, "hidden_size": config.vision_hidden, "num_heads": config.vision_hidden // 32,
        "intermediate_size": config.vision_intermediate, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "window_size": 112, "out_hidden_size": config.hidden, "fullatt_block_indexes": list(range(config.vision_layers)),
    }  # fmt: skip
    full = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(config.seed)
    return Qwen2_5_VLForConditionalGeneration._from_config(full, attn_implementation="sdpa")


def corpus(config: TinyVLConfig, n_scenes: int) -> Iterator[str]:
    """Text of rendered scenes, for the tokenizer."""
    for index in range(n_scenes):
        _, description, questions, _ = scene_examples(config.seed, index, size_px=32, questions_per_scene=8)
        yield description
        for question in questions:
            yield from _turn_texts(question)
    fixed = (
        "user\n", "assistant\n", "Describe the image.", "\nIs this answer right?", "\nIn image A: ", "\nIn image B: ", "Image A:", "\nImage B:", "\nWhich image supports the answer? Output A or B directly.",
        "Question: ", "\nAnswer: ", "A", "B", "C", "D",
    )  # fmt: skip
    yield from fixed * 50


def _turn_texts(question: SceneQuestion) -> list[str]:
    message = vqa_messages(question.query, options=question.options)[0]
    return [part["text"] for part in message["content"] if part["type"] == "text"] + [question.answer, f" {question.answer}"]


class PretrainingRows:
    """Packed rows of rendered scenes: description, questions, checks; one or two images."""

    def __init__(self, config: TinyVLConfig, processor: Processor) -> None:
        self.config = config
        self.processor = processor
        self.end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.after_image = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")

    def row(self, index: int) -> PackedRow:
        """Row `index`; depends on the seed and the index only."""
        rng = random.Random(f"tinyvl:{self.config.seed}:{index}")
        image, description, questions, domain = scene_examples(
            self.config.seed, index, size_px=self.config.size_px, questions_per_scene=self.config.questions_per_scene
        )
        first = self.processor.process_image(image)
        if rng.random() < self.config.two_image_share:
            return self._two_images(first, DOMAINS[domain], questions[:2], rng)
        turns = [([{"type": "image"}, {"type": "text", "text": "Describe the image."}], description)]
        for question in questions:
            turns.append((vqa_messages(question.query, options=question.options)[0]["content"], question.answer))
        turns.append(self._check(rng.choice(questions), rng))
        return self._pack((first,), turns)

    def _check(self, question: SceneQuestion, rng: random.Random) -> tuple[list[dict[str, str]], str]:
        answer, verdict = question.answer, "yes"
        if rng.random() < 0.5:
            answer, verdict = str(question.answer_of(question.edit(rng))), "no"
        text = f"Question: {question.query}\nAnswer: {answer}\nIs this answer right?"
        return [{"type": "image"}, {"type": "text", "text": text}], verdict

    def _two_images(
        self, first: ProcessedImage, domain: Domain, questions: list[SceneQuestion], rng: random.Random
    ) -> PackedRow:
        edited = questions[0].edit(rng)
        second = self.processor.process_image(domain.draw(edited, self.config.size_px))
        is_first = [True, False]
        rng.shuffle(is_first)
        head = [{"type": "text", "text": "Image A:"}, {"type": "image"}, {"type": "text", "text": "\nImage B:"}, {"type": "image"}]
        turns = []
        for question in questions:
            for letter, of_first in zip("AB", is_first, strict=True):
                answer = question.answer if of_first else question.answer_of(edited)
                if answer is not None:
                    text = f"\nIn image {letter}: {question.query}"
                    options = "".join(f"\n{o}. {option}" for o, option in zip("ABCDEFGH", question.options, strict=False))
                    turns.append(([*head, {"type": "text", "text": text + options}], answer))
        return self._pack((first, second) if is_first[0] else (second, first), turns)

    def _pack(self, images: tuple[ProcessedImage, ...], turns: list[tuple[list[dict[str, str]], str]]) -> PackedRow:
        prompts = [self.processor.encode([{"role": "user", "content": content}], images) for content, _ in turns]
        shared = 1 + max(i for i, token in enumerate(prompts[0].ids_T.tolist()) if token == self.after_image)
        continuations = []
        for prompt, (_, answer) in zip(prompts, turns, strict=True):
            given = prompt.ids_T[shared:]
            answer_ids = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            continuations.append(Continuation(torch.cat([given, torch.tensor([*answer_ids, self.end])]), len(given)))
        return PackedRow(EncodedPrompt(prompts[0].ids_T[:shared], images), tuple(continuations))


def optimizers(model: Any, config: TinyVLConfig) -> list[torch.optim.Optimizer]:
    """Muon (torch.optim.Muon, arXiv 2502.16982 scaling) for matrices inside the layers, AdamW for the rest."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(progress: float, step: int, warmup_steps: int) -> float:
    """Linear warm-up, then cosine to 2% of the peak; `progress` runs from 0 to 1."""
    return min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def run(config: TinyVLConfig, out: Path) -> dict[str, Any]:
    """Build tokenizer and model, pretrain, save; returns what the card reports."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists and is not empty; name another folder or remove it")
    tokenizer = build_tokenizer(corpus(config, 3000), config.vocab_size)
    model = build_model(config, tokenizer)
    attention.register()
    # Matrix products beat torch's fused attention backward in bfloat16 on a CPU (attention.py).
    model.set_attn_implementation({"text_config": attention.PACKED, "vision_config": "eager"})
    processor = _processor(tokenizer, out)
    policy = Policy(model, processor)
    rows = PretrainingRows(config, processor)
    opts = optimizers(model, config)
    began = time.monotonic()
    history: list[dict[str, float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("pretraining", total=config.steps)
        for step in range(config.steps):
            elapsed_min = (time.monotonic() - began) / 60
            progress = step / config.steps if not config.max_minutes else max(step / config.steps, elapsed_min / config.max_minutes)
            if progress >= 1:
                break
            factor = schedule(progress, step, config.warmup_steps)
            batch = pack(
                [rows.row(step * config.rows_per_step + i) for i in range(config.rows_per_step)], policy.positions, tokenizer.pad_token_id
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
                logps_L, _ = policy.completion_logps(batch)
            loss = -logps_L.mean()
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = config.learning_rate * factor
                opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
            if step % 20 == 0:
                history.append({"step": step, "loss": loss.item(), "minutes": elapsed_min})
                bar.update(task, completed=step, description=f"pretraining  loss {loss.item():.3f}")
                (out / "pretraining.jsonl").open("a").write(json.dumps(history[-1]) + "\n")
            if step and step % config.save_every == 0:
                save(model, processor, out)
    save(model, processor, out)
    return {"steps": step + 1, "minutes": (time.monotonic() - began) / 60, "loss": history[-1]["loss"] if history else None}


def _processor(tokenizer: Any, out: Path) -> Processor:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}).save_pretrained(out)
    return load_processor(str(out), tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def save(model: Any, processor: Processor, out: Path) -> None:
    """Write bfloat16 weights, tokenizer and image processor as an ordinary model folder."""
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(out)
    processor.save(str(out))
