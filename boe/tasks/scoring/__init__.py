"""How published evaluations score what a language model wrote. Pure functions of text."""
