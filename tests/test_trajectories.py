"""`pairs trajectories` from logs to a dataset: the cascade by hand, planted shortcuts and faults, a judge, a kill, real logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trajectory_logs import EDITS, ISSUES, WORDS, mini_log, patch_of, smith_row, write_json, write_rows
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.trajectories import TrajectoriesConfig, run
from vlm_contextrl.data_recipes.trajectories.patches import parse_patch
from vlm_contextrl.data_recipes.trajectories.sources import Reader, scan
from vlm_contextrl.errors import CheckpointError, ConfigError, DataError
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.prompts import selection_messages
from vlm_contextrl.storage import read_pairs, verify_folder

EVERYTHING = {"max_lexical_accuracy": 1.0, "min_issue_similarity": 0.0}


def make(
    logs: Path, out: Path, engine: Engine | None = None, **settings: Any
) -> tuple[dict[str, Any], list[ContrastivePair]]:
    summary = run(TrajectoriesConfig(**{**EVERYTHING, **settings}), logs, out, engine or Engine())
    assert summary["kept"] + summary["rejects"] == summary["inputs"]
    rejects = rejects_of(out)
    assert len(rejects) == summary["rejects"] == sum(summary["rejected"].values())
    verify_folder(out)
    return summary, list(read_pairs(out))


def rejects_of(out: Path) -> list[tuple[str, str]]:
    file = out / "rejects.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [(value["id"], value["reason"]) for value in map(json.loads, lines)]


def task_of(trajectory: str) -> str:
    return trajectory.rpartition("__")[2].partition(".")[0]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two runs of `sign`, and one of each other task, on one file; `elsewhere` edits another file, `later` another commit."""
    elsewhere = smith_row("sign", patch=patch_of("sign", path="pkg/other.py"))
    elsewhere |= {"instance_id": "acme__boxes.0a1b2c3d.func_basic__elsewhere", "traj_id": "elsewhere"}
    rows = [
        smith_row("sign", "1"),
        smith_row("sign", "2"),
        smith_row("digits"),
        smith_row("width"),
        smith_row("text"),
    ]
    later = smith_row("sign", commit="ffffffff", traj_id="later")
    return write_rows(tmp_path / "logs" / "rows.jsonl", [*rows, elsewhere, later]).parent


def test_the_cascade_by_hand(logs: Path, tmp_path: Path) -> None:
    """7 usable trajectories. One commit holds 6: 15 pairs, less the two runs of one task: 14. One file 5: 10 - 1 = 9. `area` is edited by
    both runs of `sign` and by `digits`: 2 pairs of 3 trajectories. Two issues are joined once: 1 pair of 2."""
    summary, pairs = make(logs, tmp_path / "out")
    assert summary["funnel_pairs"] == {
        "same repository and commit": 14, "same file": 9, "same function": 2, "related issues": 2, "different patches": 2, "chosen": 1,
        "masked, within limits": 1, "kept: words do not solve it": 1,
    }  # fmt: skip
    assert list(summary["funnel_trajectories"].values()) == [7, 7, 6, 5, 3, 3, 3, 2, 2, 2]
    assert summary["rejected"] == {
        "no_same_function": 2,
        "not_chosen": 1,
        "no_same_file": 1,
        "no_same_commit": 1,
    }
    assert (summary["inputs"], summary["kept"], summary["rows"]) == (7, 2, 1)
    reasons = {task_of(name): reason.partition(":")[0] for name, reason in rejects_of(tmp_path / "out")}
    assert reasons["width"] == reasons["text"] == "no_same_function"
    assert reasons["elsewhere"] == "no_same_file"
    assert reasons["later"] == "no_same_commit"
    (pair,) = pairs
    assert {task_of(name) for name in pair.provenance["made_from"]} == {"sign", "digits"}
    assert pair.provenance["functions"] == ["pkg/shapes.py:area"]
    assert pair.provenance["functions_told_by"] == "shown tree"


