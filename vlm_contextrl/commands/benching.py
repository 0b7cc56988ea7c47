"""`bench engine` and `bench memory`: how fast, and how much memory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlm_contextrl.commands.arguments import JsonFile, RunConfigName, RunOverrides, run_config
from vlm_contextrl.commands.results import number, show_table, write_json

app = typer.Typer(help="Measure the engine.", no_args_is_help=True)

ENGINE_HEADERS = ("measure", "TRL", "TRL tuned", "ours", "x TRL", "x tuned", "x floor")
RATIOS = {
    "train_c32": "train_speedup_c32",
    "train_c128": "train_speedup_c128",
    "rollout": "rollout_speedup",
    "processor": "processor_speedup",
    "selection": "selection_speedup",
    "whole_step": "whole_step_speedup",
}


@app.command()
def engine(
    json_file: JsonFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shapes and one round: shows the path, not the speed.")
    ] = False,
) -> None:
    """Time the engine side by side with TRL on random weights.

    One CPU thread, about five minutes; a GPU is used when there is one. Needs the extra `trl`.
    """
    from rich.console import Console

    from vlm_contextrl.bench.engine import run

    with Console(stderr=True).status("") as status:
        result = run(quick, lambda name: status.update(f"bench: {name}"))
    write_json(json_file, result)
    _show_engine(result)


@app.command()
def memory(config: RunConfigName, overrides: RunOverrides = None, json_file: JsonFile = None) -> None:
    """Estimate the device memory of a training run by part.

    Needs no weights. On a GPU one step with random weights of the same shape is measured as well.
    """
    from vlm_contextrl.config import RunConfig, load_config

    settings = load_config(RunConfig, run_config(config), overrides or [])
    from vlm_contextrl.bench.memory import estimate
    from vlm_contextrl.bench.memory_measured import measure_on_gpu

    result = estimate(settings)
    result["measured_gib"] = measure_on_gpu(settings, result["assumed"])
    write_json(json_file, result)
    rows = [(name, f"{gib:.2f}") for name, gib in result["parts_gib"].items()]
    rows += [(f"peak, {name}", f"{gib:.2f}") for name, gib in result["peaks_gib"].items()]
    rows += [(f"measured, {name}", f"{gib:.2f}") for name, gib in (result["measured_gib"] or {}).items()]
    counted = f"{result['parameters'] / 1e9:.3g}B parameters, {result['trainable'] / 1e9:.3g}B trained"
    print(f"{result['name']}: {result['model']} ({result['shape_from']}), {counted}")
    show_table("", ("part", "GiB"), rows)
    print("assumed: " + ", ".join(f"{name} {value}" for name, value in result["assumed"].items()))


def _show_engine(result: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = []
    for name, key in RATIOS.items():
        seconds = result["seconds"][name]
        rows.append(
            (
                name,
                *(f"{min(seconds[side]):.3g} s" if side in seconds else "" for side in ("trl_default", "trl", "ours")),
                *(_times(result.get(each)) for each in (f"{key}_default", key)),
                number(result["of_floor"][name]["ours"]),
            )
        )  # fmt: skip
    saved = result["saved_mib"]["c32"]
    rows.append(
        (
            "saved, c32",
            *(f"{saved[side]:.3g} MiB" for side in ("trl_default", "trl", "ours")),
            _times(result["saved_memory_ratio_default"]),
            _times(result["saved_memory_ratio"]),
            "",
        )
    )
    machine = result["hardware"]
    title = f"{machine['device']}, {machine['clock']}, TRL {result['versions']['trl']}"
    show_table(title, ENGINE_HEADERS, rows)
    print(
        "TRL: as it comes. x TRL, x tuned: its time over ours. x floor: our time over the least possible one."
    )
    print(
        "saved: bytes kept for the backward pass; TRL as it comes checkpoints and is compared with ours under checkpointing, "
        f"{saved['ours_checkpointed']:.3g} MiB."
    )
    print(
        f"rho, tokens of repeated over shared prompts: c32 {result['rho_c32']:.2f}, c128 {result['rho_c128']:.2f}. whole_step: a real "
        f"GRPOTrainer step of {result['prompts_per_step']} prompts x {result['shape']['completions']} completions and "
        f"{result['pairs_per_step']} selection pairs."
    )
    print(f"largest difference of log-probabilities: {result['max_abs_dlogp']:.1e} nats")


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
