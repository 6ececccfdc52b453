"""What all settings are: frozen pydantic models that refuse unknown keys."""

from pydantic import (
    BaseModel,
    ConfigDict,
)


class Settings(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
