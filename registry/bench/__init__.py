"""Grids of runs and their records.

Reading order: ``runner``, ``sweep``, ``suite``, ``curves``, ``records``, ``results`` (which records belong together),
``pairing``, ``submission``. To the left: ``interop``. To the right: ``reports``.
"""
