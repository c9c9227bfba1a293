"""What each of two processes does in test_penalty_zero3.py; kept apart, because the processes import it."""

import deepspeed
import pytest
import torch
from peft import get_peft_model
from torch import nn

from kasatune.distributed.gather_scatter import gather_full
from kasatune.errors import InputError
from kasatune.kasa import KasaConfig, regularization

STEPS, RATES = 3, (1e-2, 3e-2)


def run():
    """ZeRO-3 by DeepSpeed's engine alone, with two groups of parameters: two buffers, stepped one after the other."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    plain, partitioned = adapted(), adapted()
    optimizer, inner = (torch.optim.AdamW(groups(model)) for model in (plain, partitioned))
    settings = {
        "train_batch_size": 4,
        "gradient_clipping": 0.1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 4096, "stage3_param_persistence_threshold": 0},
    }
    engine, *_ = deepspeed.initialize(model=partitioned, optimizer=inner, config=settings)
    torch.manual_seed(3)
    for inputs in torch.randn(STEPS, 4, 8):
        plain(inputs).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        half = inputs.chunk(2)[torch.distributed.get_rank()]
        engine.backward(engine(half).square().mean())
        engine.step()
    gathered = {name: gather_full(p).detach() for name, p in partitioned.named_parameters() if p.requires_grad}
    for name, p in plain.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(gathered[name], p.detach(), atol=1e-6, rtol=0)
    for layer in (module for module in partitioned.modules() if hasattr(module, "kasa_A")):
        object.__setattr__(layer.settings["default"], "penalty", "loss")
    with pytest.raises(InputError, match="no gradient reaches"):
        regularization(partitioned)
    torch.distributed.destroy_process_group()


def adapted():
    """Two adapted layers, drawn from one seed, with a penalty that outweighs the loss."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8))
    return get_peft_model(model, KasaConfig(r=2, target_modules=["0", "2"], beta=0.5, gamma=0.5))


def groups(model):
    """The factors of the two layers at a learning rate each."""
    trained = [p for p in model.parameters() if p.requires_grad]
    half = len(trained) // 2
    return [{"params": part, "lr": rate} for part, rate in zip((trained[:half], trained[half:]), RATES, strict=True)]