def test_what_a_pair_says(logs: Path, tmp_path: Path) -> None:
    """The query fits both sides; each answer is its side's change; neither context holds a changed line of either patch, the task or an
    id; what the agent thought is there, and only on its side."""
    _, (pair,) = make(logs, tmp_path / "out")
    task, other = (task_of(name) for name in pair.provenance["made_from"])
    assert pair.query == (
        "A coding agent edited area in pkg/shapes.py of acme/boxes. Its edits are masked. Which change did it make there?"
    )
    old, new = (line.rstrip("\n") for line in EDITS[task])
    assert pair.answer == f"pkg/shapes.py\n-{old}\n+{new}"
    assert pair.confounder_answer is not None
    assert EDITS[other][1].strip() in pair.confounder_answer
    for side, mine, others in ((pair.context, task, other), (pair.confounder, other, task)):
        assert isinstance(side, str)
        for line in (
            line.strip() for edit in EDITS.values() for line in edit if edit in (EDITS[task], EDITS[other])
        ):
            assert line not in side
        assert "diff --git" not in side
        assert ISSUES[mine] not in side
        assert "acme__boxes" not in side
        assert WORDS[mine] in side
        assert WORDS[others] not in side
        assert "[masked]" in side
    assert "number_digits" not in f"{pair.context}{pair.confounder}"
    told = pair.provenance
    assert (told["licence"], told["scene"], told["repository"], told["commit"]) == (
        "MIT",
        "acme/boxes",
        "acme/boxes",
        "0a1b2c3d",
    )
    assert told["messages_left_out"] == [0, 0]
    assert told["thresholds"]["match"] == "commit"
    assert pair.reversed() is not None
    sides = [side for side in (pair.context, pair.confounder) if isinstance(side, str)]
    assert selection_messages(pair.query, pair.answer, kind="text", contexts=sides)


def test_nearness_is_a_choice(logs: Path, tmp_path: Path) -> None:
    """By file: of 9 pairs those whose issues are alike enough, each two issues once; the function is counted and not applied."""
    summary, pairs = make(logs, tmp_path / "out", same="file", pairs_per_trajectory=3)
    assert summary["funnel_pairs"]["same function"] == 2
    assert summary["funnel_pairs"]["related issues"] == 9
    joined = [frozenset(map(task_of, pair.provenance["made_from"])) for pair in pairs]
    assert len(joined) == len(set(joined)) == 6
    summary, _ = make(logs, tmp_path / "far", same="repository", match="repository")
    assert summary["funnel_pairs"]["same repository"] > summary["funnel_pairs"]["same file"]


def test_caps_and_likeness(logs: Path, tmp_path: Path) -> None:
    """One pair per trajectory: 5 trajectories on one file give 2 pairs. Issues that are hardly alike are unrelated."""
    _, pairs = make(logs, tmp_path / "out", same="file", pairs_per_trajectory=1)
    ids = [name for pair in pairs for name in pair.provenance["made_from"]]
    assert len(pairs) == 2
    assert len(ids) == len(set(ids))
    with pytest.raises(DataError, match=r"nothing was kept, all 7 inputs were rejected \(.*unrelated_issues"):
        make(logs, tmp_path / "none", min_issue_similarity=0.8)


def test_one_patch_for_two_issues_is_ambiguous(tmp_path: Path) -> None:
    """Two tasks mended by the same line: no context supports one answer alone."""
    twin = smith_row("sign", instance_id="acme__boxes.0a1b2c3d.func_basic__twin", traj_id="twin")
    twin["messages"] = twin["messages"].replace(ISSUES["sign"], ISSUES["digits"])
    logs = write_rows(tmp_path / "logs.jsonl", [smith_row("sign"), twin, smith_row("digits", traj_id="d")])
    summary, pairs = make(logs, tmp_path / "out", pairs_per_trajectory=1, max_issue_similarity=1.0)
    assert summary["funnel_pairs"]["related issues"] == 3
    assert summary["funnel_pairs"]["different patches"] == 2
    assert len(pairs) == 1


