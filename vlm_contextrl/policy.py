"""The policy: a vision-language model behind the two questions that training asks of it.

`completion_logps` gives the log-probability of every completion token, prompt shared inside a group (packing.py).
`option_logits` gives the logits of the option tokens at the position after a selection prompt: one forward, nothing is sampled, prompts
over the same images share them, and only K rows of the LM head are multiplied.

A frozen vision tower runs once per distinct image under no_grad; its output is kept by image hash across passes, pairs and epochs. A
trained tower runs once per distinct image of the batch, and the gradient of all its uses flows into that one pass.

Shapes: B rows, T tokens, L labelled positions, H hidden size, O options, N visual tokens of one image.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vlm_contextrl.log_probs import head_logits, label_log_probs
from vlm_contextrl.packing import PackedBatch, PackedRow, pack, share_starts, under_budget
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the vision tower for one image: visual tokens [N, H] and, for Qwen3-VL, one [N, H] per deepstack layer."""

    tokens_NH: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> ImageFeatures:
        return ImageFeatures(self.tokens_NH.to(device), tuple(layer.to(device) for layer in self.deepstack))

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tokens_NH, *self.deepstack))


class FeatureCache:
    """Least recently used features within a memory bound."""

    def __init__(self, max_mib: float) -> None:
        self.max_bytes = int(max_mib * 2**20)
        self.n_bytes = 0
        self._items: OrderedDict[str, ImageFeatures] = OrderedDict()

    def get(self, key: str) -> ImageFeatures | None:
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def put(self, key: str, features: ImageFeatures) -> None:
        if key in self._items:
            self.n_bytes -= self._items.pop(key).nbytes()
        self._items[key] = features
        self.n_bytes += features.nbytes()
        while self.n_bytes > self.max_bytes and len(self._items) > 1:
            self.n_bytes -= self._items.popitem(last=False)[1].nbytes()


