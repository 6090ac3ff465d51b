"""A set: everything that trains for one task.

Reading order: ``interface`` (what the encoder asks of what is passed in), ``bottleneck``, ``head``,
``adapter_set``. To the right: ``model``, the frozen encoder that a set is passed to.
"""