def test_planted_faults(logs: Path, tmp_path: Path) -> None:
    """Each is a reject of its own with one line; none is lost, and the pair is the one that was there without them."""
    _, (alone,) = make(logs, tmp_path / "alone")
    user, agent = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    new_file = (
        "diff --git a/x.py b/x.py\nnew file mode 100644\n--- /dev/null\n+++ b/x.py\n@@ -0,0 +1 @@\n+x\n"
    )
    no_messages = smith_row("sign", traj_id="silent", messages=[user])
    no_patch = smith_row("sign", traj_id="idle", patch="", messages=[user, agent])
    no_task = smith_row("sign", traj_id="untold", messages=[agent])
    bad = [
        '{"messages": ', "[]", no_messages, no_patch, no_task, smith_row("sign", "1"), smith_row("sign", traj_id="free", license=""),
        smith_row("sign", instance_id="nameless", traj_id="nameless"),
        smith_row("sign", traj_id="tests", patch=patch_of("sign", path="tests/test_shapes.py")),
        smith_row("sign", traj_id="new", patch=new_file),
    ]  # fmt: skip
    write_rows(logs / "z.jsonl", bad)
    outside = write_json(tmp_path / "elsewhere.traj.json", mini_log("sign", "acme__boxes-1"))
    (logs / "link.traj.json").symlink_to(outside)
    summary, pairs = make(logs, tmp_path / "out")
    assert summary["inputs"] == 7 + len(bad) + 1
    assert {code: n for code, n in summary["rejected"].items() if not code.startswith("no_same") and code != "not_chosen"} == {
        "unreadable": 3, "no_messages": 1, "no_patch": 1, "no_issue": 1, "duplicate_id": 1, "no_licence": 1, "no_repository": 1,
        "no_counting_file": 2,
    }  # fmt: skip
    assert [pair.id for pair in pairs] == [alone.id]
    assert all("\n" not in reason and len(reason) < 300 for _, reason in rejects_of(tmp_path / "out"))
    kept, _ = make(logs, tmp_path / "licensed", licence="CC0-1.0")
    assert "no_licence" not in kept["rejected"]


def test_planted_shortcuts_are_masked(tmp_path: Path) -> None:
    """A name of the patch that only its own agent wrote, a test's name, a number and the task's id: all gone, and listed."""
    telling = "I will call number_digits, see test_area_digits and line 54321 of acme__boxes.0a1b2c3d.func_basic__digits."
    row = smith_row("digits")
    row["messages"] = json.dumps(
        [*json.loads(row["messages"])[:-1], {"role": "assistant", "content": telling}]
    )
    row["patch"] += (
        "diff --git a/tests/t.py b/tests/t.py\n--- a/tests/t.py\n+++ b/tests/t.py\n@@ -1 +1,2 @@\n x\n+def test_area_digits(): f(54321)\n"
    )
    logs = write_rows(tmp_path / "logs.jsonl", [smith_row("sign"), row])
    _, (pair,) = make(logs, tmp_path / "out")
    shown = f"{pair.context}{pair.confounder}"
    assert "number_digits" not in shown
    assert "func_basic__digits" not in shown
    assert "number_digits" in pair.provenance["masked_names"]
    assert "test_area_digits" in shown  # in no answer, so it tells nothing


def test_words_that_solve_it_are_reported_and_limited(tmp_path: Path) -> None:
    """Keywords and short numbers are no names and stay. An agent that says those of its patch, which the other never does, is picked by a
    bag of words; the other direction is a tie: (1 + 1/2) / 2."""
    logs = write_rows(tmp_path / "logs.jsonl", [smith_row("sign"), smith_row("lazy")])
    summary, _ = make(logs, tmp_path / "out")
    assert summary["lexical_shortcut_accuracy"]["value"] == 0.75
    assert summary["lexical_shortcut_accuracy"]["n"] == 1
    with pytest.raises(DataError, match="lexical_shortcut: a bag of words solves it"):
        make(logs, tmp_path / "strict", max_lexical_accuracy=0.6)


