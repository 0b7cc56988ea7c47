"""The TRL subclass: its gradient is TRL's own plus lambda times the reference's, and it breaks loudly when TRL changes.

Models and processors are the tiny ones of tiny_models.py. TRL's processors want torchvision for their video part; still images do not
need it, so the processors here have a stand-in for it.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import TrainerCallback

from tests.tiny_models import image_pair, noise_image, odd_bytes, worst_difference
from vlm_contextrl import reference
from vlm_contextrl.config import SelectionTerm
from vlm_contextrl.errors import ConfigError, ContextRLError, MissingExtraError
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.processing import load_processor
from vlm_contextrl.streams import ShuffledStream

trl = pytest.importorskip("trl")

from vlm_contextrl.trl import ContextRLTrainer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # TRL 1.16 asks transformers 5.23 by the old names, whatever the settings
        "`gradient_checkpointing.*` is deprecated:FutureWarning",
    )
]
SEED, WEIGHT, N_PAIRS = 3, 0.5, 3
PAIRS = [image_pair(n, "8" if n % 2 else None) for n in range(5)]
SELECTION = {"weight": WEIGHT, "pairs_per_update": N_PAIRS, "clip_value": 50.0, "reverse": True}


class NoVideos:
    """In the place of the video processor, which needs torchvision."""

    model_input_names = ()


def processor_of(family: str, folder: Path) -> Any:
    """The family's own processor for still images."""
    from transformers import Qwen2_5_VLProcessor, Qwen3VLProcessor

    parent: Any = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen3VLProcessor

    class StillImages(parent):  # type: ignore[misc]  # untyped base
        def check_argument_for_proper_class(self, name: str, argument: Any) -> type:
            return type(argument)  # the original looks the video processor's class up

        def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
            pass

    parts = load_processor(str(folder), 262)
    template = parts.tokenizer.chat_template
    return StillImages(parts.image_processor, parts.tokenizer, NoVideos(), chat_template=template)


