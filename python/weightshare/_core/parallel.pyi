"""
How the core uses threads.
"""
from __future__ import annotations
__all__: list[str] = ['after_fork_in_child', 'compiler', 'openmp_version']
def after_fork_in_child() -> None:
    """
    Run serially from now on: the threads of the OpenMP runtime did not survive the fork.
    """
def compiler() -> str:
    """
    The compiler that built this module.
    """
def openmp_version() -> int:
    """
    OpenMP's version date, or 0 when built without it.
    """
