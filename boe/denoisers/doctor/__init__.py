"""What is wrong with a checkpoint directory, and what to do about it."""

from boe.denoisers.doctor.examination import TEXT, Examination
from boe.denoisers.doctor.finding import Finding, Verdict

__all__ = ["TEXT", "Examination", "Finding", "Verdict"]
