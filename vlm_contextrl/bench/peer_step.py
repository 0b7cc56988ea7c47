"""One optimizer step of a real GRPOTrainer, with naive context selection added to it.

Selection is one more loss and backward pass in `training_step`, where a user of TRL would add it. A processor without a video processor is
assembled by hand, since only that part needs torchvision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vlm_contextrl.bench.machine import Stopwatch
from vlm_contextrl.bench.peer import Peer, trl
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.processing import Processor
from vlm_contextrl.prompts import vqa_messages


def peer_step(
    peer: Peer,
    rows: Sequence[QuestionRow],
    completions: int,
    completion_tokens: int,
    selection: Callable[[Any], Tensor],
    folder: str,
) -> Callable[[], float]:
    """A function that runs one optimizer step of a real GRPOTrainer and returns its seconds.

    The step is what lies between `on_step_begin` and `on_step_end`: sampling, image processor, rewards, forward and backward,
    clipping and optimizer. selection: the loss of the naive selection pairs of a model, added in `training_step`.
    """
    with peer.settings():
        trainer = _trainer(peer, rows, completions, completion_tokens, folder)
    original, watch = trainer.training_step, Stopwatch(peer.device)
    seconds: list[float] = []

    def training_step(model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(model, *args, **kwargs)
        if trainer.accelerator.sync_gradients:  # the last micro-batch of the step
            trainer.accelerator.backward(selection(model))
        return loss

    trainer.training_step = training_step
    trainer.add_callback(_callback(watch.start, lambda: seconds.append(watch.stop())))

    def run() -> float:
        with peer.settings():
            trainer.train()
        return seconds[-1]

    return run


def _trainer(
    peer: Peer, rows: Sequence[QuestionRow], completions: int, completion_tokens: int, folder: str
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback

    examples = [
        {
            "prompt": [{"role": "user", "content": prompt_text(row)}],  # TRL adds the parts of the images
            "images": [image.decode() for image in row.images],
        }
        for row in rows
    ]  # fmt: skip
    args = trl().GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=completions,  # 8, as TRL's default; all groups at once take 3% longer on a CPU
        gradient_accumulation_steps=len(rows),
        num_generations=completions,
        loss_type="grpo",  # as our side; TRL's default is dapo
        max_completion_length=completion_tokens,
        generation_kwargs={"suppress_tokens": peer.suppressed},
        max_steps=1,
        use_cpu=peer.device.type == "cpu",
        bf16=False,  # the precision of the weights, as on our side
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **({"gradient_checkpointing": False} if peer.tuned else {}),
    )
    trainer = trl().GRPOTrainer(
        model=copy.deepcopy(peer.untouched),
        reward_funcs=_every_other,
        args=args,
        train_dataset=Dataset.from_list(examples),
        processing_class=still_image_processor(peer.processor),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def prompt_text(row: QuestionRow) -> str:
    """The text that our side encodes."""
    text: str = vqa_messages(row.query, 0, style="plain")[0]["content"][-1]["text"]
    return text


def still_image_processor(processor: Processor) -> Any:
    """Qwen2.5-VL's processor class around our tokenizer and image processor, without its video part."""
    from transformers import ProcessorMixin, Qwen2_5_VLProcessor

    def assemble(self: Any, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        self.image_token, self.image_token_id = processor.image_token, processor.image_token_id
        self.video_token = "<|video_pad|>"
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    kind = type("StillImageProcessor", (Qwen2_5_VLProcessor,), {"__init__": assemble})
    tokenizer = processor.tokenizer
    return kind(processor.image_processor, tokenizer, chat_template=tokenizer.chat_template)


def _every_other(completions: list[Any], **_: Any) -> list[float]:
    """A reward that is no matter of the text: every group has a gradient."""
    return [float(i % 2) for i in range(len(completions))]


def _callback(begin: Callable[[], None], end: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    callback: Any = TrainerCallback()
    callback.on_step_begin = lambda *args, **kwargs: begin()
    callback.on_step_end = lambda *args, **kwargs: end()
    return callback
