"""Doors to other libraries: ``trainer``, ``classifier`` lets transformers' Trainer train a set.

The folders of others: ``formats`` writes them, ``checkpoint`` that of transformers, the set merged into its weights.

The Hub: ``card`` says what a set is, ``hub`` pushes and pulls it.

To the left: ``serving``. To the right: ``bench``.
"""
