"""What a trace found of a model: parameters, bytes kept, work. Values; knows no torch."""
