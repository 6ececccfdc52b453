"""Names of models: a hub name, or a folder of this machine that exists and holds a finished model.

`model_folder("runs/dmo")` raises `InputError("runs/dmo: no such folder; did you mean 'runs/demo'?")` before anything
heavy is imported or the hub is contacted; `model_folder("openai-community/gpt2")` returns the name.
"""

import difflib
import re
import shlex
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml

from multitask.config.data import DataConfig
from multitask.errors import InputError
from multitask.files import cache_folder, in_any_form
from multitask.models.gguf.catalog import CATALOG, is_written

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_LOCAL = ("runs", "models", "model", "checkpoints", "outputs")  # usual names of folders, and of nobody on the hub
_CHECKPOINT = re.compile(r"(step|best)-\d+")
_FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".zip", ".gz")
_MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer.json", "merges.txt", "model")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_MOST_LISTED = 8  # names in an error message
_CONNECT_S = 5.0


def model_folder(name: str | None) -> str | None:
    """The model inside a run's folder, or the folder of a fetched model of the catalog; any other name as it is.

    Raises InputError as `checked_name` does, for a model of the catalog that was not fetched yet, and for a file, a
    checkpoint, a folder without a model, and a run that is unfinished.
    """
    if name is None:
        return None
    if name in CATALOG and not Path(name).exists():
        folder = cache_folder(DataConfig()) / name
        if not is_written(CATALOG[name], folder):
            raise InputError(f"{name}: not fetched yet; run `multitask models get {name}`")
        return str(folder)
    found = checked_name(name)
    if Path(found).exists():
        _check_folder(Path(found), name)
    inside = Path(found, "model")
    return str(inside) if inside.is_dir() else found


def checked_name(name: str) -> str:
    """The name of a model or tokenizer, with the home folder in place of `~`.

    Raises InputError for a path that does not exist, with the nearest one that does, and for a hub name where the hub
    cannot be reached and its cache does not hold it.
    """
    found = str(in_any_form(Path(name).expanduser())) if name.startswith("~") or not name.isascii() else name
    if Path(found).exists() or name in CATALOG:
        return found
    if _is_path(name):
        raise InputError(f"{name}: no such folder; {nearest(Path(found))}{_hub_hint(name)}")
    if not _is_cached(name):
        _check_reachable(name)
    return found


def check_source(path: Path, is_file: bool) -> None:
    """Raises InputError for a file or folder that is to be converted and does not exist, with the nearest name."""
    if not in_any_form(path).exists():
        raise InputError(f"{path}: no such {'file' if is_file else 'folder'}; {nearest(path, is_file)}")


def run_of(model: Path) -> Path | None:
    """The run folder of a model: the folder itself or the one that it is in; None for a model of no run."""
    model = in_any_form(model)
    return next((folder for folder in (model, model.absolute().parent) if (folder / "config.yaml").is_file()), None)


def nearest(path: Path, is_file: bool = False) -> str:
    """The end of an error message: the nearest folder (or file) that exists, or those that there are."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    parent, rest = missing.parent, path.relative_to(missing)
    kind, is_kind = ("files", Path.is_file) if is_file and missing == path else ("folders", Path.is_dir)
    names: list[str] = []
    with suppress(OSError):  # not a folder, or one that may not be listed
        names = sorted(p.name for p in parent.iterdir() if is_kind(p) and not p.name.startswith("."))
    near = difflib.get_close_matches(missing.name, names, n=1)
    if near:
        found = parent / near[0]
        return f"did you mean '{found / rest if (found / rest).exists() else found}'?"
    return f"{kind} in '{parent}': {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more if names else "none"


def _is_path(name: str) -> bool:
    """Whether a name that does not exist here can only be meant as a path.

    Two words with a slash between them are a hub name, unless the first one is a folder here and the hub's cache does
    not hold the model.
    """
    first, slash, _ = name.partition("/")
    if _is_no_hub_name(name):
        return True
    return bool(slash) and Path(first).is_dir() and not _is_cached(name)


def _is_no_hub_name(name: str) -> bool:
    is_local = name.partition("/")[0] in _LOCAL or name.lower().endswith(_FILE_SUFFIXES)
    return is_local or _HUB_NAME.fullmatch(name) is None


def _is_cached(name: str) -> bool:
    from huggingface_hub import constants

    full = name if "/" in name else f"openai-community/{name}"  # the hub redirects names of its first years
    names = [f"models--{one.replace('/', '--')}" for one in (name, full)]
    return any(Path(constants.HF_HUB_CACHE, one).is_dir() for one in names)


def _check_reachable(name: str) -> None:
    """Raises InputError at once where a connection to the hub fails; its client would retry for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return
    endpoint = urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        near = [str(path) for path in (Path(name), Path("runs") / name) if path.is_dir()]
        hint = f"did you mean '{near[0]}'?" if near else "without a network, name a local folder"
        raise InputError(
            f"{name}: no such folder here, and the hub ({constants.ENDPOINT}) cannot be reached ({error}); {hint}"
        ) from None


def _hub_hint(name: str) -> str:
    if _is_no_hub_name(name):
        return ""
    first = name.partition("/")[0]
    return f"; '{first}' is a folder here: if the hub's model is meant, fetch it with `hf download {name}` first"


def _check_folder(path: Path, name: str) -> None:
    """Raises InputError for what exists and is no model."""
    if path.is_file():
        how = "convert it with `import-gguf`" if path.suffix.lower() == ".gguf" else "name the folder that it is in"
        raise InputError(f"{name}: a file, expected a run or model folder; {how}")
    is_checkpoint = path.absolute().parent.name == "checkpoints" and _CHECKPOINT.fullmatch(path.name) is not None
    run = path.absolute().parent.parent if is_checkpoint else run_of(path)
    if run is None:
        if not any((path / file).exists() for file in _MODEL_FILES):
            inside = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
            raise InputError(f"{name}: not a run or model folder (no config.json); folders in it: {_listed(inside)}")
        return
    shown = shlex.quote(str(run if is_checkpoint else path if run == path else path.parent))
    if any((run / "model" / weights).exists() for weights in _WEIGHTS):
        if is_checkpoint:
            raise InputError(f"{name}: a checkpoint, expected a model; name its run, {shown}")
        return
    if not is_checkpoint and path != run and any((path / weights).exists() for weights in _WEIGHTS):
        return  # a model of its own beside a file called config.yaml
    command = "pretrain" if _is_pretraining(run) else "train"
    steps = [int(step) for folder in run.glob("checkpoints/step-*") if (step := folder.name[5:]).isdecimal()]
    if not steps:
        raise InputError(
            f"{name}: this run is unfinished and has no checkpoint; start it again with "
            f"`run.py {command} --config {shown}/config.yaml --out {shown} --overwrite`"
        )
    raise InputError(
        f"{name}: this run is unfinished (last checkpoint: step {max(steps)}): resume with "
        f"`run.py {command} --resume {shown}`"
    )


def _is_pretraining(run: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return "text" in yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    return False
