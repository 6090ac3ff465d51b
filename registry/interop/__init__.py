"""Doors to other libraries: ``trainer``, ``classifier`` lets transformers' Trainer train a set.

The folders of others: ``formats`` writes them.

To the left: ``serving``. To the right: ``bench``.
"""
