"""Logs of three agents become one kind of record; what cannot be read is refused with one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.trajectory_logs import (
    ISSUES,
    PATH,
    conversation,
    mini_log,
    patch_of,
    smith_row,
    swe_agent_log,
    write_json,
    write_rows,
)
from vlm_contextrl.data_recipes.trajectories.formats import Trajectory, read_trajectory
from vlm_contextrl.data_recipes.trajectories.sources import Reader, scan
from vlm_contextrl.errors import DataError


def read(value: Any, name: str = "run") -> Trajectory:
    return read_trajectory(value, name, "here")


def test_three_formats_say_the_same() -> None:
    """Issue, patch and what agent and shell said are one; only SWE-smith's ids tell a commit."""
    mini = read(mini_log("sign", "acme__boxes-7"))
    smith = read(smith_row("sign"))
    swe = read(swe_agent_log("sign"), "acme__boxes-7")
    for found in (mini, smith, swe):
        assert found.issue == ISSUES["sign"]
        assert found.patch == patch_of("sign")
        assert found.repository == "acme/boxes"
        assert [message.agent for message in found.messages] == [True, False] * 3
    assert mini.messages == smith.messages
    assert swe.messages[0].text == f"I look at the file.\nbash command: cat -n {PATH}"
    assert (mini.id, mini.commit, mini.model) == ("acme__boxes-7", "", "some-model")
    assert (swe.id, swe.instance) == ("acme__boxes-7", "acme__boxes-7")
    assert (smith.id, smith.commit, smith.resolved) == (
        "acme__boxes.0a1b2c3d.func_basic__sign.1",
        "0a1b2c3d",
        True,
    )
    assert smith.licence == "MIT"


def test_swe_agent_without_history_and_with_its_configuration() -> None:
    """Old logs have steps only; new ones carry the task in a JSON text."""
    steps = [
        {"response": "I look.", "action": "ls", "observation": "a.py\r\nb.py"},
        {"thought": "x", "action": "submit", "observation": ""},
    ]
    config = {
        "problem_statement": {"text": "It breaks.", "id": "acme__boxes-9"},
        "env": {"repo": {"base_commit": "abcdef0"}},
    }
    found = read({"trajectory": steps, "info": {"submission": None}, "replay_config": json.dumps(config)})
    assert [m.text for m in found.messages] == ["I look.\nls", "a.py\nb.py", "x\nsubmit"]
    assert (found.issue, found.instance, found.commit, found.patch) == (
        "It breaks.",
        "acme__boxes-9",
        "abcdef0",
        "",
    )


def test_a_patch_without_a_field_is_the_last_diff_shown() -> None:
    assert read(smith_row("sign", patch="")).patch.strip() == patch_of("sign").strip()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "here: is a JSON list, expected an object"),
        ({"steps": []}, "here: keys steps; expected messages, or trajectory and info"),
        ({"messages": "no JSON"}, "here: messages is a text that is not JSON"),
        ({"messages": {"role": "user"}}, "here: messages is a dict, expected a list"),
        ({"messages": [{"content": "x"}]}, "here: messages[0] has no role"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "here: messages[0]: content holds a int, expected a text",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "here: holds half a character"),
        ({"trajectory": [3]}, "here: trajectory[0] is a int, expected an object"),
    ],
)
def test_other_json_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(value)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_folder_of_all_formats(tmp_path: Path) -> None:
    """4 files give 5 trajectories; preds.json is left alone; tasks.jsonl has no messages and is joined by instance."""
    write_json(tmp_path / "a" / "acme__boxes-7.traj.json", mini_log("sign", "acme__boxes-7"))
    write_json(tmp_path / "b" / "acme__boxes-8.traj", swe_agent_log("digits"))
    write_rows(tmp_path / "smith.jsonl", [smith_row("sign"), "", smith_row("digits")])
    table(tmp_path / "more.parquet", [smith_row("width")])
    write_json(tmp_path / "preds.json", {"acme__boxes-7": {}})
    told = {
        "instance_id": "acme__boxes-7",
        "base_commit": "feedbee",
        "problem_statement": "The issue itself.",
        "resolved": False,
    }
    write_rows(
        tmp_path / "tasks.jsonl", [told, {"id": "acme__boxes-8", "repo": "acme/round", "licence": "BSD"}]
    )
    found = scan(tmp_path)
    assert [(place.file, place.number) for place in found.places] == [
        ("more.parquet", 1), ("smith.jsonl", 1), ("smith.jsonl", 3), ("a/acme__boxes-7.traj.json", 0), ("b/acme__boxes-8.traj", 0),
    ]  # fmt: skip
    reader = pickle.loads(pickle.dumps(Reader(found.root, tuple(found.descriptions))))
    more, first, second, mini, swe = map(reader, found.places)
    assert [t.instance.rpartition("__")[2] for t in (more, first, second)] == ["width", "sign", "digits"]
    assert (mini.commit, mini.issue, mini.resolved) == ("feedbee", "The issue itself.", False)
    assert (swe.repository, swe.licence, swe.issue) == ("acme/round", "BSD", ISSUES["digits"])
    assert scan(tmp_path).content_hash == found.content_hash
    write_rows(tmp_path / "tasks.jsonl", [told])
    assert scan(tmp_path).content_hash != found.content_hash


def table(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), file)


def test_rows_of_a_table_are_found_across_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [smith_row("sign", run=str(n)) for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    found = scan(tmp_path / "t.parquet")
    reader = Reader(found.root)
    assert [reader(place).id[-1] for place in found.places] == list("01234")


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    outside = write_json(tmp_path / "outside" / "x.traj.json", mini_log("sign", "x"))
    inside = write_json(tmp_path / "in" / "y.traj.json", mini_log("sign", "y"))
    (inside.parent / "x.traj.json").symlink_to(outside)
    (inside.parent / "more").symlink_to(outside.parent)
    found = scan(inside.parent)
    assert [place.file for place in found.places] == ["y.traj.json"]
    assert sorted(found.refused) == [
        ("more", "is a link out of the folder, expected a file in it"),
        ("x.traj.json", "is a link out of the folder, expected a file in it"),
    ]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"messages": [1e999999]', "\ufffe"])
def test_files_that_are_no_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.traj").write_text(content, encoding="utf-16" if content == "\ufffe" else "utf-8")
    found = scan(tmp_path)
    with pytest.raises(DataError, match=r"^x\.traj: cannot be read as JSON"):
        Reader(found.root)(found.places[0])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found, expected a folder of trajectories"):
        scan(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no trajectories; expected files that end in .traj.json"):
        scan(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert scan(tmp_path).refused[0][0] == "bad.parquet"
    write_json(tmp_path / "a.traj", swe_agent_log("sign"))
    with pytest.raises(DataError, match="row 1 has no instance_id, expected task descriptions"):
        scan(tmp_path, write_json(tmp_path / "tasks.json", [{"repo": "a/b"}]))
    with pytest.raises(DataError, match="cannot be read as task descriptions"):
        scan(tmp_path, tmp_path / "missing.jsonl")


def test_conversation_has_no_task_of_its_own() -> None:
    """Without tags the whole first message of the user is the issue."""
    messages = conversation("sign")
    messages[1]["content"] = "Fix the sign."
    assert read(smith_row("sign", messages=messages)).issue == "Fix the sign."
