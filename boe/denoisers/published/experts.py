"""Experts as checkpoints store them, one by one, and as transformers runs them, stacked."""

from __future__ import annotations

from boe.denoisers.weights import Piece, Pieces


def expert_pieces(place: str, experts: int, inner: int, width: int) -> dict[str, Pieces]:
    """Where the matrices of the experts under ``place`` go.

    ``gate_proj`` and ``up_proj`` (inner, width) become the halves of ``gate_up_proj[e]``,
    ``down_proj`` (width, inner) becomes ``down_proj[e]``.
    """
    pieces = {}
    for e in range(experts):
        for part, half in (("gate_proj", slice(0, inner)), ("up_proj", slice(inner, 2 * inner))):
            target = Piece(f"{place}.gate_up_proj", (e, half))
            pieces[f"{place}.{e}.{part}.weight"] = Pieces((inner, width), (target,))
        target = Piece(f"{place}.down_proj", (e,))
        pieces[f"{place}.{e}.down_proj.weight"] = Pieces((width, inner), (target,))
    return pieces
