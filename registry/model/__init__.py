"""The frozen encoder, and how it runs with sets passed in.

Reading order: ``batching``, ``attention``, ``encoder`` (the forward), ``relative_positions`` (of MPNet and DeBERTa),
``modernbert`` (another forward), ``families``, ``backbone``; ``mixed`` and ``grouped`` for several sets in one batch,
``inference`` for the answers to many rows; ``pretrained`` (where a checkpoint comes from), ``machine``. To the left:
``adapters``. To the right: ``store``.
"""
