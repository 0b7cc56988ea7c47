"""Parquet of others: which columns are taken, what is rejected and why, and that a large file is never held whole."""

from __future__ import annotations

import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign import parquet as foreign_parquet
from vlm_contextrl.foreign.rows import ForeignRows, find_foreign
from vlm_contextrl.pairs import EncodedImage
from vlm_contextrl.storage import content_hash, read_pairs, read_questions, write_rows


def png(*rgb: int) -> bytes:
    return EncodedImage.from_image(Image.new("RGB", (4, 3), rgb)).data


RED, BLUE = png(255, 0, 0), png(0, 0, 255)
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def write(
    folder: Path, columns: dict[str, Any], types: dict[str, Any], name: str = "train.parquet", **options: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    arrays = [pa.array(values, type=types.get(column)) for column, values in columns.items()]
    pq.write_table(pa.table(arrays, names=list(columns)), folder / name, **options)
    return folder


def pixel(image: Any) -> Any:
    assert isinstance(image, EncodedImage)
    return image.decode().getpixel((0, 0))


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("image", struct(RED), IMAGE),
        ("images", [struct(RED)], pa.list_(IMAGE)),
        ("image", RED, pa.binary()),
        ("images", [RED], pa.list_(pa.large_binary())),
        ("image", struct(None, "sub/red.png"), IMAGE),
        ("image", "sub/red.png", pa.string()),
    ],
    ids=["struct", "structs", "bytes", "list of bytes", "path", "name"],
)
def test_images_in_every_form(tmp_path: Path, column: str, value: Any, kind: Any) -> None:
    folder = write(
        tmp_path / "data", {column: [value], "question": ["Red?"], "answer": [True]}, {column: kind}
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "red.png").write_bytes(RED)
    (row,) = read_questions(folder, licence="CC0-1.0")
    assert (row.id, row.query, row.answer, row.answer_type) == ("train-0", "Red?", "true", "boolean")
    assert pixel(row.images[0]) == (255, 0, 0)
    assert row.provenance == {"licence": "CC0-1.0"}


def test_keys_options_and_provenance(tmp_path: Path) -> None:
    """Options come as a list, as JSON and as Python writes a list; other texts and numbers become provenance, a NaN does not."""
    columns = {
        "id": ["a", "b", "c", "d"],
        "image": [struct(RED)] * 4,
        "problem": ["Which?<image>", "Which?", "Which?", "How many?"],
        "solution": ["B", "circle", "the square", "<think>hm</think><answer>3</answer>"],
        "choices": ["['circle', 'square']", '["circle", "square"]', "['circle', 'square']", None],
        "level": [1.5, float("nan"), None, 2.0],
        "licence": ["MIT", None, None, None],
        "embedding": [[0.5]] * 4,
    }
    folder = write(tmp_path / "data", columns, {"image": IMAGE})
    rows = read_questions(folder, licence="CC0-1.0")
    assert [(row.id, row.answer, row.options) for row in rows] == [
        ("a", "B", ("circle", "square")),
        ("b", "A", ("circle", "square")),
        ("c", "B", ("circle", "square")),
        ("d", "3", ()),
    ]
    assert [row.provenance for row in rows] == [
        {"level": 1.5, "licence": "MIT"},
        {"licence": "CC0-1.0"},
        {"licence": "CC0-1.0"},
        {"level": 2.0, "licence": "CC0-1.0"},
    ]


def test_pairs_of_two_images_and_a_letter(tmp_path: Path) -> None:
    columns = {
        "images": [[struct(RED), struct(BLUE)]] * 2,
        "problem": ["<image><image>\nQuestion: Which colour?\nAnswer: red\nWhich image supports the answer?"]
        * 2,
        "answer": ["A", "B"],
    }
    folder = write(tmp_path / "data", columns, {"images": pa.list_(IMAGE)})
    rows = read_pairs(folder, licence="CC0-1.0")
    assert [(row.query, row.answer, pixel(row.context)) for row in rows] == [
        ("Which colour?", "red", (255, 0, 0)),
        ("Which colour?", "red", (0, 0, 255)),
    ]


def test_pairs_by_side(tmp_path: Path) -> None:
    """Images, and texts, in the columns of a dataset folder, among others: no manifest is needed."""
    columns = {
        "query": ["Which colour?", "Sum?"],
        "answer": ["red", "1"],
        "confounder_answer": ["blue", None],
        "context": [struct(RED), None],
        "confounder": [struct(BLUE), None],
        "context_text": [None, "one"],
        "confounder_text": [None, "two"],
        "provenance": [json.dumps({"licence": "MIT", "seed": 3})] * 2,
    }
    folder = write(tmp_path / "data", columns, {"context": IMAGE, "confounder": IMAGE})
    first, second = read_pairs(folder)
    assert (pixel(first.context), pixel(first.confounder), first.confounder_answer) == (
        (255, 0, 0),
        (0, 0, 255),
        "blue",
    )
    assert (second.context, second.confounder, second.answer_type) == ("one", "two", "numeric")
    assert first.provenance == {"licence": "MIT", "seed": 3}


