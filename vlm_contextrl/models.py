"""Loading of Qwen2.5-VL and Qwen3-VL models, whole or with adapters.

Weights come from safetensors only, remote code is refused unless asked for, and nothing is fetched unless a hub id was named. What is
trainable: with `full` the language model (and the vision tower on request), with `lora` adapters on the linear layers of the language
model (and of the vision tower on request). The patch embedding and the LM head never carry adapters.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from vlm_contextrl import attention
from vlm_contextrl.config import ModelSettings
from vlm_contextrl.errors import CheckpointError, MissingExtraError, first_line
from vlm_contextrl.packed_kernels import announce, choose_kernel
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import load_processor

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
LANGUAGE_LINEAR = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
VISION_LINEAR = (
    r".*visual\.(blocks\..*\.(qkv|proj|linear_fc1|linear_fc2|gate_proj|up_proj|down_proj)"
    r"|merger\.mlp\.(0|2)|(merger|deepstack_merger_list\.\d+)\.(linear_fc1|linear_fc2))"
)


def resolve(path: str) -> str:
    """`tinyvl` is the embedded model; anything else is a folder or a hub id."""
    if path != "tinyvl":
        return path
    return str(files("vlm_contextrl") / "tinyvl")


def may_be_hub_id(path: str) -> bool:
    """Whether a path that is no folder here can be OWNER/NAME on the hub."""
    parts = Path(path).parts
    return len(parts) == 2 and not Path(path).is_absolute() and not path.startswith((".", "~"))


def load_policy(
    settings: ModelSettings, device: torch.device | str = "cpu", *, trainable: bool = True
) -> Policy:
    """Model, processor and (for LoRA) adapters as one policy. Raises CheckpointError with one line when a part cannot be read."""
    from transformers import AutoModelForImageTextToText

    path = resolve(settings.path)
    _refuse_unsafe_folder(path)
    revision = settings.revision or "main"
    if settings.revision and Path(path).is_dir():
        raise CheckpointError(
            f"{settings.path}: is a folder, which has no revision ({settings.revision!r}); leave it out"
        )
    config = read_config(path, revision=revision, trust_remote_code=settings.trust_remote_code)
    quantization = _quantization(settings)
    attention.register()
    _quiet_progress_of_small_models(path)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            output_loading_info=True,
            config=config,
            revision=revision,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            quantization_config=quantization,
            attn_implementation={"text_config": attention.PACKED, "vision_config": "sdpa"},
        )
    except Exception as error:  # safetensors, transformers, huggingface_hub: classes of their own
        raise CheckpointError(f"{path}: weights cannot be read: {first_line(error)}") from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise CheckpointError(
            f"{path}: weights are incomplete: {len(missing)} tensors are missing, first {missing[0]}"
        )
    if quantization:
        _keep_weights_unpacked(model)
    own = settings.adapter and (Path(settings.adapter) / "preprocessor_config.json").is_file()
    processor = load_processor(
        str(settings.adapter) if own else path,  # images as they were while the adapter was trained
        config.image_token_id,
        revision="main" if own else revision,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        trust_remote_code=settings.trust_remote_code,
        chat_template_kwargs=settings.chat_template,
    )
    model = _with_adapters(model, settings, trainable)
    if type(model.get_output_embeddings()) is not torch.nn.Linear:  # log_probs.py reads its weight
        raise CheckpointError(f"{settings.adapter}: adapts the LM head, which is not supported")
    kernel = choose_kernel(settings.attention, device, product_dtype(settings))
    announce(kernel, settings.attention)
    policy = Policy(
        model.to(device),
        processor,
        feature_cache_mib=settings.feature_cache_mib,
        attention_kernel=kernel.name,
    )
    if trainable and settings.gradient_checkpointing:
        # Only the language model: a frozen tower must not be recomputed, nor made part of the graph.
        enable_checkpointing(policy.base.model.language_model)
    return policy.train() if trainable else policy.eval().requires_grad_(False)


def read_config(path: str, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """The configuration of a supported model. Raises CheckpointError when there is none to read, and for another family."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # code of the model's own may raise anything
        if "trust_remote_code" in str(error):
            raise _own_code(path) from error
        raise CheckpointError(f"{path}: no readable model configuration: {first_line(error)}") from error
    if config.model_type not in FAMILIES:
        raise CheckpointError(
            f"{path}: model type {config.model_type!r}; supported are {', '.join(FAMILIES)}"
        )
    return config


def _own_code(path: str) -> CheckpointError:
    """The refusal of a configuration that transformers reads only with code that comes with the model."""
    from transformers import PreTrainedConfig

    told, _ = PreTrainedConfig.get_config_dict(path)
    return CheckpointError(
        f"{path}: config.json names model type {told.get('model_type')!r} and code of its own ({told['auto_map']['AutoConfig']}), which is "
        f"refused; use a model of type {' or '.join(FAMILIES)}, which needs none; if this is one and you trust its code, set "
        "trust_remote_code=true where the command takes the model's settings (train: model.trust_remote_code=true)"
    )


