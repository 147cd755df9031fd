"""Sudoku grids: parsing, rules and an exact solver.

A grid is a sequence of 81 integers in row-major order; 0 marks an empty cell.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

SIDE = 9
CELLS = SIDE * SIDE
_ALL = (1 << SIDE) - 1  # bit d-1 set: digit d is still possible

Grid = tuple[int, ...]


def _units() -> list[tuple[int, ...]]:
    rows = [tuple(range(r * 9, r * 9 + 9)) for r in range(9)]
    columns = [tuple(range(c, CELLS, 9)) for c in range(9)]
    boxes = [
        tuple((br * 3 + r) * 9 + bc * 3 + c for r in range(3) for c in range(3))
        for br in range(3)
        for bc in range(3)
    ]
    return rows + columns + boxes


UNITS = _units()
_UNIT_NAMES = [f"{kind} {k + 1}" for kind in ("row", "column", "box") for k in range(9)]
PEERS = [
    tuple(sorted({p for unit in UNITS if cell in unit for p in unit} - {cell}))
    for cell in range(CELLS)
]
_UNITS_OF = [tuple(unit for unit in UNITS if cell in unit) for cell in range(CELLS)]


def parse_grid(text: str) -> Grid:
    """Read a puzzle of 81 characters: digits 1-9, and ``0``, ``.`` or ``_`` for empty cells.

    White space is ignored, so the nine rows may stand on lines of their own.

    Raises:
        ValueError: wrong length, another character, or two equal digits in one
            row, column or box; the message says which.
    """
    characters = "".join(text.split())
    if len(characters) != CELLS:
        raise ValueError(f"a puzzle has 81 cells, got {len(characters)} characters")
    cells = []
    for position, character in enumerate(characters):
        if character in "0._":
            cells.append(0)
        elif character in "123456789":
            cells.append(int(character))
        else:
            raise ValueError(
                f"cell {position + 1} holds {character!r}: expected 1-9, or 0 . _ for empty"
            )
    conflict = find_conflict(cells)
    if conflict is not None:
        raise ValueError(f"the puzzle contradicts itself: {conflict}")
    return tuple(cells)


def format_grid(grid: Sequence[int]) -> str:
    """The 81-character form of ``grid``, with ``0`` for empty cells."""
    return "".join(str(digit) for digit in grid)


def find_conflict(grid: Sequence[int]) -> str | None:
    """The first rule that the filled cells break, in words, or ``None``."""
    for name, unit in zip(_UNIT_NAMES, UNITS, strict=True):
        seen: set[int] = set()
        for cell in unit:
            digit = grid[cell]
            if digit and digit in seen:
                return f"{name} holds {digit} twice"
            seen.add(digit)
    return None


def is_complete(grid: Sequence[int]) -> bool:
    """True when every cell is filled and no rule is broken."""
    return all(1 <= digit <= 9 for digit in grid) and find_conflict(grid) is None


class _Contradiction(Exception):
    pass


def _assign(options: list[int], cell: int, bit: int) -> None:
    """Fix ``cell`` to ``bit`` and propagate naked and hidden singles."""
    pending = [(cell, bit)]
    while pending:
        cell, bit = pending.pop()
        if not options[cell] & bit:
            raise _Contradiction
        removed = options[cell] & ~bit
        options[cell] = bit
        touched = [cell] if removed else []
        for peer in PEERS[cell]:
            mask = options[peer]
            if mask & bit:
                mask &= ~bit
                if not mask:
                    raise _Contradiction
                options[peer] = mask
                touched.append(peer)
                if not mask & (mask - 1):
                    pending.append((peer, mask))
        for changed in touched:
            for unit in _UNITS_OF[changed]:
                once = twice = 0
                for member in unit:
                    mask = options[member]
                    twice |= once & mask
                    once |= mask
                if once != _ALL:
                    raise _Contradiction
                hidden = once & ~twice
                if hidden:
                    for member in unit:
                        single = options[member] & hidden
                        if single and options[member] != single:
                            if single & (single - 1):
                                raise _Contradiction
                            pending.append((member, single))


def solutions(grid: Sequence[int], rng: random.Random | None = None) -> Iterator[Grid]:
    """All completions of ``grid``, lazily; in random order when ``rng`` is given."""
    options = [_ALL] * CELLS
    try:
        for cell, digit in enumerate(grid):
            if digit:
                _assign(options, cell, 1 << (digit - 1))
    except _Contradiction:
        return
    yield from _search(options, rng)


def _search(options: list[int], rng: random.Random | None) -> Iterator[Grid]:
    open_cells = [cell for cell in range(CELLS) if options[cell] & (options[cell] - 1)]
    if not open_cells:
        yield tuple(mask.bit_length() for mask in options)
        return
    if rng is not None:
        rng.shuffle(open_cells)
    cell = min(open_cells, key=lambda c: options[c].bit_count())
    bits = [1 << d for d in range(SIDE) if options[cell] >> d & 1]
    if rng is not None:
        rng.shuffle(bits)
    for bit in bits:
        branch = options.copy()
        try:
            _assign(branch, cell, bit)
        except _Contradiction:
            continue
        yield from _search(branch, rng)


def unique_solution(grid: Sequence[int]) -> Grid:
    """The only completion of ``grid``.

    Raises:
        ValueError: no completion exists, or more than one.
    """
    found = solutions(grid)
    first = next(found, None)
    if first is None:
        raise ValueError("the puzzle has no solution")
    if next(found, None) is not None:
        raise ValueError("the puzzle has more than one solution")
    return first
