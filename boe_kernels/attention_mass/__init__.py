"""How much attention the keys of a canvas get from given query rows."""

from boe_kernels.attention_mass.api import attention_mass

__all__ = ["attention_mass"]