def model_of(folder: Path, tuning: str = "full", attention: str = "sdpa", dropout: float = 0.0) -> Any:
    """The model as a user of TRL loads it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32
    )
    if tuning == "full":
        return model
    targets = r".*language_model\..*\.(q_proj|v_proj|down_proj)"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=dropout))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start: the gradient of A would be zero, too
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def rewards(completions: list[Any], **_: Any) -> list[float]:
    """A reward that a random model can get."""
    return odd_bytes([turns[0]["content"] for turns in completions], [])


def prompts(n: int, images: bool = True) -> Any:
    """A dataset for TRL: n questions about one image each."""
    from datasets import Dataset

    rows = []
    for i in range(n):
        row: dict[str, Any] = {"prompt": [{"role": "user", "content": f"How many {i}?"}]}
        rows.append(row | ({"image": noise_image(i)} if images else {}))
    return Dataset.from_list(rows)


class Gradients(TrainerCallback):
    """What the optimizer gets at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def trainer_of(
    cls: Any,
    family: str,
    folder: Path,
    out: Path,
    *,
    model: Any = None,
    n_prompts: int = 2,
    images: bool = True,
    accumulation: int = 1,
    selection: Any = SELECTION,
    pairs: Any = PAIRS,
    **settings: Any,
) -> tuple[Any, Gradients]:
    """A trainer of either class that records its gradients; eight completions of two prompts for each optimizer step."""
    defaults = {
        "per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation, "num_generations": 4,
        "max_completion_length": 4, "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0, "loss_type": "grpo", "seed": SEED,
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": [], "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    given = {} if cls is trl.GRPOTrainer else {"pairs": pairs, "selection": selection}
    recorded = Gradients()
    trainer = cls(
        model=model if model is not None else model_of(folder),
        reward_funcs=rewards,
        args=trl.GRPOConfig(output_dir=str(out), **(defaults | settings)),
        train_dataset=prompts(n_prompts, images),
        processing_class=processor_of(family, folder),
        callbacks=[recorded],
        **given,
    )
    return trainer, recorded


def asked(step: int, pairs: Sequence[ContrastivePair]) -> tuple[list[ContrastivePair], list[bool]]:
    """Instances of a step's pairs and whether the context is shown first, as in our own trainer: a pair whose confounder's answer is
    known is asked both ways of the same two pictures."""
    instances, context_first = [], []
    for pair in pairs:
        first = random.Random(f"{SEED}:orders:{step + 1}:0:{pair.id}").randrange(2) == 0
        reverse = pair.reversed()
        instances += [pair] if reverse is None else [pair, reverse]
        context_first += [first] if reverse is None else [first, not first]
    return instances, context_first


def chosen(step: int) -> list[ContrastivePair]:
    """Pairs of a step."""
    stream = ShuffledStream(len(PAIRS), SEED, "pairs")
    stream.take(step * N_PAIRS)
    return [PAIRS[i] for i in stream.take(N_PAIRS)]


def selection_gradient(
    model: Any, folder: Path, pairs: Sequence[ContrastivePair], context_first: Sequence[bool]
) -> dict[str, Tensor]:
    """lambda times the gradient of the reference's selection loss."""
    settings = reference.Settings(margin_clip=50.0)
    loss = reference.selection_loss(model, load_processor(str(folder), 262), pairs, context_first, settings)
    (WEIGHT * loss).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def added(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum of two sets of gradients; what one of them lacks is zero there."""
    return {name: torch.zeros(()) + a.get(name, 0.0) + b.get(name, 0.0) for name in (a | b)}


def largest(grads: dict[str, Tensor]) -> float:
    return max(float(g.abs().max()) for g in grads.values())


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize(
    ("family", "tuning", "attention"),
    [
        ("qwen2_5_vl", "full", "sdpa"),
        ("qwen3_vl", "full", "eager"),
        ("qwen2_5_vl", "lora", "eager"),
        ("qwen3_vl", "lora", "sdpa"),
    ],
)
def test_gradient_is_trls_own_plus_lambda_times_the_references(
    family: str, tuning: str, attention: str, qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    """At accumulation 1 and 4. Both parts are far from zero: the largest gradients are 0.1 to 0.5."""
    folder = qwen_folders[family]
    model = model_of(folder, tuning, attention)
    wanted = selection_gradient(copy.deepcopy(model), folder, *asked(0, chosen(0)))
    for accumulation in (1, 4):
        totals = []
        for cls in (trl.GRPOTrainer, ContextRLTrainer):
            trainer, recorded = trainer_of(
                cls, family, folder, tmp_path, model=copy.deepcopy(model), accumulation=accumulation,
                gradient_checkpointing=tuning == "lora",
            )  # fmt: skip
            trainer.train()
            totals.append(recorded.seen[0])
        assert largest(totals[0]) > 0.01
        assert largest(wanted) > 0.01
        assert worst_difference(totals[1], added(totals[0], wanted)) < 1e-5


def test_a_shorter_last_window(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Three micro-steps, two of them in the first window: both optimizer steps get lambda times their own pairs. The weights stay as
    they are (learning rate 0), so that both are compared at the same place."""
    folder = qwen_folders["qwen3_vl"]
    model = model_of(folder)
    seen = []
    for cls in (trl.GRPOTrainer, ContextRLTrainer):
        trainer, recorded = trainer_of(
            cls, "qwen3_vl", folder, tmp_path, model=copy.deepcopy(model), accumulation=2, n_prompts=3, steps_per_generation=1,
            max_steps=-1, num_train_epochs=1,
        )  # fmt: skip
        trainer.train()
        seen.append(recorded.seen)
    assert [len(steps) for steps in seen] == [2, 2]
    for step in (0, 1):
        wanted = selection_gradient(copy.deepcopy(model), folder, *asked(step, chosen(step)))
        assert worst_difference(seen[1][step], added(seen[0][step], wanted)) < 1e-5


def test_several_forwards(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Five pairs, two of them with the confounder's answer, in forwards of one pair each: the mean over seven instances."""
    folder = qwen_folders["qwen2_5_vl"]
    model = model_of(folder, "lora")
    selection = {**SELECTION, "pairs_per_update": 5}
    trainer, _ = trainer_of(
        ContextRLTrainer, "qwen2_5_vl", folder, tmp_path, model=copy.deepcopy(model), selection=selection
    )
    trainer._tokens_per_micro_batch = 1
    trainer._select()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    instances, context_first = asked(0, PAIRS)
    assert len(instances) == 7
    wanted = selection_gradient(copy.deepcopy(model), folder, instances, context_first)
    assert worst_difference(found, wanted) < 1e-6


def ddp_worker(folder: Path, out: Path) -> None:
    """One of two processes: gradients after an optimizer step of both classes."""
    seen = []
    for cls in (trl.GRPOTrainer, ContextRLTrainer):
        trainer, recorded = trainer_of(
            cls,
            "qwen3_vl",
            folder,
            out,
            images=False,
            accumulation=2,
            per_device_train_batch_size=2,
            max_completion_length=2,
        )
        trainer.train()
        seen.append(recorded.seen[0])
    # DDP's parameters are named `module....`
    seen = [{name.removeprefix("module."): g for name, g in grads.items()} for grads in seen]
    logged = next(entry for entry in trainer.state.log_history if "selection/selection_loss" in entry)
    torch.save((seen, logged), out / f"rank{trainer.accelerator.process_index}.pt")


@pytest.mark.slow
def test_two_processes(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Three pairs over two processes (two and one): both get lambda times the gradient of the mean over all, and log that mean.

    TRL's prompts are texts, so the pairs alone reach the vision tower: parameters that DDP counts as unused must keep their gradient,
    reduced like the others.
    """
    folder = qwen_folders["qwen3_vl"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    code = f"from pathlib import Path; from tests.test_trl import ddp_worker; ddp_worker(Path({str(folder)!r}), Path({str(tmp_path)!r}))"
    said = [tmp_path / f"rank{rank}.stderr" for rank in range(2)]
    workers = []
    try:
        for rank in range(2):
            with said[rank].open("w") as stderr:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code],
                        cwd=Path(__file__).parents[1],
                        env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stderr=stderr,
                        stdout=subprocess.DEVNULL,
                    )
                )
        statuses = [worker.wait(timeout=600) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert statuses == [0, 0], "\n".join(file.read_text()[-3000:] for file in said)

    pairs, firsts = asked(0, chosen(0))
    wanted = selection_gradient(model_of(folder), folder, pairs, firsts)
    with torch.no_grad():
        mean_loss = reference.selection_loss(
            model_of(folder),
            load_processor(str(folder), 262),
            pairs,
            firsts,
            reference.Settings(margin_clip=50.0),
        )
    for rank in range(2):
        (plain, ours), logged = torch.load(tmp_path / f"rank{rank}.pt")
        assert any("visual" in name for name in ours)
        assert worst_difference(ours, added(plain, wanted)) < 1e-5
        assert logged["selection/selection_loss"] == pytest.approx(float(mean_loss), abs=1e-5)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_weight_zero_is_plain_grpo(tuning: str, qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Two steps with image prompts and, with adapters, dropout: the same weights to the bit, and the pairs are still measured."""
    folder = qwen_folders["qwen2_5_vl"]
    model = model_of(folder, tuning, dropout=0.5)
    trained = []
    for cls in (trl.GRPOTrainer, ContextRLTrainer):
        trainer, _ = trainer_of(
            cls, "qwen2_5_vl", folder, tmp_path, model=copy.deepcopy(model), selection={**SELECTION, "weight": 0}, learning_rate=1e-2,
            max_steps=2, n_prompts=4,
        )  # fmt: skip
        trainer.train()
        trained.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    assert worst_difference(*trained) == 0
    assert any(not torch.equal(p, trained[0][n]) for n, p in model.named_parameters()), "nothing was trained"
    assert trainer.state.log_history[0]["selection/selection_loss"] > 0


def test_training_selects(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Twelve steps with a large lambda, image prompts in TRL's part, an evaluation between them: four pairs are learned by heart.

    What is logged is in TRL's own log, for training only; the logged loss has the selection loss in it; the model keeps its attention.
    """
    folder = qwen_folders["qwen2_5_vl"]
    trainer, _ = trainer_of(
        ContextRLTrainer, "qwen2_5_vl", folder, tmp_path, model=model_of(folder, attention="eager"), max_steps=12, learning_rate=3e-3,
        n_prompts=6, pairs=PAIRS[:4], selection={**SELECTION, "weight": 20, "orders": "both", "reverse": False, "pairs_per_update": 4},
    )  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 12
    names = {name for name in logged[0] if name.startswith("selection/")}
    assert names == {
        f"selection/{name}"
        for name in (
            "selection_loss", "selection_accuracy", "margin", "outside_clip_right", "outside_clip_wrong", "no_gradient", "position_a_rate",
        )
    }  # fmt: skip
    assert logged[-1]["selection/selection_loss"] < logged[0]["selection/selection_loss"] / 4
    assert logged[-1]["selection/selection_accuracy"] == 1
    assert logged[0]["loss"] == pytest.approx(
        20 * logged[0]["selection/selection_loss"], abs=1e-3
    )  # GRPO starts at 0
    attention = trainer.model.model.language_model.config._attn_implementation
    assert attention == "eager"


def test_evaluation_has_no_selection(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """TRL's evaluation is its own, and the step after it is in training mode."""
    trainer, recorded = trainer_of(
        ContextRLTrainer, "qwen3_vl", qwen_folders["qwen3_vl"], tmp_path, max_steps=2, n_prompts=4
    )
    trainer.eval_dataset = trainer.train_dataset
    trainer.args.per_device_eval_batch_size = 8
    trainer.add_callback(EvaluateEachStep())
    trainer.train()
    evaluated = [
        entry for entry in trainer.state.log_history if any(name.startswith("eval_") for name in entry)
    ]
    assert len(evaluated) == 2
    assert not any("selection" in name for entry in evaluated for name in entry)
    assert sum("selection/margin" in entry for entry in trainer.state.log_history) == 2
    assert len(recorded.seen) == 2


class EvaluateEachStep(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = True


@pytest.mark.parametrize(("family", "tuning"), [("qwen2_5_vl", "lora"), ("qwen3_vl", "full")])
def test_a_resumed_run_repeats_the_unbroken_one(
    family: str, tuning: str, qwen_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 2 of 3: the third step takes the pairs that it would have taken, and ends at the same weights, to the bit.

    Not full Qwen2.5-VL: transformers 5.23 loses its weights on resuming, TRL's own trainer included.
    """
    folder = qwen_folders[family]
    taken: list[list[str]] = []
    original = ContextRLTrainer._next_update

    def recorded(self: Any) -> Any:
        update = original(self)
        taken.append([pair.id for pair in update.pairs])
        return update

    monkeypatch.setattr(ContextRLTrainer, "_next_update", recorded)
    weights = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        trainer, _ = trainer_of(
            ContextRLTrainer, family, folder, tmp_path, model=model_of(folder, tuning), max_steps=3, n_prompts=6, learning_rate=1e-2,
            save_strategy="steps", save_steps=2, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    assert taken[:3] == [[pair.id for pair in chosen(step)] for step in range(3)]
    assert taken[3:] == taken[2:3]
    assert worst_difference(*weights) == 0


# ---------------------------------------------------------------- bad input


def tokenizer_only(given: dict[str, Any]) -> None:
    given["processing_class"] = given["processing_class"].tokenizer


def other_image_processor(given: dict[str, Any]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    given["processing_class"].image_processor = CLIPImageProcessorPil()


def no_template(given: dict[str, Any]) -> None:
    given["processing_class"].chat_template = given["processing_class"].tokenizer.chat_template = None


def other_model(given: dict[str, Any]) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    given["model"] = Qwen2ForCausalLM(config)
    given["processing_class"] = given["processing_class"].tokenizer


def setting(**changes: Any) -> Any:
    return lambda given: given.update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (setting(pairs="no/such/folder"), "no/such/folder"),
        (setting(pairs=PAIRS[0]), "pairs is a ContrastivePair, expected a sequence"),
        (setting(pairs=[]), "pairs is empty, expected at least one contrastive pair"),
        (
            setting(pairs=[{"query": "?"}]),
            "pairs[0] is a dict, expected a ContrastivePair or a folder of them",
        ),
        (setting(selection={"weight": -1}), "selection: weight: "),
        (
            setting(selection={"weight": 1, "clip_valu": 2}),
            "selection: unknown key 'clip_valu'; did you mean",
        ),
        (tokenizer_only, "is a TokenizersBackend without image processor; also pass processor="),
        (other_image_processor, "with a CLIPImageProcessorPil, expected Qwen's image processor"),
        (no_template, "without chat template"),
        (other_model, "model type 'qwen2'; supported are qwen2_5_vl, qwen3_vl"),
        (setting(optim="lomo"), "LOMO updates weights during the backward pass"),
    ],
)
def test_bad_input_is_one_line(
    spoil: Any, message: str, qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = qwen_folders["qwen2_5_vl"]
    given = {
        "model": model_of(folder),
        "processing_class": processor_of("qwen2_5_vl", folder),
        "pairs": PAIRS,
        "selection": SELECTION,
    }
    spoil(given)
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        report_to=[],
        optim=given.pop("optim", "adamw_torch"),
    )
    with pytest.raises(ContextRLError) as raised:
        ContextRLTrainer(reward_funcs=rewards, args=args, train_dataset=prompts(8), **given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_with_our_processor(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """Text prompts in TRL's part, pairs from a folder: without any processor of transformers, in TRL's default precision (bfloat16
    autocast) and with its checkpointing."""
    folder = qwen_folders["qwen3_vl"]
    parts = load_processor(str(folder), 262)
    args = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=1, num_generations=4, per_device_train_batch_size=4,
        max_completion_length=2, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    texts = [{"prompt": [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]}]
    from datasets import Dataset

    trainer = ContextRLTrainer(
        model=model_of(folder), reward_funcs=rewards, args=args, train_dataset=Dataset.from_list(texts), processing_class=parts.tokenizer,
        processor=parts, pairs=noise_rows["pairs"], selection=SELECTION,
    )  # fmt: skip
    trainer.train()
    assert trainer._policy.processor is parts
    assert trainer.args.bf16
    assert trainer.state.log_history[0]["selection/selection_loss"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "FSDP"}, "launched with FSDP: context selection runs in one process or with DDP"),
        ({"kind": "DEEPSPEED"}, "launched with DEEPSPEED"),
        ({"is_model_parallel": True}, "the model is split over several devices"),
        (
            {"num_processes": 4},
            "selection.pairs_per_update is 3 with 4 processes, expected at least one pair for each",
        ),
    ],
)
def test_launchers_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    accelerator = SimpleNamespace(
        distributed_type=DistributedType(changes.get("kind", "MULTI_GPU")),
        num_processes=changes.get("num_processes", 2),
    )
    launched: Any = SimpleNamespace(
        accelerator=accelerator, is_model_parallel=changes.get("is_model_parallel", False), is_distributed_loading_by_transformers=False,
        _selection_term=SelectionTerm(term="selection_loss", weight=1, pairs_per_update=3), args=SimpleNamespace(optim="adamw_torch"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        ContextRLTrainer._check_launch(launched)
    accelerator.distributed_type, accelerator.num_processes = DistributedType.MULTI_GPU, 2
    launched.is_model_parallel = False
    ContextRLTrainer._check_launch(launched)


def test_trl_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import vlm_contextrl.trl as module

    name, path = "vlm_contextrl._trl_again", module.__file__
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlm-contextrl\[trl\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---------------------------------------------------------------- what is taken for granted of TRL and transformers


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_hooks_of_trl(method: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(trl.GRPOTrainer, method)).parameters)
    assert found == parameters, (
        f"TRL {trl.__version__}: GRPOTrainer.{method} takes {found}; adapt ContextRLTrainer.{method}, which passes {parameters} on"
    )


def test_windows_of_transformers(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Three micro-steps in windows of two and one: pairs belong into the micro-step in which sync_gradients is true."""
    calls = []

    class Watched(ContextRLTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            window = self.current_gradient_accumulation_steps
            calls.append((self.state.global_step, window, self.accelerator.sync_gradients))
            return super().training_step(model, inputs, num_items_in_batch)

    trainer, _ = trainer_of(
        Watched, "qwen3_vl", qwen_folders["qwen3_vl"], tmp_path, accumulation=2, n_prompts=3, steps_per_generation=1, max_steps=-1,
        num_train_epochs=1,
    )  # fmt: skip
    trainer.train()
    versions = f"TRL {trl.__version__}: look at Trainer._inner_training_loop and Trainer.training_step of transformers"
    assert calls == [(0, 2, False), (0, 2, True), (1, 1, True)], versions
    assert trainer.accelerator.gradient_accumulation_steps == 1, (
        f"accelerate divides what backward is given; {versions}"
    )
    needed = ("is_model_parallel", "is_distributed_loading_by_transformers", "processing_class", "optimizer")
    assert [name for name in needed if not hasattr(trainer, name)] == [], versions
    assert hasattr(trainer.args, "chat_template_kwargs"), versions
