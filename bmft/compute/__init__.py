"""Where a model runs and how many processes share the work."""

from bmft.compute.devices import (
    AT_ONCE as AT_ONCE,
    AutocastMaker as AutocastMaker,
    Precision as Precision,
    Room as Room,
    autocast_for as autocast_for,
    choose_device as choose_device,
    laid_out_for_speed as laid_out_for_speed,
    room_for_pixels as room_for_pixels,
)
from bmft.compute.distributed import Share as Share
from bmft.compute.workers import Tell as Tell, Workers as Workers, check_jobs as check_jobs
