"""How sets are trained, alone or several in one pass, and what a method's name means.

Reading order: ``loop``, ``state`` (one training between two steps), ``gradients``, ``checkpoint``, ``cached_states``,
``recipes``, ``plan``, ``fit``, ``train_set``, ``evaluate``, ``origin``, ``trackers``. To the left: ``stats``. To the
right: ``serving``.
"""