def test_prompts_as_messages(tmp_path: Path) -> None:
    """TRL's prompt: a text, messages with texts, messages with parts; a conversation is refused."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]
    system = {"role": "system", "content": [{"type": "text", "text": "Think."}]}
    prompts = [
        [{"role": "user", "content": parts}],
        [system, {"role": "user", "content": parts}],
        [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}],
        [{"role": "user", "content": [*parts, {"type": "image", "text": None}]}],
    ]
    columns = {"prompt": prompts, "images": [[struct(RED)]] * 4, "solution": ["4"] * 4}
    folder = write(tmp_path / "data", columns, {"images": pa.list_(IMAGE)})
    rows = read_questions(folder, licence="MIT")
    assert [(row.query, row.answer) for row in rows] == [("How many?", "4")] * 2
    assert rows[1].provenance == {"licence": "MIT", "system": "Think."}
    assert isinstance(rows, ForeignRows)
    assert [(row_id, reason.split(": ", 2)[2]) for row_id, reason in rows.rejects] == [
        ("train-2", "prompt holds user, assistant, expected one user message, after a system message or not"),
        ("train-3", "2 image placeholders in the text and 1 images; expected as many"),
    ]
    texts = {
        "prompt": [[{"role": "user", "content": "2 + 2?"}], [{"role": "user", "content": "3 + 3?"}]],
        "answer": ["4", "6"],
    }
    plain = read_questions(write(tmp_path / "texts", texts, {}), licence="MIT")
    assert [row.query for row in plain] == ["2 + 2?", "3 + 3?"]


def test_rejects_name_file_and_row(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(RED)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    values = [
        struct(RED), struct(None, "../secret.png"), struct(None, str(secret)), struct(None, "link.png"), struct(RED[:48]),
        struct(None, None), struct(None, "gone.png"), struct(RED), struct(RED),
    ]  # fmt: skip
    n = len(values)
    columns = {
        "image": values,
        "id": ["good", *map(str, range(1, n - 1)), "good"],
        "question": ["Red?"] * (n - 2) + [None, "Red?"],
        "answer": ["yes"] * n,
    }
    write(folder, columns, {"image": IMAGE})
    rows = read_questions(folder, licence="MIT")
    assert [row.id for row in rows] == ["good"]
    assert isinstance(rows, ForeignRows)
    expected = [
        ("1", "row 1: ../secret.png is outside the data folder"),
        ("2", f"row 2: {secret} is outside the data folder"),
        ("3", "row 3: link.png is outside the data folder"),
        ("4", "row 4: image 0: damaged or truncated ("),
        ("5", "row 5: image holds {'bytes': None, 'path': None}, expected the name of an image file"),
        ("6", "row 6: image file gone.png not found in"),
        ("7", "row 7: no query or question or problem or prompt"),
        ("good", "row 8: duplicate id, an earlier row has it"),
    ]
    assert len(rows.rejects) == len(expected)
    for (row_id, reason), (expected_id, start) in zip(rows.rejects, expected, strict=True):
        assert row_id == expected_id
        assert reason.startswith(f"{folder / 'train.parquet'}: {start}")


def test_an_image_bomb_is_a_reject(tmp_path: Path) -> None:
    """A PNG of a few kilobytes that says it has 64 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(buffer, "PNG")
    folder = write(
        tmp_path / "data",
        {"image": [struct(buffer.getvalue()), struct(RED)], "question": ["Red?"] * 2, "answer": ["yes"] * 2},
        {"image": IMAGE},
    )
    rows = read_questions(folder, licence="MIT")
    assert isinstance(rows, ForeignRows)
    assert len(rows) == 1
    assert "train.parquet: row 0: image 0: " in rows.rejects[0][1]
    assert "pixels" in rows.rejects[0][1]


def test_files_that_cannot_be_used_at_all(tmp_path: Path) -> None:
    base = {"image": [struct(RED)], "question": ["Red?"], "answer": ["yes"]}

    def refuse(name: str, columns: dict[str, Any], message: str) -> None:
        types = {key: IMAGE for key in columns if key in ("image", "photo")}
        folder = write(tmp_path / name, columns, types)
        with pytest.raises(DataError, match=message):
            read_questions(folder, licence="MIT")

    refuse(
        "a",
        {"image": base["image"], "answer": ["yes"]},
        r"no column query or question or problem or prompt.*found image, ans",
    )
    refuse(
        "b",
        {"image": base["image"], "question": ["Red?"]},
        r"no column answer or solution or ground_truth or candidate_answer",
    )
    photo = {"photo": base["image"], "question": ["Red?"], "answer": ["yes"]}
    refuse(
        "c",
        photo,
        r"train.parquet: pictures in column photo, expected images, image or context, confounder; rename the column$",
    )
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"d/train.parquet: not a readable Parquet file \("):
        read_questions(tmp_path / "d")
    folder = write(tmp_path / "e", base, {"image": IMAGE})
    with pytest.raises(
        DataError,
        match=r"no usable questions \(1 unusable rows.*provenance\['licence'\] is None.*give one for all",
    ) as caught:
        read_questions(folder)
    assert "\n" not in str(caught.value)


