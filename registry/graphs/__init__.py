"""What a GPU is told once and does again in one go: its kernels take less time than launching them one by one.

Reading order: ``buckets`` (rows padded to few sizes, in tensors that stay where they are), ``capture`` (CUDA graphs),
``step`` (losses and gradients of a training). To the left: ``model``. To the right: ``store``.
"""
