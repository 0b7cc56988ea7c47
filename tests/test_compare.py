"""`compare`: planted differences are found, equal runs are equal, unfair comparisons and bad input are refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.eval_runs import sample, samples, write_run
from vlm_contextrl import cli
from vlm_contextrl.commands.comparing import compare
from vlm_contextrl.errors import ConfigError, DataError, InputError
from vlm_contextrl.eval.compare import FAIR, compare_runs
from vlm_contextrl.eval.published import METHODS, MODELS, guessed_model, published
from vlm_contextrl.eval.registry import BENCHMARKS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `compare` as the command line does: status, stdout, stderr."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
    app.command()(compare)
    monkeypatch.setattr(cli, "app", app)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm-contextrl compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    """400 samples of MathVista, 200 right; the second run has 20 more right. V*: 100 samples, 70 right, the same in both."""
    before = [1] * 200 + [0] * 200
    after = [1] * 220 + [0] * 180
    vstar = samples("vstar", [1] * 70 + [0] * 30)
    first = write_run(tmp_path / "first", {"mathvista": samples("mathvista", before), "vstar": vstar})
    second = write_run(tmp_path / "second", {"mathvista": samples("mathvista", after), "vstar": vstar})
    return first, second


def test_a_planted_gain_is_found(planted: tuple[Path, Path]) -> None:
    """20 of 400 more: +5 points; 20 coins that fall alike: p = 2^-19. The average over two benchmarks is +2.5 points."""
    result = compare_runs(planted).result
    assert list(result["benchmarks"]) == ["mathvista", "vstar"]
    entry = result["benchmarks"]["mathvista"]
    found = entry["against_baseline"]["second"]
    assert (entry["accuracy"]["first"]["value"], entry["accuracy"]["second"]["value"]) == (0.5, 0.55)
    assert (found["difference"]["value"], found["difference"]["n"]) == (0.05, 400)
    assert 0.025 < found["difference"]["low"] < 0.05 < found["difference"]["high"] < 0.08
    assert found["p_value"] == 2**-19
    assert (found["became_right"], found["became_wrong"], found["verdict"]) == (20, 0, "better")
    assert found["samples_became_right"] == [["mathvista_testmini_cot", str(i)] for i in range(200, 220)]
    assert found["samples_became_wrong"] == []
    average = result["average"]["against_baseline"]["second"]
    assert (average["difference"]["value"], average["difference"]["n"]) == (0.025, 500)
    assert average["difference"]["low"] > 0
    assert average["verdict"] == "better"


def test_equal_runs(planted: tuple[Path, Path]) -> None:
    """The same folder twice: 0 with the interval [0, 0], no verdict, and two names."""
    result = compare_runs([planted[0], planted[0]]).result
    assert list(result["runs"])[1].endswith("first (2)")
    for entry in (*result["benchmarks"].values(), result["average"]):
        (found,) = entry["against_baseline"].values()
        assert (found["difference"]["value"], found["difference"]["low"], found["difference"]["high"]) == (
            0,
            0,
            0,
        )
        assert (found["p_value"], found["verdict"]) == (1.0, "within noise")
    identical = result["benchmarks"]["mathvista"]["against_baseline"].popitem()[1]
    assert identical["samples_became_right"] == identical["samples_became_wrong"] == []


def test_the_order_of_lines_does_not_matter(planted: tuple[Path, Path]) -> None:
    before = compare_runs(planted).result["benchmarks"]
    file = planted[1] / "mathvista" / "samples.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert compare_runs(planted).result["benchmarks"] == before


def test_several_runs_against_one(planted: tuple[Path, Path], tmp_path: Path) -> None:
    third = write_run(tmp_path / "third", {"mathvista": samples("mathvista", [1] * 150 + [0] * 250)})
    result = compare_runs([*planted, third]).result
    against = result["benchmarks"]["mathvista"]["against_baseline"]
    assert {name: found["verdict"] for name, found in against.items()} == {
        "second": "better",
        "third": "worse",
    }
    assert against["third"]["became_wrong"] == 50
    assert result["left_out"] == {"vstar": "not finished in third"}


def test_samples_that_one_run_lacks_are_named(tmp_path: Path) -> None:
    """Ten and eight samples, seven of them the same: those are compared, the others named."""
    first = samples("mathvista", [1] * 10)
    second = [*samples("mathvista", [1] * 7), sample("mathvista_testmini_cot", 99, False)]
    runs = [
        write_run(tmp_path / "a", {"mathvista": first}),
        write_run(tmp_path / "b", {"mathvista": second}),
    ]
    entry = compare_runs(runs).result["benchmarks"]["mathvista"]
    assert entry["n"] == 7
    part = "mathvista_testmini_cot"
    assert entry["only_in"] == {"a": [[part, "7"], [part, "8"], [part, "9"]], "b": [[part, "99"]]}
    assert entry["against_baseline"]["b"]["difference"]["value"] == 0


def test_parts_keep_samples_of_one_id_apart(tmp_path: Path) -> None:
    """Both parts of MMMU-Pro have an id 0: one gained of two and one of one, so the mean of parts gains (1/2 + 1) / 2."""
    names = [part.name for part in BENCHMARKS["mmmu_pro"].parts]
    before = [sample(names[0], 0, False), sample(names[0], 1, False), sample(names[1], 0, False)]
    after = [sample(names[0], 0, True), sample(names[0], 1, False), sample(names[1], 0, True)]
    runs = [write_run(tmp_path / name, {"mmmu_pro": rows}) for name, rows in (("a", before), ("b", after))]
    found = compare_runs(runs).result["benchmarks"]["mmmu_pro"]["against_baseline"]["b"]
    assert (found["difference"]["value"], found["became_right"]) == (0.75, 2)


# ---------------------------------------------------------------- fairness


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("style", ("reasoning", "direct")),
        ("max_new_tokens", (2048, 128)),
        ("min_pixels", (None, 3136)),
        ("max_pixels", (1_003_520, 200_704)),
        ("limit", (None, 50)),
        ("judge", (None, {"url": "http://localhost", "model": "m"})),
    ],
)
def test_runs_asked_differently_are_refused(
    tmp_path: Path, run: Run, setting: str, values: tuple[Any, Any]
) -> None:
    assert setting in FAIR
    rows = {"mathvista": samples("mathvista", [1, 0, 1])}
    runs = [
        write_run(tmp_path / name, rows, **{setting: value}) for name, value in zip("ab", values, strict=True)
    ]
    with pytest.raises(ConfigError, match=setting):
        compare_runs(runs)
    status, out, err = run(*runs)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{setting} is {values[0]!r} in a and {values[1]!r} in b" in err
    assert "--allow-different-settings" in err
    status, out, err = run(*runs, "--allow-different-settings")
    assert (status, err) == (0, "")
    assert f"{setting} differs" in out
    different = compare_runs(runs, allow_different_settings=True).result["different_settings"]
    assert different == [
        {"benchmark": "mathvista", "setting": setting, "values": dict(zip("ab", values, strict=True))}
    ]


def test_other_precision_or_adapter_may_be_compared(tmp_path: Path) -> None:
    rows = {"mathvista": samples("mathvista", [1, 0, 1])}
    runs = [
        write_run(tmp_path / "a", rows),
        write_run(tmp_path / "b", rows, adapter="x", load_in_4bit=True, dtype="float32"),
    ]
    assert compare_runs(runs).result["different_settings"] == []


@pytest.mark.parametrize("field", ["question", "options", "answer"])
def test_other_questions_under_the_same_ids_are_refused(tmp_path: Path, field: str) -> None:
    rows = samples("mathvista", [1, 0, 1])
    first = write_run(tmp_path / "a", {"mathvista": rows})
    changed = [rows[0], {**rows[1], field: ["circle", "cube"] if field == "options" else "C"}, rows[2]]
    second = write_run(tmp_path / "b", {"mathvista": changed})
    with pytest.raises(ConfigError, match=f"{field} of sample mathvista_testmini_cot/1 is"):
        compare_runs([first, second])


def test_other_data_is_refused(tmp_path: Path) -> None:
    """The pictures may differ where the questions do not. A run without a fingerprint, or with a revision of the hub in place of a hash of
    files, is not held against one with it."""
    rows = {"mathvista": samples("mathvista", [1, 0])}
    first, second = (write_run(tmp_path / name, rows) for name in "ab")
    (first / "mathvista" / "content.json").write_text('{"data": {"mathvista_testmini_cot": "1"}}')
    assert compare_runs([first, second]).result["different_settings"] == []
    (second / "mathvista" / "content.json").write_text(
        '{"data": {"mathvista_testmini_cot": "AI4Math/MathVista@7"}}'
    )
    assert compare_runs([first, second]).result["different_settings"] == []
    (second / "mathvista" / "content.json").write_text('{"data": {"mathvista_testmini_cot": "2"}}')
    with pytest.raises(ConfigError, match="mathvista: data is"):
        compare_runs([first, second])


# ---------------------------------------------------------------- bad input


def _break_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "par', r"mathvista/samples.jsonl, line 2: not JSON"),
        ("[1]", r"line 2: found list, expected a JSON object"),
        ("", r"line 2: not JSON"),
        ('{"part": "x", "id": "1"}', r"line 2: correct is None, expected bool"),
        (
            '{"part": "x", "id": "1", "correct": 1, "completion": "", "question": "", "answer": "B", "options": []}',
            r"line 2: correct is 1",
        ),
        (json.dumps(sample("mathvista_testmini_cot", 0, True)), r"line 2: sample .*/0 for the second time"),
    ],
)
def test_a_broken_line_is_named(
    planted: tuple[Path, Path], run: Run, tmp_path: Path, line: str, message: str
) -> None:
    _break_line(planted[1] / "mathvista" / "samples.jsonl", 2, line)
    with pytest.raises(DataError, match=message):
        compare_runs(planted)
    status, out, err = run(*planted, "--json", tmp_path / "x.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "x.json").exists()


def test_what_is_no_run(planted: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("none", "no such folder"),
        ("empty", "no run.json in it"),
        ("file", "is a file"),
    ):
        status, _, err = run(planted[0], tmp_path / name)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
        assert "expected the --out folder" in err
    status, _, err = run(planted[0])
    assert (status, err) == (2, "error: compare: found 1 run, expected two or more, the baseline first\n")
    (planted[1] / "run.json").write_text("[")
    with pytest.raises(DataError, match=r"run.json: cannot be read"):
        compare_runs(planted)


def test_nothing_in_common(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {"mathvista": samples("mathvista", [1])})
    second = write_run(
        tmp_path / "b", {"vstar": samples("vstar", [1])}, failed={"mathvista": "its data is not there"}
    )
    with pytest.raises(
        InputError, match=r"no finished benchmark in common; mathvista: failed in b .its data is not there"
    ):
        compare_runs([first, second])
    third = write_run(tmp_path / "c", {"mathvista": samples("mathvista", [])})
    with pytest.raises(InputError, match="no sample in common"):
        compare_runs([first, third])


def test_a_result_that_failed_later_is_not_used(planted: tuple[Path, Path]) -> None:
    (planted[1] / "results.json").write_text('{"failed": {"vstar": "out of memory"}}')
    result = compare_runs(planted).result
    assert list(result["benchmarks"]) == ["mathvista"]
    assert result["left_out"] == {"vstar": "failed in second (out of memory)"}


# ---------------------------------------------------------------- published numbers


@pytest.mark.parametrize("model", MODELS)
def test_published_averages_are_those_of_the_rows(model: str) -> None:
    """The table's own "overall" is the mean of its twelve rows, to its one decimal: no digit was mistyped."""
    numbers = published(model)
    assert list(numbers) == [*BENCHMARKS, "average"]
    for method in METHODS[model]:
        mean = sum(numbers[name][method] for name in BENCHMARKS) / len(BENCHMARKS)
        assert mean == pytest.approx(numbers["average"][method], abs=0.0006)
    assert published("qwen2_5_vl_7b")["vstar"] == {
        "base": 0.701,
        "GRPO": 0.707,
        "PAPO": 0.717,
        "ContextRL": 0.733,
    }