@lru_cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    """What transformers calls it: `cache` from 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


class Policy(nn.Module):
    """A Qwen-VL model (plain or with adapters) with its processor."""

    def __init__(
        self,
        model: nn.Module,
        processor: Processor,
        *,
        feature_cache_mib: float = 1024,
        attention_kernel: str = "two_part",
    ) -> None:
        super().__init__()
        self.model: Any = model  # transformers' classes and PEFT's wrappers have no common type
        self.processor = processor
        self.attention_kernel = attention_kernel
        self.trained_tokens = 0  # run with gradient, padding aside; a shared prompt counts once
        self._cache = FeatureCache(feature_cache_mib)

    @property
    def base(self) -> Any:
        """The transformers model, adapters applied in place."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def vision_is_trained(self) -> bool:
        return any(p.requires_grad for p in self.base.model.visual.parameters())

    def forward(
        self,
        packed: PackedBatch | None = None,
        selection: Sequence[EncodedPrompt] = (),
        option_ids: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(completion log-probs [L], their entropies [L], option logits [B, O]); None for what was not asked.

        One entry point, so that wrappers such as DDP see one forward.
        """
        logps_L = entropy_L = logits_BO = None
        if packed is not None:
            logps_L, entropy_L = self.completion_logps(packed, temperature)
        if selection:
            logits_BO = self.option_logits(selection, option_ids)
        return logps_L, entropy_L, logits_BO

    def completion_logps(self, packed: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (no gradient) of every labelled position, in nats, at the sampling temperature."""
        hidden_LH = self._labelled(packed)
        return label_log_probs(
            hidden_LH, self.base.lm_head.weight, packed.labels_L.to(self.device), temperature
        )

    def option_logits(
        self, prompts: Sequence[EncodedPrompt], option_ids: Sequence[int], budget_tokens: int | None = None
    ) -> Tensor:
        """Logits [B, O] of the option tokens after each prompt. Prompts that start alike share that start (`share_starts`).

        One forward, or without gradients several of at most `budget_tokens`.
        """
        rows, order = share_starts(prompts, self.processor.image_token_id)
        batches = under_budget(rows, PackedRow.n_tokens, budget_tokens) if budget_tokens else [rows]
        pad_id = self.processor.tokenizer.pad_token_id
        found_BH = torch.cat([self._labelled(pack(batch, self.positions, pad_id)) for batch in batches])
        hidden_BH = found_BH[torch.tensor(order, device=self.device).argsort()]
        weight_OH = self.base.lm_head.weight[torch.tensor(list(option_ids), device=self.device)]
        return head_logits(hidden_BH, weight_OH)

    def next_logits(
        self,
        ids_BT: Tensor,
        positions_3BT: Tensor,
        mask: Tensor,
        cache: Any,
        images: Sequence[ProcessedImage] = (),
    ) -> Tensor:
        """Logits [B, V] after the last of these tokens, which the cache takes up; the mask covers cached tokens too."""
        hidden_BTH: Tensor = self.base.model(
            input_ids=ids_BT,
            position_ids=positions_3BT,
            attention_mask=mask,
            mm_encoder_outputs=self.encoder_outputs(images),
            use_cache=True,
            **{_cache_argument(self.base.model.forward.__func__): cache},
        ).last_hidden_state
        return head_logits(hidden_BTH[:, -1], self.base.lm_head.weight)

    def pad(self, prompts: Sequence[EncodedPrompt]) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] and rotary positions [3, B, T] of prompts, padded on the left."""
        T = max(len(p) for p in prompts)
        ids_BT = torch.full((len(prompts), T), self.processor.tokenizer.pad_token_id)
        positions_3BT = torch.zeros(3, len(prompts), T, dtype=torch.long)
        for b, prompt in enumerate(prompts):
            ids_BT[b, T - len(prompt) :] = prompt.ids_T
            positions_3BT[:, b, T - len(prompt) :] = self.positions(prompt)
        return ids_BT, positions_3BT

    def positions(self, prompt: EncodedPrompt) -> Tensor:
        """Rotary positions [3, T] of one prompt (temporal, height, width)."""
        ids_1T = prompt.ids_T[None]
        grids = torch.tensor([i.grid_thw for i in prompt.images]) if prompt.images else None
        is_image = (ids_1T == self.processor.image_token_id).int()
        positions_31T: Tensor = self.base.model.get_rope_index(
            ids_1T, mm_token_type_ids=is_image, image_grid_thw=grids
        )[0]
        return positions_31T[:, 0]

    def _labelled(self, packed: PackedBatch) -> Tensor:
        """Hidden states [L, H] from which the labels are predicted."""
        if torch.is_grad_enabled():
            self.trained_tokens += int((packed.ids_BT != self.processor.tokenizer.pad_token_id).sum())
        hidden_BTH: Tensor = self.base.model(
            input_ids=packed.ids_BT.to(self.device),
            position_ids=packed.positions_3BT.to(self.device),
            mm_encoder_outputs=self.encoder_outputs(packed.images),
            use_cache=False,
            layout=packed.layout.on(self.device, self.attention_kernel),
        ).last_hidden_state
        return hidden_BTH.flatten(0, 1)[packed.label_at_L.to(self.device)]

    def encoder_outputs(self, images: Sequence[ProcessedImage]) -> dict[str, Any] | None:
        """Vision features in the form transformers takes them, one entry per placeholder run, each distinct image computed once."""
        if not images:
            return None
        features = self._features({image.key: image for image in images})
        uses = [features[image.key] for image in images]
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        out: Any = BaseModelOutputWithPooling()  # one tensor per image, as `get_image_features` gives them
        out.pooler_output = [f.tokens_NH for f in uses]
        if uses[0].deepstack:
            out.deepstack_features = [
                [f.deepstack[layer] for f in uses] for layer in range(len(uses[0].deepstack))
            ]
        return {"image": out}

    def _features(self, images: dict[str, ProcessedImage]) -> dict[str, ImageFeatures]:
        if self.vision_is_trained and torch.is_grad_enabled():
            return self._run_vision(images)
        cacheable = not self.vision_is_trained
        known = {key: self._cache.get(key) for key in images} if cacheable else {}
        missing = {key: image for key, image in images.items() if known.get(key) is None}
        if missing:
            with torch.no_grad():
                # Features that outlive the batch are computed one image at a time: their last digits must not
                # depend on which images were asked for together, or a resumed run would not repeat the unbroken one.
                runs = [{key: image} for key, image in missing.items()] if cacheable else [missing]
                fresh = {key: features for run in runs for key, features in self._run_vision(run).items()}
            if cacheable:
                for key, features in fresh.items():
                    if images[key].comes_again:
                        self._cache.put(key, features.to("cpu"))  # a step's images fill gigabytes at 7B
            known |= fresh
        return {key: features.to(self.device) for key, features in known.items() if features is not None}

    def _run_vision(self, images: dict[str, ProcessedImage]) -> dict[str, ImageFeatures]:
        patches = torch.cat([i.patches_ND for i in images.values()]).to(
            self.device, self.base.model.visual.dtype
        )
        grids = torch.tensor([i.grid_thw for i in images.values()], device=self.device)
        out = self.base.model.get_image_features(patches, grids, return_dict=True)
        deepstack = getattr(out, "deepstack_features", None) or []
        # Cached features own their memory: a slice would keep the whole batch alive.
        own = (lambda t: t) if torch.is_grad_enabled() else torch.clone
        return {
            key: ImageFeatures(own(out.pooler_output[i]), tuple(own(layer[i]) for layer in deepstack))
            for i, key in enumerate(images)
        }
