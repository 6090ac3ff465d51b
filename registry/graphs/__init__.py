"""What a GPU is told once and does again in one go: its kernels take less time than launching them one by one.

Reading order: ``staged`` (tensors that stay where they are and are written anew), ``buckets`` (rows padded to few
sizes), ``capture`` (CUDA graphs), ``step`` (losses and gradients of a training); for mixed batches ``set_tables``
(where sets lie, which states are whose), ``squeeze_kernel`` (their thin products) and ``tabled_adapters`` (what the
encoder asks). To the left: ``model``. To the right: ``store``.
"""
