"""Sets on disk: nothing is lost, and nothing is believed that does not fit its digest.

Reading order: ``store`` (every change is one rename), ``reader``, ``members`` (of fused sets), ``manifest``,
``files``, ``tensors`` (a set to bytes and back), ``registry`` (a store opened for one backbone), ``archive``,
``shipped``, ``listing``, ``audit``, ``errors``. Only ``tensors`` and ``registry`` know torch. To the left: ``model``.
To the right: ``tasks``.
"""
