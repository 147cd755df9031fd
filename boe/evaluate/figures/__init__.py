"""Figures of results; they need the extra ``plot``."""
