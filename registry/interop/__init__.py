"""Doors to other libraries: ``trainer``, ``classifier`` lets transformers' Trainer train a set.

To the left: ``serving``. To the right: ``bench``.
"""
