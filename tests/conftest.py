"""Makes the modules beside this file (``tiny_models`` …) importable from every test."""

import torch

# Tensors are tiny here: further threads would only wait for each other.
torch.set_num_threads(1)
