"""Where the rows of a part come from: every layout gives the same rows, and what must not be read is not.

The rows are two: index 0 with a red picture, index 1 with a blue one (sides 8 px), so a picture's pixel tells its row.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.data_roots import fetch, fingerprint, load_part, source
from vlm_contextrl.eval.registry import BENCHMARKS, Part
from vlm_contextrl.eval.root_files import find_files

RED, BLUE = (255, 0, 0), (0, 0, 255)
MMSTAR = BENCHMARKS["mmstar"].parts[0]  # no configuration, split val
COUNTING = next(
    part for part in BENCHMARKS["blink"].parts if part.config == "Counting"
)  # one of 14 configurations
SCIENCE = BENCHMARKS["scienceqa"].parts[0]  # the only configuration used
STANDARD = BENCHMARKS["mmmu_pro"].parts[0]  # configuration "standard (10 options)"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(color: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(stream, "PNG")
    return stream.getvalue()


def dataset(rows: int = 2) -> Any:
    """As the hub has it: the file's metadata says that `image` holds pictures."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    pictures = [{"bytes": png(color), "path": "x.png"} for color in (RED, BLUE)]
    return Dataset.from_dict(
        {"index": [0, 1][:rows], "image": pictures[:rows]},
        features=Features({"index": Value("int64"), "image": ImageFeature()}),
    )


def write(file: Path, rows: Any = None) -> None:
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(dataset().data.table if rows is None else rows, file)


def write_bare(
    file: Path, paths: tuple[str | None, ...] = ("x.png", None), missing: int | None = None
) -> None:
    """Without metadata of `datasets`: a struct of bytes and path, and a list of such. Row `missing` has no bytes."""
    import pyarrow as pa

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [
        {"bytes": None if i == missing else png(color), "path": path}
        for i, (color, path) in enumerate(zip((RED, BLUE), paths, strict=True))
    ]
    columns = {
        "index": pa.array([0, 1]),
        "image": pa.array(values, picture),
        "others": pa.array([values[1:], []] if missing is None else [[], []], pa.list_(picture)),
    }
    write(file, pa.table(columns))


def card(folder: Path, configs: list[dict[str, Any]]) -> None:
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# data\n")


