"""Selection probes over whole sets on a stand-in for the policy that says what a test tells it to: measures by hand, resume, failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from tests.tiny_models import image_pair, tiny_policy
from vlm_contextrl import intervals
from vlm_contextrl.config import ModelSettings
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.eval import selection
from vlm_contextrl.eval.selection import Mode, run_selection
from vlm_contextrl.eval.selection_fixtures import write_selection_fixtures
from vlm_contextrl.eval.selection_records import PairJournal, measures
from vlm_contextrl.eval.selection_sets import SELECTION_SETS
from vlm_contextrl.models import load_policy
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.probe import contexts, probe
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.rollout import Completion
from vlm_contextrl.storage import write_rows

Reply = Callable[[EncodedPrompt], str]
MODES: tuple[Mode, ...] = ("logits", "generation")
CONTENT = {"model": "scripted", "adapter": None, "weights": "1"}
PAIRS = [image_pair(n, "8" if n % 2 else None) for n in range(5)]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Scripted:
    """A policy whose reply to a prompt is given: as text when it generates, by logits 1 and 0 when the reply is A or B, else a tie."""

    training = True
    device = torch.device("cpu")

    def __init__(self, processor: Processor, reply: Reply) -> None:
        self.processor, self.reply = processor, reply
        self.asked: list[EncodedPrompt] = []

    def option_logits(
        self, prompts: Sequence[EncodedPrompt], option_ids: Sequence[int], budget_tokens: int
    ) -> Tensor:
        assert not self.training
        return torch.tensor([[float(reply == letter) for letter in "AB"] for reply in self.replies(prompts)])

    def replies(self, prompts: Sequence[EncodedPrompt]) -> list[str]:
        self.asked += prompts
        return [self.reply(prompt) for prompt in prompts]

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy generation by a scripted policy, while other policies sample as ever; and few resamples, since intervals are slow."""
    sample = selection.sample

    def say(policy: Any, prompts: Sequence[EncodedPrompt], n: int, **settings: Any) -> list[list[Completion]]:
        if not isinstance(policy, Scripted):
            return sample(policy, prompts, n, **settings)
        assert (n, settings["temperature"]) == (1, 0)
        ids = [policy.processor.tokenizer.encode(reply) for reply in policy.replies(prompts)]
        return [[Completion(torch.tensor(i), torch.zeros(len(i)), False)] for i in ids]

    monkeypatch.setattr(selection, "sample", say)
    monkeypatch.setattr(intervals, "N_RESAMPLES", 20)


@pytest.fixture(scope="module")
def processor(qwen_folders: dict[str, Path]) -> Processor:
    return tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False).processor


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """PAIRS as a dataset folder: the second and the fourth go both ways."""
    write_rows(PAIRS, tmp_path / "my_pairs", recipe="noise", config={})
    return str(tmp_path / "my_pairs")


def knows(processor: Processor, pairs: Sequence[ContrastivePair]) -> Reply:
    """Chooses the first image when it supports the answer, else the second."""
    true = set()
    for pair in pairs:
        good, bad = (image.key for image in contexts(processor, pair))  # type: ignore[union-attr]
        true |= {(good, f"Answer: {pair.answer}\n"), (bad, f"Answer: {pair.confounder_answer}\n")}

    def reply(prompt: EncodedPrompt) -> str:
        text = processor.decode(prompt.ids_T.tolist())
        return "A" if any(prompt.images[0].key == key and answer in text for key, answer in true) else "B"

    return reply


def values(result: dict[str, Any]) -> dict[str, float]:
    return {
        name: entry["value"] for name, entry in result.items() if isinstance(entry, dict) and "value" in entry
    }


def ask(policy: Any, name: str, out: Path, mode: Mode = "logits", **settings: Any) -> dict[str, Any]:
    return run_selection(name, policy, out=out, content=CONTENT, mode=mode, **settings)


# ---------------------------------------------------------------- measures


