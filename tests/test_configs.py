"""Every shipped configuration is parsed; the presets hold the published numbers, spelled out here."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_contextrl.bench.memory import estimate
from vlm_contextrl.commands.arguments import run_config
from vlm_contextrl.config import PolicyTerm, RunConfig, SelectionTerm, load_config
from vlm_contextrl.study.cells import plan_cells
from vlm_contextrl.study.data import check_data, plan_data
from vlm_contextrl.study.settings import load_study

CONFIGS = Path(__file__).parents[1] / "configs"
STUDIES = sorted(CONFIGS.glob("study_*.yaml"))
SHIPPED = sorted(set(CONFIGS.glob("*.yaml")) - set(STUDIES))
PUBLISHED = {
    "qwen2_5_vl_7b_full": 0.005,
    "qwen2_5_vl_7b_lora": 0.005,
    "qwen2_5_vl_7b_qlora": 0.005,
    "qwen3_vl_8b_full": 0.001,
    "qwen3_vl_8b_lora": 0.001,
}


def load(name: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / f"{name}.yaml")


def terms(config: RunConfig) -> tuple[PolicyTerm, SelectionTerm | None]:
    policy = next(term for term in config.objective if isinstance(term, PolicyTerm))
    selection = next((term for term in config.objective if isinstance(term, SelectionTerm)), None)
    return policy, selection


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configuration_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_config(RunConfig, path).name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configuration_is_found_by_name(path: Path) -> None:
    assert run_config(path.stem).samefile(path)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_is_valid_at_equal_budgets(path: Path, quick: bool, tmp_path: Path) -> None:
    study = load_study(run_config(path.stem), quick=quick)
    assert study.name == path.stem
    check_data(study)
    cells = plan_cells(study, plan_data(study, tmp_path), path.parent, tmp_path)
    assert len(cells) == 1 + len(study.chosen) * len(study.seeds)


@pytest.mark.parametrize(("name", "weight"), PUBLISHED.items())
def test_published_settings(name: str, weight: float) -> None:
    """arXiv 2606.17053: lambda 0.005 and 0.001, c 5, 32 pairs, G 8, 256 and 64 prompts, KL 0.01."""
    config = load(name)
    policy, selection = terms(config)
    assert selection is not None
    assert (selection.weight, selection.clip, selection.clip_value) == (weight, "two_sided", 5.0)
    assert (selection.orders, selection.reverse, selection.pairs_per_update) == ("random", False, 32)
    assert (policy.variant, policy.weight, policy.clip_low, policy.clip_high) == ("grpo", 1.0, 0.2, 0.3)
    assert policy.kl_coef == 0.01
    assert (config.rollout.completions_per_prompt, config.rollout.prompts_per_step) == (8, 256)
    assert config.optim.prompts_per_update == 64
    assert config.rollout.temperature == 1.0
    assert config.rollout.max_new_tokens == (
        2048 if name.endswith("qlora") else 4096
    )  # 4096 needs more than 24 GB
    assert config.data.max_prompt_tokens == 16384
    assert (config.model.min_pixels, config.model.max_pixels) == (784, 1003520)
    assert (config.epochs, config.steps) == (3, None)
    assert not config.model.train_vision
    assert not config.model.lora.vision


@pytest.mark.parametrize("name", PUBLISHED)
def test_tuning_and_learning_rate(name: str) -> None:
    """1e-6 is published for full fine-tuning; the rate of the adapters is ours and larger."""
    config = load(name)
    if name.endswith("_full"):
        assert (config.model.tuning, config.optim.learning_rate) == ("full", 1e-6)
    else:
        assert (config.model.tuning, config.optim.learning_rate) == ("lora", 1e-5)


def test_models() -> None:
    """The thinking template comes with the Thinking checkpoint."""
    assert load("qwen2_5_vl_7b_full").model.path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert load("qwen3_vl_8b_full").model.path == "Qwen/Qwen3-VL-8B-Thinking"


@pytest.mark.parametrize("family", ["qwen2_5_vl_7b", "qwen3_vl_8b"])
def test_lora_preset_differs_from_the_full_one_only_in_what_is_tuned(family: str) -> None:
    full, lora = (load(f"{family}_{tuning}").model_dump() for tuning in ("full", "lora"))
    for config in (full, lora):
        del config["name"], config["model"]["tuning"], config["model"]["lora"], config["model"]["dtype"]
        del config["optim"]["learning_rate"]
    assert full == lora


def test_qlora_preset_differs_from_lora_only_in_what_fits_in_24_gb() -> None:
    """4-bit weights, shorter answers, fewer of them at once: by the estimate every peak stays below 20 GiB."""
    assert max(estimate(load("qwen2_5_vl_7b_qlora"))["peaks_gib"].values()) < 20
    lora, qlora = (load(f"qwen2_5_vl_7b_{tuning}").model_dump() for tuning in ("lora", "qlora"))
    assert (lora["model"]["quantization"], qlora["model"]["quantization"]) == ("none", "nf4")
    for config in (lora, qlora):
        del config["name"], config["model"]["quantization"]
        del config["rollout"]["max_new_tokens"], config["rollout"]["sequences_at_once"]
    assert lora == qlora


def test_tiny_baseline_differs_only_by_the_selection_loss() -> None:
    """The two are compared, so whatever else differs would be mistaken for the method's effect."""
    contextrl, grpo = load("tiny_contextrl").model_dump(), load("tiny_grpo").model_dump()
    assert [term["term"] for term in contextrl["objective"]] == ["policy", "selection_loss"]
    contextrl["objective"].pop()
    for config in (contextrl, grpo):
        del config["name"], config["data"]["pairs"]
    assert contextrl == grpo


def test_tiny_runs_train_the_embedded_model_on_the_data_of_the_demo() -> None:
    config = load("tiny_contextrl")
    assert config.model.path == "tinyvl"
    assert config.model.tuning == "full"
    assert config.data.questions == Path("data/demo/questions/train")
    assert config.data.pairs == Path("data/demo/pairs/train")
