"""Two processes (gloo, by torchrun) against one: gradients, whole runs, checkpoints that do not tell how many wrote them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.rank_program import gradients_of_a_given_update
from tests.tiny_models import FAMILIES, ask, noise_image, plain_model, records, run_config, worst_difference
from vlm_contextrl import reference
from vlm_contextrl.config import RunConfig
from vlm_contextrl.models import load_processor
from vlm_contextrl.trainer import train

ROOT = Path(__file__).parents[1]
LORA = {"tuning": "lora", "lora": {"rank": 4, "alpha": 8}}
TUNINGS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora_vision": {"tuning": "lora", "lora": {"rank": 4, "alpha": 8, "vision": True}},
    "full": {"tuning": "full"},
    "full_vision_checkpointed": {"tuning": "full", "train_vision": True, "gradient_checkpointing": True},
}
QUICK = (("qwen2_5_vl", "lora"), ("qwen3_vl", "full_vision_checkpointed"))


def torchrun(*arguments: object, n: int = 2) -> subprocess.CompletedProcess[str]:
    """Start n processes and wait for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    command += ["--nproc_per_node", n, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600
    )


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """What the processes said, without torchrun's own report."""
    return done.stderr.split("torch.distributed.elastic")[0][-6000:]


def found_in(folder: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    return load_file(folder / "gradients.safetensors"), json.loads((folder / "metrics.json").read_text())


SLOW = pytest.mark.slow
CASES = [
    pytest.param(family, tuning, marks=() if (family, tuning) in QUICK else SLOW)
    for family in FAMILIES
    for tuning in TUNINGS
]


@pytest.mark.parametrize(("family", "tuning"), CASES)
def test_gradients_of_two_processes_are_those_of_one(
    family: str, tuning: str, qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """Four groups and three pairs, of which the ranks have two and two, two and one, in micro-batches whose number differs: the ranks of a
    sharded model wait for each other. To 1e-6, and the metrics with them."""
    sections = {"model": TUNINGS[tuning], "optim": {"tokens_per_micro_batch": 120}}
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    gradients_of_a_given_update(qwen_folders[family], noise_rows, one, sections)
    done = torchrun(
        ROOT / "tests/rank_program.py", qwen_folders[family], noise_rows["questions"], noise_rows["pairs"], two, json.dumps(sections)
    )  # fmt: skip
    assert done.returncode == 0, tail(done)
    (expected, expected_metrics), (found, metrics) = found_in(one), found_in(two)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
    assert worst_difference(found, expected) < 1e-6
    assert metrics == pytest.approx(expected_metrics, abs=1e-6)


def written(config: RunConfig, folder: Path) -> Path:
    """The configuration as a file."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def numbers(run: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in each.items()} for each in records(run, "metrics")]


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_run_of_two_processes(
    tuning: str, qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """The command line under torchrun: three prompts per update, so the ranks have two and one, an evaluation, a KL term; stopped
    after a checkpoint, it goes on with one process and with two. All give the metrics of one process, and the weights move the same way:
    Adam's first steps have the size of the learning rate even where a gradient is all but 0, so single weights may differ by it."""
    objective = [
        {"term": "policy", "rewards": {"tests.tiny_models:odd_bytes": 1.0}, "kl_coef": 0.1},
        {"term": "selection_loss", "weight": 0.5, "pairs_per_update": 3, "reverse": True},
    ]
    config = run_config(
        qwen_folders["qwen3_vl"],
        noise_rows,
        model=TUNINGS[tuning],
        data={"eval_pairs": str(noise_rows["pairs"])},
        rollout={"prompts_per_step": 6},
        optim={"prompts_per_update": 3, "tokens_per_micro_batch": 150, "learning_rate": 1e-5},
        objective=objective,
        log={"save_every": 2, "eval_every": 2},
    )
    train(config, tmp_path / "one")
    command = ["-m", "vlm_contextrl", "train", written(config, tmp_path), "--out"]
    done = torchrun(*command, tmp_path / "two")
    assert done.returncode == 0, tail(done)
    for each, by_one in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        assert each == pytest.approx(by_one, abs=2e-3)
    assert len(records(tmp_path / "two", "evals")) == 1

    file = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    start = load_file(tmp_path / "one/checkpoints/step_000002/trainable.safetensors")
    expected = load_file(tmp_path / "one/checkpoints/step_000003/trainable.safetensors")
    assert_moved_alike(tmp_path / "two/checkpoints/step_000003/trainable.safetensors", start, expected)

    resumed = tmp_path / "resumed"
    for n, source in ((1, "two"), (2, "one")):
        shutil.rmtree(resumed, ignore_errors=True)
        shutil.copytree(tmp_path / source, resumed)
        shutil.rmtree(resumed / "final")
        shutil.rmtree(resumed / "checkpoints/step_000003")
        done = torchrun(*command, resumed, "--resume", n=n)
        assert done.returncode == 0, tail(done)
        assert_moved_alike(resumed / "checkpoints/step_000003/trainable.safetensors", start, expected)
        assert (resumed / "final" / file).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_all_terms_over_two_processes(
    tuning: str, qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """A supervised stage, then every term that there is, two of them measured at weight 0, in micro-batches whose number differs: no
    rank waits for another in vain, and the metrics are those of one process."""
    reward = {"tests.tiny_models:odd_bytes": 1.0}
    objective = [
        {"term": "policy", "rewards": reward},
        {"term": "selection_loss", "weight": 0.0, "pairs_per_update": 3, "reverse": True},
        {"term": "selection_reward", "ratio": 1.0},
        {"term": "perception_kl", "masked_gradient": True},
        {"term": "supervised", "weight": 0.0, "pairs_per_update": 3},
    ]
    config = run_config(
        qwen_folders["qwen3_vl"],
        noise_rows,
        steps=2,
        model=TUNINGS[tuning],
        rollout={"prompts_per_step": 6},
        optim={"prompts_per_update": 3, "tokens_per_micro_batch": 150, "learning_rate": 1e-5},
        before=[{"steps": 2, "objective": [{"term": "supervised", "pairs_per_update": 3}]}],
        objective=objective,
    )
    train(config, tmp_path / "one")
    done = torchrun("-m", "vlm_contextrl", "train", written(config, tmp_path), "--out", tmp_path / "two")
    assert done.returncode == 0, tail(done)
    for each, by_one in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        assert each == pytest.approx(by_one, abs=2e-3)


@pytest.mark.slow
def test_more_processes_than_prompts(questions_folder: Path, pairs_folder: Path, tmp_path: Path) -> None:
    """Three ranks, two prompts and one pair per update: some have nothing, and wait. The embedded model, whose LM head is its embedding."""
    rows = {"questions": questions_folder, "pairs": pairs_folder}
    objective = [
        {"term": "policy", "rewards": {"tests.tiny_models:odd_bytes": 1.0}, "kl_coef": 0.1},
        {"term": "selection_loss", "weight": 0.5, "pairs_per_update": 1},
    ]
    config = run_config(Path("tinyvl"), rows, steps=2, objective=objective, optim={"learning_rate": 1e-5})
    train(config, tmp_path / "one")
    done = torchrun(
        "-m", "vlm_contextrl", "train", written(config, tmp_path), "--out", tmp_path / "three", n=3
    )
    assert done.returncode == 0, tail(done)
    for each, by_one in zip(numbers(tmp_path / "three"), numbers(tmp_path / "one"), strict=True):
        assert each == pytest.approx(by_one, abs=1e-4)


def assert_moved_alike(file: Path, start: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The last step of all weights together, to 2% of its length."""
    found = load_file(file)
    assert found.keys() == expected.keys()
    moved, apart = (
        torch.cat([(a[name] - b[name]).flatten() for name in expected]).norm()
        for a, b in ((expected, start), (found, expected))
    )
    assert float(apart) < 0.02 * float(moved)


@pytest.mark.parametrize("family", [pytest.param(FAMILIES[0], marks=SLOW), FAMILIES[1]])
def test_a_sharded_model_becomes_an_ordinary_folder(
    family: str, qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """Trained on two processes, loaded by `AutoModelForImageTextToText` as it is: the same outputs as the checkpoint's weights give."""
    config = run_config(qwen_folders[family], noise_rows, steps=1, model={"train_vision": True})
    done = torchrun("-m", "vlm_contextrl", "train", written(config, tmp_path), "--out", tmp_path / "run")
    assert done.returncode == 0, tail(done)
    final = tmp_path / "run/final"
    trained, start = plain_model(final), plain_model(qwen_folders[family])
    weights = load_file(tmp_path / "run/checkpoints/step_000001/trainable.safetensors")
    start.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()}, strict=True)
    processor = load_processor(str(final), trained.config.image_token_id)
    prompts = [ask(processor, "How many?", [noise_image(1)]), ask(processor, "Why?")]
    inputs = reference.model_inputs(prompts, [torch.tensor([65, 66])] * 2, processor)
    with torch.no_grad():
        assert torch.equal(trained(**inputs).logits, start(**inputs).logits)
        before = plain_model(qwen_folders[family])(**inputs).logits
        assert not torch.allclose(trained(**inputs).logits, before, atol=1e-4)


def test_ranks_alone() -> None:
    """Without torchrun there is one rank, and nothing is sent."""
    from vlm_contextrl.ranks import Ranks

    ranks = Ranks.join()
    assert (ranks.rank, ranks.world, ranks.is_first) == (0, 1, True)
    assert list(ranks.part(range(3))) == [0, 1, 2]
    assert ranks.total(1.0, 2.0) == (1.0, 2.0)
    assert ranks.total_by_name({"a": 1.0}) == {"a": 1.0}
    assert ranks.gather("x") == ["x"]


def test_parts_are_uneven() -> None:
    from vlm_contextrl.ranks import Ranks

    assert [Ranks(r, 3).part([0, 1, 2, 3]) for r in range(3)] == [[0, 3], [1], [2]]
