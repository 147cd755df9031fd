"""Decoding: filling in a canvas step by step."""

from boe.decoding.loop import generate
from boe.decoding.records import Account, Generation, Item, StepRecord
from boe.samplers.budgets import Budget, Cosine, FrontLoaded, TokensPerStep

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
