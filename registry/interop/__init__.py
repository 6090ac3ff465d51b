"""Doors to other libraries: ``trainer``, ``classifier`` lets transformers' Trainer train a set.

Inside transformers: ``checkpoint`` merges a set into a classifier's weights, ``pipeline`` answers as its pipeline does.

The folders of others: ``formats`` writes them.

To the left: ``serving``. To the right: ``bench``.
"""
