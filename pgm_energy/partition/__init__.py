"""The partition function: log Z, known, summed exactly, or estimated between two brackets."""

from pgm_energy.partition.estimate import log_partition
from pgm_energy.partition.exact import known_log_partition
from pgm_energy.partition.result import LogPartition

__all__ = ["LogPartition", "known_log_partition", "log_partition"]