def test_measures_of_choices_by_hand() -> None:
    """Context as A, context as B. Pair 1 right in both; pair 2 says A twice, right once; pair 3 cannot be read once and is wrong once.
    Accuracy (1 + 1/2 + 0) / 3. Both orders: 1 of 3. Both ways: pair 1 is wrong in reverse, pair 2 in one order: 0 of 2. Chooses A: 1/2,
    1, and for pair 3 (neither, A) 3/4; mean 3/4, bias 1/4. Control: A B, A A, neither: right 1, 1/2, 0. Unreadable: 1 of 6.
    """
    records = [
        {"id": "1", "choices": ["A", "B"], "reverse_choices": ["B", "B"], "control_choices": ["A", "B"]},
        {"id": "2", "choices": ["A", "A"], "reverse_choices": ["A", "B"], "control_choices": ["A", "A"]},
        {"id": "3", "choices": [None, "A"], "reverse_choices": None, "control_choices": [None, None]},
    ]  # fmt: skip
    found = measures(records)
    assert values(found) == pytest.approx({
        "selection_accuracy": 0.5, "order_consistent_accuracy": 1 / 3, "group_accuracy": 0.0, "mean_margin": None,
        "position_bias": 0.25, "same_image_control": 0.5, "unreadable": 1 / 6,
    })  # fmt: skip
    assert (found["selection_accuracy"]["n"], found["group_accuracy"]["n"]) == (3, 2)


def test_measures_of_margins_are_those_of_the_probe(processor: Processor) -> None:
    """Value and interval, on margins of every sign, ties included."""

    class Drawn(Scripted):
        def option_logits(self, prompts: Sequence[EncodedPrompt], *_: Any) -> Tensor:
            return torch.randint(0, 3, (len(prompts), 2), generator=torch.Generator().manual_seed(5)).float()

    expected = probe(Drawn(processor, str), [image_pair(n, "8" if n % 3 else None) for n in range(12)])  # type: ignore[arg-type]
    per_pair = expected.pop("per_pair")
    assert any(0 in record["margins"] for record in per_pair)
    found = measures(per_pair)
    assert found.pop("unreadable")["n"] == 0
    assert found == expected


