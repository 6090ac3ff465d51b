"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``graphs`` (batches of one set on CUDA), ``predictor``, ``ensemble``, ``answer_file``,
``pipeline`` (the form of transformers' pipeline). To the left: ``training``. To the right: ``interop``.
"""
