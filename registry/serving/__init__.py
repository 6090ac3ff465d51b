"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``graphs`` (small batches on CUDA), ``predictor``, ``ensemble``, ``answer_file``. To the left:
``training``. To the right: ``interop``.
"""
