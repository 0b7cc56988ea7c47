"""Labels as English words: read off file names, put into sentences, told apart.

The rules are small on purpose. A label that may be one of another (dog and puppy) is for categories to keep apart, see `sources`.
"""

from __future__ import annotations

import re

MAX_WORDS = 4
# What a file name adds to say which picture of the thing it is.
_VARIANTS = frozenset({"mirror", "flip", "copy", "cutout", "small", "large", "alt"})
_ARTICLES = frozenset({"a", "an", "the", "some", "this", "is"})
_LINKS = frozenset({"of", "in", "with", "on", "and", "the", "a", "an", "for", "to", "from"})
_MANY = frozenset(
    {"people", "children", "men", "women", "geese", "mice", "feet", "teeth", "sheep", "fish", "deer"}
)
_NUMBERS = frozenset({"two", "three", "four", "five", "six", "several", "many"})
_COLOUR_WORDS = frozenset(
    {
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "violet",
        "pink",
        "brown",
        "black",
        "white",
        "grey",
        "gray",
        "gold",
        "golden",
    }
)
_SEVERAL = frozenset(
    {
        "bunch",
        "pair",
        "group",
        "set",
        "herd",
        "flock",
        "pile",
        "stack",
        "bundle",
        "family",
        "row",
        "couple",
        "cluster",
    }
)
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "knife": "knives", "leaf": "leaves", "wolf": "wolves", "loaf": "loaves",
    "calf": "calves", "shelf": "shelves", "scarf": "scarves", "sheep": "sheep", "fish": "fish", "deer": "deer",
    "tomato": "tomatoes", "potato": "potatoes",
}  # fmt: skip


def label_of_name(stem: str) -> str:
    """`Toy-Car_02_mirror` -> `toy car`; empty when no word is left."""
    spaced = re.sub(r"-|(?<=[a-z])(?=[A-Z])", " ", stem)
    return " ".join(word for word in _words(spaced) if word not in _VARIANTS)


def label_of_text(text: str) -> str:
    """`An apple, red.` -> `apple`: the first phrase without its article; empty when it is no name of at most four words."""
    words = _words(re.split(r"[,.;:!?()\u2013\u2014]|\s-\s", text.strip(), maxsplit=1)[0])
    while words and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words) if len(words) <= MAX_WORDS else ""


def words_of(text: str) -> tuple[str, ...]:
    """The different words of three letters or more, without articles and prepositions."""
    return tuple(sorted({word for word in _words(text) if len(word) > 2} - _LINKS - _ARTICLES))


def _words(text: str) -> list[str]:
    found = re.findall(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*", text)
    return [word.replace("\u2019", "'").lower() for word in found]


def is_plural(label: str) -> bool:
    """Whether the label names several things, as far as its ending tells."""
    head = _head(label)
    return head in _MANY - {"fish", "sheep", "deer"} or bool(re.search(r"(?<![sui'])s$", head))


def countable(label: str) -> bool:
    """Whether a picture with this label shows one thing, so that pictures can be counted."""
    words = label.split()
    return not is_plural(label) and not (_SEVERAL | _NUMBERS | {"and", "or"}) & {*words}


def names_colour(label: str) -> bool:
    """Whether a word of the label is a colour: it says what a colour question asks, and may contradict it."""
    return any(word in _COLOUR_WORDS for word in re.split(r"[ -]", label))


def plural(label: str) -> str:
    """`cup of tea` -> `cups of tea`."""
    head = _head(label)
    if is_plural(label):
        return label
    if head in _IRREGULAR:
        many = _IRREGULAR[head]
    elif re.search(r"(?:[sxz]|[cs]h)$", head):
        many = f"{head}es"
    else:
        many = f"{head[:-1]}ies" if re.search(r"[^aeiou]y$", head) else f"{head}s"
    return re.sub(rf"\b{re.escape(head)}\b", many, label, count=1)


def with_article(label: str) -> str:
    """`an apple`, `a cup of tea`, `scissors`."""
    return label if is_plural(label) else f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def verb(label: str) -> str:
    """`is` or `are`."""
    return "are" if is_plural(label) else "is"


def alike(left: str, right: str) -> bool:
    """Whether two labels may name one thing, in whatever number: a word of one ends as a word of the other (car and toy cars, flower and
    sunflower, cherry and cherries)."""
    return any(a.endswith(b) or b.endswith(a) for a in _both_numbers(left) for b in _both_numbers(right))


def _both_numbers(label: str) -> list[str]:
    return [*_stems(label), *_stems(plural(label))]


def _stems(label: str) -> list[str]:
    return [word.removesuffix("s") for word in label.split() if word not in _LINKS]


def _head(label: str) -> str:
    """The noun: the last word before `of`, `in`, `with`, `on`."""
    return re.split(r" (?:of|in|with|on|from|for) ", label, maxsplit=1)[0].split()[-1]