@pytest.mark.parametrize("mode", MODES)
def test_always_a(processor: Processor, folder: str, tmp_path: Path, mode: Mode) -> None:
    """Right in one order of every pair: 1/2, never in both; A is chosen always, 1/2 more than without a preference."""
    found = values(ask(Scripted(processor, lambda prompt: "A"), folder, tmp_path / "out", mode))
    assert found == {
        "selection_accuracy": 0.5, "order_consistent_accuracy": 0.0, "group_accuracy": 0.0, "position_bias": 0.5,
        "mean_margin": 0.0 if mode == "logits" else None, "same_image_control": 0.5,
        "unreadable": None if mode == "logits" else 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_one_that_knows(processor: Processor, folder: str, tmp_path: Path, mode: Mode) -> None:
    """All right, by a margin of 1, and still one half where both images are the context."""
    policy = Scripted(processor, knows(processor, PAIRS))
    found = values(ask(policy, folder, tmp_path / "out", mode))
    assert found == {
        "selection_accuracy": 1.0, "order_consistent_accuracy": 1.0, "group_accuracy": 1.0, "position_bias": 0.0,
        "mean_margin": 1.0 if mode == "logits" else None, "same_image_control": 0.5,
        "unreadable": None if mode == "logits" else 0.0,
    }  # fmt: skip
    assert len(policy.asked) == 5 * 4 + 2 * 2
    assert policy.training


def test_replies_that_cannot_be_read_are_wrong(processor: Processor, folder: str, tmp_path: Path) -> None:
    """Half of what knows: where it would say B it says nothing of use. Right with the context as A only; control 1/2 of one half."""
    right = knows(processor, PAIRS)
    policy = Scripted(processor, lambda prompt: "A" if right(prompt) == "A" else "A or B")
    found = values(ask(policy, folder, tmp_path / "out", "generation"))
    assert found["selection_accuracy"] == found["unreadable"] == 0.5
    assert (found["order_consistent_accuracy"], found["position_bias"]) == (0.0, 0.25)
    record = json.loads((tmp_path / "out/per_pair.jsonl").read_text().splitlines()[1])
    assert (record["choices"], record["replies"]) == (["A", None], ["A", "A or B"])


@pytest.mark.parametrize("reply", ["B", " B.", "(b)", "Image B", "The answer is B.", "<think>A?</think>B"])
def test_forms_of_a_letter(reply: str) -> None:
    assert selection._letter(reply, PAIRS[0]) == "B"


@pytest.mark.parametrize("mode", MODES)
def test_text_pairs(processor: Processor, tmp_path: Path, mode: Mode) -> None:
    """The reply goes on from "The correct option is"."""
    pair = ContrastivePair(
        id="t", query="Which?", answer="7", context="It is 7.", confounder="It is 8.", confounder_answer="8",
        provenance={"licence": "CC0-1.0"},
    )  # fmt: skip
    write_rows([pair], tmp_path / "texts", recipe="hand", config={})

    def reply(prompt: EncodedPrompt) -> str:
        text = processor.tokenizer.decode(prompt.ids_T)
        answer = text.partition("Answer: ")[2][0]
        return ("A" if f"Context A:\nIt is {answer}" in text else "B") + ("." if mode == "generation" else "")

    found = values(ask(Scripted(processor, reply), str(tmp_path / "texts"), tmp_path / "out", mode))
    assert (found["selection_accuracy"], found["group_accuracy"], found["same_image_control"]) == (
        1.0,
        1.0,
        0.5,
    )


# ---------------------------------------------------------------- on disk


def test_what_a_result_holds(processor: Processor, folder: str, tmp_path: Path) -> None:
    policy = Scripted(processor, lambda prompt: "A")
    found = ask(policy, folder, tmp_path / "out")
    assert json.loads((tmp_path / "out/result.json").read_text()) == found
    told = {
        key: found[key]
        for key in ("model", "device", "pairs", "set", "split", "licence", "mode", "inputs", "rejects")
    }
    assert told == {
        "model": "scripted", "device": "cpu", "pairs": folder, "set": "my_pairs", "split": None, "licence": "CC0-1.0", "mode": "logits",
        "inputs": 5, "rejects": {"pairs": 0},
    }  # fmt: skip
    same = ask(policy, folder, tmp_path / "again", batch_pairs=2)
    assert same["content_hash"] == found["content_hash"]
    other = run_selection(folder, policy, out=tmp_path / "other", content={"weights": "2"})  # type: ignore[arg-type]
    assert other["content_hash"] != found["content_hash"]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_costs_no_pair(
    processor: Processor, folder: str, tmp_path: Path, mode: Mode, torn: bool
) -> None:
    """Two pairs a batch, killed in the second; the second call asks the three pairs that are left and gives what one call gives."""
    right, asked = knows(processor, PAIRS), list[str]()

    def killed(prompt: EncodedPrompt) -> str:
        if len(asked) == 10:  # the first has no reverse and takes 4 prompts, the second takes 6
            raise KilledError
        asked.append("")
        return right(prompt)

    settings: dict[str, Any] = {"mode": mode, "batch_pairs": 2}
    with pytest.raises(KilledError):
        ask(Scripted(processor, killed), folder, tmp_path / "out", **settings)
    file = tmp_path / "out/per_pair.jsonl"
    assert len(file.read_text().splitlines()) == 1 + 2
    if torn:
        file.write_bytes(file.read_bytes() + b'{"id": "p2", "dom')
    steps: list[tuple[int, int]] = []
    policy = Scripted(processor, right)
    found = ask(policy, folder, tmp_path / "out", **settings, progress=lambda *step: steps.append(step))
    assert len(policy.asked) == 4 + 6 + 4
    assert steps == [(0, 5), (2, 5), (4, 5), (5, 5)]
    ids = [json.loads(line)["id"] for line in file.read_text().splitlines()[1:]]
    assert ids == ["p0", "p1", "p2", "p3", "p4"]
    assert found == ask(Scripted(processor, right), folder, tmp_path / "whole", **settings)
    again = Scripted(processor, right)
    assert ask(again, folder, tmp_path / "out", **settings) == found
    assert again.asked == []


def test_more_pairs_than_before(processor: Processor, folder: str, tmp_path: Path) -> None:
    """The first two, then all: the first two are not asked again."""
    policy = Scripted(processor, lambda prompt: "A")
    assert ask(policy, folder, tmp_path / "out", limit=2)["selection_accuracy"]["n"] == 2
    assert len(policy.asked) == 4 + 6
    assert ask(policy, folder, tmp_path / "out")["selection_accuracy"]["n"] == 5
    assert len(policy.asked) == 5 * 4 + 2 * 2


def test_a_pair_that_changed_is_asked_again(processor: Processor, folder: str, tmp_path: Path) -> None:
    policy = Scripted(processor, lambda prompt: "A")
    ask(policy, folder, tmp_path / "out", limit=2)
    changed = [image_pair(7, None), *PAIRS[1:]]
    object.__setattr__(changed[0], "id", "p0")
    write_rows(changed, tmp_path / "changed", recipe="noise", config={})
    ask(policy, str(tmp_path / "changed"), tmp_path / "out", limit=2)
    assert len(policy.asked) == (4 + 6) + 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"content": {"weights": "2"}}, "content"), ({"mode": "generation"}, "max_new_tokens, mode")],
)
def test_answers_made_otherwise_are_refused(
    processor: Processor, folder: str, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    policy: Any = Scripted(processor, lambda prompt: "A")
    ask(policy, folder, tmp_path / "out")
    with pytest.raises(
        ConfigError, match=f"per_pair.jsonl: holds answers made with another {named}; name another --out"
    ):
        run_selection(folder, policy, out=tmp_path / "out", **({"content": CONTENT} | changes))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "per_pair.jsonl").write_text('{"mode": "logits"}\nx\n')
    with pytest.raises(DataError, match="per_pair.jsonl, line 2: not JSON"):
        PairJournal(tmp_path / "per_pair.jsonl", {"mode": "logits"})


