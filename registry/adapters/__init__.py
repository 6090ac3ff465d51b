"""A set: everything that trains for one task.

Reading order: ``interface`` (what the encoder asks of what is passed in), ``formulas`` (the answers),
``method`` (what all methods share) and one file a method: ``bottleneck``, ``lora``, ``ia3``, ``bitfit``, ``prefix``,
``fusion``; ``head``, ``adapter_set``, ``merging``. To the right: ``model``, the frozen encoder that a set is passed to.
"""
