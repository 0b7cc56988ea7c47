"""Pairs by similarity: blocks, the window, the cap, the coin, reasons and recall, worked out by hand on coloured squares."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_contextrl.config import load_config, validate
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.retrieve import RetrieveConfig, run
from vlm_contextrl.data_recipes.retrieve.paraphrases import paraphrases
from vlm_contextrl.data_recipes.retrieve.settings import ParaphraseSettings
from vlm_contextrl.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.storage import read_pairs, write_rows

LETTERS = "ABCD"


def bars(n_white: int, size_px: int = 16, noise: int = 0) -> EncodedImage:
    """A black square with n white columns out of 16. noise: another red value of one pixel, too small for a histogram."""
    pixels = np.zeros((size_px, size_px, 3), np.uint8)
    pixels[:, :n_white] = 255
    pixels[0, -1, 0] = noise
    return EncodedImage.from_image(Image.fromarray(pixels))


def ask(
    row_id: str,
    image: EncodedImage | Sequence[EncodedImage],
    answer: str,
    query: str = "How many?",
    **further: Any,
) -> QuestionRow:
    images = (image,) if isinstance(image, EncodedImage) else tuple(image)
    told = {"licence": "CC0-1.0", **further.pop("provenance", {})}
    return QuestionRow(
        id=row_id,
        query=query,
        answer=answer,
        images=images,
        provenance=told,
        **{"answer_type": "exact", **further},
    )


def retrieve(
    rows: Sequence[QuestionRow], folder: Path, **values: Any
) -> tuple[dict[str, Any], list[ContrastivePair], dict[str, str]]:
    """Summary, pairs and the reason of every reject; kept and rejects add up to the inputs."""
    write_rows(rows, folder / "questions", recipe="test", config={})
    config = validate(RetrieveConfig, {"low": 0.0, **values}, "config")
    summary = run(config, folder / "questions", folder / "pairs", Engine())
    pairs = list(read_pairs(folder / "pairs"))
    rejects = folder / "pairs" / "rejects.jsonl"
    lines = [json.loads(line) for line in rejects.read_text().splitlines()] if rejects.exists() else []
    assert summary["kept"] + summary["rejects"] == summary["inputs"] == len(rows)
    assert len(lines) == summary["rejects"] == sum(summary["rejected"].values())
    assert summary["rows"] == summary["pairs"] == len(pairs)
    sources = {row_id for pair in pairs for row_id in pair.provenance["made_from"]}
    assert sources | {line["id"] for line in lines} == {row.id for row in rows}
    assert not list(folder.glob(".pairs*"))
    return summary, pairs, {line["id"]: line["reason"] for line in lines}


def sources(pairs: Sequence[ContrastivePair]) -> set[frozenset[str]]:
    return {frozenset(pair.provenance["made_from"]) for pair in pairs}


def test_the_nearest_with_another_answer_makes_the_pair(tmp_path: Path) -> None:
    """Squares with 2, 3, 10 and 11 white columns, answered 1, 2, 3 and 4. The nearer the numbers of columns, the larger the
    cosine: the pairs are (2, 3) and (10, 11)."""
    rows = [ask(f"q{n}", bars(n), str(answer)) for answer, n in enumerate((2, 3, 10, 11))]
    summary, pairs, rejects = retrieve(rows, tmp_path, max_pairs_per_image=1)
    assert sources(pairs) == {frozenset(("q2", "q3")), frozenset(("q10", "q11"))}
    assert not rejects
    assert summary["recall"] == {"groups": 1.0, "rows": 1.0}
    assert summary["possible"] == {"groups": 1, "rows": 4}
    assert summary["same_group_precision"] is None
    first = pairs[0]
    assert {first.answer, first.confounder_answer} == {"0", "1"}
    told = first.provenance
    assert told["encoder"] == "histogram"
    assert (told["low"], told["high"], told["recipe"], told["seed"], told["licence"]) == (
        0.0,
        1.0,
        "retrieve",
        0,
        "CC0-1.0",
    )
    # 2 and 3 of 16 columns white: whole sqrt(2 * 3) / 16 + sqrt(14 * 13) / 16 = 0.99625; of the four columns of cells, 12 px wide areas
    # agree and the first has sqrt(2 * 3) / 4 + sqrt(2 * 1) / 4 = 0.96593: (0.99625 + (3 + 0.96593) / 4) / 2 = 0.99387
    assert told["similarity"] == pytest.approx(0.99387, abs=1e-5)


def test_only_the_same_question_is_paired(tmp_path: Path) -> None:
    """Case counts in same_question=text, spaces do not."""
    rows = [
        ask("a", bars(2), "1"),
        ask("b", bars(3), "2", "How  many?"),
        ask("c", bars(4), "3", "how many?"),
        ask("d", bars(5), "4", "Where?"),
    ]
    summary, pairs, rejects = retrieve(rows, tmp_path)
    assert sources(pairs) == {frozenset("ab")}
    assert summary["rejected"] == {"no_partner": 2}
    assert rejects["d"] == "no_partner: no other row is asked the same, expected at least two"


def test_same_words_are_the_same_question(tmp_path: Path) -> None:
    rows = [ask("a", bars(2), "1"), ask("b", bars(3), "2", "how many"), ask("c", bars(9), "3", "How few?")]
    _, pairs, rejects = retrieve(rows, tmp_path, same_question="words")
    assert sources(pairs) == {frozenset("ab")}
    assert set(rejects) == {"c"}


@pytest.mark.parametrize("any_order", [False, True])
def test_options_in_another_order(any_order: bool, tmp_path: Path) -> None:
    """ "two" is B in one row and A in the other. By default these are two questions; in any order the pair has the context's letters."""
    rows = [
        ask("a", bars(2), "A", options=("one", "two"), answer_type="choice"),
        ask("b", bars(3), "A", options=("two", "one"), answer_type="choice"),
        ask("c", bars(4), "B", options=("two", "one"), answer_type="choice"),  # "one", as a
    ]
    _, pairs, _ = retrieve(rows, tmp_path, options_in_any_order=any_order, max_pairs_per_image=2)
    assert sources(pairs) == ({frozenset("ab"), frozenset("bc")} if any_order else {frozenset("bc")})
    for pair in pairs:
        said = [pair.options[LETTERS.index(letter)] for letter in (pair.answer, pair.confounder_answer or "")]
        by_id = dict(zip(pair.provenance["made_from"], said, strict=True))
        assert all(text == {"a": "one", "b": "two", "c": "one"}[row] for row, text in by_id.items())


