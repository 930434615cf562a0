"""The architectures in shapes.yaml: SHAPES by the base's name on the hub, NAMES by a short one."""

from pathlib import Path

import yaml
from transformers import AutoConfig, PretrainedConfig

from dandap.errors import InputError, nearest

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SHAPES: dict[str, dict] = _DATA["hub"]
NAMES: dict[str, dict] = _DATA["names"]


def make_config(shape: dict) -> PretrainedConfig:
    """Return transformers' config of an entry of SHAPES or NAMES."""
    return AutoConfig.for_model(**shape)


def named_config(name: str) -> PretrainedConfig:
    """Return the config of a shape by its short name; InputError lists the names."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise InputError(
            f"got {name!r}; expected a model folder or one of {known}.{nearest(name, NAMES)}"
        )
    return make_config(NAMES[name])
