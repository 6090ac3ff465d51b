"""Doors to other libraries: ``estimators`` that they train, and the folders of ``adapters`` and ``peft``.

Reading order of the folders: ``switches`` (what a configuration may say), ``folders`` (looking, limits, tensors) over
``pickled`` (a process of its own), ``heads`` (what trained beside a method), ``methods`` and ``adapterhub``, ``peft``;
``checkpoint`` (a set merged into the weights of transformers' classifier); ``formats`` takes sets in and out. Then the
Hub: ``hub`` (repositories as files), ``card`` (a set's model card, and how both are pushed).

To the left: ``web``. To the right: ``bench``.
"""