def test_blocks_by_a_key_of_the_provenance(tmp_path: Path) -> None:
    """The questions are worded differently; `template` says that they are the same. The pair has the context's wording."""
    rows = [
        ask("a", bars(2), "1", "How many?", provenance={"template": 7}),
        ask("b", bars(3), "2", "What is the number?", provenance={"template": 7}),
        ask("c", bars(4), "3", "How many?", provenance={"template": 8}),
        ask("d", bars(5), "4", "How many?"),
    ]
    _, (pair,), rejects = retrieve(rows, tmp_path, block_by="template")
    assert pair.query == {"a": "How many?", "b": "What is the number?"}[pair.provenance["made_from"][0]]
    assert rejects["d"].startswith("no_block_key: no 'template' in the provenance")
    assert rejects["c"].startswith("no_partner: ")


def test_every_reason(tmp_path: Path) -> None:
    """One row or two for each reason, in blocks of their own."""
    rows = [
        ask("two images", (bars(1), bars(2)), "1"),
        ask("no image", (), "1"),
        ask("text", bars(1), "1", context_text="a text"),
        ask("alone", bars(1), "1", "Alone?"),
        ask("same 1", bars(1), "3.0", "Same?", answer_type="numeric"),
        ask("same 2", bars(2), "3", "Same?", answer_type="numeric"),
        ask("far 1", bars(0), "1", "Far?"),
        ask("far 2", bars(16), "2", "Far?"),
        ask("equal 1", bars(5), "1", "Equal?"),
        ask("equal 2", bars(5), "2", "Equal?"),
        ask("capped", bars(6), "1", "Cap?"),
        ask("partner", bars(7), "2", "Cap?"),
        ask("near", bars(7, noise=1), "1", "Cap?"),
        ask("repeat 1", bars(8), "1", "Repeat?"),
        ask("repeat 2", bars(8), "1", "Repeat?"),
        ask("other", bars(9), "2", "Repeat?"),
    ]
    summary, pairs, rejects = retrieve(rows, tmp_path, low=0.5, max_pairs_per_image=1)
    assert sources(pairs) == {frozenset(("near", "partner")), frozenset(("repeat 1", "other"))}
    assert {row: reason.partition(":")[0] for row, reason in rejects.items()} == {
        "two images": "images",
        "no image": "images",
        "text": "context_text",
        "alone": "no_partner",
        "same 1": "same_answers",
        "same 2": "same_answers",
        "far 1": "outside_window",
        "far 2": "outside_window",
        "equal 1": "identical_pixels",
        "equal 2": "identical_pixels",
        "capped": "cap",
        "repeat 2": "repeats",
    }
    assert (
        rejects["far 1"]
        == "outside_window: the nearest image with another answer has cosine 0.0000, expected 0.5 to 1"
    )
    assert rejects["two images"] == "images: 2, expected exactly one"
    # Possible: the two far ones, the three of Cap? and the three of Repeat?, in three groups; found are 4 rows of 2 groups.
    assert summary["possible"] == {"groups": 3, "rows": 8}
    assert summary["recall"] == {"groups": pytest.approx(2 / 3), "rows": 0.5}


