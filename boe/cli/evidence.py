"""The commands that compare, ablate, judge scores, watch and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from boe import defaults
from boe.cli.options import (
    SHARDED,
    Batch,
    Count,
    Difficulty,
    Executor,
    ExecutorOption,
    Json,
    Node,
    Seed,
    Threads,
    Workers,
    refuse_options,
    refuse_sharded_options,
    use_threads,
)

DEMO_SAMPLERS = f"random;margin;entropy;confidence;boe;{defaults.SAMPLER}"
"""BoE alone, for what its gradient does, and what is taken where no sampler is named."""

TaskName = Annotated[
    str, typer.Option(help="sudoku, sudoku4, countdown, arithmetic … (docs/tasks.md).")
]
Samplers = Annotated[
    str, typer.Option(help="Separated by commas, or by semicolons if they have options.")
]
TokensPerStep = Annotated[str | None, typer.Option(help="Comma-separated.")]
Steps = Annotated[str | None, typer.Option(help="Numbers of steps instead, comma-separated.")]
Blocks = Annotated[
    str | None, typer.Option(help="Semi-autoregressive block lengths, or none; comma-separated.")
]
Temperatures = Annotated[
    str | None, typer.Option(help="Comma-separated; none is the sampler's own, the default.")
]
TopP = Annotated[str | None, typer.Option(help="Nuclei, comma-separated.")]
Seeds = Annotated[
    str | None, typer.Option(help="Of the random draws, comma-separated; --seed by default.")
]
SplitName = Annotated[str, typer.Option(help="validation (to tune on) or test (to report).")]
Plot = Annotated[Path | None, typer.Option(help="Draw the result (.png, .svg or .pdf).")]
Output = Annotated[
    Path | None,
    typer.Option(help="Directory for all results; the same command goes on where it stopped."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (compare, ablate, fidelity, watch, report):
        app.command()(command)
    app.command("eval")(evaluate)


def compare(
    task: TaskName = "sudoku",
    samplers: Samplers = DEMO_SAMPLERS,
    tokens_per_step: TokensPerStep = None,
    steps: Steps = None,
    block_length: Blocks = None,
    temperature: Temperatures = None,
    top_p: TopP = None,
    difficulty: Difficulty = "hard",
    items: Count = 100,
    seed: Seed = 0,
    seeds: Seeds = None,
    split: SplitName = "test",
    batch: Batch = 50,
    traced: Annotated[
        int, typer.Option(min=0, help="Items whose remaining entropy is recorded.")
    ] = 0,
    timings: Annotated[
        int, typer.Option(min=1, help="How often a decode is run; its seconds are the median.")
    ] = 1,
    reference: Annotated[
        str | None, typer.Option(help="Whose costs all are read off at; confidence by default.")
    ] = None,
    mauve: Annotated[bool, typer.Option(help="Measure prose by MAUVE too.")] = True,
    threads: Threads = None,
    json: Json = None,
    plot: Plot = None,
    output: Output = None,
) -> None:
    """Accuracy, cost and paired significance of samplers on the same items."""
    from boe.cli.comparing import run_comparison
    from boe.cli.lists import split_samplers
    from boe.evaluate.study import Group, Study

    use_threads(threads)
    settings = _settings(tokens_per_step, steps, block_length, temperature, top_p, "1,3,5")
    study = Study(
        task=task,
        difficulty=difficulty,
        groups=(Group(tuple(split_samplers(samplers)), settings),),
        items=items,
        item_seed=seed,
        split=split,  # type: ignore[arg-type]
        seeds=_seeds(seeds, seed),
        batch_size=batch,
        traced=traced,
        timings=timings,
    )
    references = () if reference is None else (reference,)
    if not run_comparison(study, json, plot, output, references, mauve).complete:
        raise KeyboardInterrupt


def ablate(
    task: TaskName = "sudoku",
    base: Annotated[str, typer.Option(help="The strategy that is varied.")] = "boe",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="option=value,value … instead of the usual axes; may be repeated. Beside BoE's "
            "options: which, count, deadline, cache, remask, tokens, verifier, backtrack, "
            "proofread."
        ),
    ] = None,
    tokens_per_step: TokensPerStep = None,
    steps: Steps = None,
    block_length: Blocks = None,
    temperature: Temperatures = None,
    top_p: TopP = None,
    difficulty: Difficulty = "hard",
    items: Count = 100,
    seed: Seed = 0,
    seeds: Seeds = None,
    split: SplitName = "test",
    batch: Batch = 50,
    threads: Threads = None,
    json: Json = None,
    plot: Plot = None,
    output: Output = None,
) -> None:
    """What each option of a strategy contributes: one change at a time, on the same items."""
    from boe.cli.ablating import run_ablation
    from boe.cli.plans import AblatePlan, axes_of
    from boe.evaluate.study import Group, Study

    use_threads(threads)
    axes = axes_of(base, None if vary is None else dict(_varied(text) for text in vary))
    settings = _settings(tokens_per_step, steps, block_length, temperature, top_p, "3")
    study = Study(
        task=task,
        difficulty=difficulty,
        groups=(Group((base,), settings),),
        items=items,
        item_seed=seed,
        split=split,  # type: ignore[arg-type]
        seeds=_seeds(seeds, seed),
        batch_size=batch,
    )
    if not run_ablation(AblatePlan(study, base, axes), json, plot, output).complete:
        raise KeyboardInterrupt


def fidelity(
    context: typer.Context,
    task: Annotated[
        str | None, typer.Option(help="Whose denoiser and canvases; sudoku, countdown …")
    ] = None,
    difficulty: Difficulty = "hard",
    order: Annotated[
        str, typer.Option(help="Sampler that decodes to the canvases.")
    ] = "confidence",
    model: Annotated[
        str | None, typer.Option(help="Or: directory or Hub id of a masked language model …")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="… and a text file to mask.")] = None,
    length: Annotated[int, typer.Option(min=4, help="Tokens per canvas of a text.")] = 128,
    scores: Annotated[
        str | None, typer.Option(help="Samplers whose ranking is judged, as in compare.")
    ] = None,
    fractions: Annotated[str, typer.Option(help="Of masks, comma-separated.")] = "0.25,0.5,0.75",
    canvases: Annotated[int, typer.Option(min=1, help="Per fraction.")] = 8,
    candidates: Annotated[str, typer.Option(help="How candidates are chosen.")] = "confidence",
    rho: Annotated[float, typer.Option(help="Share of the masks that are candidates.")] = 0.25,
    mass: Annotated[
        float, typer.Option(help="Probability of the tokens that are enumerated.")
    ] = 0.99,
    max_tokens: Annotated[int, typer.Option(min=1, help="But no more than so many.")] = 16,
    grid: Annotated[int, typer.Option(min=3, help="Points for Theorem 3.1's curvature, odd.")] = 9,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = None,
    plot: Plot = None,
    output: Output = None,
) -> None:
    """How well cheap scores rank candidates, against the true fall of entropy."""
    from boe.cli.judging_scores import run_fidelity
    from boe.cli.lists import split_samplers, split_values
    from boe.cli.plans import fidelity_plan

    use_threads(threads)
    own: dict[str, Any] = {
        "fractions": split_values("fractions", fractions),
        "canvases": canvases,
        "candidates": candidates,
        "rho": rho,
        "seed": seed,
    }
    if scores is not None:
        own["scores"] = split_samplers(scores)
    where: dict[str, Any] = {}
    if model is None:
        refuse_options(context, ("text", "length"), "goes with --model")
    elif task is None:
        refuse_options(context, ("difficulty", "order"), "goes with --task")
    if task is not None:
        where |= {"task": task, "difficulty": difficulty, "order": order}
    if model is not None:
        where |= {"model": model, "length": length}
        where |= {} if text is None else {"text": str(text)}
    plan = fidelity_plan(own, where, {"mass": mass, "max_tokens": max_tokens, "grid": grid})
    if not run_fidelity(plan, json, plot, output).complete:
        raise KeyboardInterrupt


def watch(
    context: typer.Context,
    task: Annotated[str | None, typer.Option(help="sudoku, countdown …; or give a model.")] = None,
    difficulty: Difficulty = "hard",
    item: Annotated[int, typer.Option(min=0, help="Number of the first item.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many items.")] = 1,
    split: SplitName = "test",
    model: Annotated[
        str | None, typer.Option(help="Directory or Hub id of a masked language model.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text; the model's mask token marks places to fill in.")
    ] = None,
    length: Annotated[int, typer.Option(min=0, help="Masks appended after the prompt.")] = 0,
    samplers: Samplers = f"confidence;boe;{defaults.SAMPLER}",
    tokens_per_step: Annotated[int, typer.Option(min=1)] = 1,
    block_length: Annotated[
        int | None, typer.Option(min=1, help="Decode block by block; by default as a whole.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="The sampler's own by default.")
    ] = None,
    seed: Seed = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page to step through instead.")] = None,
    threads: Threads = None,
) -> None:
    """Watch canvases fill in; --html makes one self-contained page of it."""
    from boe.cli.lists import split_samplers
    from boe.cli.watching import WatchPlan, run_watch
    from boe.evaluate.settings import Setting

    use_threads(threads)
    if model is None:
        refuse_options(context, ("prompt", "length"), "goes with --model")
    elif task is None:
        refuse_options(context, ("difficulty", "item", "count", "split"), "goes with --task")
    setting = Setting(tokens_per_step, block_length=block_length, temperature=temperature)
    plan = WatchPlan(
        samplers=tuple(split_samplers(samplers)),
        setting=setting,
        seed=seed,
        task=task,
        difficulty=difficulty,
        split=split,
        item=item,
        count=count,
        model=model,
        prompt=prompt,
        length=length,
    )
    run_watch(plan, html)


def evaluate(
    context: typer.Context,
    plans: Annotated[list[Path], typer.Argument(help="TOML files (docs/command-line.md).")],
    output: Annotated[
        Path | None, typer.Option(help="Directory of the results; beside the plan by default.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Parts of each study (docs/scaling.md).", **SHARDED)
    ] = None,
    workers: Workers = None,
    node: Node = "0/1",
    executor: Executor = "local",
    executor_option: ExecutorOption = None,
    threads: Threads = None,
) -> None:
    """Run studies from plan files; the same command goes on where it stopped."""
    from boe.cli.evaluating import run_plans

    use_threads(threads)
    if shards is None:
        refuse_sharded_options(context, "goes with --shards")
        complete = run_plans(plans, output)
    else:
        from functools import partial

        from boe.cli.sharding import Sharding, run_study_in_shards

        options = tuple(executor_option or ())
        sharding = Sharding(workers, node, executor, options, threads=threads)
        complete = run_plans(plans, output, partial(run_study_in_shards, shards, sharding))
    if not complete:
        raise KeyboardInterrupt


def report(
    documents: Annotated[list[Path], typer.Argument(help="Markdown files with boe sections.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if one is out of date.")
    ] = False,
    figures: Annotated[bool, typer.Option(help="Draw the figures anew too.")] = True,
) -> None:
    """Make the tables and figures of documents from stored results."""
    from boe.cli.reporting import run_report

    if not run_report(documents, check, figures):
        raise typer.Exit(1)


def _settings(
    tokens_per_step: str | None,
    steps: str | None,
    block_length: str | None,
    temperature: str | None,
    top_p: str | None,
    default: str,
) -> Any:
    """All combinations; ``default`` tokens per step if no budget is given."""
    from boe.cli.lists import split_numbers, split_values
    from boe.evaluate.study import settings_of

    if tokens_per_step is None and steps is None:
        tokens_per_step = default
    options: dict[str, Any] = {}
    for name, text in (("tokens-per-step", tokens_per_step), ("steps", steps)):
        if text is not None:
            options[name.replace("-", "_")] = split_numbers(name, text)
    if block_length is not None:
        lengths = split_values("block-length", block_length)
        options["block_length"] = [None if n is None else _whole(n) for n in lengths]
    for name, text in (("temperature", temperature), ("top_p", top_p)):
        if text is not None:
            options[name] = split_values(name.replace("_", "-"), text)
    return settings_of(options)


def _whole(number: float) -> int:
    if not number.is_integer():
        raise ValueError(f"block-length must be whole numbers, got {number}")
    return int(number)


def _seeds(text: str | None, seed: int) -> tuple[int, ...]:
    from boe.cli.lists import split_numbers

    return (seed,) if text is None else tuple(split_numbers("seeds", text, least=0))


def _varied(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"vary must be option=value,value …, got {text!r}")
    return name, values.split(",")
