"""Commands and their options. What they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="boe",
    help="Backward-on-Entropy steering for masked diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train an embedded denoiser.", no_args_is_help=True)
app.add_typer(train_app, name="train")

DEMO_SAMPLERS = "random,margin,entropy,confidence,boe"

Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result as JSON to this file; - for standard output."),
]
Seed = Annotated[int, typer.Option(help="Fixes puzzles and all random draws.")]
Difficulty = Annotated[str, typer.Option(help="easy, medium, hard, expert or open.")]
SamplerSpec = Annotated[
    str, typer.Option(help="Name and options: confidence, boe, boe:preset=paper, boe:alpha=1,rho=1")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")]
Count = Annotated[int, typer.Option(min=1, help="How many puzzles.")]
Batch = Annotated[int, typer.Option(min=1, help="Puzzles decoded together.")]


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@app.command()
def demo(
    puzzles: Count = 40,
    difficulty: Difficulty = "hard",
    tokens_per_step: Annotated[str, typer.Option(help="Comma-separated.")] = "1,3,5",
    samplers: Annotated[
        str, typer.Option(help="Separated by commas, or by semicolons if they have options.")
    ] = DEMO_SAMPLERS,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Solve Sudoku puzzles with each sampler and show what it cost."""
    from boe.cli.comparing import run_comparison
    from boe.cli.watching import show_demo_trajectory

    _use_threads(threads)
    comparison = run_comparison(
        "sudoku", difficulty, samplers, tokens_per_step, puzzles, seed, 0.0, puzzles, json, None
    )
    if comparison.complete and str(json) != "-":
        show_demo_trajectory(difficulty, seed)
    if not comparison.complete:
        raise KeyboardInterrupt


@app.command()
def compare(
    task: Annotated[str, typer.Option(help="What to solve: sudoku.")] = "sudoku",
    samplers: Annotated[
        str, typer.Option(help="Separated by commas, or by semicolons if they have options.")
    ] = DEMO_SAMPLERS,
    tokens_per_step: Annotated[str, typer.Option(help="Comma-separated.")] = "1,3,5",
    difficulty: Difficulty = "hard",
    puzzles: Count = 100,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Seed = 0,
    batch: Batch = 50,
    threads: Threads = None,
    json: Json = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw accuracy against each cost (.png, .svg or .pdf).")
    ] = None,
) -> None:
    """Accuracy, cost and paired significance of samplers on the same puzzles."""
    from boe.cli.comparing import run_comparison

    _use_threads(threads)
    comparison = run_comparison(
        task, difficulty, samplers, tokens_per_step, puzzles, seed, temperature, batch, json, plot
    )
    if not comparison.complete:
        raise KeyboardInterrupt


@app.command()
def solve(
    puzzle: Annotated[str, typer.Argument(help="81 characters, row by row; 0 . or _ for empty.")],
    sampler: SamplerSpec = "boe",
    tokens_per_step: Annotated[int, typer.Option(min=1)] = 1,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Seed = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Show the grid filling in.")] = False,
    json: Json = None,
) -> None:
    """Solve one Sudoku puzzle. Exits with 1 if the answer breaks a rule."""
    from boe.cli.solving import run_solve

    if not run_solve(puzzle, sampler, tokens_per_step, temperature, seed, watch, json):
        raise typer.Exit(1)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Directory or Hub id of a masked language model.")],
    prompt: Annotated[
        str, typer.Option(help="Text; the model's mask token marks places to fill in.")
    ],
    length: Annotated[int, typer.Option(min=0, help="Masks appended after the prompt.")] = 0,
    sampler: SamplerSpec = "boe",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Decoding steps; one token per step by default.")
    ] = None,
    block_length: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: the checkpoint's.")
    ] = "auto",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Fill in masks with any supported masked language model."""
    from boe.cli.generating import run_generate

    _use_threads(threads)
    run_generate(
        model,
        prompt,
        length,
        sampler,
        steps,
        block_length,
        temperature,
        seed,
        device,
        dtype,
        json,
    )


@train_app.command("sudoku")
def train_sudoku(
    output: Annotated[Path, typer.Option(help="Directory of the checkpoint and model card.")],
    steps: Annotated[int, typer.Option(min=1)] = 6000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[float, typer.Option()] = 2e-3,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    seed: Annotated[int, typer.Option(help="Of weights, masks and order.")] = 0,
    evaluate: Annotated[
        int, typer.Option(min=1, help="Puzzles per difficulty for the model card.")
    ] = 200,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Train the Sudoku denoiser. An interrupted run goes on where it last saved."""
    from boe.cli.training import run_train_sudoku

    _use_threads(threads)
    run_train_sudoku(output, steps, batch_size, learning_rate, precision, seed, evaluate, json)


@app.command()
def info(json: Json = None) -> None:
    """Versions, devices, and which path each op takes and why."""
    from boe.cli.informing import run_info

    run_info(json)
