"""Imports point one way, and what must start fast loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "vlm_contextrl"
LEAVES = ("data_recipes", "eval", "app")
# A module may import its own layer and lower ones. A folder stands for every module in it.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "appended_lines",
        "chat_endpoint",
        "child_processes",
        "config",
        "errors",
        "foreign",
        "images",
        "intervals",
        "lazy_rows",
        "matching",
        "pairs",
        "records",
        "result_files",
        "row_schema",
        "shards",
        "splits",
        "storage",
        "streams",
        "term_settings",
    ),
    (
        "answers",
        "dataset_report",
        "exported_rows",
        "exports",
        "expressions",
        "objectives",
        "prompts",
        "report",
        "rewards",
        "training_rows",
    ),
    (
        "attention",
        "checkpoints",
        "devices",
        "fused_lora",
        "log_probs",
        "merged_adapters",
        "models",
        "packed_kernels",
        "packed_layout",
        "packing",
        "policy",
        "processing",
        "qwen_messages",
        "ranks",
        "rollout",
        "runlog",
        "sharding",
        "vllm_engine",
    ),
    (
        "asked_pairs",
        "bench",
        "evaluation",
        "perception",
        "probe",
        "prompt_lengths",
        "reference",
        "reference_model",
        "scored_rollouts",
        "stages",
        "terms",
        "trainer",
        "training_data",
        "trl",
        "vqa",
    ),
    ("__main__", "cli", "commands", "demo", "demo_report", "doctor", "study"),
)
ENTRY_POINTS = LAYERS[4]
HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets")

Imports = list[tuple[str, int, bool]]  # dotted name, line, whether the import runs when the module is loaded


def folders() -> dict[str, Path]:
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-dir"
    ]
    return {name: ROOT / folder for name, folder in mapping.items()}


def modules() -> Iterator[tuple[str, Path]]:
    """(installed name, file) of every module."""
    for package, folder in folders().items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


MODULES = dict(modules())


def imports_of(name: str) -> Imports:
    """What a module imports; `from a import b` counts as a.b when that is a module, else as a."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    late |= {id(node) for guard in ast.walk(tree) if _is_type_checking(guard) for node in ast.walk(guard)}
    found: Imports = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [full if full in MODULES else str(node.module) for full in names]
        found += [(imported, node.lineno, id(node) not in late) for imported in names]
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def part(name: str) -> str:
    """The first component below the package: a module of the core, or a room."""
    return name.split(".")[1] if "." in name else "__init__"


def layer(name: str) -> int:
    """-1 for a module that has none yet; one test says so."""
    return next((index for index, members in enumerate(LAYERS) if part(name) in members), -1)


def is_core(name: str) -> bool:
    return part(name) not in (*LEAVES, "configs", "__init__")


CORE = [name for name in MODULES if is_core(name)]


def test_every_core_module_has_a_layer() -> None:
    listed = {member for members in LAYERS for member in members}
    assert {part(name) for name in CORE} <= listed, "add the new module to LAYERS"


@pytest.mark.parametrize("name", CORE)
def test_core_imports_its_own_layer_or_lower_and_no_leaf(name: str) -> None:
    for imported, line, _ in imports_of(name):
        if imported.startswith(f"{PACKAGE}.") and is_core(imported):
            assert layer(imported) <= layer(name), f"{name}:{line} imports {imported} of a higher layer"
        assert part(imported) not in LEAVES or not imported.startswith(PACKAGE), (
            f"{name}:{line} imports a leaf"
        )


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) in LEAVES])
def test_leaves_never_import_each_other_nor_the_entry_points(name: str) -> None:
    for imported, line, _ in imports_of(name):
        if imported.startswith(f"{PACKAGE}."):
            other = part(imported)
            assert other not in LEAVES or other == part(name), f"{name}:{line} imports the leaf {imported}"
            assert other not in ENTRY_POINTS, f"{name}:{line} imports the entry point {imported}"


@pytest.mark.parametrize("name", CORE)
def test_only_entry_points_hold_dotted_names_of_leaves(name: str) -> None:
    if part(name) in ENTRY_POINTS:
        return
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [leaf for leaf in LEAVES if node.value.startswith(f"{PACKAGE}.{leaf}")]
            assert not found, f"{name}:{node.lineno} names the leaf {found[0]}"


@pytest.mark.parametrize("name", [name for name in CORE if layer(name) == 0])
def test_the_lowest_layer_never_imports_torch_or_transformers(name: str) -> None:
    for imported, line, _ in imports_of(name):
        assert imported.split(".")[0] not in ("torch", "transformers"), f"{name}:{line} imports {imported}"


@pytest.mark.parametrize("name", [name for name in CORE if layer(name) in (0, 4)])
def test_data_and_entry_points_import_heavy_packages_late(name: str) -> None:
    for imported, line, at_load in imports_of(name):
        heavy = imported.split(".")[0] in (*HEAVY, "pyarrow")
        assert not (heavy and at_load), f"{name}:{line} imports {imported} when it is loaded"


def test_rooms_import_each_other_by_their_installed_names() -> None:
    """`import data_recipes` would make a second copy of every module in it."""
    for name in MODULES:
        for imported, line, _ in imports_of(name):
            assert imported.split(".")[0] not in (*LEAVES, "configs"), f"{name}:{line} imports {imported}"


# ---------------------------------------------------------------- what is loaded, seen from outside


def loaded_after(code: str) -> set[str]:
    """Names of the modules that are loaded once `code` has run."""
    program = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_command_line_and_configuration_load_no_heavy_package() -> None:
    assert not loaded_after("import vlm_contextrl.cli, vlm_contextrl.config, vlm_contextrl.doctor") & set(
        HEAVY
    )


@pytest.mark.parametrize("arguments", ["", "pairs", "pairs render", "train", "probe"])
def test_help_loads_no_heavy_package(arguments: str) -> None:
    argv = ["vlm-contextrl", *arguments.split(), "--help"]
    loaded = loaded_after(f"sys.argv = {argv}; from vlm_contextrl.cli import main; main()")
    assert "vlm_contextrl.cli" in loaded
    assert not {*HEAVY, "numpy", "PIL", "pyarrow"} & loaded
    # typer loads pydantic itself to describe the arguments of one command
    assert arguments or "pydantic" not in loaded


def test_data_layer_loads_no_torch() -> None:
    names = ", ".join(name for name in CORE if layer(name) == 0)
    assert not loaded_after(f"import {names}") & set(HEAVY)
