"""Doors to other libraries: ``trainer`` lets transformers' Trainer train a set.

To the left: ``serving``. To the right: ``bench``.
"""
