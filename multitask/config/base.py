"""What all settings are: frozen pydantic models that refuse unknown keys.

A key that was renamed is read for one release, with a warning that names the new one: `SourceConfig(cut=...)` warns
"'cut' is now called 'split_by'".
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Flag(str):
    """A setting by dotted name, `train.epochs=0`, and how the user wrote it, `--epochs 0`, for messages."""

    shown: str

    def __new__(cls, text: str, shown: str) -> "Flag":
        """A text with a second one."""
        flag = super().__new__(cls, text)
        flag.shown = shown
        return flag


def shown_flag(flag: str) -> str:
    """A setting by dotted name as the user wrote it; without further knowledge, with `--set`."""
    return flag.shown if isinstance(flag, Flag) else f"--set {flag}"


class Settings(BaseModel):
    """Frozen; unknown keys are errors.

    renamed: old names of keys, of the release before, and their new ones.
    replaces: keys whose new value makes others in the same section void; `--set model.shape=nano` on top of a file
        that wrote `n_layer: 6` takes nano's number of layers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
    renamed: ClassVar[Mapping[str, str]] = {}
    replaces: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not cls.renamed.keys() & values.keys():
            return values
        for old, new in cls.renamed.items():
            if old in values and new in values:
                raise ValueError(f"'{old}' is the old name of '{new}', and both are given; leave out '{old}'")
            if old in values:
                warnings.warn(
                    f"'{old}' is now called '{new}'; the old name is read in this release only",
                    FutureWarning,
                    stacklevel=2,
                )
        return {cls.renamed.get(name, name): value for name, value in values.items()}


def origin_of(path: str, settings: Mapping[str, Any], flags: Sequence[str], where: str) -> str:
    """What set a setting: the last flag that names it, one of its parts or a section around it, else the file.

    path: of a problem, `train.lr`; settings: as in the file, before the flags; where: the file's name.
    """
    for flag in reversed(flags):
        name = flag.partition("=")[0]
        if path and (f"{path}.").startswith(f"{name}."):
            return shown_flag(flag)
        if path and name.startswith(f"{path}.") and not _has(settings, path):
            return shown_flag(flag)
    return where


def _has(settings: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True
