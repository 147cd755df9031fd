"""What the library and the command line take where nothing is said."""

SAMPLER = "overlap:floor=0.99,fill=cost+deadline"
"""Nearly certain tokens go at once, and what is due soon goes beside what it does not compete
with: on the frontier of training-free samplers on seven tasks of eight, up to three tokens a step
(docs/evidence.md). It takes no gradient: where one is wanted, ask for ``"boe"``."""
