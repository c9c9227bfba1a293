from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kasatune.errors import AdapterError, WorkError
from kasatune.methods.shared.checkpoint_folder import load_tensors, put_tensors, save_tensors
from kasatune.methods.shared.method import Method, MethodSettings, TaskKind
from kasatune.methods.shared.model_parts import head_name
from kasatune.methods.table import METHODS
from kasatune.wording import counted

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from transformers import PreTrainedModel

_FOLDS = 5
_C = tuple(10.0**power for power in range(-5, 4))
_ALPHA = tuple(10.0 ** (power / 2) for power in range(-8, 13))
_ABSENT_LOGIT = -1e4  # for a class without training examples: representable in float16, and e^-1e4 = 0


class FittedHead(nn.Module):
    """logits = linear(features); returns the features unchanged until `linear` is set.

    Args:
        first_token: use only the first token of (batch, tokens, hidden), as the replaced head does.
        companions: names of the other newly initialized modules, whose random weights affect the features.
        shape: (labels, features) of the linear map; None if the replaced head does not show the number of features.
    """

    def __init__(self, first_token: bool, companions: Sequence[str], shape: tuple[int | None, int | None]) -> None:
        super().__init__()
        self._first_token = first_token
        self.companions = tuple(companions)
        self.shape = shape
        self.linear: nn.Linear | None = None

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """(batch, hidden) or (batch, tokens, hidden) -> features or logits."""
        if self._first_token and features.ndim == 3:
            features = features[:, 0]
        return features if self.linear is None else self.linear(features.to(self.linear.weight.dtype))

    def put(self, weight: np.ndarray, bias: np.ndarray, device: torch.device) -> None:
        """Set logits = weight @ features + bias; weight (labels, hidden) and bias (labels,) are held in float32."""
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], device=device).requires_grad_(False)
        self.linear.weight.copy_(torch.from_numpy(weight))
        self.linear.bias.copy_(torch.from_numpy(bias))


class Head(Method):
    """logits = W f(x) + b: f, the frozen model up to its head; W and b fitted to convergence on the training set.

    Classification: multinomial logistic regression, with C chosen by cross-validation of the log loss. Regression:
    ridge regression, with alpha chosen by leave-one-out. Features are standardized, and the standardization is folded
    into W and b. The baseline that every adapter must beat, also known as a linear probe.
    """

    info = METHODS["head"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`; until `fit`, the model returns its features as logits."""
        model.requires_grad_(False)
        name = head_name(model)
        replaced = getattr(model, name)
        linear = isinstance(replaced, nn.Linear)
        companions = [other for other in new_modules if other != name]
        shape = (model.config.num_labels, replaced.in_features if linear else None)
        setattr(model, name, FittedHead(not linear, companions, shape))
        return model

    def fit(
        self, model: nn.Module, features: np.ndarray, labels: Sequence[int] | Sequence[float], seed: int
    ) -> Mapping[str, Any]:
        """See `Method.fit`.

        Raises:
            WorkError: the fit did not converge.
        """
        config: Any = model.config
        x = features.astype(np.float64)
        if config.problem_type == "regression":
            weight, bias, chosen = _ridge(x, np.asarray(labels, dtype=np.float64))
        else:
            weight, bias, chosen = _logistic(x, np.asarray(labels), config.num_labels, seed)
        _, head = _fitted_head(model)
        head.put(weight, bias, next(model.parameters()).device)
        return chosen

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        name, head = _fitted_head(model)
        prefixes = tuple(f"{module}." for module in (name, *head.companions))
        tensors = {key: value for key, value in model.named_parameters() if key.startswith(prefixes)}
        save_tensors(run_dir, self.info.name, base_name, tensors)

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        tensors = load_tensors(run_dir)
        model = self.attach(base, settings, "classification", ())
        name, head = _fitted_head(model)
        try:
            weight, bias = (tensors[f"{name}.linear.{part}"].numpy() for part in ("weight", "bias"))
        except KeyError as fault:
            raise AdapterError(f"{run_dir} holds no {fault}: it was fitted on a model with another head") from fault
        labels, features = head.shape
        if weight.shape != (labels, features or weight.shape[1]) or bias.shape != (labels,):
            raise AdapterError(
                f"{run_dir} holds a head of {counted(weight.shape[0], 'label')} and "
                f"{counted(weight.shape[1], 'feature')}, the base model "
                f"has {labels} and {features}: it was fitted on another model"
            )
        head.put(weight, bias, base.device)
        put_tensors(model, tensors, run_dir)
        return model


def _fitted_head(model: nn.Module) -> tuple[str, FittedHead]:
    """The head that `attach` inserted, with its name."""
    return next((name, child) for name, child in model.named_children() if isinstance(child, FittedHead))


def _standardization(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature; standard deviation 1 for a constant feature."""
    deviation = x.std(axis=0)
    return x.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Min ||y - Z w - b||^2 + alpha ||w||^2 over the standardized Z; alpha by the closed-form leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    mean, deviation = _standardization(x)
    ridge: Any = RidgeCV(alphas=_ALPHA).fit((x - mean) / deviation, y)
    weight = (ridge.coef_ / deviation)[None]
    return weight, np.atleast_1d(ridge.intercept_) - weight @ mean, {"alpha": float(ridge.alpha_)}


def _logistic(
    x: np.ndarray, y: np.ndarray, num_labels: int, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Min sum_i -log softmax(W z_i + b)[y_i] + ||W||^2 / (2 C) over the standardized z.

    Raises:
        WorkError: the fit did not converge, or the training set holds one class only.
    """
    present, counts = np.unique(y, return_counts=True)
    if len(present) < 2:
        raise WorkError(
            f"the training set holds one class only ({present[0]}): a head needs two; add examples of another"
        )
    folds = min(_FOLDS, int(counts.min()))
    C = _best_C(x, y, folds, seed) if folds >= 2 else 1.0
    mean, deviation = _standardization(x)
    model = _regression(C).fit((x - mean) / deviation, y)
    if int(model.n_iter_.max()) >= model.max_iter:
        raise WorkError(f"logistic regression did not converge in {model.max_iter} iterations (C = {C:g})")
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:  # one row z of log odds; softmax([-z/2, z/2]) has the same probabilities
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((num_labels, x.shape[1]))
    bias = np.full(num_labels, _ABSENT_LOGIT)
    weight[present] = coefficients / deviation
    bias[present] = intercepts - weight[present] @ mean
    return weight, bias, {"C": C, "folds": folds, "iterations": int(model.n_iter_.max())}


def _best_C(x: np.ndarray, y: np.ndarray, folds: int, seed: int) -> float:
    """The C with the smallest mean log loss over the folds; each fold is standardized by its training part."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    classes = np.unique(y)
    losses = np.zeros(len(_C))
    for inside, outside in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        mean, deviation = _standardization(x[inside])
        model = _regression(_C[0], tol=1e-4).set_params(
            warm_start=True
        )  # from each C to the next, with weaker regularization
        for index, C in enumerate(_C):
            model.set_params(C=C).fit((x[inside] - mean) / deviation, y[inside])
            predicted = model.predict_proba((x[outside] - mean) / deviation)
            losses[index] += log_loss(y[outside], predicted, labels=classes)
    return _C[int(losses.argmin())]


def _regression(C: float, tol: float = 1e-6) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, tol=tol, max_iter=20_000)


METHOD = Head()
