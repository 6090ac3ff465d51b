"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``graphs`` (batches of one set on CUDA), ``mixed_graphs`` (of several), ``predictor``,
``pipeline`` (the form of transformers' pipeline); then the engine of a server: ``waiting``, ``preparing``,
``answering`` (what a server asks of it), ``engine``. To the left: ``training``. To the right: ``bulk``.
"""