def test_the_upper_bound_refuses_near_duplicates(tmp_path: Path) -> None:
    """2 and 3 columns have cosine 0.99387, 2 and 5 less."""
    rows = [ask("a", bars(2), "1"), ask("b", bars(3), "2"), ask("c", bars(5), "3")]
    _, pairs, _ = retrieve(rows, tmp_path, high=0.99)
    assert frozenset("ab") not in sources(pairs)
    assert frozenset("ac") in sources(pairs)


def test_no_image_is_in_more_pairs_than_the_cap(tmp_path: Path) -> None:
    """One image answered 2 among eight answered 1, and the image's own copy in another row counts with it."""
    rows = [ask(f"q{n}", bars(n), "1") for n in range(1, 9)] + [
        ask("x", bars(12), "2"),
        ask("x again", bars(12), "2"),
    ]
    _, pairs, rejects = retrieve(rows, tmp_path, max_pairs_per_image=3)
    assert len(pairs) == 3
    assert Counter(reason.partition(":")[0] for reason in rejects.values()) == {"cap": 6}


def test_every_image_gets_a_partner_before_any_gets_two(tmp_path: Path) -> None:
    """2 and 3 columns are answered 1; 4, 5 and 13 are answered 2. The nearest first would use 2 and 3 up with 4 and 5. In rounds (3, 4) and
    (2, 5) come first, then 13, which has none yet, with 3, the nearer one; then (2, 4) is all that the cap of 2 leaves."""
    rows = [ask(f"q{n}", bars(n), "1" if n < 4 else "2") for n in (2, 3, 4, 5, 13)]
    summary, pairs, rejects = retrieve(rows, tmp_path, max_pairs_per_image=2)
    assert sources(pairs) == {frozenset(f"q{n}" for n in two) for two in ((3, 4), (2, 5), (3, 13), (2, 4))}
    assert not rejects
    assert summary["recall"]["rows"] == 1.0


def test_a_pair_is_there_once_and_the_coin_is_fair(tmp_path: Path) -> None:
    """Of 240 pairs about half have the row with the smaller id as context: 120 +- 40 is five standard deviations. Another seed throws
    other coins for the same pairs."""
    rows = [
        ask(f"{n:03d}{side}", bars(4 + side, noise=n), str(side), f"Question {n}?")
        for n in range(240)
        for side in (0, 1)
    ]
    found = {}
    for seed in (0, 1):
        _, pairs, _ = retrieve(rows, tmp_path / str(seed), seed=seed)
        assert len(sources(pairs)) == len(pairs) == 240
        found[seed] = [pair.provenance["made_from"][0][-1] for pair in pairs]
        assert 80 < found[seed].count("0") < 160
        assert all(pair.answer == side for pair, side in zip(pairs, found[seed], strict=True))
    assert found[0] != found[1]


def test_pairs_can_be_turned_round(tmp_path: Path) -> None:
    _, (pair,), _ = retrieve([ask("a", bars(2), "1"), ask("b", bars(3), "2")], tmp_path)
    turned = pair.reversed()
    assert turned is not None
    assert (turned.answer, turned.confounder_answer) == (pair.confounder_answer, pair.answer)


def test_precision_by_pair_group(tmp_path: Path) -> None:
    """Four rows are asked the same, in two groups, and both pairs cross them: 4 and 5 columns are nearest, 2 and 13 are left."""
    rows = [
        ask(f"q{n}", bars(n), answer, provenance={"pair_group": group})
        for n, answer, group in ((2, "1", "g"), (4, "2", "g"), (5, "1", "h"), (13, "3", "h"))
    ]
    summary, pairs, _ = retrieve(rows, tmp_path, max_pairs_per_image=1)
    assert sources(pairs) == {frozenset(("q4", "q5")), frozenset(("q2", "q13"))}
    assert summary["same_group_precision"] == 0.0
    assert summary["recall"] == {"groups": 0.0, "rows": 1.0}


