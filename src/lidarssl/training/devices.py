"""Devices and precisions, for work without a trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from lidarssl.errors import ConfigError


def choose_device(accelerator: str) -> torch.device:
    """The device behind an ``accelerator`` of ``Training``, for work without a trainer.

    Raises:
        ConfigError: this machine does not have it.
    """
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(accelerator, False):
        raise ConfigError(
            f"there is no '{accelerator}' device here",
            field="accelerator",
            remedy=f"choose auto or one of {[name for name, here in present.items() if here]}",
        )
    return torch.device(accelerator)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A ``precision`` of ``Training``, for a forward pass without a trainer."""
    half = torch.float16 if precision.startswith("16") and device.type != "cpu" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision.endswith("mixed"))
