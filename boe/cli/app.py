"""Commands and their options. What they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from boe import defaults
from boe.cli import evidence
from boe.cli.evidence import DEMO_SAMPLERS
from boe.cli.options import (
    SHARDED,
    Count,
    Difficulty,
    Executor,
    ExecutorOption,
    Json,
    Node,
    Seed,
    Threads,
    Workers,
    refuse_sharded_options,
    use_threads,
)

if TYPE_CHECKING:
    from boe.samplers.caching import KVCacheName

app = typer.Typer(
    name="boe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SamplerSpec = Annotated[
    str, typer.Option(help="Names and options: confidence, boe:alpha=1,rho=1, boe+eb:gamma=0.1")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"boe {version('boe-kernels')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show and exit."),
    ] = False,
) -> None:
    """Backward-on-Entropy steering for masked diffusion language models."""


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
    from boe.cli.lists import split_numbers, split_samplers
    from boe.cli.watching import show_demo_trajectory
    from boe.evaluate.study import Group, Study, settings_of

    use_threads(threads)
    settings = settings_of({"tokens_per_step": split_numbers("tokens-per-step", tokens_per_step)})
    study = Study(
        task="sudoku",
        difficulty=difficulty,
        groups=(Group(tuple(split_samplers(samplers)), settings),),
        items=puzzles,
        item_seed=seed,
        seeds=(seed,),
        batch_size=puzzles,
    )
    comparison = run_comparison(study, json, None)
    if comparison.complete and str(json) != "-":
        show_demo_trajectory(difficulty, seed)
    if not comparison.complete:
        raise KeyboardInterrupt


@app.command()
def solve(
    puzzle: Annotated[str, typer.Argument(help="81 characters, row by row; 0 . or _ for empty.")],
    sampler: SamplerSpec = defaults.SAMPLER,
    tokens_per_step: Annotated[int, typer.Option(min=1)] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="By default the sampler's own, mostly 0.")
    ] = None,
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
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Directory or Hub id of a masked language model.")],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text, - for standard input; the model's mask token marks places to fill in."
        ),
    ] = None,
    length: Annotated[int, typer.Option(min=0, help="Masks appended after the prompt.")] = 0,
    sampler: SamplerSpec = defaults.SAMPLER,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Decoding steps; one token per step by default.")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(min=1, help="Decode block by block; by default as a whole.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="By default the sampler's own, mostly 0.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from this nucleus only.")] = None,
    guidance: Annotated[
        float, typer.Option(min=0.0, help="Weight of classifier-free guidance.")
    ] = 0.0,
    kv_cache: Annotated[
        str | None,
        typer.Option(
            help="Keys and values kept from step to step: none, exact, prefix or delayed; by "
            "default what the sampler says."
        ),
    ] = None,
    cache_refresh: Annotated[
        int | None,
        typer.Option(min=1, help="With prefix and delayed: a whole forward every so many."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End once written up to this; may be repeated.")
    ] = None,
    suppress: Annotated[
        list[str] | None, typer.Option(help="A token never to write; may be repeated.")
    ] = None,
    delay: Annotated[
        list[str] | None,
        typer.Option(help="A token whose places are revealed last; may be repeated."),
    ] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: the checkpoint's.")
    ] = "auto",
    chat: Annotated[
        bool,
        typer.Option("--chat", help="The prompt is a user's message; show the answer alone."),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    mask_id: Annotated[int | None, typer.Option(min=0, help="Where nothing names it.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Directory or Hub id, where the checkpoint has none.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights of a source you trust.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option("--input", help="JSONL file of many prompts.", **SHARDED)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory of their answers; resumes what is there.", **SHARDED),
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="Parts of the work.", **SHARDED)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together.", **SHARDED)] = 1,
    workers: Workers = None,
    node: Node = "0/1",
    executor: Executor = "local",
    executor_option: ExecutorOption = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try prompts that failed again.", **SHARDED)
    ] = False,
    compilation: Annotated[
        str,
        typer.Option("--compile", help="The network: none, network, or graphs (CUDA graphs)."),
    ] = "none",
    tensor_parallel: Annotated[
        int | None,
        typer.Option(min=2, help="Share the layers out over so many processes of torchrun."),
    ] = None,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Fill in masks with any supported masked language model."""
    from boe.cli.generating import run_generate
    from boe.prompting import DecodingOptions

    use_threads(threads)
    options = DecodingOptions(
        sampler=sampler,
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
        kv_cache=cast("KVCacheName | None", kv_cache),
        cache_refresh=cache_refresh,
        stop=tuple(stop or ()),
        suppress=tuple(suppress or ()),
        delay=tuple(delay or ()),
        seed=seed,
    )
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give --prompt, or --input with --output")
    group = None
    if tensor_parallel is not None and compilation != "none":
        raise typer.BadParameter("--compile does not go with --tensor-parallel")
    if tensor_parallel is not None:
        from boe.scaling.rank_group import RankGroup

        group = RankGroup.join(tensor_parallel, device)
    if prompts is None:
        assert prompt is not None
        refuse_sharded_options(context, "goes with --input, not with --prompt")
        run_generate(
            model,
            prompt,
            length,
            options,
            device,
            dtype,
            json,
            chat=chat,
            revision=revision,
            mask_id=mask_id,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            compilation=compilation,
            group=group,
        )
        if group is not None:
            group.leave()
        return
    if chat:
        raise typer.BadParameter("--chat goes with --prompt: lines of --input say it themselves")
    if output is None:
        raise typer.BadParameter("--input needs --output, a directory")
    from dataclasses import asdict

    from boe.cli.sharding import Sharding, run_sharded_generation
    from boe.scaling.job import ModelSource
    from boe.text import TextOptions

    source = str(Path(model).resolve()) if Path(model).is_dir() else model
    complete = run_sharded_generation(
        ModelSource(
            *(source, revision, dtype, device, mask_id, tokenizer, allow_pickle, trust_remote_code),
            tensor_parallel=tensor_parallel or 1,
            compilation=compilation,
        ),
        prompts,
        output,
        TextOptions(**asdict(options), batch_size=batch),
        {"shards": shards, "length": length},
        Sharding(workers, node, executor, tuple(executor_option or ()), retry_failed, threads),
        json,
        group,
    )
    if group is not None:
        group.leave()
    if not complete:
        raise typer.Exit(1)


