"""Doors to other libraries: ``trainer`` and ``classifier``, and the folders of ``adapters`` and ``peft``.

Reading order of the folders: ``switches`` (what a configuration may say), ``folders`` (looking, limits, tensors),
``heads`` (what trained beside a method), ``methods`` and ``adapterhub``, ``peft``; ``formats`` takes sets in and out.

To the left: ``serving``. To the right: ``bench``.
"""
