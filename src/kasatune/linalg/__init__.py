"""Linear algebra on weights: the r smallest singular triplets, leading triplets, and spectra."""

from __future__ import annotations

from kasatune.linalg.leading import leading_triplets
from kasatune.linalg.spectrum import (
    ThinSVD,
    effective_rank,
    energy_share,
    product_svd,
    singular_values,
    subspace_alignment,
)
from kasatune.linalg.tail import TailSVD, tail_svd, tail_svd_many

__all__ = [
    "TailSVD",
    "ThinSVD",
    "effective_rank",
    "energy_share",
    "leading_triplets",
    "product_svd",
    "singular_values",
    "subspace_alignment",
    "tail_svd",
    "tail_svd_many",
]
