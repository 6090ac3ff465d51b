"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``predictor``. To the left: ``training``. To the right: ``interop``.
"""
