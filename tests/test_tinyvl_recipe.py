"""The recipe of the embedded model: looking things up, the optimizer, the shares of processes, and a small build."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_contextrl.config import ModelSettings
from vlm_contextrl.data_recipes.tinyvl import TinyVLConfig, card, processes
from vlm_contextrl.data_recipes.tinyvl.instructions import InstructionRows
from vlm_contextrl.data_recipes.tinyvl.lookups import lookups, phrases_of
from vlm_contextrl.data_recipes.tinyvl.muon import COEFFICIENTS, Muon, orthogonalise
from vlm_contextrl.data_recipes.tinyvl.pretraining import read_processor, run
from vlm_contextrl.data_recipes.tinyvl.rows import PretrainingRows
from vlm_contextrl.data_recipes.tinyvl.vision_stage import LookupHead
from vlm_contextrl.errors import InputError
from vlm_contextrl.models import load_policy
from vlm_contextrl.processing import Processor

SMALL = TinyVLConfig(
    size_px=56, vocab_size=600, hidden=64, layers=1, intermediate=64, vision_hidden=32, vision_layers=1,
    vision_intermediate=32, vision_steps=2, images_per_step=4, word_scenes=60, lookups_per_image=3, steps=3,
    rows_per_step=2, reading_steps=1, instruction_steps=2, questions_per_scene=2, warmup_steps=1, processes=1,
)  # fmt: skip
SCENE = "a bar chart: red 4, blue 9, pink background."


@pytest.fixture(scope="module")
def processor(tiny_model_folder: Path) -> Processor:
    return read_processor(tiny_model_folder)


def test_phrases_of_a_description() -> None:
    """The kind of picture in front of the colon is no fact; a colon inside a time is no opening."""
    assert phrases_of(SCENE) == [("red", "4"), ("blue", "9"), ("pink", "background")]
    assert phrases_of("a clock: time 12:30, white background.") == [
        ("time", "12:30"),
        ("white", "background"),
    ]
    assert phrases_of("a small red star at top left, grey background.")[0] == (
        "a", "small", "red", "star", "at", "top", "left",
    )  # fmt: skip


def test_lookups_find_the_phrases_that_hold_all_words() -> None:
    """Queries take words of one phrase in its order; found is recomputed here from the facts."""
    phrases = phrases_of(SCENE)
    asked = lookups(SCENE, 300, ("green",), Random(0))
    for each in asked:
        assert 1 <= len(each.words) <= 2
        assert each.found == tuple(p for p in phrases if all(word in p for word in each.words))
    swapped = [each for each in asked if "green" in each.words]
    assert 0.15 < len(swapped) / len(asked) < 0.35
    assert all(not each.found for each in swapped)
    assert {each.words for each in asked if not each.found} == {each.words for each in swapped}


def test_small_words_are_not_asked_for() -> None:
    asked = lookups("a small red star at top left, grey background.", 200, (), Random(1))
    assert not {"a", "at"} & {word for each in asked for word in each.words}


def test_orthogonalise_is_a_polynomial_of_singular_values() -> None:
    """M = U S V^T becomes U p(p(..(S/|M|))) V^T with p(s) = a s + b s^3 + c s^5, five times; tall and wide alike."""
    torch.manual_seed(0)
    for shape in ((1, 5, 9), (1, 9, 5)):
        matrix = torch.randn(shape, dtype=torch.float64)
        u, s, vh = torch.linalg.svd(matrix[0], full_matrices=False)
        s = s / matrix.norm()
        a, b, c = COEFFICIENTS
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        assert torch.allclose(orthogonalise(matrix)[0], u @ torch.diag(s) @ vh, atol=1e-12)
        assert 0.6 < s.min() <= s.max() < 1.3


def test_muon_agrees_with_torch() -> None:
    """torch.optim.Muon computes in bfloat16: two steps agree to its precision, whichever shapes stand beside."""
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 8)]
    ours = [torch.nn.Parameter(x.clone()) for x in start]
    theirs = [torch.nn.Parameter(x.clone()) for x in start]
    optimizers = (
        Muon(ours, lr=0.1, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(2):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = max(float((p.detach() - x).abs().max()) for p, x in zip(ours, start, strict=True))
    worst = max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert worst < 0.02 * moved


def _two_process_step(folder: Path) -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3, 5))]
    x = torch.arange(24.0).view(6, 4)[list(processes.share(range(6)))] / 24
    (x @ weights[0] @ weights[1]).pow(2).mean().backward()
    processes.average_gradients(weights)
    Muon(weights, lr=0.1, weight_decay=0.0).step()
    if processes.rank() == 0:
        grads = [w.grad for w in weights]
        torch.save({"weights": [w.detach() for w in weights], "grads": grads}, folder / "step.pt")


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    """Rows 0, 2, 4 and 1, 3, 5 of a batch: mean gradient and Muon update of all six."""
    results: list[dict[str, list[Tensor]]] = []
    for n in (1, 2):
        processes.launch(_two_process_step, n, tmp_path)
        results.append(torch.load(tmp_path / "step.pt"))
    for name in ("grads", "weights"):
        for one, two in zip(results[0][name], results[1][name], strict=True):
            assert torch.allclose(one, two, atol=1e-6)


def test_lookup_head_targets_and_vectors(processor: Processor) -> None:
    """`red` of `red 4, blue 9` is answered by 4; words that are one token get their vectors."""
    head = LookupHead(("red", "blue", "4", "9"), 64, 4)
    asked = [each for each in lookups(SCENE, 50, (), Random(0)) if each.words == ("red",)][:1]
    queries, targets = head.multi_hot([asked])
    assert queries.tolist() == [[[1, 0, 0, 0]]]
    assert targets.tolist() == [[[0, 0, 1, 0]]]
    assert head(torch.randn(1, 4, 64), queries).shape == (1, 1, 4)

    table = torch.nn.Embedding(len(processor.tokenizer), 64)
    model = type("Model", (), {"get_input_embeddings": lambda self: table})()
    assert head.give_vectors(model, processor.tokenizer) > 0
    (four,) = processor.tokenizer("4", add_special_tokens=False)["input_ids"]
    assert torch.equal(table.weight[four], head.embed.weight[2])


def test_rows_ask_what_the_pictures_show(processor: Processor) -> None:
    """One image: description, questions, lookups, one check. Two images: every question about a letter is followed by
    its check, and the check says whether the claimed answer is that letter's answer."""
    rows = PretrainingRows(SMALL, processor)
    decode = processor.tokenizer.decode
    kinds = set()
    for index in range(40):
        row = rows.row(index)
        told = [(decode(c.ids[: c.n_given]), decode(c.ids[c.n_given : -1])) for c in row.continuations]
        kinds.add(len(row.prompt.images))
        assert all(int(c.ids[-1]) == rows.end for c in row.continuations)
        if len(row.prompt.images) == 1:
            assert told[0][0].startswith("Describe the image.")
            assert sum(text.startswith("Look up ") for text, _ in told) == SMALL.lookups_per_scene
            assert told[-1][1] in ("yes", "no")
            continue
        assert row.prompt.images[0].key != row.prompt.images[1].key
        for (asked, answer), (check, verdict) in zip(told[::2], told[1::2], strict=True):
            assert asked[:13] == check[:13]
            claimed = check.split("\nAnswer: ")[1].split("\nIs this")[0].split(". ")[0]
            assert verdict == ("yes" if claimed == answer else "no")
    assert kinds == {1, 2}


