"""Sets on disk: nothing is lost, and nothing is believed that does not fit its digest.

Reading order: ``store`` (every change is one rename), ``reader``, ``manifest``, ``files``, ``tensors`` (a set to
bytes and back), ``registry`` (a store opened for one backbone), ``archive``, ``shipped``, ``listing``, ``audit``,
``errors``; ``pickled`` is a process of its own.

Only ``tensors``, ``registry`` and ``pickled`` know torch.

To the left: ``model``. To the right: ``tasks``.
"""
