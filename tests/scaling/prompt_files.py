"""Prompt files and jobs for a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_checkpoints import WORDS

from boe.scaling.job import GenerationJob, JobFolder, ModelSource
from boe.text import TextOptions


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_prompts(path: Path, count: int, length: int = 4) -> Path:
    """``count`` prompts of 2 to 5 words."""
    return write_lines(
        path,
        [
            {
                "id": f"p{k}",
                "prompt": " ".join(WORDS[(k + j) % len(WORDS)] for j in range(2 + k % 4)),
                "length": length + k % 3,
            }
            for k in range(count)
        ],
    )


def begin(
    folder: Path, model: Path, prompts: Path, seed: int = 0, batch_size: int = 1, shards: int = 1
) -> JobFolder:
    """A job of drawn tokens, begun in ``folder``."""
    options = TextOptions(sampler="confidence", temperature=1.0, seed=seed, batch_size=batch_size)
    job = JobFolder(folder)
    job.open(GenerationJob.of(ModelSource(str(model)), prompts, options, shards=shards))
    return job


def answers_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of answers, without what no two runs share."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