def test_instruction_rows_tell_the_truth(processor: Processor) -> None:
    """Recomputed from the texts alone. One picture: a check says yes exactly where the claim is the answer given just before (a letter,
    or now and then the text of an option). Two pictures: a claim that is right for one of them is wrong for the other,
    and what is found in both, one or none of the pictures comes in all four forms. A selection prompt is never seen."""
    rows = InstructionRows(SMALL.model_copy(update={"questions_per_scene": 3}), processor)
    decode = processor.tokenizer.decode
    verdicts, found, forms = Counter[str](), Counter[str](), Counter[tuple[bool, str]]()
    for index in range(200):
        row = rows.row(index)
        told = [(decode(c.ids[: c.n_given]), decode(c.ids[c.n_given : -1])) for c in row.continuations]
        assert not any("supports" in text for text, _ in told)
        checks = {}
        for (question_before, before), (text, answer) in pairwise(told):
            if "Is this answer right?" not in text:
                continue
            verdicts[answer] += 1
            asked, claimed = text.split("\nIs this")[0].rsplit("\nAnswer: ", 1)
            if len(row.prompt.images) == 1:
                assert answer == ("yes" if before in claimed.split(". ") else "no")
                if "\nB. " in asked:
                    form = "letter" if before in tuple("ABCD") else "text"
                    forms["direct" in question_before, form] += 1
            else:
                where, _, question = asked.partition(": Question: ")
                checks[where[-1], f"{question} {claimed}"] = answer
        if len(row.prompt.images) == 2:
            assert row.prompt.images[0].key != row.prompt.images[1].key
            claims = {claimed for _, claimed in checks}
            flipped = [c for c in claims if {checks.get(("A", c)), checks.get(("B", c))} == {"yes", "no"}]
            assert len(flipped) >= 2
            found.update(answer for text, answer in told if text.startswith("\nLook up "))
    assert set(found) == {"1", "2", "both", "none"}
    assert (found["1"] + found["2"]) / found.total() > 0.3
    assert 0.35 < verdicts["yes"] / verdicts.total() < 0.65
    assert forms[True, "letter"] > 0 == forms[True, "text"]
    assert forms[False, "letter"] > forms[False, "text"] > 0