def image_folder(folder: Path, names: tuple[str, ...] = ("red.png", "sub/blue.png")) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "red.png").write_bytes(png(RED))
    (folder / "sub/blue.png").write_bytes(png(BLUE))
    lines = [json.dumps({"index": i, "file_name": name}) for i, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def split_shards(folder: Path) -> None:
    rows = dataset().data.table
    for number in (0, 1):
        write(folder / f"data/val-0000{number}-of-00002.parquet", rows.slice(number, 1))


def saved(folder: Path) -> None:
    from datasets import DatasetDict

    DatasetDict({"validation": dataset(), "test": dataset(1)}).save_to_disk(str(folder))


def carded(folder: Path) -> None:
    write(folder / "odd/name.parquet")
    write(folder / "val-00000-of-00001.parquet", dataset(1).data.table)  # would be found by its name
    files = [{"split": "test", "path": "nowhere/*"}, {"split": "val", "path": ["odd/*.parquet"]}]
    card(folder, [{"config_name": "default", "data_files": files}])


LAYOUTS: dict[str, tuple[Part, Callable[[Path], None]]] = {
    "flat": (MMSTAR, lambda folder: write(folder / "val-00000-of-00001.parquet")),
    "flat, split under its other name": (MMSTAR, lambda folder: write(folder / "validation.parquet")),
    "data folder": (MMSTAR, lambda folder: write(folder / "data/val-00000-of-00001-abc0.parquet")),
    "split folder": (MMSTAR, lambda folder: write(folder / "val/0000.parquet")),
    "two shards": (MMSTAR, split_shards),
    "card": (MMSTAR, carded),
    "saved splits": (MMSTAR, saved),
    "saved alone": (MMSTAR, lambda folder: dataset().save_to_disk(str(folder))),
    "image folder": (MMSTAR, lambda folder: image_folder(folder / "val")),
    "without metadata": (MMSTAR, lambda folder: write_bare(folder / "data/val-00000-of-00001.parquet")),
    "configuration folder": (COUNTING, lambda folder: write(folder / "Counting/val-00000-of-00001.parquet")),
    "configuration with blanks": (STANDARD, lambda folder: write(folder / "standard (10 options)/test-0.parquet")),
    "configuration in the name": (COUNTING, lambda folder: write(folder / "Counting-val-0.parquet")),
    "configuration's image folder": (COUNTING, lambda folder: image_folder(folder / "Counting/val")),
    "only configuration, flat": (SCIENCE, lambda folder: write(folder / "data/test-00000-of-00001.parquet")),
    "card of a configuration": (
        COUNTING,
        lambda folder: (
            write(folder / "x.parquet"),
            card(folder, [{"config_name": "Counting", "data_files": [{"split": "val", "path": "x.parquet"}]}]),
        )[1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    part, lay_out = LAYOUTS[name]
    root = tmp_path / "root [1]"  # brackets are no pattern
    lay_out(root / part.dataset)
    rows = load_part(part, root)
    assert rows["index"][:] == [0, 1]
    assert [row["image"].convert("RGB").getpixel((3, 3)) for row in rows] == [RED, BLUE]
    keys = source(part, root)
    assert keys["test_split"] == part.split
    assert keys["dataset_name"] is None
    assert list(keys["dataset_kwargs"]["data_files"]) == [part.split]
    assert len(fingerprint(part, root)) == 64


def test_pictures_in_lists_come_out_as_pictures(tmp_path: Path) -> None:
    write_bare(tmp_path / MMSTAR.dataset / "val.parquet")
    rows = load_part(MMSTAR, tmp_path)
    assert rows[0]["others"][0].getpixel((0, 0)) == BLUE
    assert rows[1]["others"] == []


@pytest.mark.slow
def test_the_harness_loads_what_source_says(tmp_path: Path) -> None:
    """`source` goes into lmms-eval's own task class."""
    harness = pytest.importorskip("vlm_contextrl.eval.harness")
    pytest.importorskip("lmms_eval")
    from vlm_contextrl.eval.settings import EvalSettings

    write_bare(tmp_path / MMSTAR.dataset / "val.parquet")
    harness.prepare_imports(offline=True)
    task = harness.build_task(BENCHMARKS["mmstar"], MMSTAR, EvalSettings(model="oracle", data_root=tmp_path))
    assert [row["image"].getpixel((0, 0)) for row in task.test_docs()] == [RED, BLUE]


def test_without_a_root_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source(COUNTING, None) == {
        "dataset_path": "BLINK-Benchmark/BLINK", "dataset_name": "Counting", "dataset_kwargs": {}, "test_split": "val",
    }  # fmt: skip

    class Builder:
        hash = "c0ffee"

    monkeypatch.setattr("datasets.load_dataset_builder", lambda path, name: Builder())
    assert fingerprint(COUNTING, None) == "BLINK-Benchmark/BLINK@c0ffee"


@pytest.mark.parametrize("ask", [fingerprint, load_part])
def test_the_hub_out_of_reach_is_one_line_with_a_way_out(ask: Any) -> None:
    with pytest.raises(
        DataError, match=r"^mmstar: split 'val'.*hub.*eval fetch --data-root DIR --benchmarks mmstar"
    ) as error:
        ask(MMSTAR, None)
    assert "\n" not in str(error.value)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """Another name or time of a file: the same; one byte of a picture: another."""
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    write_bare(one / MMSTAR.dataset / "val.parquet")
    shutil.copy(one / MMSTAR.dataset / "val.parquet", tmp_path / "copy")
    (two / MMSTAR.dataset / "data").mkdir(parents=True)
    shutil.copy(tmp_path / "copy", two / MMSTAR.dataset / "data/val-00000-of-00001.parquet")
    write_bare(three / MMSTAR.dataset / "val.parquet", paths=("y.png", None))
    assert fingerprint(MMSTAR, one) == fingerprint(MMSTAR, two) != fingerprint(MMSTAR, three)


FAULTS: dict[str, tuple[Part, Callable[[Path], object], str]] = {
    "nothing": (MMSTAR, lambda folder: None, r"^mmstar: split 'val' of Lin-Chen/MMStar: not found in .*Lin-Chen/MMStar; get it with "
                r"`vlm-contextrl eval fetch --data-root .* --benchmarks mmstar`$"),
    "another split": (MMSTAR, lambda folder: write(folder / "test.parquet"), "split 'val'.*not found"),
    "flat files of one of many configurations": (COUNTING, lambda folder: write(folder / "val.parquet"), "'Counting': not found"),
    "a longer split's name": (SCIENCE, lambda folder: write(folder / "data/testmini-0.parquet"), "not found"),
    "a shard is missing": (MMSTAR, lambda folder: write(folder / "val-00000-of-00002.parquet"), "each shard of 2 once.*eval fetch"),
    "two versions": (MMSTAR, lambda folder: [write(folder / f"val-00000-of-00001-{i}.parquet") for i in "ab"], "each shard of 1 once"),
    "a card that leads out": (MMSTAR, lambda folder: card(folder, [{"config_name": "default", "data_files":
                              [{"split": "val", "path": "../../x.parquet"}]}]), "README.md: data file.*inside the folder"),
    "no YAML": (MMSTAR, lambda folder: [folder.mkdir(parents=True), (folder / "README.md").write_text("---\na: [\n---\n")], "not YAML"),
    "a pointer instead of data": (MMSTAR, lambda folder: [folder.mkdir(parents=True), (folder / "val.parquet").write_text("version 1")],
                                  "not a readable Parquet file"),
    "a path instead of a picture": (MMSTAR, lambda folder: write_bare(folder / "val.parquet", ("x.png", "/etc/hostname"), missing=1),
                                    "column 'image' has no picture but .*/etc/hostname"),
    "an absolute path in metadata": (MMSTAR, lambda folder: image_folder(folder / "val", ("red.png", "/etc/hostname")),
                                     "metadata.jsonl, line 2: file_name is '/etc/hostname'"),
    "a path that leads out of a folder": (MMSTAR, lambda folder: image_folder(folder / "val", ("../red.png", "red.png")), "line 1"),
    "a picture that is not there": (MMSTAR, lambda folder: image_folder(folder / "val", ("red.png", "green.png")), "'green.png'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_is_one_line(name: str, tmp_path: Path) -> None:
    part, lay_out, message = FAULTS[name]
    lay_out(tmp_path / part.dataset)
    with pytest.raises(DataError, match=message) as error:
        load_part(part, tmp_path)
    assert "\n" not in str(error.value)


def test_a_row_without_a_picture_is_none(tmp_path: Path) -> None:
    """A null, as in the unused columns of MMMU, is not a fault."""
    import pyarrow as pa

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": png(RED), "path": "x.png"}, None], picture)
    write(tmp_path / MMSTAR.dataset / "val.parquet", pa.table({"image": column}))
    assert load_part(MMSTAR, tmp_path)[1]["image"] is None


@pytest.mark.parametrize("linked", ["val.parquet", "."])
def test_links_out_of_the_root_are_refused(linked: str, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/val.parquet")
    folder = tmp_path / "root" / MMSTAR.dataset
    folder.parent.mkdir(parents=True)
    if linked == ".":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        (folder / linked).symlink_to(tmp_path / "elsewhere" / linked)
    with pytest.raises(DataError, match="leads out of the data root"):
        find_files(MMSTAR, tmp_path / "root")
    (tmp_path / "alias").symlink_to(tmp_path / "elsewhere")  # a root that is a link is what the user said
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "real" / MMSTAR.dataset)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_files(MMSTAR, tmp_path / "link").builder == "parquet"


class Hub:
    """`snapshot_download` of a folder: copies what the patterns allow, as the hub's client chooses files."""

    def __init__(self, published: Path) -> None:
        self.published, self.calls, self.got = published, 0, set[str]()

    def __call__(self, repo: str, *, repo_type: str, local_dir: Path, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        self.calls += 1
        for file in (self.published / repo).rglob("*"):
            name = file.relative_to(self.published / repo).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.got.add(name)
                (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, local_dir / name)
        return str(local_dir)


def test_fetch_takes_what_is_needed_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a card and without; a second time nothing is asked for, and a lost shard is fetched again."""
    published = tmp_path / "hub"
    for config in ("Counting", "Jigsaw"):
        for split in ("val", "test"):
            write(published / COUNTING.dataset / config / f"{split}-00000-of-00001.parquet")
    split_shards(published / MMSTAR.dataset)
    write(published / MMSTAR.dataset / "data/test-00000-of-00001.parquet")
    split = {"split": "val", "path": "data/val-*"}
    card(published / MMSTAR.dataset, [{"config_name": "default", "data_files": [split]}])
    hub = Hub(published)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    said: list[str] = []
    root = tmp_path / "root"
    fetch([COUNTING, MMSTAR], root, said.append)
    assert hub.got == {
        "Counting/val-00000-of-00001.parquet", "README.md", "data/val-00000-of-00002.parquet", "data/val-00001-of-00002.parquet"
    }  # fmt: skip
    assert [line.partition(":")[0] for line in said] == ["blink", "mmstar"]
    assert "2 files" in said[1]
    assert load_part(COUNTING, root)["index"][:] == load_part(MMSTAR, root)["index"][:] == [0, 1]
    calls = hub.calls
    fetch([COUNTING, MMSTAR], root, said.append)
    assert hub.calls == calls
    (root / MMSTAR.dataset / "data/val-00001-of-00002.parquet").unlink()
    fetch([MMSTAR], root, said.append)
    assert hub.calls > calls
    assert len(find_files(MMSTAR, root).files) == 2


def test_fetch_goes_on_after_a_set_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated set and one without the split are named at the end; what comes after them is there."""
    import httpx
    from huggingface_hub.errors import GatedRepoError

    write(tmp_path / "hub" / MMSTAR.dataset / "test.parquet")
    write(tmp_path / "hub" / COUNTING.dataset / "Counting/val.parquet")
    hub = Hub(tmp_path / "hub")

    def snapshot_download(repo: str, **arguments: Any) -> str:
        if repo == SCIENCE.dataset:
            raise GatedRepoError(
                "403\nAccess is restricted",
                response=httpx.Response(403, request=httpx.Request("GET", "http://x")),
            )
        return hub(repo, **arguments)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    said: list[str] = []
    with pytest.raises(
        DataError,
        match=r"2 of 3 parts.*scienceqa.*accept its terms at https:.*HF_TOKEN.*mmstar.*after fetching",
    ) as error:
        fetch([SCIENCE, MMSTAR, COUNTING], tmp_path / "root", said.append)
    assert "\n" not in str(error.value)
    assert len(said) == 3
    assert find_files(COUNTING, tmp_path / "root").files


def test_fetch_without_a_network_stops_at_once(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is set for all tests; the client's own refusal is what is seen here."""
    said: list[str] = []
    with pytest.raises(DataError, match="^mmstar: .*give the command again to go on") as error:
        fetch([MMSTAR, COUNTING], tmp_path, said.append)
    assert "\n" not in str(error.value)
    assert not said
