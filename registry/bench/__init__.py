"""Grids of runs and their records.

Reading order: ``runner``, ``sweep``, ``suite``, ``curves``, ``records``, ``results`` (which records belong together),
``pairing``. To the left: ``interop``. To the right: ``reports``.
"""