def test_the_model_is_guessed_by_its_name() -> None:
    assert guessed_model("Qwen/Qwen2.5-VL-7B-Instruct") == "qwen2_5_vl_7b"
    assert guessed_model("/models/qwen3_vl_8b_thinking") == "qwen3_vl_8b"
    for other in ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-30B", "tinyvl", ""):
        assert guessed_model(other) is None


def test_published_numbers_stand_beside(planted: tuple[Path, Path]) -> None:
    """Only those of the benchmarks that were run; the paper's average is one of twelve, so it stands beside no other."""
    result = compare_runs(planted).result
    assert result["published"]["mark"] == "published, other harness"
    assert result["benchmarks"]["mathvista"]["published"]["ContextRL"] == 0.736
    assert result["average"]["published"] is None
    other = compare_runs(planted, published_model="qwen3_vl_8b").result
    assert other["benchmarks"]["mathvista"]["published"] == {"base": 0.758, "GRPO": 0.787, "ContextRL": 0.798}
    none = compare_runs(planted, published_model="none").result
    assert none["published"] is none["benchmarks"]["mathvista"]["published"] is None


def test_the_average_of_all_twelve_has_its_number(tmp_path: Path) -> None:
    rows = {name: samples(name, [1, 0]) for name in BENCHMARKS}
    runs = [write_run(tmp_path / name, rows) for name in "ab"]
    assert compare_runs(runs).result["average"]["published"]["ContextRL"] == 0.534


# ---------------------------------------------------------------- the command


def test_everything_the_command_writes(planted: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html", "markdown", "latex")}
    arguments = [word for kind, file in files.items() for word in (f"--{kind}", file)]
    status, out, err = run(*planted, *arguments)
    assert (status, err) == (0, "")
    assert "second against first" in out
    for words in ("+5.0", "better", "within noise", "average"):
        assert words in " ".join(out.split())
    result = json.loads(files["json"].read_text())
    assert result == compare_runs(planted).result
    assert files["html"].read_text().startswith("<!DOCTYPE html>")
    assert "| MathVista | 400 | 50.0 | **55.0** | +5.0" in files["markdown"].read_text()
    assert r"\textbf{55.0}" in files["latex"].read_text()
    status, _, err = run(*planted, "--html", tmp_path / "no" / "x.html")
    assert (status, err.count("\n")) == (2, 1)
