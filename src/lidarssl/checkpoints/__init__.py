"""Weights on disk: safetensors with a card inside, read without ever unpickling code."""

from lidarssl.checkpoints.card import Architecture, Card
from lidarssl.checkpoints.files import Checkpoint, load, read_state, save
from lidarssl.checkpoints.matching import LoadReport, load_into

__all__ = [
    "Architecture",
    "Card",
    "Checkpoint",
    "LoadReport",
    "load",
    "load_into",
    "read_state",
    "save",
]
