"""ULD: the teacher's vocabulary may be of any size."""

from __future__ import annotations

from . import Departure

DEPARTURE = Departure(shapes="")
