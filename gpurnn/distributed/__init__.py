"""Processes that work together: a communicator, sums with the same bits for any number of them, and cut sequences.

A process finds the others from its environment (`communicator`): started by ``mpiexec`` through mpi4py, by ``torchrun``
through torch.distributed, else it is alone. gpurnn has no transport of its own.
"""

from .communicator import Communicator, MPICommunicator, NCCLCommunicator, TorchCommunicator, communicator
from .sequence import linear_scan, mingru, minlstm, ssm
from .shard_sum import ShardSum, own_shards

__all__ = [
    "Communicator", "MPICommunicator", "NCCLCommunicator", "ShardSum", "TorchCommunicator", "communicator",
    "linear_scan", "mingru", "minlstm", "own_shards", "ssm",
]  # fmt: skip