@app.command()
def train(
    task: Annotated[
        str,
        typer.Argument(
            help="sudoku, sudoku4, sudoku4-scattered, countdown, countdown-fewshot, sums, "
            "sums-fewshot, arithmetic, prose."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Directory of the checkpoint and model card.")],
    steps: Annotated[int | None, typer.Option(min=1, help="By default the task's own.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="The recipe's own by default.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its highest; the recipe's own by default.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="bf16 or fp32.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, masks and order.")] = 0,
    evaluate: Annotated[
        int, typer.Option(min=1, help="Items per difficulty for the model card.")
    ] = 200,
    corpus: Annotated[
        Path | None, typer.Option(help="Of the task prose: the archive that its page names.")
    ] = None,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Train the denoiser of a task. An interrupted run goes on where it last saved."""
    from boe.cli.training import run_train

    use_threads(threads)
    run_train(
        *(task, output, steps, batch_size, learning_rate, precision, seed, evaluate, json), corpus
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Directory of a published checkpoint.")],
    output: Annotated[Path, typer.Argument(help="New directory to write.")],
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: the checkpoint's.")
    ] = "auto",
    shard_size: Annotated[float, typer.Option(min=0.0, help="Largest file, in GiB.")] = 4.0,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights of a source you trust.")
    ] = False,
    json: Json = None,
) -> None:
    """Rewrite a published checkpoint (LLaDA, Dream, MDLM …): safetensors, the names we run."""
    from boe.cli.converting import run_convert

    run_convert(source, output, dtype, shard_size, allow_pickle, json)


@app.command()
def doctor(
    model: Annotated[Path, typer.Argument(help="Directory of a checkpoint.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="BATCHxLENGTH of a canvas to time a step on; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: the checkpoint's.")
    ] = "auto",
    mask_id: Annotated[int | None, typer.Option(min=0, help="Where nothing names it.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Directory or Hub id, where the checkpoint has none.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="What the check of the logits' shift reads.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights of a source you trust.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the checkpoint's own Python code.")
    ] = False,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Check a checkpoint directory. Exits with 1 if a check fails."""
    from boe.cli.doctoring import run_doctor

    use_threads(threads)
    healthy = run_doctor(
        model,
        shape or ["1x32"],
        device,
        dtype,
        mask_id,
        tokenizer,
        text,
        allow_pickle,
        trust_remote_code,
        json,
    )
    if not healthy:
        raise typer.Exit(1)


@app.command()
def samplers(
    name: Annotated[str | None, typer.Argument(help="Show this one with its options.")] = None,
) -> None:
    """What decoding strategies are put together from, or the options of one part."""
    from boe.cli.explaining import run_samplers

    run_samplers(name)


@app.command()
def info(json: Json = None) -> None:
    """Versions, devices, and which path each op takes and why."""
    from boe.cli.informing import run_info

    run_info(json)


evidence.register(app)
