"""Sharing a network's weights out over processes (FSDP)."""

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard_parts(parts: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Wrap, in place, every block of the parts' module lists, then each part, with torch's ``fully_shard``.

    ``mesh`` is the one of Lightning's ModelParallelStrategy. Its second axis, meant for tensor parallelism, is 1 long
    where weights are shared out over all processes. Where it is longer (a machine's processes), they are shared out
    along it, and the first axis counts the copies (hybrid sharding); every process still has its own batches.

    One block's weights are gathered at a time. A network and its averaged twins are wrapped alike, so their shards line
    up. Each part must be called itself (not only its children), because its call is what gathers its weights.
    """
    along = mesh["data_parallel"] if mesh["tensor_parallel"].size() == 1 else mesh
    for part in parts:
        lists = [module for module in part.modules() if isinstance(module, nn.ModuleList)]
        for block in (block for blocks in lists for block in blocks):
            if not isinstance(block, nn.ModuleList):
                fully_shard(block, mesh=along)
        # Also the outermost weights are given back after a call: a twin has no backward pass that would do it.
        fully_shard(part, mesh=along, reshard_after_forward=True)