def test_limits(logs: Path, tmp_path: Path) -> None:
    """What does not fit is rejected with its size, never cut."""
    for settings, code in (({"answer_tokens": 8}, "long_answer"), ({"max_masked": 0.01}, "mostly_masked")):
        with pytest.raises(DataError, match=code):
            make(logs, tmp_path / code, **settings)
    long = smith_row("digits")
    long["messages"] = long["messages"].replace(WORDS["digits"], "word " * 4000)
    _, (pair,) = make(
        write_rows(tmp_path / "long.jsonl", [smith_row("sign"), long]), tmp_path / "out", context_tokens=2000
    )
    assert sorted(pair.provenance["messages_left_out"]) == [0, 1]
    assert max(pair.provenance["tokens"]) <= 2000
    assert "[1 message left out]" in f"{pair.context}{pair.confounder}"


def many(tmp_path: Path, repositories: int = 4) -> Path:
    rows = [
        smith_row(task, repository=f"acme__boxes{n}")
        for n in range(repositories)
        for task in ("sign", "digits")
    ]
    return write_rows(tmp_path / "many.jsonl", rows)


def judged(name: str) -> dict[str, Any]:
    return {"judge": {"function": f"tests.trajectory_logs:{name}"}, "batch_size": 1}


def test_judge(tmp_path: Path) -> None:
    summary, pairs = make(many(tmp_path), tmp_path / "out", **judged("agreeing_judge"))
    assert (len(pairs), summary["funnel_pairs"]["clear to the judge"]) == (4, 4)
    assert pairs[0].verdicts["judge"]["name"] == "tests.trajectory_logs:agreeing_judge"
    with pytest.raises(DataError, match="judge_ambiguous: the judge takes the pair for ambiguous"):
        make(many(tmp_path), tmp_path / "none", **judged("doubting_judge"))


def test_killed_and_given_again(tmp_path: Path) -> None:
    """`kill -9` after two of four answers; the rest is done by the next run, and the dataset is the unbroken one."""
    logs = many(tmp_path)
    whole, _ = make(logs, tmp_path / "whole", **judged("agreeing_judge"))
    flag = tmp_path / "flag"
    flag.write_text("2")
    code = (
        "from pathlib import Path; from vlm_contextrl.data_recipes.trajectories import *; from vlm_contextrl.data_recipes.pipeline import "
        f"Engine; run(TrajectoriesConfig(**{ {**EVERYTHING, **judged('agreeing_judge')}!r}), Path({str(logs)!r}), "
        f"Path({str(tmp_path / 'out')!r}), Engine())"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRAJECTORY_KILL": str(flag)},
        cwd=Path(__file__).parents[1],
    )
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.parts" / "pairs").glob("part-*"))) == 2
    with pytest.raises(DataError, match="holds unfinished work with another config"):
        make(logs, tmp_path / "out", **judged("agreeing_judge"), seed=1)
    again, pairs = make(logs, tmp_path / "out", **judged("agreeing_judge"))
    assert again["content_hash"] == whole["content_hash"]
    assert len({pair.id for pair in pairs}) == 4
    assert not (tmp_path / ".out.parts").exists()


@pytest.mark.slow
def test_workers_and_batches_change_nothing(tmp_path: Path) -> None:
    logs = many(tmp_path)
    one, _ = make(logs, tmp_path / "one")
    two, _ = make(logs, tmp_path / "two", engine=Engine(workers=2), batch_size=3)
    other, _ = make(logs, tmp_path / "seed", seed=5)
    assert one["content_hash"] == two["content_hash"] != other["content_hash"]


def test_the_side_is_a_fair_coin(tmp_path: Path) -> None:
    """Of 40 pairs about half have `sign` as their context (a fair coin: 10 to 30 with probability over 0.998)."""
    _, pairs = make(many(tmp_path, 40), tmp_path / "out")
    assert 10 <= sum(task_of(pair.provenance["made_from"][0]) == "sign" for pair in pairs) <= 30


