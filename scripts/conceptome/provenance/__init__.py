"""The witness: what every job read, ran and wrote; stands apart from the rooms that do the work."""
