"""Context selection for people who stay on TRL: `ContextRLTrainer` is `trl.GRPOTrainer` plus the selection loss.

    gradient of one optimizer step = TRL's own + lambda * gradient of the mean selection loss of `pairs_per_update` pairs

    trainer = ContextRLTrainer(
        model="Qwen/Qwen2.5-VL-7B-Instruct", reward_funcs=..., args=GRPOConfig(...), train_dataset=...,
        pairs="data/pairs/train", selection={"weight": 0.005, "pairs_per_update": 32},
    )

The pairs of a step run once, before its last micro-step, in backward passes of their own:
- nothing divides them, so lambda means the same at any gradient accumulation, also in a last window that is shorter. What TRL computes
  is divided by the micro-steps of the window: by TRL (`loss_is_scaled_for_ga`), else by transformers' `training_step`; accelerate's
  `backward` divides by a count that transformers keeps at 1.
- with several processes the gradients are in place when DDP reduces those of the last micro-step. The pairs do not go through DDP's
  forward, which allows one backward per forward; its hooks ignore gradients that it does not expect.

Only `training_step` and `log` are overridden. The language model attends by attention.py while the pairs run and by its own
implementation otherwise.

Not ours to mend: transformers 5.23 does not load the weights of a fully fine-tuned Qwen2.5-VL when its Trainer resumes (it warns of
missing keys); adapters and Qwen3-VL resume to the bit.

Left out: sharing prompts or images in TRL's own part, DeepSpeed and FSDP (their sharded weights are only whole inside their own
forward), dropping pairs that are too long (a pair over the token budget runs alone).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_contextrl import attention
from vlm_contextrl.config import SelectionTerm, validate
from vlm_contextrl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    MissingExtraError,
    first_line,
)
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.models import FAMILIES
from vlm_contextrl.packed_kernels import choose_kernel
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import option_ids
from vlm_contextrl.processing import Processor
from vlm_contextrl.storage import read_pairs
from vlm_contextrl.streams import ShuffledStream
from vlm_contextrl.terms import SelectionObjective, Update

if find_spec("trl") is None:
    raise MissingExtraError(
        "vlm_contextrl.trl needs TRL, which is not installed: pip install 'vlm-contextrl[trl]'"
    )
try:
    from trl import GRPOTrainer
except (ImportError, RuntimeError) as error:  # RuntimeError: TRL's lazy imports
    raise MissingExtraError(
        f"trl is installed and GRPOTrainer cannot be imported: {first_line(error)}; `vlm-contextrl doctor` checks torchvision"
    ) from error


class ContextRLTrainer(GRPOTrainer):  # type: ignore[misc]  # untyped base
    """`trl.GRPOTrainer` that also learns to select contexts (arXiv 2606.17053); takes all of its arguments, and:

    pairs: contrastive pairs, or a folder of them (`storage.read_pairs`). Their order depends on `args.seed` only; a resumed run goes
        on where `trainer.state.global_step` says.
    selection: lambda and the other settings of the loss (`config.SelectionTerm`). `pairs_per_update` counts over all processes. With
        weight 0 the pairs are measured and not learned from.
    processor: prompts of the pairs are made with it; default: the tokenizer, image processor and chat template of TRL's own part.
    tokens_per_micro_batch: token budget of one forward over pairs.

    Logs `selection/...`, the metrics of `objectives.selection_loss`, as means over the steps since the last log, and adds
    lambda * loss to TRL's `loss`. Raises an error of `vlm_contextrl.errors` for pairs, settings, models and launchers that it cannot use.
    """

    def __init__(
        self,
        *args: Any,
        pairs: Sequence[ContrastivePair] | str | Path,
        selection: SelectionTerm | Mapping[str, Any],
        processor: Processor | None = None,
        tokens_per_micro_batch: int = 16384,
        **kwargs: Any,
    ) -> None:
        if not isinstance(selection, SelectionTerm):
            selection = validate(SelectionTerm, {"term": "selection_loss", **selection}, "selection")
        self._selection_term = selection
        self._pairs = _checked(pairs)
        super().__init__(*args, **kwargs)
        self._check_launch()
        _check_family(self.model)
        attention.register()
        self._objective = SelectionObjective(selection)
        self._tokens_per_micro_batch = tokens_per_micro_batch
        kernel = choose_kernel(
            "auto", self.accelerator.device, torch.bfloat16 if self.args.bf16 else self.model.dtype
        )
        self._policy = Policy(self.model, processor or self._processor(), attention_kernel=kernel.name)
        option_ids(self._policy.processor, self._pairs[:1])  # a tokenizer without such letters fails now
        self._pair_stream = ShuffledStream(len(self._pairs), self.args.seed, "pairs")
        self._selection_metrics: dict[str, list[float]] = defaultdict(list)

    # ------------------------------------------------------------ TRL's hooks

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-step; the last one before an optimizer step also takes the pairs of that step."""
        added = self._select() if self.accelerator.sync_gradients else 0.0
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss + added

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log with `selection/...` while training."""
        if self.model.training:
            for name, values in self._selection_metrics.items():
                logs[f"selection/{name}"] = sum(values) / len(values)
            self._selection_metrics.clear()
        super().log(logs, start_time)

    # ------------------------------------------------------------ selection

    def _select(self) -> float:
        """Add lambda * gradient to `.grad`. Returns lambda * loss of this process's pairs, so scaled that the mean over processes is
        lambda * loss."""
        weight, processes = self._selection_term.weight, self.accelerator.num_processes
        # With weight 0 nothing random is drawn (dropout): the run is TRL's own.
        self.model.train(weight > 0)
        # Schedule-free optimizers swap weights after an evaluation; TRL's own step would do it too late.
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        local: dict[str, float] = defaultdict(float)
        with packed_attention(self._policy), nullcontext() if weight > 0 else torch.no_grad():
            update = self._next_update()
            for share in self._objective.shares(self._policy, update, self._tokens_per_micro_batch):
                with self.accelerator.autocast():
                    loss, parts = share()
                if weight > 0:
                    # Shares add up to the mean over the pairs of all processes; DDP takes the mean of their gradients.
                    self.accelerator.backward(loss * (weight * processes))
                for name, value in parts.items():
                    local[name] += value
        for name, value in zip(local, self._total(*local.values()), strict=True):
            self._selection_metrics[name].append(value)
        added: float = weight * processes * local["selection_loss"]
        return added

    def _next_update(self) -> Update:
        """This process's pairs of the coming optimizer step: those of `trainer.Trainer` with the same seed and one update per step."""
        step, rank = self.state.global_step, self.accelerator.process_index
        count = self._selection_term.pairs_per_update
        self._pair_stream.position = step * count
        mine = self._pair_stream.take(count)[rank :: self.accelerator.num_processes]
        seed = f"{self.args.seed}:orders:{step + 1}:0"
        return Update([], [self._pairs[i] for i in mine], seed, self._total)

    def _total(self, *numbers: float) -> tuple[float, ...]:
        """Sums over all processes."""
        local = torch.tensor(numbers, dtype=torch.float32, device=self.accelerator.device)
        total: Tensor = self.accelerator.reduce(local, reduction="sum")
        return tuple(total.tolist())

    # ------------------------------------------------------------ what can be used

    def _processor(self) -> Processor:
        """The processor of TRL's own part."""
        given = self.processing_class
        tokenizer, images = getattr(given, "tokenizer", None), getattr(given, "image_processor", None)
        name = type(given).__name__
        if tokenizer is None or images is None:
            raise InputError(
                f"processing_class is a {name} without image processor; also pass "
                "processor=vlm_contextrl.processing.load_processor(model_folder, image_token_id)"
            )
        if not {"shortest_edge", "longest_edge"} <= set(images.to_dict().get("size") or ()) or not all(
            hasattr(images, needed) for needed in ("patch_size", "merge_size")
        ):
            raise InputError(
                f"processing_class is a {name} with a {type(images).__name__}, expected Qwen's image processor with patch_size, merge_size "
                "and size; or pass processor=vlm_contextrl.processing.load_processor(model_folder, image_token_id)"
            )
        template = getattr(given, "chat_template", None) or tokenizer.chat_template
        if template is None:
            raise CheckpointError(
                f"processing_class is a {name} without chat template; use an instruction-tuned model"
            )
        settings = {"chat_template": template, **(self.args.chat_template_kwargs or {})}
        return Processor(tokenizer, images, self.model.config.image_token_id, settings)

    def _check_launch(self) -> None:
        accelerator, term = self.accelerator, self._selection_term
        kind = accelerator.distributed_type.value
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise ConfigError(
                f"launched with {kind}: context selection runs in one process or with DDP; use plain `accelerate launch`"
            )
        if self.is_model_parallel or self.is_distributed_loading_by_transformers:
            raise ConfigError(
                "the model is split over several devices; context selection needs it whole on the device of each process"
            )
        if term.pairs_per_update < accelerator.num_processes:
            raise ConfigError(
                f"selection.pairs_per_update is {term.pairs_per_update} with {accelerator.num_processes} processes, expected at least one "
                "pair for each"
            )
        if "lomo" in self.args.optim:
            raise ConfigError(
                "optim: LOMO updates weights during the backward pass, so gradients cannot be added up; use another one"
            )


