"""How well cheap scores rank candidates, against what revealing them truly does."""

from boe.evaluate.fidelity.measuring import measure_fidelity
from boe.evaluate.fidelity.study import Fidelity, FidelityStudy, fidelity_from_json

__all__ = ["Fidelity", "FidelityStudy", "fidelity_from_json", "measure_fidelity"]
