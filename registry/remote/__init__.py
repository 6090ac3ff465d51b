"""A store on object storage: the promises of a store on disk, kept by conditional puts.

To the left: ``store``. To the right: ``tasks``.
"""
