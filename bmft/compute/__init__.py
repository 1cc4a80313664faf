"""Where a model runs and how many processes share the work."""

from bmft.compute.devices import (
    AutocastMaker,
    Precision,
    Room,
    autocast_for,
    choose_device,
    laid_out_for_speed,
    room_for_pixels,
)
from bmft.compute.distributed import Share

__all__ = [
    "AutocastMaker",
    "Precision",
    "Room",
    "Share",
    "autocast_for",
    "choose_device",
    "laid_out_for_speed",
    "room_for_pixels",
]
