"""Token Influence Scores of the candidates of a decoding step."""

from boe_kernels.tis_scores.api import TisScores, tis_scores
from boe_kernels.tis_scores.reference import GATES, NORMALISATIONS

__all__ = ["GATES", "NORMALISATIONS", "TisScores", "tis_scores"]
