"""Register adapter types with PEFT (KASA, BOTTLENECK): the only module that modifies PEFT's enum.

PEFT keeps its types in an enum and has no public way to add one, so the member is added by hand.
`tests/kasa/test_registration.py` fails by name if PEFT changes what is used here.
"""

from __future__ import annotations

import peft
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from kasatune.errors import InputError
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.model import KasaModel
from kasatune.kasa.orthonormal import install_retraction_hook
from kasatune.kasa.penalty import install_step_hook
from kasatune.kasa.protection import install_projection_hook
from kasatune.peft_compat import save_and_load

NAME = "KASA"


def register() -> None:
    """Add the PEFT type KASA with its configuration and model; a second call has no effect.

    Raises:
        InputError: this version of PEFT defines a type KASA itself.
    """
    if add_type(NAME, KasaConfig, KasaModel):
        save_and_load.install()
        install_step_hook()
        install_projection_hook()
        install_retraction_hook()  # after the projection: polar factors of a projected A stay projected


def add_type(name: str, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> bool:
    """Add a PEFT type with its configuration and tuner; return False if it is registered already.

    Args:
        name: in capitals.
        config_class: its instances may use the type only after this call.
        model_class: the tuner; its `prefix` begins the names of its parameters.

    Raises:
        InputError: this version of PEFT defines a type of this name itself.
    """
    if name not in PeftType.__members__:
        _add_member(name)
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType(name))
    if registered is config_class:
        return False
    if registered is not None:
        raise InputError(
            f"PEFT {peft.__version__} defines a type {name} itself ({registered.__module__}); this version of kasatune "
            "works with PEFT 0.18 to 0.21: pip install 'peft>=0.18.1,<0.22'"
        )
    register_peft_method(name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    return True


def _add_member(name: str) -> None:
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
