"""Sharing a network's weights, and the writing of its checkpoints, out over processes (FSDP)."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from models.parts import GROUPS, apart, is_parts, read_about, read_into, write_parts
from models.saving import SaveError, cause, kept


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


class SharedOut(ModelParallelStrategy):
    """Lightning's strategy of ``fully_shard``; ``in_parts``: each process writes and reads its share of a checkpoint.

    Lightning's own way to do that reads pickles (see :mod:`models.parts`).
    """

    def __init__(self, data_parallel: int, tensor_parallel: int, in_parts: bool, timeout: timedelta) -> None:
        super().__init__(data_parallel, tensor_parallel, save_distributed_checkpoint=in_parts, timeout=timeout)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if not self._save_distributed_checkpoint:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath)  # also where a folder was before
            return
        path = Path(self.broadcast(str(filepath)))
        tensors, rest = apart(checkpoint)
        try:
            write_parts(path, tensors, rest, self.is_global_zero)
        except (OSError, RuntimeError) as reason:
            error = SaveError(path, f"could not be written ({cause(reason, path)})", kept(path.parent))
            error.in_all_processes = True
            raise error from reason

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        path = Path(self.broadcast(str(checkpoint_path)))
        if not is_parts(path):
            return super().load_checkpoint(path, weights_only)
        assert self.model is not None
        content = read_about(path)
        state: dict[str, Any] = get_model_state_dict(self.model)
        moments = [get_optimizer_state_dict(self.model, optimizer) for optimizer in self.optimizers]
        tensors, _ = apart({"state_dict": state, "optimizer_states": moments})
        read_into(path, tensors)
        self.model.load_state_dict(state)
        for optimizer, mine, groups in zip(self.optimizers, moments, content[GROUPS], strict=True):
            set_optimizer_state_dict(self.model, optimizer, {"state": mine["state"], "param_groups": groups})
        return content
