"""Whole files and folders answered in constant memory, so that a run that was killed goes on.

Reading order: ``answer_formats``, ``answer_file``; ``folders``, ``parts``, ``data_set`` (folders of files, anywhere).
To the left: ``serving``. To the right: ``web``.
"""
