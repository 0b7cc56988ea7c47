"""Tiny random Qwen2.5-VL and Qwen3-VL models with a byte-level tokenizer, and the rows and images to feed them.

The weights are drawn, then all matrices scaled up: attention is then sharp enough for a wrong mask or a wrong
position to show. Every byte is one token, so an answer's tokens can be read off its letters.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm_contextrl.config import ModelSettings, RunConfig
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.models import load_policy
from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.prompts import vqa_messages
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.rollout import Completion
from vlm_contextrl.runlog import RunDirectory
from vlm_contextrl.storage import read_pairs, read_questions
from vlm_contextrl.terms import Group, Update
from vlm_contextrl.trainer import Trainer
from vlm_contextrl.vqa import question_prompt

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Any:
    """One token per byte and Qwen's special tokens, 264 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(family: str, tokenizer: Any) -> Any:
    """Two layers of 32 in the language model, two in the vision tower, one of them feeding deepstack."""
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 2048, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    shared = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    if family == "qwen2_5_vl":
        text["hidden_size"], vision["out_hidden_size"] = 64, 64  # its head size is hidden / heads
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared)
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **shared)


def write_model_folder(family: str, folder: Path, seed: int = 0) -> Path:
    """An ordinary model folder: weights, tokenizer, image processor (images of 1 to 12 visual tokens)."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(tiny_config(family, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    patch = 14 if family == "qwen2_5_vl" else 16
    bounds = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 12 * (2 * patch) ** 2}
    Qwen2VLImageProcessorPil(patch_size=patch, size=bounds).save_pretrained(folder)
    return folder


def tiny_policy(folder: Path, *, trainable: bool = True, **settings: Any) -> Policy:
    """A policy of a folder; all weights are trained unless the settings say otherwise."""
    defaults = {"path": str(folder), "train_vision": settings.get("tuning", "full") == "full"}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # adapters start from random numbers
        return load_policy(ModelSettings(**(defaults | settings)), trainable=trainable)


def plain_model(folder: Path) -> Any:
    """The same weights in an untouched transformers model with its own attention."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32
    )


