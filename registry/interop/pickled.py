"""The process in which a pickled weight file is read: ``torch.load(weights_only=True)`` within hard limits.

The one place that reads a pickle, started only after somebody asked for it, and on its own: it imports nothing of the
package. What it hands back is safetensors, which are checked like those of any file.
"""

from __future__ import annotations

import io
import sys

import torch
from safetensors.torch import save

PICKLE_SECONDS = 120  # of the whole process
PICKLE_MEMORY = 8 * 2**30  # bytes of address space, torch itself among them
PICKLE_BYTES = 2**28  # of what it hands back: the limit of one tensor file
PICKLE_TENSORS = 4096
NO_TENSORS, TOO_MUCH = 3, 4  # exit codes
CONVERSION = (
    "python -c 'import torch; from safetensors.torch import save_file; save_file({{k: v.clone() for k, v in "
    'torch.load("{pickled}", weights_only=True).items()}}, "{name}")\''
)


def convert(data: bytes) -> int:
    """Write the tensors of a pickled state dictionary to stdout as safetensors; return the exit code."""
    limit_this_process()
    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    floats = (torch.float32, torch.float16, torch.bfloat16)
    if not isinstance(found, dict) or not all(
        isinstance(key, str)
        and isinstance(each, torch.Tensor)
        and each.layout == torch.strided
        and each.dtype in floats
        for key, each in found.items()
    ):
        return NO_TENSORS
    if len(found) > PICKLE_TENSORS or sum(each.numel() * each.element_size() for each in found.values()) > PICKLE_BYTES:
        return TOO_MUCH
    sys.stdout.buffer.write(save({key: each.detach().contiguous().clone() for key, each in found.items()}))
    return 0


def limit_this_process() -> None:
    """Take from this process what a reader of tensors has no use for: memory, time, and writing files."""
    try:
        import resource
    except ImportError:  # Windows: the time limit of whoever started it is what there is
        return
    for kind, most in (
        (resource.RLIMIT_AS, PICKLE_MEMORY),
        (resource.RLIMIT_CPU, PICKLE_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bounded = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bounded, bounded))


if __name__ == "__main__":
    sys.exit(convert(sys.stdin.buffer.read()))
