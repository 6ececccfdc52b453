"""Runs on the Hugging Face hub: what is uploaded, and what is checked before.

`push("runs/demo", "me/demo")["url"]` -> `https://huggingface.co/me/demo`
"""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from multitask.errors import InputError
from multitask.events import Json
from multitask.models.names import model_folder, run_of


def push(run: str | Path, name: str, *, private: bool | None = None, license: str | None = None) -> Json:
    """Uploads the model of a finished run to the Hugging Face hub, in one commit; returns `name` and `url`.

    The files of the model folder are uploaded, its card among them, and nothing else of the run. An adapter is merged
    into its base before, so that one line of transformers loads what is uploaded.

    Args:
        run: a run folder.
        name: of the repository, `ORGANISATION/NAME`, or `NAME` for one of your own; created where it does not exist.
        private: whether others can see a new repository; None: the account's default.
        license: identifier of the model's licence for the card, for instance `apache-2.0`; None: the card's.

    Raises:
        InputError: the run is unfinished, there is no token, or the hub does not accept the upload; nothing is
            uploaded then.
    """
    folder = _finished(Path(run).expanduser())
    check_push(name)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with ExitStack() as stack:
        is_merged = (folder / "adapter_config.json").is_file()
        files = stack.enter_context(_merged(folder)) if is_merged else folder
        paths = [path for path in sorted(files.iterdir()) if path.is_file() and not path.name.startswith(".")]
        with _explained(
            f"{run}: not uploaded", f"; the run is whole: try `run.py push {shlex.quote(str(run))} {name}`"
        ):
            made = api.create_repo(name, private=private, exist_ok=True)
            card = _card(folder, made.repo_id, license, is_merged)
            operations = [CommitOperationAdd(path.name, str(path)) for path in paths if path.name != "README.md"]
            operations.append(CommitOperationAdd("README.md", card.encode()))
            api.create_commit(made.repo_id, operations, commit_message=f"Upload {folder.parent.name}")
    return {"name": made.repo_id, "url": str(made)}


def check_push(name: str) -> None:
    """Raises InputError for a name that no repository can have, without a token, and where the hub rejects it."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise InputError(f"--push-to-hub {name}: {error}") from None
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set, which forbids it; unset it")
    if get_token() is None:
        raise InputError(f"--push-to-hub {name}: there is no token; run `hf auth login`, or set HF_TOKEN")
    with _explained(f"--push-to-hub {name}", ""):
        HfApi().whoami()


def _finished(run: Path) -> Path:
    """The model folder of a finished run."""
    folder = Path(model_folder(str(run)) or "")
    home = run_of(folder)
    if home is None:
        raise InputError(f"{run}: not a run folder (no config.yaml); name the folder that train or pretrain wrote")
    if not (home / "results.json").is_file():
        raise InputError(
            f"{run}: this run is unfinished, its model was not scored yet: resume with "
            f"`run.py train --resume {shlex.quote(str(run))}`"
        )
    return folder


def _card(folder: Path, repo_id: str, license: str | None, is_merged: bool) -> str:
    from multitask.models.cards import hub_card

    return hub_card((folder / "README.md").read_text("utf-8"), repo_id, license, is_merged)


@contextmanager
def _merged(folder: Path) -> Iterator[Path]:
    """A temporary folder with the model of an adapter and its base, as `train` writes it with `adapter.merge`."""
    from multitask.models.io import load_trained, save
    from multitask.models.lora import merged

    model: Any
    model, tokenizer = load_trained(folder)
    with tempfile.TemporaryDirectory(prefix="multitask-push-") as aside:
        save(merged(model), tokenizer, Path(aside), {}, {})
        yield Path(aside)


@contextmanager
def _explained(what: str, how: str) -> Iterator[None]:
    """Whatever the hub or the network answers becomes an InputError."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its base, of whatever HTTP client the installed huggingface_hub uses: connection errors are of this class, too.
    http_error: Any = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = "the token is not valid, or may not write there" if status in (401, 403) else str(error).split("\n")[0]
        raise InputError(f"{what}: the hub answers: {reason}{how}") from None
    except (http_error, OSError, ValueError) as error:
        raise InputError(f"{what}: the hub cannot be reached ({error}){how}") from None