def test_sources_of_the_user_win(logs: Path, tmp_path: Path) -> None:
    """The syntax tree of the file before the patch, from the user's folder; here the function is called otherwise than in the listing."""
    from tests.trajectory_logs import SOURCE

    file = tmp_path / "sources" / "acme__boxes" / "0a1b2c3d" / "pkg" / "shapes.py"
    file.parent.mkdir(parents=True)
    file.write_text(SOURCE.replace("def area", "def surface"))
    _, (pair,) = make(logs, tmp_path / "out", sources=tmp_path / "sources")
    assert pair.provenance["functions"] == ["pkg/shapes.py:surface"]
    assert pair.provenance["functions_told_by"] == "tree"


def test_funnel_is_drawn(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xml.etree import ElementTree

    make(logs, tmp_path / "out")
    drawing = (tmp_path / "out" / "funnel.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(drawing)
    assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")
    assert "same function" in drawing
    lines = capsys.readouterr().err.splitlines()
    assert any(
        line.split()[:5] == ["same", "function", "3", "2"] or line.startswith("same function")
        for line in lines
    )


def test_settings(tmp_path: Path, logs: Path) -> None:
    shipped = Path(__file__).parents[1] / "configs" / "recipes" / "trajectories.yaml"
    assert load_config(TrajectoriesConfig, shipped) == TrajectoriesConfig()
    with pytest.raises(ConfigError, match="min_issue_similarity 0.9 is not below max_issue_similarity 0.9"):
        load_config(TrajectoriesConfig, None, ["min_issue_similarity=0.9"])
    with pytest.raises(CheckpointError, match="tokenizer .*cannot be read"):
        make(logs, tmp_path / "out", tokenizer=str(tmp_path / "no_model"))


@pytest.mark.slow
def test_an_encoder_of_the_user(logs: Path, tmp_path: Path) -> None:
    """A tiny random encoder in place of tf-idf: every issue is most like itself, and the cosine is what the cascade uses."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from vlm_contextrl.data_recipes.trajectories.issues import encoder_similarity

    with pytest.raises(DataError, match="issue_encoder: .*cannot be read"):
        make(logs, tmp_path / "none", issue_encoder=str(tmp_path / "no_model"))
    vocabulary = {
        word: at
        for at, word in enumerate(["[UNK]", "[PAD]", *sorted(set(" ".join(ISSUES.values()).split()))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "encoder"
    )
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(tmp_path / "encoder")
    alike = encoder_similarity(ISSUES, str(tmp_path / "encoder"))
    assert alike("sign", "sign") == pytest.approx(1, abs=1e-5)
    assert alike("sign", "digits") == pytest.approx(alike("digits", "sign"))
    _, (pair,) = make(
        logs, tmp_path / "out", issue_encoder=str(tmp_path / "encoder"), max_issue_similarity=1.0
    )
    assert pair.provenance["similarity"] == pytest.approx(alike("sign", "digits"), abs=1e-5)


@pytest.mark.realdata
def test_real_logs(realdata: Path, tmp_path: Path) -> None:
    """76 logs, every one on a commit of its own, so they are matched by repository; edited files agree with the published index."""
    folder = realdata / "traj_mini_swe_agent"
    found = scan(folder)
    index = {row["id"]: row for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())}
    reader = Reader(found.root, tuple(found.descriptions))
    for place in found.places:
        log = reader(place)
        row = index[log.id]
        assert sorted(file.path for file in parse_patch(log.patch)) == sorted(row["edited_files"])
        assert (log.repository, log.commit, len(log.messages)) == (
            row["repo"],
            row["base_commit"],
            row["n_messages"] - 2,
        )
        assert log.issue
        assert "<instructions>" not in log.issue
    summary, pairs = make(folder, tmp_path / "out", licence="MIT", match="repository", same="file")
    assert summary["inputs"] == 76
    assert summary["funnel_pairs"]["same file"] >= len(pairs) > 0
    for pair in pairs:
        assert "diff --git" not in f"{pair.context}{pair.confounder}"
    with pytest.raises(DataError, match="no_same_commit"):
        make(folder, tmp_path / "none", licence="MIT")