@pytest.mark.slow
def test_build_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that lost its last stage repeats that one only, to the same weights; other settings are refused."""
    monkeypatch.setattr(card, "N_PAIRS", 10)
    result = run(SMALL, tmp_path / "m")
    assert set(result["stages"]) == {"vision", "language", "instruction"}
    assert "| language | 3 |" in (tmp_path / "m/README.md").read_text()
    weights = (tmp_path / "m/model.safetensors").read_bytes()
    stages = sorted(path.name for path in (tmp_path / "m/stages").glob("*.safetensors"))
    assert stages == [f"{name}_stage.safetensors" for name in ("instruction", "language", "vision")]

    (tmp_path / "m/stages/instruction_stage.safetensors").unlink()
    (tmp_path / "m/model.safetensors").unlink()
    run(SMALL, tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == weights
    log = [json.loads(line)["stage"] for line in (tmp_path / "m/pretraining.jsonl").read_text().splitlines()]
    assert log == ["vision", "language", "instruction", "instruction"]

    with pytest.raises(InputError, match="other settings"):
        run(SMALL.model_copy(update={"seed": 1}), tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InputError, match="not empty"):
        run(SMALL, tmp_path / "other")
    policy = load_policy(ModelSettings(path=str(tmp_path / "m")))
    assert sum(p.numel() for p in policy.parameters()) == result["parameters"]


@pytest.mark.slow
def test_an_interrupted_stage_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third of four language steps, after a save at the second: the same weights as an unbroken build."""
    monkeypatch.setattr(card, "N_PAIRS", 10)
    config = SMALL.model_copy(update={"steps": 4, "save_every": 2})
    run(config, tmp_path / "whole")

    clip = torch.nn.utils.clip_grad_norm_
    calls = 0

    def stopped(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == config.vision_steps + 3:
            raise KeyboardInterrupt
        return clip(*args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts")
    run(config, tmp_path / "parts")
    assert calls == config.vision_steps + 3 + 2 + config.instruction_steps
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert not list((tmp_path / "parts/stages").glob("*.partial.pt"))
