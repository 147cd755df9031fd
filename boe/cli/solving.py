"""``boe solve``."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path

from boe.cli.output import check_json_path, console_for, emit_json, silence_transformers
from boe.cli.watching import decode_puzzle, draw_grid, frames, play
from boe.evaluate.player.scene import record_as_json
from boe.samplers import sampler_from
from boe.tasks.sudoku.grid import find_conflict, format_grid, solutions
from boe.tasks.sudoku.task import read_puzzle

SCHEMA = "boe/solve/1"


def run_solve(
    puzzle: str,
    sampler: str,
    tokens_per_step: int,
    temperature: float | None,
    seed: int,
    watch: bool,
    json_path: Path | None,
) -> bool:
    """Solve, show and store; returns whether the answer is right."""
    clues = read_puzzle(puzzle)
    sampler_from(sampler)
    check_json_path(json_path)
    console = console_for(json_path)
    silence_transformers()
    found = list(islice(solutions(clues), 2))
    only = found[0] if len(found) == 1 else None
    item = decode_puzzle(clues, sampler, tokens_per_step, temperature, seed)
    answer = item.ids.tolist()
    conflict = find_conflict(answer)
    if watch:
        play(console, frames(clues, item, only))
    else:
        console.print(draw_grid(clues, answer, set(), only))
    account = item.account
    if conflict is None:
        console.print("solved" if only else "solved (the puzzle has more than one solution)")
    else:
        console.print(f"wrong: {conflict}")
    console.print(str(account))
    emit_json(
        json_path,
        {
            "schema": SCHEMA,
            "puzzle": format_grid(clues),
            "sampler": sampler,
            "tokens_per_step": tokens_per_step,
            "temperature": temperature,
            "seed": seed,
            "answer": format_grid(answer),
            "correct": conflict is None,
            "unique": only is not None,
            **asdict(account),
            "trajectory": [record_as_json(record) for record in item.trajectory or []],
        },
    )
    return conflict is None