def test_equal_runs_are_equal(tmp_path: Path) -> None:
    rows = [ask(f"q{n}", bars(n % 15 + 1, noise=n), str(n % 3), f"Question {n % 4}?") for n in range(60)]
    found = [retrieve(rows, tmp_path / str(n), batch_size=size) for n, size in enumerate((7, 256))]
    assert found[0][0]["content_hash"] == found[1][0]["content_hash"]
    assert found[0][2] == found[1][2]


def test_faiss_gives_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    rows = [ask(f"q{n}", bars(n), str(n % 3)) for n in range(1, 16)]
    found = [retrieve(rows, tmp_path / index, index=index)[0]["content_hash"] for index in ("exact", "faiss")]
    assert found[0] == found[1]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"vlm-contextrl\[search\]"):
        retrieve(rows, tmp_path / "missing", index="faiss")


def test_no_pair_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"nothing was kept, all 2 inputs were rejected \(no_partner 2\), .*; widen low and high, or look at block_by",
    ):
        retrieve([ask("a", bars(2), "1"), ask("b", bars(3), "2", "Other?")], tmp_path)


def test_the_cache_can_be_kept(tmp_path: Path) -> None:
    rows = [ask("a", bars(2), "1"), ask("b", bars(3), "2")]
    retrieve(rows, tmp_path / "1", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*/vectors-*.npz"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"low": 0.9, "high": 0.8}, "low 0.9 is over high 0.8"),
        ({"same_question": "meaning"}, "same_question=meaning needs paraphrase.path"),
        ({"paraphrase": {"path": "x"}}, "paraphrase has no effect without it"),
        (
            {"block_by": "template", "same_question": "words"},
            "same_question has no effect with block_by=template",
        ),
        ({"neighbors": 3}, "neighbours"),
    ],
)
def test_bad_settings_are_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        validate(RetrieveConfig, values, "config")


def test_the_shipped_configuration_is_one() -> None:
    shipped = Path(__file__).parents[1] / "configs" / "recipes" / "retrieve.yaml"
    assert load_config(RetrieveConfig, shipped).encoder.encoder == "transformers"
    with pytest.raises(ConfigError, match="path has no effect on the encoder histogram"):
        load_config(RetrieveConfig, shipped, ["encoder.encoder=histogram"])


# ---- paraphrases


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of no layers: a token's vector is its embedding, so a question's is about the mean of its words'."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("text")
    names = ["[PAD]", "[UNK]", "how", "many", "red", "blue", "dots", "count", "the", "where", "is", "it"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    shape = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**shape, vocab_size=len(names), max_position_embeddings=16))
    with torch.no_grad():  # words count, places do not
        model.embeddings.position_embeddings.weight.zero_()
        model.embeddings.token_type_embeddings.weight.zero_()
    model.save_pretrained(folder)
    return folder


def test_paraphrases_join_the_first_that_is_near(text_encoder: Path) -> None:
    """The same words in another order have cosine 1; four of five words 4/5 or so; other words about 0."""
    questions = ["how many red dots", "many red dots how", "how many blue dots", "where is it"]
    found = paraphrases(questions, ParaphraseSettings(path=str(text_encoder), threshold=0.99))
    assert found == {q: questions[0] if q == questions[1] else q for q in questions}
    loose = paraphrases(questions, ParaphraseSettings(path=str(text_encoder), threshold=0.5, batch_size=1))
    assert [loose[q] for q in questions] == [questions[0]] * 3 + [questions[3]]


def test_paraphrased_questions_are_paired(text_encoder: Path, tmp_path: Path) -> None:
    rows = [
        ask("a", bars(2), "1", "how many red dots"),
        ask("b", bars(3), "2", "many red dots how"),
        ask("c", bars(4), "3", "where is it"),
    ]
    _, pairs, rejects = retrieve(
        rows, tmp_path, same_question="meaning", paraphrase={"path": str(text_encoder)}
    )
    assert sources(pairs) == {frozenset("ab")}
    assert set(rejects) == {"c"}


def test_a_text_encoder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no config.json; expected a Hugging Face model folder"):
        paraphrases(["a"], ParaphraseSettings(path=str(tmp_path)))
