"""Sets that are resident and answer requests, several tasks in one pass.

Reading order: ``pool``, ``graphs`` (batches of one set on CUDA), ``predictor``, ``answer_formats``, ``answer_file``;
``folders``, ``parts``, ``data_set`` (folders of files, anywhere); ``pipeline`` (the form of transformers' pipeline);
then the engine of a server: ``waiting``, ``preparing``, ``engine``. To the left: ``training``. To the right: ``web``.
"""
