"""Task files for lm-eval, and the functions that they name.

``boe_d1_*`` and ``boe_pc_*`` follow the published protocols of d1 and PC-Sampler;
``boe_sudoku4`` and ``boe_countdown`` are this package's own tasks, for the denoisers that
come with it.
"""
