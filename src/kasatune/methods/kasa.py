from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import TrainerCallback

from kasatune.adapters.certificate import read_certificate, write_certificate
from kasatune.adapters.export import export_adapter
from kasatune.adapters.parity_report import trained_certificate
from kasatune.distributed.gather_scatter import gather_full
from kasatune.errors import InputError
from kasatune.io.run_layout import ADAPTER, NATIVE
from kasatune.kasa import KasaConfig, regularization_terms
from kasatune.kasa.annealing import Components, fade, take_out_tails
from kasatune.kasa.calibration import calibrate_adapter
from kasatune.kasa.layer import kasa_layers
from kasatune.kasa.protection import project
from kasatune.linalg import leading_triplets
from kasatune.linalg.spectrum import singular_values
from kasatune.methods.lora import METHOD as LORA
from kasatune.methods.shared.capabilities import CalibrationNeeds
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import AdapterMethod, as_peft_model, save_peft, targeted_layers
from kasatune.methods.shared.starting_factors import (
    CALIBRATION_ROWS,
    Factors,
    calibration_batches,
    calibration_source,
    computed_once,
    weight_gradients,
)
from kasatune.methods.shared.trained_parameters import trainable, within
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

_ADAPTER_NAME = "default"
_FADING = "fading_components"
_PREFIX = "base_model.model."


