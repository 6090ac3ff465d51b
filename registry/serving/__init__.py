"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``graphs`` (batches of one set on CUDA), ``predictor``, ``ensemble``, ``answer_file``; then the
server: ``waiting``, ``preparing``, ``engine``. To the left: ``training``. To the right: ``interop``.
"""
