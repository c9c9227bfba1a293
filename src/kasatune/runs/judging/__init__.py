"""A run's answers put before a judge model; everything is kept in the run's folder `judge`."""

from __future__ import annotations
