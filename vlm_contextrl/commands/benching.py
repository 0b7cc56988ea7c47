"""`bench engine`, `bench memory`, `bench retrieve` and `bench app`: how fast, and how much memory."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Annotated, Any

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import JsonFile, RunConfigName, RunOverrides, run_config
from vlm_contextrl.commands.results import number, show_table
from vlm_contextrl.result_files import write_json

app = typer.Typer(help="Measure the engine.", no_args_is_help=True)

ENGINE_HEADERS = (
    "measure", "TRL", "ours, check- pointed", "x TRL", "TRL tuned", "ours", "x tuned", "x floor",
)  # fmt: skip
RATIOS = {
    "train_c32": "train_speedup_c32",
    "train_c128": "train_speedup_c128",
    "rollout": "rollout_speedup",
    "processor": "processor_speedup",
    "selection": "selection_speedup",
    "selection_one_way": "selection_speedup_one_way",
    "whole_step": "whole_step_speedup",
    "whole_step_c128": "whole_step_speedup_c128",
}


@app.command()
def engine(
    json_file: JsonFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shapes and one round: shows the path, not the speed.")
    ] = False,
) -> None:
    """Time the engine side by side with TRL on random weights.

    One CPU thread, ten to fifteen minutes; a GPU is used when there is one. Needs the extra `trl`.
    """
    from rich.console import Console

    from vlm_contextrl.bench.engine import run

    with Console(stderr=True).status("") as status:
        result = run(quick, lambda name: status.update(f"bench: {name}"))
    write_json(json_file, result)
    _show_engine(result)


@app.command()
def memory(
    config: RunConfigName,
    overrides: RunOverrides = None,
    json_file: JsonFile = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Run two steps with random weights of the same shape on this GPU, too."
        ),
    ] = False,
) -> None:
    """Estimate the device memory of a training run by part.

    Needs no weights and no GPU.
    """
    from vlm_contextrl.config import RunConfig, load_config

    settings = load_config(RunConfig, run_config(config), overrides or [])
    from vlm_contextrl.bench.memory import estimate

    result = estimate(settings) | {"measured_gib": None}
    write_json(json_file, result)
    rows = [(name, f"{gib:.2f}") for name, gib in result["parts_gib"].items()]
    rows += [(f"peak, {name}", f"{gib:.2f}") for name, gib in result["peaks_gib"].items()]
    counted = f"{result['parameters'] / 1e9:.3g}B parameters, {result['trainable'] / 1e9:.3g}B trained"
    print(f"{result['name']}: {result['model']} ({result['shape_from']}), {counted}")
    show_table("", ("part", "GiB"), rows)
    print("assumed: " + ", ".join(f"{name} {value}" for name, value in result["assumed"].items()), flush=True)
    if measure:
        from vlm_contextrl.bench.memory_measured import measure_on_gpu

        result["measured_gib"] = measure_on_gpu(settings, result["assumed"])
        write_json(json_file, result)
        for name, gib in result["measured_gib"].items():
            print(f"measured, {name}: {gib:.2f} GiB")


@app.command()
def retrieve(
    json_file: JsonFile = None,
    rows: Annotated[int, typer.Option(min=64, help="Synthetic rows.")] = 50_000,
    dimensions: Annotated[int, typer.Option(min=2, help="Values of a vector.")] = 768,
    side_rows: Annotated[
        int,
        typer.Option(min=64, help="Rows of the side-by-side comparison: the full matrix must fit in memory."),
    ] = 8192,
) -> None:
    """Time the search of `pairs retrieve` on synthetic vectors, with peak memory and what 200,000 rows would take.

    A few minutes on a CPU; a GPU is used when there is one. faiss is compared when it is installed.
    """
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        result = leaf("vlm_contextrl.data_recipes.retrieve.speed:run")(
            rows, dimensions, side_rows, lambda name: status.update(f"bench: {name}")
        )
    write_json(json_file, result)
    _show_retrieve(result)


@app.command("app")
def app_(
    json_file: JsonFile = None,
    pairs: Annotated[int, typer.Option(min=100, help="Synthetic pairs.")] = 10_000,
    side_px: Annotated[int, typer.Option(min=16, help="Side of their square pictures, in pixels.")] = 448,
) -> None:
    """Time how fast the review of `app` answers on many pairs: filter, search, next, decide.

    About a minute. Needs the extra `app`.
    """
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        result = leaf("vlm_contextrl.app.speed:run")(
            pairs, side_px, lambda name: status.update(f"bench: {name}")
        )
    write_json(json_file, result)
    show_table(
        f"{result['pairs']} pairs of {result['side_px']} px, seconds",
        ("answer", "median", "slowest"),
        [(name, f"{median(times):.3f}", f"{max(times):.3f}") for name, times in result["seconds"].items()],
    )


def _show_engine(result: Mapping[str, Any]) -> None:
    C = result["shape"]["completion_tokens"]

    def label(name: str) -> str:  # the completions of --quick are shorter
        return name.replace("c128", f"c{4 * C}").replace("c32", f"c{C}").replace("_", " ")

    def cells(values: Mapping[str, Any], key: str, of_floor: str) -> tuple[str, ...]:
        def best(side: str) -> str:
            return f"{values[side]:.3g}" if side in values else ""

        return (
            *(best("trl_default"), best("ours_checkpointed"), _times(result.get(f"{key}_default"))),
            *(best("trl"), best("ours"), _times(result[key]), of_floor),
        )

    rows: list[tuple[str, ...]] = []
    for name, key in RATIOS.items():
        seconds = {side: median(s) for side, s in result["seconds"][name].items() if side != "floor"}
        rows.append((label(name), *cells(seconds, key, number(result["of_floor"][name]["ours"]))))
    saved = result["saved_mib"]["c32"]
    rows.append((label("saved c32, MiB"), *cells(saved, "saved_memory_ratio", "")))
    machine = result["hardware"]
    title = f"{machine['device']}, {machine['clock']} in s, TRL {result['versions']['trl']}"
    show_table(title, ENGINE_HEADERS, rows)
    print(
        "x TRL: TRL as it comes, which checkpoints, over ours, checkpointed. x tuned: TRL tuned over ours; neither checkpoints. "
        "x floor: ours over the least possible time.\n"
        "saved: bytes kept for the backward pass. c: tokens per completion; rho, tokens of repeated over shared prompts: "
        f"c{C} {result['rho_c32']:.2f}, c{4 * C} {result['rho_c128']:.2f}.\n"
        "selection: TRL has none; its side is a naive padded batch. one way: pairs asked in one direction share nothing, no gain is "
        "expected.\n"
        f"whole step: a real GRPOTrainer step of {result['prompts_per_step']} prompts x {result['shape']['completions']} completions and "
        f"{result['pairs_per_step']} selection pairs in both directions.\n"
        f"largest difference of log-probabilities: {result['max_abs_dlogp']:.1e} nats"
    )


def _show_retrieve(result: Mapping[str, Any]) -> None:
    parts = [(name, result[name]) for name in ("one_block", "blocks_of_64")]
    show_table(
        f"{result['rows']} vectors of {result['dimensions']} values, {result['neighbours']} neighbours each",
        ("search and choice", "rows/s", "seconds", "peak MiB", "before MiB", "pairs"),
        [
            (
                name,
                *map(
                    number,
                    (part["rows_per_s"], part["seconds"], part["peak_mib"], part["start_mib"], part["pairs"]),
                ),
            )
            for name, part in parts
        ],
    )
    side = result["side_by_side"]
    show_table(
        f"side by side, {side['rows']} vectors, one CPU thread",
        ("search", "seconds", "of one piece", "peak MiB", "recall"),
        [
            (
                name,
                *map(
                    number,
                    (
                        median(seconds),
                        side["of_one_piece"][name],
                        side["peak_mib"][name],
                        side["recall"][name],
                    ),
                ),
            )
            for name, seconds in side["seconds"].items()
        ],
    )
    projected = result["projection"]
    print(
        f"{projected['rows']} rows on this machine: search {number(projected['one_block_s'])} s in one block, "
        f"{number(projected['blocks_of_64_s'])} s in blocks of 64, colour histograms {number(projected['histograms_s'])} s "
        f"({number(result['histograms']['images_per_s'])} images/s of 448 px), peak about {number(projected['peak_mib'])} MiB"
    )


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
