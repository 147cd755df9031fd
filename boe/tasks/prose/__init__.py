"""English prose: no answer is right, samplers are judged by what they write on the whole."""