def test_a_link_to_parquet_elsewhere_is_refused(tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"image": [RED], "question": ["Red?"], "answer": ["yes"]}, {})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(other / "train.parquet")
    with pytest.raises(
        DataError, match=r"data/train.parquet: is a link out of its folder, expected a file inside it"
    ):
        read_questions(folder, licence="MIT")


def test_a_dataset_folder_without_its_manifest_stays_incomplete(tmp_path: Path, pairs_folder: Path) -> None:
    (shard,) = pairs_folder.glob("*.parquet")
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    assert find_foreign(tmp_path) == []
    with pytest.raises(DataError, match=r"incomplete dataset, no manifest.json"):
        read_pairs(tmp_path)


def test_several_files_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files, five rows in groups of two and three of one: a row by number, out of order, after pickling, one group at a time."""
    columns = {"image": [RED, BLUE, RED, BLUE, RED], "question": list("abcde"), "answer": ["x"] * 5}
    folder = write(tmp_path / "data", columns, {}, "a.parquet", row_group_size=2)
    write(
        folder,
        {"image": [BLUE] * 3, "question": list("fgh"), "answer": ["x"] * 3},
        {},
        "b.parquet",
        row_group_size=1,
    )
    rows = read_questions(folder, licence="MIT")
    assert [row.query for row in rows] == list("abcdefgh")
    assert [row.id for row in rows[3:7]] == ["a-3", "a-4", "b-0", "b-1"]
    again = pickle.loads(pickle.dumps(rows))
    assert [again[n].query for n in (7, 0, 4, 3)] == list("haed")
    read: list[int] = []
    read_group = foreign_parquet.ParquetValues._read_group
    monkeypatch.setattr(
        foreign_parquet.ParquetValues,
        "_read_group",
        lambda self, group: (read.append(group), read_group(self, group))[1],
    )
    assert list(read_questions(folder, licence="MIT")) == list(rows)
    assert read == [*range(6), *range(6)]


def test_a_file_by_its_name_and_the_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"image": [RED], "question": ["Red?"], "answer": ["yes"]}, {})
    assert len(read_questions(folder / "train.parquet", licence="MIT")) == 1
    before = content_hash(folder)
    assert before == content_hash(folder / "train.parquet")
    write(folder, {"image": [BLUE], "question": ["Red?"], "answer": ["no"]}, {})
    assert content_hash(folder) != before


def test_a_file_as_datasets_writes_it(tmp_path: Path) -> None:
    """`datasets` writes an Image column as a struct of bytes and path; a list of options as a list."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("int64"),
        }
    )
    picture = Image.new("RGB", (4, 3), (255, 0, 0))
    data = {"image": [picture], "question": ["How many?"], "options": [[]], "answer": [3]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "data" / "x.parquet")
    (row,) = read_questions(tmp_path / "data", licence="MIT")
    assert (row.answer, row.answer_type, pixel(row.images[0])) == ("3", "numeric", (255, 0, 0))


def test_memory_stays_at_a_few_rows_while_a_file_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 rows in one group: batches of 32 are read, and at most 64 rows are built before the first is let go."""
    n = 200
    images = [png(index, 0, 0) for index in range(n)]
    columns = {"image": images, "question": ["How dark?"] * n, "answer": list(map(str, range(n)))}
    folder = write(tmp_path / "data", columns, {}, row_group_size=n)
    drawn: list[int] = []
    values = foreign_parquet.ParquetValues.__iter__

    def count(self: Any) -> Any:
        for number, value in enumerate(values(self)):
            drawn.append(number)
            yield value

    monkeypatch.setattr(foreign_parquet.ParquetValues, "__iter__", count)
    from vlm_contextrl.foreign.rows import Sieve, usable_rows

    rows = usable_rows(find_foreign(folder), Sieve("questions"), licence="MIT")
    next(rows)
    assert len(drawn) == 64
    manifest = write_rows(rows, tmp_path / "out", recipe="import", config={})
    assert manifest.rows == n - 1


def test_a_file_never_piles_up_in_memory(tmp_path: Path) -> None:
    """Eight groups of about 4 MB: Arrow holds no more than two of them, and what a batch takes."""
    group_bytes = 4_000_000
    numbers = range(8)
    columns = {
        "image": [RED + bytes(n) + random.Random(n).randbytes(group_bytes) for n in numbers],
        "question": ["Red?"] * 8,
        "answer": ["yes"] * 8,
    }
    folder = write(tmp_path / "data", columns, {}, row_group_size=1, compression="none")
    before = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(before)
    pa.set_memory_pool(watched)
    try:
        assert sum(1 for _ in foreign_parquet.ParquetValues(find_foreign(folder))) == 8
        assert 0 < watched.max_memory() < 4 * group_bytes
    finally:
        pa.set_memory_pool(before)


def test_a_folder_of_folders_says_which_to_name(tmp_path: Path) -> None:
    write(tmp_path / "data", {"image": [RED], "question": ["Red?"], "answer": ["yes"]}, {})
    with pytest.raises(DataError, match=r"no manifest.json \(name one of .*/data\)"):
        read_questions(tmp_path, licence="MIT")