@contextmanager
def packed_attention(policy: Policy) -> Iterator[None]:
    """The language model attends over packed rows inside, by its own implementation outside. A backward pass that recomputes
    activations belongs inside, too."""
    config = policy.base.model.language_model.config
    own = config._attn_implementation
    config._attn_implementation = attention.PACKED
    try:
        yield
    finally:
        config._attn_implementation = own


def _check_family(model: Any) -> None:
    if model.config.model_type not in FAMILIES:
        raise CheckpointError(f"model type {model.config.model_type!r}; supported are {', '.join(FAMILIES)}")


def _checked(pairs: Sequence[ContrastivePair] | str | Path) -> Sequence[ContrastivePair]:
    if isinstance(pairs, (str, Path)):
        return read_pairs(Path(pairs))
    if not hasattr(pairs, "__len__"):
        raise DataError(
            f"pairs is a {type(pairs).__name__}, expected a sequence of contrastive pairs or a folder of them"
        )
    if not len(pairs):
        raise DataError("pairs is empty, expected at least one contrastive pair")
    if isinstance(pairs, LazyRows):  # checked row by row when asked for
        return pairs
    for number, pair in enumerate(pairs):
        if not isinstance(pair, ContrastivePair):
            raise DataError(
                f"pairs[{number}] is a {type(pair).__name__}, expected a ContrastivePair or a folder of them (vlm_contextrl.storage)"
            )
    return pairs
