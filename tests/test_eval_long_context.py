"""Needles and long documents with a random text model of a few thousand weights and a tokenizer made here.

A model that reads (it looks the needle up in its own prompt, or knows the letters) scores 1, one that is random 0.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.eval.long_context import NIAH_TASKS, evaluate_longbench, evaluate_niah, read_row
from vlm_contextrl.eval.text_answers import LongContextSettings, load_model

pytestmark = pytest.mark.filterwarnings("ignore:::lm_eval", "ignore:::nltk")

TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
CHOICES = {f"choice_{letter}": f"option {letter}" for letter in "ABCD"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 1 layer that takes 2,048 tokens, with a chat template."""
    pytest.importorskip("lm_eval")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "One of the special magic numbers for wide-eyed is: The grass is green. The sky is blue. The sun is yellow. "
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>", "<user>", "<model>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text] * 3, trainer)
    folder = tmp_path_factory.mktemp("text_model")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_model(LongContextSettings(model=str(model_folder), dtype="float32"))


class Scripted:
    """The model's tokenizer and limits with another voice; counts what it is asked."""

    def __init__(self, model: Any, voice: Any, dies_after: int | None = None) -> None:
        self._model, self._voice, self._dies_after = model, voice, dies_after
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        if self._dies_after is not None and len(self.asked) >= self._dies_after:
            raise KeyboardInterrupt
        self.asked += [request.args[0] for request in requests]
        return [self._voice(request.args[0]) for request in requests]


def look_up(prompt: str) -> str:
    """The needle of the key that the prompt asks for."""
    asked = re.findall(r"The special magic \w+ for (\S+) mentioned in the provided text is", prompt)[-1]
    found = re.findall(rf"magic \w+ for {re.escape(asked)} is: (\S+)\.", prompt)
    assert len(found) == 1
    return f" {found[0]}."


def settings(folder: Path, **values: Any) -> LongContextSettings:
    return LongContextSettings(
        **{"model": str(folder), "dtype": "float32", "lengths": (1024, 2048), "samples": 2, **values}
    )


@pytest.mark.slow
def test_who_reads_finds_every_needle(model: Any, model_folder: Path, tmp_path: Path) -> None:
    """3 tasks x 2 lengths x 2 samples = 12, each within its length with 128 tokens to spare, and longer than the next smaller length."""
    reader = Scripted(model, look_up)
    result = evaluate_niah(settings(model_folder, batch_size=5), tmp_path / "niah", model=reader)
    assert result["accuracy"] == {"value": 1.0, "n": 12, "low": 1.0, "high": 1.0}
    assert {group: entry["n"] for group, entry in result["by_category"].items()} == {
        "1024 tokens": 6, "2048 tokens": 6, **{f"{name}, {length} tokens": 2 for name in NIAH_TASKS for length in (1024, 2048)}
    }  # fmt: skip
    lengths = sorted(len(model.tok_encode(prompt)) + 128 for prompt in reader.asked)
    assert lengths[5] <= 1024 < lengths[6]
    assert lengths[11] <= 2048
    assert all(prompt.startswith("<user>A special magic") for prompt in reader.asked)
    assert json.loads((tmp_path / "niah/result.json").read_text()) == result
    samples = [json.loads(line) for line in (tmp_path / "niah/samples.jsonl").read_text().splitlines()]
    assert len({(sample["part"], sample["id"]) for sample in samples}) == 12


@pytest.mark.slow
def test_who_does_not_read_finds_none(model: Any, model_folder: Path, tmp_path: Path) -> None:
    result = evaluate_niah(
        settings(model_folder), tmp_path, model=Scripted(model, lambda prompt: "1234567 maybe")
    )
    assert result["accuracy"]["value"] == 0.0


@pytest.mark.slow
def test_the_prompts_do_not_depend_on_what_else_is_asked(
    model: Any, model_folder: Path, tmp_path: Path
) -> None:
    """The generator draws from a global stream: one length alone gives the prompts that it gives among others."""
    alone, among = Scripted(model, look_up), Scripted(model, look_up)
    evaluate_niah(settings(model_folder, lengths=(2048,)), tmp_path / "a", model=alone)
    evaluate_niah(settings(model_folder), tmp_path / "b", model=among)
    assert set(alone.asked) < set(among.asked)


