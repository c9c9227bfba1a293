"""Pure functions on tensors: the decomposition, the update, the penalty and what is measured of them."""

from __future__ import annotations

from kasatune.maths.convention import Convention, Core, dropped_count
from kasatune.maths.initialization import initial_factors
from kasatune.maths.leading import leading_triplets
from kasatune.maths.penalty import PenaltyTerms, orthogonality_norms, penalty_gradients, penalty_terms
from kasatune.maths.spectrum import (
    ThinSVD,
    effective_rank,
    energy_share,
    product_svd,
    singular_values,
    subspace_alignment,
    update_svd,
)
from kasatune.maths.tail import TailSVD, tail_svd, tail_svd_many
from kasatune.maths.update import Factors, update

__all__ = [
    "Convention",
    "Core",
    "Factors",
    "PenaltyTerms",
    "TailSVD",
    "ThinSVD",
    "dropped_count",
    "effective_rank",
    "energy_share",
    "initial_factors",
    "leading_triplets",
    "orthogonality_norms",
    "penalty_gradients",
    "penalty_terms",
    "product_svd",
    "singular_values",
    "subspace_alignment",
    "tail_svd",
    "tail_svd_many",
    "update",
    "update_svd",
]
