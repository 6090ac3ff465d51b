"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``predictor``, ``ensemble``, ``answer_file``. To the left: ``training``. To the right:
``interop``.
"""