class Kasa(AdapterMethod):
    """y = W_world x + s B diag(sigma) A drop(x), with beta sum(sigma^2) + gamma (||A A^T - I|| + ||B^T B - I||).

    The result is saved twice: natively in kasa/, and in adapter/ as the equivalent LoRA of rank 2r on the untouched
    base.

    `truncate_by`, `drop` and `protect` vary it: another component is dropped, another number of triplets or none, and A
    is kept out of the input directions that activations use most. What depends on activations is computed before the
    first step, from text that the base generates or from training rows (`calibration`). `truncate_by: sensitivity`
    needs training rows with their labels, and may drop nothing.

    With `anneal` the dropped component fades back in during that share of the steps: step t of n computes
    W - max(0, 1 - t / (`anneal` n)) T, and what is evaluated, saved and exported is W + s B diag(sigma) A, a LoRA of
    rank r. With `orthonormal` A and B start orthonormal, sigma at 0, and after each step A <- (A A^T)^(-1/2) A and
    B <- B (B^T B)^(-1/2); s is multiplied by ||W||_F / sqrt(min(out, in)), and the gamma term is left out.
    With `init: gradient` A starts as the r leading right singular vectors of dL/dW on the first 64 training rows, and
    with `orthonormal` B as the left ones; the start is the same function, since B = 0 or sigma = 0.

    Two options switch off parts for ablations: `truncate` false uses W instead of W_world, and `sigma` "one" fixes
    diag(sigma) at the identity. With both, and beta = gamma = 0, the method is LoRA.

    Source: Wang et al., arXiv 2412.06071; computed by kasatune.
    """

    info = METHODS["kasa"]
    folder = NATIVE
    default_drop: ClassVar[int | None] = None
    default_truncate_by: ClassVar[str] = "magnitude"
    default_protect: ClassVar[float] = 0.0

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The KasaConfig of this package; KasaModel applies its penalty itself, once per optimizer step.

        Raises:
            InputError: `anneal` without a dropped component, or `orthonormal` with a fixed sigma.
        """
        self._check(settings)
        config = KasaConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.use_rslora,
            target_modules=targets,
            beta=settings.beta,
            gamma=settings.gamma,
            convention=settings.convention,
            core=settings.core,
            truncation=settings.truncation,
            tails=settings.tails,
            truncate_by=settings.truncate_by or self.default_truncate_by,
            drop=self._drop(settings),
            protect=self.default_protect if settings.protect is None else settings.protect,
            sigma_init="normal" if settings.orthonormal else settings.options.get("sigma_init", "normal"),
            orthonormal=settings.orthonormal,
            **common,
        )
        config.calibrate_later = config.needs_activations
        return config

    def _check(self, settings: MethodSettings) -> None:
        if settings.anneal and (self._drop(settings) == 0 or not settings.options.get("truncate", True)):
            raise InputError(
                f"method.anneal: {settings.anneal:g} received; nothing is dropped that could fade back in: set "
                "method.drop, or leave anneal out"
            )
        if settings.orthonormal and settings.options["sigma"] == "one":
            raise InputError(
                "method.orthonormal: true received; it starts sigma at 0 and trains it: leave method.options.sigma out"
            )

    def _drop(self, settings: MethodSettings) -> int | None:
        """The rank of the dropped component; `truncate` false drops nothing that activations would choose later."""
        if not settings.options.get("truncate", True) and settings.truncate_by not in (None, "magnitude"):
            return 0
        return self.default_drop if settings.drop is None else settings.drop

    def prepare(
        self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
    ) -> str | None:
        """See `Method.prepare`: what depends on activations, and by sensitivity also on gradients.

        Raises:
            InputError: `calibration` names text that the base cannot generate.
        """
        config = as_peft_model(model).peft_config[_ADAPTER_NAME]
        if isinstance(config, KasaConfig) and config.calibrate_later:
            base: Any = as_peft_model(model).get_base_model()
            labelled = config.truncate_by == "sensitivity"
            read = calibration_batches(settings, base, batches, labelled=labelled)
            line = calibrate_adapter(model, read, source="task")
        else:
            line = None
        if settings.init == "gradient":
            _start_from_gradient(model, self.info.name, settings, batches)
        if settings.anneal:
            setattr(model, _FADING, take_out_tails(model))
        return line

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """See `Method.callbacks`: fade the dropped component back in."""
        return [_Anneal(model, settings.anneal)] if settings.anneal else []

    def calibration(self, settings: MethodSettings, *, generates: bool) -> CalibrationNeeds | None:
        """See `Method.calibration`."""
        truncate_by = settings.truncate_by or self.default_truncate_by
        drop = self._drop(settings)
        drop = settings.r if drop is None else drop
        if truncate_by == "magnitude" or settings.tails is not None:
            drop = 0
        protect = self.default_protect if settings.protect is None else settings.protect
        if not drop and not protect:
            return None
        labelled = truncate_by == "sensitivity"
        source = calibration_source(settings, generates=generates, labelled=labelled)
        return CalibrationNeeds(source, settings.calibration.rows, drop, protect, labelled and drop > 0)

    def reads_parameters_in_training(self, settings: MethodSettings) -> bool:
        """See `Method.reads_parameters_in_training`: what depends on activations is kept in checkpoints."""
        if settings.anneal or settings.orthonormal:
            return True
        protect = self.default_protect if settings.protect is None else settings.protect
        return protect > 0 or (settings.truncate_by or self.default_truncate_by) != "magnitude"

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """See `Method.training_state`: what was chosen by activations, which another machine may choose differently."""
        state: dict[str, Tensor] = {}
        fading: Components = getattr(model, _FADING, {})
        shared: set[int] = set()  # layers that read one tensor hold one K, which is saved with the first of them
        for name, layer in kasa_layers(model):
            if layer.settings[_ADAPTER_NAME].truncate_by != "magnitude":
                U, V = fading.get(name, (layer.kasa_tail_U[_ADAPTER_NAME], layer.kasa_tail_V[_ADAPTER_NAME]))
                state[f"{name}.tail_U"], state[f"{name}.tail_V"] = U, V
            K = layer.protected.get(_ADAPTER_NAME)
            if K is not None and id(K) not in shared:
                shared.add(id(K))
                state[f"{name}.protected"] = K
        return state

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See `Method.restore_training_state`."""
        fading: Components = getattr(model, _FADING, {})
        for name, layer in kasa_layers(model):
            U, V = fading.get(name, (layer.kasa_tail_U[_ADAPTER_NAME], layer.kasa_tail_V[_ADAPTER_NAME]))
            held = {"tail_U": U, "tail_V": V, "protected": layer.protected.get(_ADAPTER_NAME)}
            for kind, tensor in held.items():
                if tensor is not None and f"{name}.{kind}" in state:
                    tensor.data.copy_(state[f"{name}.{kind}"])
            layer.restore_base()
            layer.sync_fold()

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        for _, layer in kasa_layers(wrapped):
            if not settings.options.get("truncate", True):
                layer.restore_base()
                layer.kasa_tail_U[_ADAPTER_NAME].data.zero_()
            if settings.options["sigma"] == "one":
                sigma = layer.kasa_sigma[_ADAPTER_NAME].requires_grad_(False)
                sigma.data.copy_(torch.ones_like(sigma) if sigma.ndim == 1 else torch.eye(len(sigma)))
        return wrapped

    def trained_parameters(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> int:
        """Sum of r (out + in) + r over the layers, with r^2 instead of the last r for a dense core.

        No weight is decomposed.
        """
        self._check(settings)
        core = settings.r**2 if settings.core == "dense" else settings.r
        core = 0 if settings.options["sigma"] == "one" else core
        with torch.device("meta"):
            lora = LORA.attach(model, settings, kind, new_modules)
        factors = sum(p.numel() for name, p in trainable(lora).items() if not within(name, new_modules))
        return factors + len(targeted_layers(lora)) * core

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """The native adapter also holds the tail, d (out + in) numbers in each layer; the LoRA has rank r + d."""
        drop = 0 if settings.anneal else self._drop(settings)
        d = settings.r if drop is None else drop
        row = sum(sum(shape) for shape in shapes)
        return {self.folder: trained + d * row, ADAPTER: (settings.r + d) * row}

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        save_peft(model, run_dir / self.folder, base_name)
        # If 16 bits round the outputs, the certificate compares the weights, which the files hold in float32.
        source = model if _computes_in_float32(model) else run_dir / self.folder
        export_adapter(source, run_dir / ADAPTER, to="lora")
        base = read_certificate(run_dir / ADAPTER)["base"]
        write_certificate(run_dir / self.folder, trained_certificate(run_dir / self.folder, base))

    def penalty_terms(self, model: nn.Module) -> dict[str, float]:
        """See `Method.penalty_terms`: the two terms, weighted by beta and gamma."""
        with torch.no_grad():
            terms = regularization_terms(model)
        return {"penalty_sigma": float(terms.sigma), "penalty_orthogonality": float(terms.orthogonality)}

    def singular_values(self, model: nn.Module) -> dict[str, list[float]]:
        """See `Method.singular_values`: sigma as trained, with sign; for a dense core its singular values."""
        return {name: _shown(layer.factors(_ADAPTER_NAME).sigma) for name, layer in kasa_layers(model)}

    def spectrum(self, model: nn.Module, initial: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
        """See `Method.spectrum`: all singular values of each weight, how many are dropped, sigma before and after."""
        layers: list[dict[str, Any]] = []
        for name, layer in kasa_layers(model):
            values = _rounded(singular_values(layer.original_weight()))
            settings = layer.settings[_ADAPTER_NAME]
            # by activation a component is dropped that is no set of singular triplets
            by_size = settings.truncate_by == "magnitude" and layer.kasa_tail_U[_ADAPTER_NAME].any()
            dropped = settings.drop if by_size else 0
            layers.append(
                {
                    "name": name,
                    "shape": [layer.out_features, layer.in_features],
                    "rank": settings.r,
                    "singular_values": values,
                    "dropped": [len(values) - dropped, dropped],
                    "sigma_initial": list(initial.get(name, ())),
                    "sigma": _shown(layer.factors(_ADAPTER_NAME).sigma),
                }
            )
        return layers


@torch.no_grad()
def _start_from_gradient(
    model: nn.Module, name: str, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
) -> None:
    """A = Vh_r of dL/dW = U S Vh on the first training rows, and with `orthonormal` B = U_r; B or sigma is 0 still."""
    layers: dict[str, Any] = dict(kasa_layers(model))

    def compute() -> dict[str, Factors]:
        named = {f"{_PREFIX}{layer}": module for layer, module in layers.items()}
        gradients = weight_gradients(model, named, name, batches, CALIBRATION_ROWS)
        return {layer.removeprefix(_PREFIX): _leading(gradient, settings.r) for layer, gradient in gradients.items()}

    for layer, factors in computed_once(compute).items():
        layers[layer].kasa_A[_ADAPTER_NAME].copy_(factors.A)
        if settings.orthonormal:
            layers[layer].kasa_B[_ADAPTER_NAME].copy_(factors.B)
    project(layers.values(), _ADAPTER_NAME)


def _leading(gradient: Tensor, r: int) -> Factors:
    U, _, Vh = leading_triplets(gradient.float(), r)
    return Factors(Vh.float(), U.float())


class _Anneal(TrainerCallback):
    """In step t of n the fading components are dropped with the factor 1 - t / (share n); between steps not at all."""

    def __init__(self, model: nn.Module, share: float) -> None:
        self._model = model
        self._share = share

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what is left to drop."""
        fade(self._model, getattr(self._model, _FADING), 1 - state.global_step / (self._share * state.max_steps))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop nothing."""
        fade(self._model, getattr(self._model, _FADING), 0.0)


def _computes_in_float32(model: nn.Module) -> bool:
    """Whether every weight is float32 and accelerate has not wrapped the model's forward for mixed precision."""
    return "_original_forward" not in model.__dict__ and all(p.dtype == torch.float32 for p in model.parameters())


def _shown(sigma: Tensor) -> list[float]:
    sigma = gather_full(sigma).detach()
    return _rounded(sigma if sigma.ndim == 1 else singular_values(sigma))


def _rounded(values: Tensor) -> list[float]:
    """Rounded to seven digits, the precision of float32."""
    return [float(f"{value:.7g}") for value in values.tolist()]


METHOD = Kasa()
