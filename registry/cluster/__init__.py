"""More machines than one: grids, servers and whole data sets on Ray, which nothing else here knows of.

Reading order: ``connection``, ``grid``, ``predict``. To the left: ``bench``. To the right: ``reports``.
"""
