"""Series for experiment trackers: norm and effective rank of sigma, routing of mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from kasatune.linalg import effective_rank


def sigma_series(layers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean, smallest and largest ||sigma||_2 over the layers, and the mean effective rank of diag(sigma).

    Args:
        layers: sigma of each layer; none gives no series.
    """
    if not layers:
        return {}
    values = [torch.tensor(sigma, dtype=torch.float64) for sigma in layers.values()]
    norms = [float(sigma.norm()) for sigma in values]
    return {
        "sigma_norm": fmean(norms),
        "sigma_norm_min": min(norms),
        "sigma_norm_max": max(norms),
        "sigma_effective_rank": fmean(effective_rank(sigma.abs()) for sigma in values),
    }


def routing_series(routers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Mean entropy of the routers of a mixture, in nats, and the largest load of an expert.

    Args:
        routers: the statistics of each router; none gives no series.
    """
    if not routers:
        return {}
    return {
        "routing_entropy": fmean(float(router["entropy"]) for router in routers.values()),
        "routing_largest_load": max(max(router["load"]) for router in routers.values()),
    }
