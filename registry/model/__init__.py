"""The frozen encoder, and how it runs with sets passed in.

Reading order: ``batching``, ``attention``, ``encoder`` (the forward), ``relative_positions`` (of MPNet and DeBERTa),
``modernbert`` (another forward), ``families``, ``backbone``; ``inference`` (answers of one set, or of several in one
batch), ``grouped`` (their products) and ``kernels`` (the same in Triton); ``pretrained`` (where a checkpoint comes
from), ``machine``. To the left: ``adapters``. To the right: ``store``.
"""
