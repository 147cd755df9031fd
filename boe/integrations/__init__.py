"""``boe`` inside other libraries: transformers' ``generate``, diffusers' pipelines.

Nothing here is imported by the rest of ``boe``.
"""
