"""``boe generate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from boe.cli.output import check_json_path, console_for, emit_json, silence_transformers
from boe.cli.placement import dtype_named, require_device
from boe.cli.prompts import prompt_ids
from boe.decoding import FrontLoaded, Item, TokensPerStep, generate
from boe.denoisers.loading import load_model
from boe.evaluate.player.scene import record_as_json
from boe.samplers import sampler_from

SCHEMA = "boe/generate/1"


@dataclass(frozen=True)
class DecodingOptions:
    """How ``boe generate`` decodes; texts of ``stop``, ``suppress`` and ``delay`` are tokenised."""

    sampler: str
    steps: int | None
    block_length: int | None
    temperature: float | None
    top_p: float | None
    guidance: float
    stop: tuple[str, ...]
    suppress: tuple[str, ...]
    delay: tuple[str, ...]
    seed: int


def run_generate(
    model: str,
    prompt: str,
    length: int,
    options: DecodingOptions,
    device: str,
    dtype: str,
    json_path: Path | None,
) -> None:
    """Load, fill in, show and store."""
    precision = dtype_named(dtype)
    sampler_from(options.sampler)
    check_json_path(json_path)
    require_device(device)
    console = console_for(json_path)
    silence_transformers()
    with console.status(f"loading {model}"):
        loaded = load_model(model, device=device, dtype=precision)
    tokenizer, mask_id = loaded.tokenizer, loaded.denoiser.facts.mask_id
    ids = prompt_ids(loaded, prompt, length)
    masks = int((ids == mask_id).sum())
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("decoding", total=masks)

        def advance(number: int, item: Item) -> None:
            progress.update(bar, completed=masks - int((item.ids == mask_id).sum()))

        item = generate(
            loaded.denoiser,
            ids.to(device),
            options.sampler,
            budget=TokensPerStep(1) if options.steps is None else FrontLoaded(options.steps),
            block_length=options.block_length,
            temperature=options.temperature,
            top_p=options.top_p,
            guidance=options.guidance,
            stop=[_ids_of(tokenizer, "stop", text) for text in options.stop],
            suppress=[_id_of(tokenizer, "suppress", text) for text in options.suppress],
            delay=[_id_of(tokenizer, "delay", text) for text in options.delay],
            seed=options.seed,
            trajectory=json_path is not None,
            on_step=advance,
        ).items[0]
    text = tokenizer.decode(item.ids[: item.end], skip_special_tokens=True)
    if str(json_path) != "-":
        print(text)
    account = item.account
    console.print(str(account), style="dim")
    emit_json(
        json_path,
        {
            "schema": SCHEMA,
            "model": model,
            "prompt": prompt,
            **asdict(options),
            "text": text,
            "ids": item.ids.tolist(),
            "end": item.end,
            **asdict(account),
            "trajectory": [record_as_json(record) for record in item.trajectory or []],
        },
    )


def _ids_of(tokenizer: Any, option: str, text: str) -> list[int]:
    """The ids of a text without special tokens around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"--{option} {text!r} is no text to this tokenizer")
    return ids


def _id_of(tokenizer: Any, option: str, text: str) -> int:
    """The id of a text that is one token."""
    ids = _ids_of(tokenizer, option, text)
    if len(ids) > 1:
        raise ValueError(f"--{option} {text!r} must be one token, it is {len(ids)}")
    return ids[0]
