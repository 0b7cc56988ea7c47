"""Edited files and functions of a patch, by tree and by hunk."""

from __future__ import annotations

import ast

from tests.trajectory_logs import PATH, SOURCE, patch_of
from vlm_contextrl.data_recipes.trajectories.patches import (
    MODULE,
    functions_in_hunks,
    functions_in_tree,
    parse_patch,
    parsed,
    shown_source,
)

TWO_FILES = """some words before
diff --git a/lib/card.py b/lib/card.py
index 118bfced89..c036f96ae9 100644
--- a/lib/card.py
+++ b/lib/card.py
@@ -10,4 +10,5 @@ def first(value):

 def second(value):
     \"\"\"Second.\"\"\"
-    return value
+    value = value + 1
+    return value
@@ -40,2 +41,2 @@ class Card(Base):
     def third(self):
-        pass
+        return 3
\\ No newline at end of file
diff --git a/lib/new.py b/lib/new.py
new file mode 100644
index 0000000..1111111
--- /dev/null
+++ b/lib/new.py
@@ -0,0 +1,2 @@
+def fresh():
+    return "--- a"
diff --git a/old name.py b/new name.py
similarity index 100%
rename from old name.py
rename to new name.py
"""


def test_files_and_hunks() -> None:
    """A rename without hunks is no edit; a line that looks like a header stays a line where the counts say so."""
    card, new = parse_patch(TWO_FILES)
    assert (card.path, card.is_new, len(card.hunks)) == ("lib/card.py", False, 2)
    assert card.hunks[0].section == "def first(value):"
    assert card.hunks[0].before == ["", "def second(value):", '    """Second."""', "    return value"]
    assert card.changed_lines() == [
        "    return value",
        "    value = value + 1",
        "    return value",
        "        pass",
        "        return 3",
    ]
    assert (new.path, new.is_new, new.changed_lines()) == (
        "lib/new.py",
        True,
        ["def fresh():", '    return "--- a"'],
    )
    assert parse_patch("no diff at all\n@@ -1 +1 @@\n-a\n+b") == []


def test_diff_without_git_header_and_with_a_removed_dash_line() -> None:
    """`--- x` inside a hunk is the removed line `-- x`."""
    (file,) = parse_patch("--- a/q.sql\t2024\n+++ b/q.sql\t2024\n@@ -1,2 +1,1 @@\n--- x\n select\n")
    assert (file.path, file.changed_lines()) == ("q.sql", ["-- x"])


def test_functions_by_hunk() -> None:
    """git names the definition before the hunk; one that opens inside it comes after."""
    card, new = parse_patch(TWO_FILES)
    assert functions_in_hunks(card) == ["second", "third"]
    assert functions_in_hunks(new) == [MODULE]


def test_functions_by_tree() -> None:
    """SOURCE: `area` is at lines 20 to 22, `Box.width` at 9 and 10; the hunk of `sign` begins inside `describe`."""
    tree = ast.parse(SOURCE)
    assert functions_in_tree(parse_patch(patch_of("sign"))[0], tree) == ["area"]
    assert functions_in_tree(parse_patch(patch_of("width"))[0], tree) == ["Box.width"]
    assert functions_in_hunks(parse_patch(patch_of("width"))[0]) == ["width"]


def test_insertions_belong_to_what_is_before_them() -> None:
    """A line after `return size` is in `area`; one before the class is in the module; decorators belong to their function."""
    end = "--- a/x.py\n+++ b/x.py\n@@ -21,2 +21,3 @@\n     size = box.width() * box.height()\n     return size\n+    # end\n"
    start = '--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,3 @@\n """Boxes."""\n+import math\n \n'
    tree = ast.parse(SOURCE)
    assert functions_in_tree(parse_patch(end)[0], tree) == ["area"]
    assert functions_in_tree(parse_patch(start)[0], tree) == [MODULE]
    decorated = ast.parse("@cache\ndef f():\n    pass\n")
    change = "--- a/x.py\n+++ b/x.py\n@@ -1,1 +1,1 @@\n-@cache\n+@lru_cache\n"
    assert functions_in_tree(parse_patch(change)[0], decorated) == ["f"]


def test_source_shown_in_the_trajectory() -> None:
    """Bare or numbered from 1, and whole: a window of the file and another file do not fit."""
    (file,) = parse_patch(patch_of("sign"))
    numbered = "\n".join(f"{n:6}\t{line}" for n, line in enumerate(SOURCE.splitlines(), start=1))
    colons = "\n".join(f"{n}:{line}" for n, line in enumerate(SOURCE.splitlines(), start=1))
    for text in (SOURCE, f"Here is the file:\n{numbered}\n", colons):
        shown = shown_source(file, ["ls", text])
        assert shown is not None
        assert shown.strip() == SOURCE.strip()
    window = "\n".join(numbered.splitlines()[15:])
    assert shown_source(file, [window, SOURCE.replace("size", "s")]) is None


def test_what_is_no_python_has_no_tree() -> None:
    assert parsed("def f(:\n") is None
    assert parsed("x = 1\n") is not None
    assert parsed('"\\d"') is not None


def test_text_tells_no_positions() -> None:
    """Path and changed lines; unchanged lines between two changes, and a new hunk, are `...`."""
    changes = "@@ -5,4 +5,4 @@ def f():\n     a\n-    b\n+    c\n     d\n-    e\n+    f\n@@ -20,1 +20,1 @@\n-    g\n+    h\n"
    (file,) = parse_patch(f"--- a/{PATH}\n+++ b/{PATH}\n{changes}")
    assert file.text() == f"{PATH}\n-    b\n+    c\n...\n-    e\n+    f\n...\n-    g\n+    h"
