"""The canvas: batches of sequences of any lengths."""

from __future__ import annotations

import pytest
import torch

from boe import Canvas

A, B = torch.tensor([5, 0, 7]), torch.tensor([0, 4])


def test_sequences_of_any_lengths_are_padded_on_the_right() -> None:
    canvas = Canvas.of([A, B])
    assert canvas.lengths == (3, 2)
    assert (canvas.batch, canvas.length, canvas.padded) == (2, 3, True)
    assert canvas.valid.tolist() == [[True, True, True], [True, True, False]]
    assert [s.tolist() for s in canvas.sequences()] == [[5, 0, 7], [0, 4]]


def test_padding_is_never_a_mask_whatever_id_it_holds() -> None:
    assert Canvas.of([A, B]).masked(0).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("form", [A, A.unsqueeze(0), [A], (A,), Canvas.of(A)])
def test_every_form_of_one_sequence_is_the_same_canvas(form) -> None:
    canvas = Canvas.of(form)
    assert canvas.ids.tolist() == [[5, 0, 7]]
    assert not canvas.padded


def test_selected_rows_are_cut_to_the_longest_of_them() -> None:
    canvas = Canvas.of([A, B, torch.tensor([9])])
    part = canvas.select([2, 1])
    assert part.lengths == (1, 2)
    assert part.ids.tolist() == [[9, 0], [0, 4]]
    part.ids[0, 0] = 3
    assert int(canvas.ids[2, 0]) == 9, "a selection is a copy"


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([], ValueError, "at least one sequence, got none"),
        (torch.zeros(0, 4).long(), ValueError, "at least one sequence, got none"),
        ([A, A[:0]], ValueError, "sequence 1 of the canvas is empty"),
        (torch.tensor(3), ValueError, r"shape \(L,\) or \(B, L\), got \(\)"),
        ([A.unsqueeze(0)], ValueError, r"each sequence of the canvas must have shape \(L,\)"),
        ([A.float()], TypeError, r"int64 token ids, got torch\.float32"),
        ([[1, 2]], TypeError, "int64 token ids, got list"),
    ],
)
def test_what_is_no_canvas_is_refused_with_the_reason(sequences, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Canvas.of(sequences)