# ---------------------------------------------------------------- several sets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_selection_fixtures(folder)
    return folder


def test_a_published_set_with_rejects(processor: Processor, tmp_path: Path, root: Path) -> None:
    result = ask(Scripted(processor, lambda prompt: "A"), "hallusionbench", tmp_path / "out", data_root=root)
    told = {key: result[key] for key in ("pairs", "set", "split", "licence", "inputs", "rejects")}
    assert told == {
        "pairs": "lmms-lab-encoder/HallusionBench", "set": "HallusionBench (visual dependent)", "split": "image",
        "licence": "BSD-3-Clause", "inputs": 17, "rejects": {"pairs": 9},
    }  # fmt: skip
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 9


def test_sets_that_cannot_be_had(processor: Processor, tmp_path: Path) -> None:
    policy = Scripted(processor, lambda prompt: "A")
    with pytest.raises(DataError, match="lmms-lab-eval/MMVP"):
        ask(policy, "mmvp", tmp_path / "out", data_root=tmp_path / "nowhere")
    expected = "'nothing' is no dataset folder and none of naturalbench, vismin, hallusionbench, mmvp"
    with pytest.raises(ConfigError, match=expected):
        ask(policy, "nothing", tmp_path / "out")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["mmvp", "vismin"])
def test_published_sets_and_a_model(
    qwen_folders: dict[str, Path], tmp_path: Path, root: Path, name: str, mode: Mode
) -> None:
    """A random model, whose replies are bytes: by logits the control is one half, by generation none is a letter."""
    policy = tiny_policy(qwen_folders["qwen3_vl"], trainable=False)
    result = ask(policy, name, tmp_path / "out", mode, data_root=root)
    assert result["selection_accuracy"]["n"] == 4
    assert result["same_image_control"]["value"] == (0.5 if mode == "logits" else 0.0)


def test_tinyvl_on_all_sets(tmp_path: Path, root: Path) -> None:
    """Where both images are the context it is right once of two, or cannot be read."""
    policy = load_policy(ModelSettings(path="tinyvl"), trainable=False)
    n_pairs = {"naturalbench": 8, "vismin": 4, "hallusionbench": 8, "mmvp": 4}
    for mode in MODES:
        for name in SELECTION_SETS:
            result = ask(policy, name, tmp_path / mode / name, mode, data_root=root)
            assert result["selection_accuracy"]["n"] == n_pairs[name]
            readable = 1 - (result["unreadable"]["value"] or 0.0)
            assert result["same_image_control"]["value"] == 0.5 * readable