def strict_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a float64 model be one: transformers takes RMSNorm and the vision tower's rotary positions in float32.

    Without this, two ways that differ in the 16th digit can round to different float32 numbers, and agree to
    about 1e-7 only.
    """
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as qwen2_5
    import transformers.models.qwen3_vl.modeling_qwen3_vl as qwen3

    def norm(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
        return out

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(-2).to(q), sin.unsqueeze(-2).to(q)
        return q * cos + qwen3.rotate_half(q) * sin, k * cos + qwen3.rotate_half(k) * sin

    monkeypatch.setattr(qwen2_5.Qwen2_5_VLRMSNorm, "forward", norm)
    monkeypatch.setattr(qwen3.Qwen3VLTextRMSNorm, "forward", norm)
    monkeypatch.setattr(qwen2_5, "apply_rotary_pos_emb_vision", rotate)
    monkeypatch.setattr(qwen3, "apply_rotary_pos_emb_vision", rotate)


def noise_image(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def question(n: int, n_images: int = 1, query: str = "How many?", answer: str = "7") -> QuestionRow:
    """Question `q<n>` with images of its own."""
    images = tuple(EncodedImage.from_image(noise_image(100 * n + i, 56 + 28 * i)) for i in range(n_images))
    return QuestionRow(
        id=f"q{n}", query=query, answer=answer, images=images, provenance={"licence": "CC0-1.0"}
    )


def image_pair(n: int, confounder_answer: str | None = "8") -> ContrastivePair:
    """Pair `p<n>` with images of its own."""
    context, confounder = (EncodedImage.from_image(noise_image(10_000 + 2 * n + i)) for i in range(2))
    return ContrastivePair(
        id=f"p{n}",
        query="How many?" + " Look." * (n % 3),
        answer="7",
        confounder_answer=confounder_answer,
        context=context,
        confounder=confounder,
        provenance={"licence": "CC0-1.0"},
    )


def ask(processor: Processor, text: str, images: Sequence[Image.Image] = ()) -> EncodedPrompt:
    """The prompt of a question about images."""
    messages = vqa_messages(text, len(images))
    return processor.encode(messages, [processor.process_image(image) for image in images])


def random_ids(seed: int, n: int) -> Tensor:
    """n byte tokens: never a special one."""
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed))


def odd_bytes(completions: list[str], rows: list[Any]) -> list[float]:
    """A reward that a random model can get: the share of odd bytes."""
    return [sum(b % 2 for b in text.encode()) / max(1, len(text.encode())) for text in completions]


ODD_BYTES = f"{odd_bytes.__module__}:{odd_bytes.__name__}"


def run_config(folder: Path, rows: dict[str, Path], **sections: Any) -> RunConfig:
    """A run of a few seconds: three steps of two prompts with three completions, and two pairs per update.

    rows: folders of `questions` and `pairs`. Sections given as dicts change single settings.
    """
    values: dict[str, Any] = {
        "name": "tiny",
        "steps": 3,
        "model": {"path": str(folder), "lora": {"rank": 4, "alpha": 8}},
        "data": {"questions": str(rows["questions"]), "pairs": str(rows["pairs"]), "prompt_style": "direct"},
        "rollout": {"prompts_per_step": 2, "completions_per_prompt": 3, "max_new_tokens": 4},
        "optim": {"learning_rate": 1e-3, "prompts_per_update": 2},
        "objective": [
            {"term": "policy", "rewards": {ODD_BYTES: 1.0}},
            {"term": "selection_loss", "weight": 0.1, "pairs_per_update": 2},
        ],
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return RunConfig.model_validate(values)


def given_groups(policy: Policy, dtype: torch.dtype = torch.float32) -> list[Group]:
    """Four questions of 1, 2, 0 and 1 images with three given completions each, of 1 to 6 tokens; the rewards of
    the last are all the same."""
    lengths = [(4, 1, 3), (2, 6, 1), (3, 3, 2), (5, 2, 1)]
    rewards_PG = torch.tensor([[1, 0, 0.25], [0, 1, 1], [0.5, 0, 1], [1, 1, 1]], dtype=dtype)
    advantages_PG, _ = group_advantages(rewards_PG)
    groups = []
    for n, n_images in enumerate((1, 2, 0, 1)):
        row = question(n, n_images, "How many?" + " Count them." * (n % 2))
        ids = [random_ids(10 * n + i, length) for i, length in enumerate(lengths[n])]
        completions = [Completion(i, torch.zeros(len(i)), True) for i in ids]
        texts = [policy.processor.decode(i.tolist()) for i in ids]
        prompt = question_prompt(policy.processor, row, "direct")
        groups.append(Group(row, prompt, completions, texts, rewards_PG[n].tolist(), advantages_PG[n]))
    return groups


def given_update(policy: Policy, dtype: torch.dtype = torch.float32) -> Update:
    """The groups above and three pairs, as one optimizer update."""
    return Update(given_groups(policy, dtype), [image_pair(n) for n in range(3)], "0")


def trainer_of(config: RunConfig, folder: Path, policy: Policy | None = None) -> Trainer:
    """A trainer as `train` makes it, to be driven step by step."""
    run = RunDirectory(folder, config, resume=False)
    assert config.data.pairs
    questions, pairs = read_questions(config.data.questions), read_pairs(config.data.pairs)
    at = list(range(len(questions))), list(range(len(pairs)))
    policy = policy or load_policy(config.model)
    return Trainer(config, run, Ranks(), policy, questions, at[0], pairs, at[1], HeldOut(config.data))


def context_is_first(order_seed: str, pair: ContrastivePair) -> bool:
    """The order in which an update with this seed shows a pair."""
    return random.Random(f"{order_seed}:{pair.id}").randrange(2) == 0


def records(run: Path, stream: str) -> list[dict[str, Any]]:
    """A stream of a run directory."""
    return [json.loads(line) for line in (run / f"{stream}.jsonl").read_text().splitlines()]


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter that has one, by its name in the transformers model."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def worst_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest absolute difference of two sets of gradients, which must be of the same parameters."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
