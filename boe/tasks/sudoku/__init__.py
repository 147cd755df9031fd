"""Sudoku 9×9: grids, puzzles, the embedded denoiser and the task."""
