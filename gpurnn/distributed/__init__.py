"""Processes that work together: a communicator, sums whose bits depend on no process, sequences cut over processes.

A process finds the others from its environment (`communicator`): started by ``mpiexec`` through mpi4py, by ``torchrun``
through torch.distributed, else it is alone. Nothing here is a transport of its own.
"""

from .communicator import Communicator, MPICommunicator, NCCLCommunicator, TorchCommunicator, communicator
from .sequence import linear_scan, mingru, minlstm, ssm
from .shard_sum import ShardSum, own_shards

__all__ = [
    "Communicator", "MPICommunicator", "NCCLCommunicator", "ShardSum", "TorchCommunicator", "communicator",
    "linear_scan", "mingru", "minlstm", "own_shards", "ssm",
]  # fmt: skip
