"""``boe generate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import Progress

from boe.cli.output import check_json_path, console_for, emit_json, silence_transformers
from boe.cli.solving import record_as_json
from boe.decoding import FrontLoaded, Item, TokensPerStep, generate
from boe.denoisers.loading import load_model
from boe.samplers import sampler_from

SCHEMA = "boe/generate/1"
_DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def run_generate(
    model: str,
    prompt: str,
    length: int,
    sampler: str,
    steps: int | None,
    block_length: int | None,
    temperature: float,
    seed: int,
    device: str,
    dtype: str,
    json_path: Path | None,
) -> None:
    """Load, fill in, show and store."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    sampler_from(sampler)
    check_json_path(json_path)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available: torch sees no GPU")
    console = console_for(json_path)
    silence_transformers()
    with console.status(f"loading {model}"):
        loaded = load_model(model, device=device, dtype=_DTYPES[dtype])
    tokenizer, mask_id = loaded.tokenizer, loaded.denoiser.facts.mask_id
    ids = tokenizer(prompt, return_tensors="pt").input_ids[0]
    if length:
        # Appended masks belong before a closing special token such as [SEP].
        closing = len(ids) and int(ids[-1]) in set(tokenizer.all_special_ids) - {mask_id}
        cut = len(ids) - 1 if closing else len(ids)
        ids = torch.cat([ids[:cut], torch.full((length,), mask_id), ids[cut:]])
    masks = int((ids == mask_id).sum())
    if not masks:
        raise ValueError(
            f"the prompt holds no {tokenizer.mask_token} and --length is 0: nothing to fill in"
        )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("decoding", total=masks)

        def advance(number: int, item: Item) -> None:
            progress.update(bar, completed=masks - int((item.ids == mask_id).sum()))

        item = generate(
            loaded.denoiser,
            ids.to(device),
            sampler,
            budget=TokensPerStep(1) if steps is None else FrontLoaded(steps),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            trajectory=json_path is not None,
            on_step=advance,
        ).items[0]
    text = tokenizer.decode(item.ids, skip_special_tokens=True)
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
            "sampler": sampler,
            "temperature": temperature,
            "seed": seed,
            "text": text,
            "ids": item.ids.tolist(),
            **asdict(account),
            "trajectory": [record_as_json(record) for record in item.trajectory or []],
        },
    )
