"""dslm: one readable recipe in, a correct DeepSpeed run out."""

__version__ = "0.1.0"
