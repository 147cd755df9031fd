"""Small published models and prompts for decodes that run some rows only, and their rows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from published_checkpoints import MASK, WORDS, Published, load_published
from torch import Tensor

from boe.decoding import Generation, Item


@cache
def published(name: str) -> Published:
    with TemporaryDirectory() as folder:
        return load_published(name, Path(folder))


def prompt(length: int, masks: int, seed: int) -> Tensor:
    """``length`` words and ``masks`` masks behind them."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (length,), generator=generator)
    return torch.cat([words, torch.full((masks,), MASK)])


RAGGED = [prompt(10, 11, 1), prompt(3, 13, 2), prompt(16, 5, 3)]


def rows_run(name: str, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Per forward that is to come, how many rows of each sequence it will run."""
    denoiser, counts = published(name).denoiser, []
    run = denoiser.run

    def counting(embeds: Tensor, mode: Any, *args: Any, **kwargs: Any) -> Any:
        rows = getattr(mode, "rows", None)
        whole = [embeds.shape[1]] * len(embeds)
        counts.append(whole if rows is None else (rows >= 0).sum(dim=1).tolist())
        return run(embeds, mode, *args, **kwargs)

    monkeypatch.setattr(denoiser, "run", counting)
    return counts


def assert_equal(ours: Generation, theirs: Generation) -> None:
    """Bit by bit, in everything but time."""
    for mine, other in zip(ours.items, theirs.items, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert replace(mine.account, seconds=0.0) == replace(other.account, seconds=0.0)
        for one, two in zip(mine.trajectory or [], other.trajectory or [], strict=True):
            assert torch.equal(one.entropy, two.entropy)
            assert torch.equal(one.scores, two.scores)


def steps_of(item: Item) -> list[tuple[dict[int, int], list[int]]]:
    """What each step wrote, and what it took back."""
    return [
        (
            dict(zip(record.revealed.tolist(), record.tokens.tolist(), strict=True)),
            record.remasked.tolist(),
        )
        for record in item.trajectory or []
    ]
