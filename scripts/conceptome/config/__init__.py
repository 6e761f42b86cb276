"""The configuration: pydantic models by section, and the only place that knows a default value.

Nothing is imported here: a job reads the models of its own section, and its recipe covers those alone.
"""
