"""Tasks of short character-level text: one vocabulary, one kind of model, one recipe."""
