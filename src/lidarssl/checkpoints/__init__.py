"""Weights on disk: safetensors with a card inside, read without ever unpickling code."""

from lidarssl.checkpoints.card import Architecture, Card
from lidarssl.checkpoints.files import Checkpoint, load, save
from lidarssl.checkpoints.matching import LoadReport, load_into
from lidarssl.weights import WEIGHTS_FILE, read_state

__all__ = [
    "WEIGHTS_FILE",
    "Architecture",
    "Card",
    "Checkpoint",
    "LoadReport",
    "load",
    "load_into",
    "read_state",
    "save",
]