@pytest.mark.slow
def test_a_killed_run_goes_on(model: Any, model_folder: Path, tmp_path: Path) -> None:
    """Stopped after 5 of 12; the second run asks the other 7, the third none, another adapter all."""
    with pytest.raises(KeyboardInterrupt):
        evaluate_niah(settings(model_folder), tmp_path, model=Scripted(model, look_up, dies_after=5))
    second, third = Scripted(model, look_up), Scripted(model, look_up)
    result = evaluate_niah(settings(model_folder), tmp_path, model=second)
    assert evaluate_niah(settings(model_folder), tmp_path, model=third) == result
    assert (len(second.asked), len(third.asked)) == (7, 0)
    other = Scripted(model, look_up)
    evaluate_niah(settings(model_folder, adapter=str(model_folder)), tmp_path, model=other)
    assert len(other.asked) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "message"),
    [((4096,), "length 4096, expected at most the 2048 tokens"), ((260,), "length 260 is too short")],
)
def test_lengths_that_cannot_be(
    lengths: tuple[int, ...], message: str, model: Any, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        evaluate_niah(settings(model_folder, lengths=lengths), tmp_path, model=model)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a text model") as error:
        load_model(LongContextSettings(model=str(tmp_path)))
    assert "\n" not in str(error.value)


def document(number: int, words: int, **changes: Any) -> dict[str, Any]:
    row = {
        "_id": f"doc{number}", "domain": "fiction", "difficulty": "easy", "length": "short", "question": "Which? ", **CHOICES,
        "answer": "ABCD"[number % 4], "context": "The sky is blue. " * (words // 4),
    }  # fmt: skip
    return {**row, **changes}


@pytest.fixture
def longbench_root(tmp_path: Path) -> Path:
    """Five rows as published (data.json): two short, one medium, one longer than 2,048 tokens, one with a control token."""
    rows = [
        document(0, 40), document(1, 40, difficulty="hard"), document(2, 400, length="medium"),
        document(3, 8000, length="long"), document(4, 40, context="a <|im_end|> b"),
    ]  # fmt: skip
    folder = tmp_path / "root/THUDM/LongBench-v2"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps(rows))
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_long_documents_by_category_and_rejects_with_their_count(
    model: Any, model_folder: Path, longbench_root: Path, tmp_path: Path
) -> None:
    """Answers A, A, C to A, B, C: 2 of 3 right; short 1 of 2, medium 1 of 1. Two rows are rejected: nothing is cut."""
    voice = Scripted(model, lambda prompt: r"I read it. \boxed{C}" if len(prompt) > 1000 else r"\boxed{A}")
    result = evaluate_longbench(
        settings(model_folder, max_new_tokens=64), longbench_root, tmp_path / "longbench_v2", model=voice
    )
    assert result["accuracy"]["value"] == pytest.approx(2 / 3)
    values = {group: (entry["value"], entry["n"]) for group, entry in result["by_category"].items()}
    assert values == {"short": (0.5, 2), "easy": (1.0, 2), "hard": (0.0, 1), "medium": (1.0, 1)}
    assert (result["rejects"], result["rejects_by_category"]) == (2, {"long": 1, "short": 1})
    rejects = [
        json.loads(line) for line in (tmp_path / "longbench_v2/rejects.jsonl").read_text().splitlines()
    ]
    assert re.fullmatch(r"\d+ tokens, expected at most 1984", rejects[0]["reason"])
    assert "im_end" in rejects[1]["reason"]
    assert all("The sky is blue" in prompt and "A. option A\nB. option B" in prompt for prompt in voice.asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, "row 3: answer is 'E', expected A, B, C or D"),
        ({"choice_C": None}, "row 3: choice_C is None, expected a text"),
    ],
)
def test_another_schema_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_row(document(3, 4, **changes), 3)


@pytest.mark.slow
def test_a_model_with_and_without_adapter(model_folder: Path, longbench_root: Path, tmp_path: Path) -> None:
    """The whole way with real decoding: an adapter that is far from nothing changes answers, and both are scored."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_folder),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]),
    )
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    tuned.save_pretrained(tmp_path / "adapter")
    completions = []
    for adapter in (None, str(tmp_path / "adapter")):
        asked = settings(
            model_folder, adapter=adapter, lengths=(1024,), samples=1, max_new_tokens=8, batch_size=2
        )
        folder = tmp_path / f"run-{adapter is None}"
        assert evaluate_niah(asked, folder / "niah")["accuracy"]["n"] == 3
        assert evaluate_longbench(asked, longbench_root, folder / "longbench_v2")["accuracy"]["n"] == 3
        lines = (folder / "longbench_v2/samples.jsonl").read_text().splitlines()
        completions.append([json.loads(line)["completion"] for line in lines])
    assert completions[0] != completions[1]


@pytest.mark.slow
def test_by_the_command(model_folder: Path, longbench_root: Path, tmp_path: Path) -> None:
    """Both benchmarks in processes of their own; two prompts for each of three tasks, two documents."""
    subprocess.run(
        [
            sys.executable, "-m", "vlm_contextrl", "eval", "--model", str(model_folder), "--benchmarks", "niah,longbench_v2",
            "--data-root", str(longbench_root), "--out", str(tmp_path / "out"), "--niah-lengths", "1024", "--limit", "2",
            "--max-new-tokens", "8", "--batch-size", "2",
        ],
        check=True,
    )  # fmt: skip
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {name: found["accuracy"]["n"] for name, found in results["long_texts"].items()} == {
        "niah": 6,
        "longbench_v2": 2,
    }
    assert "Long texts" in (tmp_path / "out/report.html").read_text()
