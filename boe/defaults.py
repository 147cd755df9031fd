"""What the library and the command line take where nothing is said."""

SAMPLER = "boe+overlap:floor=0.99+deadline"
"""Nearly certain tokens go at once, what is due soon goes beside what it does not compete with,
and BoE chooses what the budget asks for beyond that: on the frontier of training-free samplers
at one to three tokens a step of seven tasks of eight (docs/evidence.md)."""
