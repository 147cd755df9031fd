"""Decoding strategies: which positions are revealed, how many, with what, what is taken back."""

from __future__ import annotations

from boe.samplers.ancestral import DFM, SEDD, Ancestral
from boe.samplers.backtracking import Backtrack
from boe.samplers.base import Count, Policy, Remask, Sampler, choose
from boe.samplers.boe import BoE
from boe.samplers.budgets import Budget, Cosine, FrontLoaded, TokensPerStep
from boe.samplers.caching import KV_CACHES, DelayedCache, ExactCache, KVCache, PrefixCache
from boe.samplers.counting import EntropyBound, Factor, Klass, Threshold
from boe.samplers.frequencies import BackgroundFrequencies
from boe.samplers.greedy import Confidence, Entropy, Margin, Random
from boe.samplers.llada_remask import LladaLoop
from boe.samplers.lookahead import Lookahead
from boe.samplers.lookum import LookUM
from boe.samplers.maskgit import MaskGIT
from boe.samplers.overlapping import OverlapBound
from boe.samplers.p2 import P2
from boe.samplers.pacing import Deadline
from boe.samplers.particles import SMC, ParticleGibbs, Particles
from boe.samplers.pc import PCSampler
from boe.samplers.proofreading import Proofread
from boe.samplers.remdm import (
    ForwardBackward,
    RemdmCap,
    RemdmConf,
    RemdmLoop,
    RemdmRescale,
    Renoise,
)
from boe.samplers.specs import (
    COUNTS,
    PARTICLES,
    REMASKS,
    SAMPLERS,
    sampler_from,
    spec_of,
    strategy_from,
)
from boe.samplers.step import Clock, Move, Scores, Step, StepCost, top_positions
from boe.samplers.strategy import Strategy
from boe.samplers.tokens import Tokens
from boe.samplers.verifying import Verifier

__all__ = [
    "COUNTS",
    "DFM",
    "KV_CACHES",
    "P2",
    "PARTICLES",
    "REMASKS",
    "SAMPLERS",
    "SEDD",
    "SMC",
    "Ancestral",
    "BackgroundFrequencies",
    "Backtrack",
    "BoE",
    "Budget",
    "Clock",
    "Confidence",
    "Cosine",
    "Count",
    "Deadline",
    "DelayedCache",
    "Entropy",
    "EntropyBound",
    "ExactCache",
    "Factor",
    "ForwardBackward",
    "FrontLoaded",
    "KVCache",
    "Klass",
    "LladaLoop",
    "LookUM",
    "Lookahead",
    "Margin",
    "MaskGIT",
    "Move",
    "OverlapBound",
    "PCSampler",
    "ParticleGibbs",
    "Particles",
    "Policy",
    "PrefixCache",
    "Proofread",
    "Random",
    "Remask",
    "RemdmCap",
    "RemdmConf",
    "RemdmLoop",
    "RemdmRescale",
    "Renoise",
    "Sampler",
    "Scores",
    "Step",
    "StepCost",
    "Strategy",
    "Threshold",
    "Tokens",
    "TokensPerStep",
    "Verifier",
    "choose",
    "sampler_from",
    "spec_of",
    "strategy_from",
    "top_positions",
]
