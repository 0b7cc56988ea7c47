"""Benchmarks through lmms-eval, on made-up rows in the published schema of each.

The harness is imported once here (seconds), so its work is done in this process; test_eval_processes.py has the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_contextrl.errors import ConfigError, MissingExtraError
from vlm_contextrl.eval import answering, harness
from vlm_contextrl.eval.answering import ModelAnswerer
from vlm_contextrl.eval.fixtures import write_fixtures
from vlm_contextrl.eval.journal import Journal, read_journal
from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.eval.worker import Job, work

pytest.importorskip("lmms_eval")

ROWS = 4
Samples = list[dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmarks") / "root"
    write_fixtures(out, ROWS)
    return out


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the embedded model that changes what it says."""
    from vlm_contextrl.config import LoraSettings, ModelSettings
    from vlm_contextrl.models import load_policy

    policy = load_policy(ModelSettings(tuning="lora", lora=LoraSettings(rank=2, alpha=4)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path_factory.mktemp("adapter")
    policy.model.save_pretrained(folder)
    return folder


def run(
    out: Path, root: Path, name: str, model: str = "tinyvl", **settings: Any
) -> tuple[dict[str, Any], Samples]:
    """result.json and the samples of one benchmark."""
    values = {"style": "plain", "max_new_tokens": 8, "data_root": str(root), **settings}
    work(Job(name, str(out / name), {"model": model, **values}, {"model": model, "adapter": None}))
    result = json.loads((out / name / "result.json").read_text())
    samples = [json.loads(line) for line in (out / name / "samples.jsonl").read_text().splitlines()]
    return result, samples


@pytest.mark.parametrize("name", BENCHMARKS)
def test_who_knows_the_answers_has_all_of_them(name: str, root: Path, tmp_path: Path) -> None:
    """Through the harness as in a real run: rows, prompts, journal, extractor. `oracle` answers in all forms by turns."""
    expected_n = ROWS * len(BENCHMARKS[name].parts)
    result, samples = run(tmp_path / "oracle", root, name, "oracle")
    assert result["accuracy"] == {"value": 1.0, "n": expected_n, "low": 1.0, "high": 1.0}
    result, samples = run(tmp_path / "wrong", root, name, "wrong")
    assert result["accuracy"] == {"value": 0.0, "n": expected_n, "low": 0.0, "high": 0.0}
    result, samples = run(tmp_path / "first", root, name, "first")
    assert result["accuracy"]["value"] == sum(s["answer"] == "A" for s in samples) / expected_n
    assert {s["part"] for s in samples} == {part.name for part in BENCHMARKS[name].parts}


def test_stock_column_is_the_harness_s_own_metric(root: Path, tmp_path: Path) -> None:
    """MMStar's own scorer reads every form of a letter; PhyX's asks a judge, so it has none."""
    result, _ = run(tmp_path, root, "mmstar", "first")
    assert (result["stock_metric"], result["stock_error"]) == ("average", None)
    assert 0 < result["stock"] < 1
    result, _ = run(tmp_path, root, "phyx", "oracle")
    assert (result["stock"], result["stock_metric"]) == (None, None)
    assert result["stock_error"] == "its scorer asks a judge model"


def test_a_stock_scorer_that_fails_costs_only_its_column(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise harness.StockScorerError("no such option")

    monkeypatch.setattr(harness, "stock_score", fail)
    result, _ = run(tmp_path, root, "mmstar", "oracle")
    assert (result["accuracy"]["value"], result["stock"], result["stock_error"]) == (
        1.0,
        None,
        "no such option",
    )


@pytest.mark.parametrize("name", ["blink", "mmmu", "scienceqa"])
def test_answers_do_not_depend_on_the_batch(name: str, root: Path, tmp_path: Path) -> None:
    """Pictures of different sizes, one and several per question."""
    one, singles = run(tmp_path / "1", root, name, batch_size=1)
    four, quadruples = run(tmp_path / "4", root, name, batch_size=4)
    assert [s["completion"] for s in singles] == [s["completion"] for s in quadruples]
    assert len({s["completion"] for s in singles}) > 1
    assert one == four


def test_adapter_merged_and_not(root: Path, tmp_path: Path, adapter: Path) -> None:
    _, base = run(tmp_path / "base", root, "mmmu")
    _, with_adapter = run(tmp_path / "adapter", root, "mmmu", adapter=str(adapter))
    _, merged = run(tmp_path / "merged", root, "mmmu", adapter=str(adapter), merge=True)
    texts = [[s["completion"] for s in samples] for samples in (base, with_adapter, merged)]
    assert texts[0] != texts[1] == texts[2]


def test_four_bits_on_a_cpu(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result, samples = run(tmp_path, root, "mmstar", load_in_4bit=True)
    assert result["accuracy"]["n"] == ROWS
    assert all(s["completion"] for s in samples)


def test_length_limit_is_told(root: Path, tmp_path: Path) -> None:
    result, samples = run(tmp_path, root, "olympiadbench", max_new_tokens=1)
    assert result["truncated"] == 1.0
    assert {s["n_tokens"] for s in samples} == {1}


def test_interrupted_run_asks_no_sample_twice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 tasks of 4 rows, batches of 3: 28 batches. The tenth is the last before the machine fails."""
    asked: list[int] = []
    answer = ModelAnswerer.answer

    def counting(self: Any, prompts: Any, limit: int) -> Any:
        if len(asked) == 10:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return answer(self, prompts, limit)

    whole, _ = run(tmp_path / "whole", root, "blink", batch_size=3)
    monkeypatch.setattr(ModelAnswerer, "answer", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", root, "blink", batch_size=3)
    kept = sum(asked)
    assert kept == len(list(read_journal(tmp_path / "broken" / "blink")))
    monkeypatch.setattr(ModelAnswerer, "answer", answer)
    again, samples = run(tmp_path / "broken", root, "blink", batch_size=3)
    assert again == whole
    lines = [(line["part"], line["doc_id"]) for line in read_journal(tmp_path / "broken" / "blink")]
    assert len(lines) == len(set(lines)) == len(samples) == 56


def test_finished_benchmark_loads_no_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = run(tmp_path, root, "mmstar", "oracle")

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(answering, "answerer", loaded)
    after, _ = run(tmp_path, root, "mmstar", "oracle")
    assert after == before


def test_torn_last_line_is_asked_again(root: Path, tmp_path: Path) -> None:
    whole, _ = run(tmp_path, root, "mmstar")
    folder = tmp_path / "mmstar"
    (folder / "result.json").unlink()
    journal = folder / "answers.0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert len(Journal(folder, 0)._known) == ROWS - 1
    again, _ = run(tmp_path, root, "mmstar")
    assert again == whole


def test_other_settings_are_not_mixed_into_a_folder(root: Path, tmp_path: Path) -> None:
    run(tmp_path, root, "mmstar", "oracle")
    with pytest.raises(ConfigError, match=r"style was 'plain' and is 'direct'"):
        run(tmp_path, root, "mmstar", "oracle", style="direct")


def test_other_data_are_not_mixed_into_a_folder(root: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", root, "mmstar", "oracle")
    other = tmp_path / "root"
    write_fixtures(other, ROWS + 2)
    with pytest.raises(ConfigError, match="other data than before"):
        run(tmp_path / "run", other, "mmstar", "oracle")


def test_limit_is_the_first_rows_of_each_task(root: Path, tmp_path: Path) -> None:
    result, samples = run(tmp_path, root, "mmmu_pro", "oracle", limit=2)
    assert [(s["part"], s["doc_id"]) for s in samples] == [
        (f"mmmu_pro_{kind}", i) for kind in ("standard", "vision") for i in (0, 1)
    ]
    result, _ = run(tmp_path, root, "mmmu_pro", "oracle", limit=3)
    assert result["accuracy"]["n"] == 6


def test_pictures_of_samples_are_kept_small(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    _, samples = run(tmp_path, root, "mmstar", "oracle")
    for sample in samples:
        with Image.open(tmp_path / "mmstar" / "pictures" / sample["picture"]) as picture:
            assert max(picture.size) <= harness.PICTURE_PX


def test_harness_finds_our_model_by_its_name() -> None:
    """Entry point `lmms_eval.models`: `lmms-eval --model contextrl` is this class."""
    harness.prepare_imports(offline=True)
    from lmms_eval.models import get_model

    from vlm_contextrl.eval.model import ContextRLModel

    assert get_model("contextrl") is ContextRLModel


def test_half_a_picture_stays_an_error() -> None:
    """Importing lmms-eval tells Pillow to accept truncated files; this process keeps its own rule."""
    from PIL import ImageFile

    harness.prepare_imports(offline=True)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_without_the_harness_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lmms_eval.api.task", None)
    with pytest.raises(
        MissingExtraError, match=r"pip install .*eval.* && pip install --no-deps lmms-eval==0\.7\.3"
    ):
        harness.prepare_imports(offline=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "oracle", "adapter": "x"}, "oracle is a stand-in; it takes no adapter"),
        ({"model": "tinyvl", "merge": True}, "there is no adapter to merge"),
        ({"model": "tinyvl", "adapter": "x", "merge": True, "load_in_4bit": True}, "would lose the adapter"),
        ({"model": "tinyvl", "load_in_4bit": True, "engine": "vllm"}, "vllm takes no weights in 4 bits"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalSettings(**values)


@pytest.fixture(autouse=True)
def quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()
