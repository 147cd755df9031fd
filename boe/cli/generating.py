"""``boe generate``."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from boe.cli.output import (
    check_json_path,
    console_for,
    emit_json,
    progress_on,
    silence_transformers,
)
from boe.decoding import Item, generate
from boe.denoisers.loading import LoadedModel, load_model
from boe.denoisers.placement import check_compilation, compiled_as, dtype_named, require_device
from boe.evaluate.player.scene import record_as_json
from boe.prompting import DecodingOptions
from boe.text import TextGenerator, TextOptions
from boe.text.prompts import prompt_ids
from boe.text.tokenization import Texts, stop_rule

if TYPE_CHECKING:
    from boe.scaling.rank_group import RankGroup

SCHEMA = "boe/generate/1"


def run_generate(
    model: str,
    prompt: str,
    length: int,
    options: DecodingOptions,
    device: str,
    dtype: str,
    json_path: Path | None,
    *,
    chat: bool = False,
    revision: str | None = None,
    mask_id: int | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    compilation: str = "none",
    group: RankGroup | None = None,
) -> None:
    """Load, fill in, show and store.

    Args:
        compilation: of :data:`boe.denoisers.placement.COMPILATION`.
        group: the processes that the model's layers are shared out over; only the first of
            them shows and stores anything.
        prompt: the text, or "-" to read it from standard input.
        chat: the prompt is a user's message, and the answer alone is shown, as it is written.

    Raises:
        ValueError: nothing to fill in, or an option that does not fit the model.
    """
    if chat and not length:
        raise ValueError("--chat needs --length, the tokens of the answer")
    leads = group is None or group.leads
    if prompt == "-" and leads:
        prompt = sys.stdin.read().removesuffix("\n")
    if group is not None:
        prompt = group.agree(prompt)
    precision = dtype_named(dtype)
    check_compilation(compilation)
    check_json_path(json_path)
    require_device(device)
    console = console_for(json_path) if leads else Console(quiet=True)
    silence_transformers()
    with console.status(f"loading {model}"):
        loaded = load_model(
            model,
            device=device if group is None else None,
            dtype=precision,
            revision=revision,
            mask_id=mask_id,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            mesh=None if group is None else group.mesh,
        )
        loaded = replace(loaded, denoiser=compiled_as(compilation, loaded.denoiser))
    shown = leads and str(json_path) != "-"
    if chat:
        text, item = _answer(loaded, prompt, length, options, shown, json_path is not None)
    else:
        texts = Texts(loaded.tokenizer, loaded.denoiser.facts.mask_id)
        ids, answer = prompt_ids(texts, prompt, length)
        ids = ids.to(loaded.denoiser.device)
        masked = loaded.denoiser.facts.mask_id
        masks = int((ids == masked).sum())
        with progress_on(console) as progress:
            bar = progress.add_task("decoding", total=masks)

            def advance(number: int, item: Item) -> None:
                progress.update(bar, completed=masks - int((item.ids == masked).sum()))

            item = generate(
                loaded.denoiser,
                ids,
                **_arguments(texts, options, answer),
                trajectory=json_path is not None,
                on_step=advance,
            ).items[0]
        text = loaded.tokenizer.decode(item.ids[: item.end], skip_special_tokens=True)
        if shown:
            print(text)
    account = item.account
    console.print(str(account), style="dim")
    emit_json(
        json_path if leads else None,
        {
            "schema": SCHEMA,
            "model": model,
            "prompt": prompt,
            "chat": chat,
            **asdict(options),
            "text": text,
            "ids": item.ids.tolist(),
            "end": item.end,
            **asdict(account),
            "trajectory": [record_as_json(record) for record in item.trajectory or []],
        },
    )


def _arguments(texts: Texts, options: DecodingOptions, answer: range) -> dict[str, Any]:
    """The arguments of :func:`boe.generate`: what is appended ends as an answer to a chat does."""
    if not answer:
        return options.arguments(texts.tokenizer)
    arguments = replace(options, stop=()).arguments(texts.tokenizer)
    ends = texts.end_ids(None)
    return {**arguments, "stop_when": stop_rule([answer], ends, options.stop, texts)}


def _answer(
    loaded: LoadedModel,
    message: str,
    length: int,
    options: DecodingOptions,
    shown: bool,
    trajectory: bool,
) -> tuple[str, Item]:
    """The answer to a user's message, printed as it becomes final if it is to be shown."""

    def show(number: int, piece: str) -> None:
        print(piece, end="", flush=True)

    generator = TextGenerator(
        loaded, TextOptions(**asdict(options), max_new_tokens=length, trajectory=trajectory)
    )
    reply = generator.chat([{"role": "user", "content": message}], on_text=show if shown else None)
    if shown:
        print()
    return reply.text, reply.item
