"""What the library and the command line take where nothing is said."""

SAMPLER = "overlap:floor=0.99,fill=cost+deadline"
"""Nearly certain tokens go at once, and what is due soon goes beside what it does not compete
with: at one to three tokens a step no training-free rival is ahead of it beyond chance at equal
cost, on seven tasks of eight (docs/evidence.md). It takes no gradient: where one is wanted, ask for
``"boe"``."""
