"""What the library and the command line take where nothing is said."""

SAMPLER = "boe+overlap:floor=0.99+deadline"
"""Nearly certain tokens go at once, and BoE chooses what the budget asks for beyond them: as
often right as BoE alone within the same budget, for a fraction of its forwards
(docs/evidence.md)."""
