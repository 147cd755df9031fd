"""Decoding: filling in a canvas step by step."""

from boe.decoding.budgets import Budget, Cosine, FrontLoaded, TokensPerStep
from boe.decoding.loop import generate
from boe.decoding.records import Account, Generation, Item, StepRecord

__all__ = [
    "Account",
    "Budget",
    "Cosine",
    "FrontLoaded",
    "Generation",
    "Item",
    "StepRecord",
    "TokensPerStep",
    "generate",
]
