"""boe as a model of lm-eval (EleutherAI's lm-evaluation-harness).

``python -m boe.lm_eval run --model boe --model_args pretrained=…,sampler=boe --tasks …`` is
``lm-eval`` with the model ``boe`` and the protocols of :mod:`boe.lm_eval.protocols` added.
In Python: ``boe.lm_eval.register()``, or an instance of :class:`boe.lm_eval.model.BoeLM`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_SPEC = find_spec("lm_eval")
# Without a file it is but some folder of that name, which Python takes for a package.
if _SPEC is None or _SPEC.origin is None:
    raise ImportError(
        "boe.lm_eval needs lm-eval, which is not installed: "
        "pip install '.[lm-eval]' in a checkout of boe"
    )

MODEL = "boe"
PROTOCOLS = Path(__file__).parent / "protocols"
"""Folder of task files, for lm-eval's ``include_path``."""

__all__ = ["MODEL", "PROTOCOLS", "register"]


def register() -> None:
    """Make the model known to lm-eval as ``boe``; may be called again."""
    # lm-eval registers its own models only while its registry is empty: they come first.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target="boe.lm_eval.model:BoeLM")
