"""Arrays only: intervals, tests and comparisons that know no record, table or word.

Reading order: ``bootstrap``, ``intervals``, ``predictions``, ``comparison``, ``calibration``. To the left: ``tasks``.
To the right: ``training``.
"""
