"""Checkpoints on disk: safetensors files and folders, read lazily and written all or nothing."""

from __future__ import annotations

from weightshare.checkpoint.header import TensorInfo
from weightshare.checkpoint.reader import Checkpoint, open_checkpoint
from weightshare.checkpoint.writer import CheckpointWriter, save_checkpoint

__all__ = ["Checkpoint", "CheckpointWriter", "TensorInfo", "open_checkpoint", "save_checkpoint"]
