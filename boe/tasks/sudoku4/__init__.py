"""Sudoku 4×4 as text."""