def enable_checkpointing(model: Any) -> None:
    """Recompute the activations of a model of transformers in its backward pass."""
    renamed = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.23
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def lora_targets(vision: bool) -> str:
    """Pattern of the linear layers that carry adapters."""
    return f"({LANGUAGE_LINEAR})|({VISION_LINEAR})" if vision else LANGUAGE_LINEAR


def autocast(settings: ModelSettings, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in the precision that the settings name."""
    half = settings.autocast == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def product_dtype(settings: ModelSettings) -> torch.dtype:
    """Precision of matrix products."""
    name = "bfloat16" if settings.autocast == "bf16" else settings.dtype
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def merge_adapter(policy: Policy, dtype: torch.dtype) -> None:
    """Make an adapter part of the weights, in their own precision, then round once to `dtype`."""
    policy.model = policy.model.merge_and_unload().to(dtype)


def _quantization(settings: ModelSettings) -> Any:
    """QLoRA (arXiv 2305.14314): 4-bit NormalFloat with double quantisation. None for unquantised weights."""
    if settings.quantization == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "model.quantization is nf4 and bitsandbytes is not installed: pip install 'vlm-contextrl[qlora]'"
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=product_dtype(settings),
        # The whole path: "visual" alone matches nothing, and the tower would be quantised.
        llm_int8_skip_modules=["lm_head"] + ([] if settings.quantize_vision else ["model.visual"]),
    )


def _keep_weights_unpacked(model: torch.nn.Module) -> None:
    """The same numbers on every CPU.

    Where a CPU has AVX512-BF16, bitsandbytes 0.50 repacks weights when they are first used outside training, and for good: their scales
    are rounded to bfloat16, and sizes that 32 does not divide fail.
    """
    for name in quantized_modules(model):
        module: Any = model.get_submodule(name)
        module.support_avx512bf16_for_cpu = False


def quantized_modules(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers whose weights are stored in 4 bits."""
    from bitsandbytes.nn.modules import Linear4bit

    return [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]


def _with_adapters(model: Any, settings: ModelSettings, trainable: bool) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    from vlm_contextrl.fused_lora import fuse_adapters

    if settings.adapter:
        if not (Path(settings.adapter) / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{settings.adapter}: no adapter_config.json; expected a folder written by PEFT"
            )
        try:
            model = PeftModel.from_pretrained(model, settings.adapter, is_trainable=trainable)
        except Exception as error:  # as above
            raise CheckpointError(
                f"{settings.adapter}: adapter cannot be read: {first_line(error)}"
            ) from error
        _check_adapter_keys(model, Path(settings.adapter))
        if settings.tuning == "lora" or not trainable:
            fuse_adapters(model)
            return model  # not merged: in 16 or 4 bits a small update would be rounded away
        model = model.merge_and_unload()
    elif settings.tuning == "lora" and trainable:
        lora = settings.lora
        targets = lora_targets(lora.vision)
        model = get_peft_model(
            model,
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM"),
        )
        fuse_adapters(model)
        return model
    if trainable:
        model.requires_grad_(True)
        model.model.visual.requires_grad_(settings.train_vision)
    return model


def _check_adapter_keys(model: Any, folder: Path) -> None:
    """CheckpointError when a tensor of the adapter found no place or a place found no tensor: PEFT only warns, and what stays at zero is no
    adapter. Names change between versions of transformers (`model.layers`, `model.language_model.layers`)."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no {file.name}; expected a folder written by PEFT as safetensors")
    with safe_open(str(file), framework="pt") as stored:
        found = set(stored.keys())
    expected = set(get_peft_model_state_dict(model))
    if odd := sorted(found ^ expected):
        where = "the adapter, not in the model" if odd[0] in found else "the model, not in the adapter"
        raise CheckpointError(
            f"{folder}: does not fit this model: {len(odd)} tensors have other names, first {odd[0]} (in {where}); save it anew with the "
            "transformers that is installed"
        )


def _quiet_progress_of_small_models(path: str) -> None:
    """A progress bar over the weights of one file is noise; over the shards of a large model it is wanted."""
    from transformers.utils import logging

    if len(list(Path(path).glob("*.safetensors"))) == 1:
        logging.disable_progress_bar()
    else:
        logging.enable_progress_bar()


def _refuse_unsafe_folder(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir():
        if not may_be_hub_id(path):
            raise CheckpointError(f"{path}: no such model folder")
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json; expected a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        found = (
            ", ".join(
                sorted(p.name for p in folder.iterdir() if re.search(r"\.(bin|pt|pth|ckpt|gguf)$", p.name))
            )
            or "no weights"
        )
        raise CheckpointError(f"{path}: weights must be safetensors, found {found}")
