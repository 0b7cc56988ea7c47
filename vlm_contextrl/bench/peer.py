"""TRL's GRPOTrainer on a benched model, as it comes and tuned.

As it comes: LoRA on the language model with gradient checkpointing, TRL's default. It asks the inputs for gradients
(`enable_input_require_grads`), which reaches into the frozen vision tower: the tower is recomputed and back-propagated. On a CPU the LM
head scores every position of a row.

Tuned: no checkpointing, so that nothing is computed twice and the frozen tower has no graph; the LM head scores completion positions
only, as TRL does on a GPU. Batches hold whole groups on both.

TRL's own functions are called: `GRPOTrainer._get_per_token_logps_and_entropies` and `add_fused_lm_head`; peer_step.py runs a real
GRPOTrainer. TRL has no context selection; its naive form is a padded batch with the pictures repeated in every row.

Shapes: G completions, T tokens, C completion tokens, B rows, O options.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlm_contextrl.errors import ConfigError
from vlm_contextrl.models import enable_checkpointing
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.rollout import forbidden_ids

KNOWN_TRL = "1.16"


def trl(module: str = "trl") -> Any:
    """A module of TRL, looked up when it is needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(module)


def check_trl() -> None:
    """Raises MissingExtraError, with the reason that `vlm_contextrl.trl` finds, when TRL cannot be imported, and ConfigError when it is
    another one than the bench knows."""
    trl("vlm_contextrl.trl")
    found = version("trl")
    if found.split(".")[:2] != KNOWN_TRL.split("."):
        raise ConfigError(
            f"trl {found} is installed; bench engine uses private names of TRL {KNOWN_TRL}: pip install 'trl=={KNOWN_TRL}.*'"
        )


class Peer:
    """A copy of a PEFT model behind TRL's functions."""

    def __init__(self, model: Any, processor: Processor, *, tuned: bool) -> None:
        self.tuned, self.processor = tuned, processor
        self.untouched = model  # for a trainer, which patches and wraps a copy itself
        self.model = copy.deepcopy(model)
        with self.settings():
            base = self.model.get_base_model()
            if not tuned:
                enable_checkpointing(base)  # every part that knows how, as the Trainer of transformers does
                self.model.enable_input_require_grads()
            trl("trl.trainer.utils").add_fused_lm_head(
                base, temperature=1.0, outputs=("log_probs", "entropy")
            )

    @property
    def device(self) -> torch.device:
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The row selection of the tuned LM head, and no warnings about other libraries' old names."""
        utils = trl("trl.trainer.utils")
        before = utils._use_triton
        if self.tuned:
            utils._use_triton = lambda device: True  # what it answers on a GPU; no kernel is chosen by it
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            utils._use_triton = before

    def logps(self, prompt: EncodedPrompt, completions: Sequence[Tensor]) -> Tensor:
        """Log-probabilities [G, C] of completions of one length."""
        ids_GT = torch.stack([torch.cat([prompt.ids_T, c]) for c in completions]).to(self.device)
        trainer = trl("trl.trainer.grpo_trainer").GRPOTrainer
        function = trainer._get_per_token_logps_and_entropies
        function = getattr(function, "__wrapped__", function)
        stub = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
        with self.settings():
            logps_GC, _, _ = function(
                stub,
                self.model,
                ids_GT,
                torch.ones_like(ids_GT),
                len(completions[0]),
                compute_entropy=True,
                num_images=[len(prompt.images)] * len(completions),
                **self._pictures([prompt] * len(completions), ids_GT),
            )
        found: Tensor = logps_GC
        return found

    def option_logits(self, prompts: Sequence[EncodedPrompt], option_ids: Sequence[int]) -> Tensor:
        """Logits [B, O] after prompts that are padded on the left; every row brings its own copy of its pictures."""
        return naive_option_logits(self.model, self.batch(prompts), option_ids)

    def batch(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        T = max(len(p) for p in prompts)
        ids_BT = torch.full((len(prompts), T), self.processor.tokenizer.pad_token_id)
        mask_BT = torch.zeros_like(ids_BT)
        for b, prompt in enumerate(prompts):
            ids_BT[b, T - len(prompt) :] = prompt.ids_T
            mask_BT[b, T - len(prompt) :] = 1
        batch = {"input_ids": ids_BT.to(self.device), "attention_mask": mask_BT.to(self.device)}
        return batch | self._pictures(prompts, batch["input_ids"])

    def _pictures(self, prompts: Sequence[EncodedPrompt], ids_BT: Tensor) -> dict[str, Tensor]:
        images = [image for prompt in prompts for image in prompt.images]
        dtype = self.model.get_base_model().model.visual.dtype
        return {
            "pixel_values": torch.cat([image.patches_ND for image in images]).to(self.device, dtype),
            "image_grid_thw": torch.tensor([image.grid_thw for image in images], device=self.device),
            "mm_token_type_ids": (ids_BT == self.processor.image_token_id).int(),
        }

    @torch.no_grad()
    def generate(self, prompt: EncodedPrompt, n: int, max_new_tokens: int) -> Tensor:
        """n completions [n, max_new_tokens] as `GRPOTrainer._generate_single_turn` samples them: n copies of the row. Tuned side only: TRL
        turns checkpointing off around it."""
        from transformers import GenerationConfig

        tokenizer = self.processor.tokenizer
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=[tokenizer.eos_token_id],
            suppress_tokens=self.suppressed,
            disable_compile=True,
        )
        with self.settings():
            ids = self.model.generate(**self.batch([prompt] * n), generation_config=settings)
        completions: Tensor = ids[:, len(prompt) :]
        return completions

    @property
    def suppressed(self) -> list[int]:
        """Token ids that are never sampled, the same on both sides."""
        return forbidden_ids(self.processor)


def naive_option_logits(model: Any, batch: dict[str, Tensor], option_ids: Sequence[int]) -> Tensor:
    """The whole LM head at the last position, then the options' columns."""
    logits_BO: Tensor = model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1, list(option_ids)]
    return logits_BO.float()
