"""Doors to other libraries: ``trainer``, ``classifier`` lets transformers' Trainer train a set.

To the left: ``web``. To the right: ``bench``.
"""
