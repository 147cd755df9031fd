"""Sums of which some digits are missing."""
