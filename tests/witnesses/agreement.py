"""How close two trainings are."""

import torch


def relative(got, wanted):
    """||got - wanted|| / ||wanted||, in float64."""
    got, wanted = (torch.as_tensor(each, dtype=torch.float64).detach() for each in (got, wanted))
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


def trained_factors(model, name="default"):
    """The factors of an adapter by layer name, as the model holds them."""
    return {
        key.removeprefix("base_model.model."): parameter
        for key, parameter in model.named_parameters()
        if key.endswith(f".{name}") and any(f".{part}." in key for part in ("kasa_A", "kasa_B", "kasa_sigma"))
    }
