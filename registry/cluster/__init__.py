"""More machines than one: grids, servers and whole data sets on Ray, which nothing else here knows of.

Reading order: ``connection``, ``grid`` (passes as tasks), ``predict`` (parts of a data set), ``serve`` (replicas of a
server's engine). To the left: ``bench``. To the right: ``reports``.
"""
