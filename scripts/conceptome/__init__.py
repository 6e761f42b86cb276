"""Conceptome: from raw biological data to the concepts that foundation models have learned."""

__version__ = "0.1.0"
