"""Tokenizers: trained here, loaded from a folder or the hub, with the task tokens put in.

`train_tokenizer(texts, 2000, ["<|pad|>", "<|end|>", "<|sep|>"])` -> a byte-level BPE in which `<|sep|>` is one token,
and `"A<|sep|>B"` reads as `A`, `<|sep|>` and `B` read apart.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from multitask.errors import InputError, suggest
from multitask.task import END, PAD

_PROBE = "The cat, 3 eggs\n와 고양이 세 마리!"


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Radford et al., 2019): any text survives it, whatever it was trained on."""
    tokenizer = Tokenizer(models.BPE())
    # A word is the same token at the start of a field as inside it; a tiny model learns to copy much sooner.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    add_markers(wrapped, special)
    return wrapped


def add_markers(tokenizer: PreTrainedTokenizerFast, special: list[str]) -> list[int]:
    """Makes each marker one special token; `<|end|>` becomes eos and `<|pad|>` pad. Returns the ids that are new.

    The base's own eos stays an ordinary special token. `<|start|>` becomes bos only where the base has none.
    """
    before = len(tokenizer)
    kept = [token for token in (tokenizer.eos_token, tokenizer.unk_token) if token]
    tokenizer.add_special_tokens({"additional_special_tokens": [*dict.fromkeys([*kept, *special])]})
    tokenizer.eos_token, tokenizer.pad_token = END, PAD
    if tokenizer.bos_token is None and "<|start|>" in special:
        tokenizer.bos_token = "<|start|>"
    return list(range(before, len(tokenizer)))


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """A fast tokenizer from a folder or the hub.

    `AutoTokenizer` rebuilds some tokenizers from the model's type (KoGPT2's, as byte-level GPT-2) and then reads other
    ids than their `tokenizer.json`; where the two differ, the file is right.
    """
    folder = Path(name)
    is_bare = (folder / "merges.txt").exists() and not any(folder.glob("*config.json"))  # as OpenAI released GPT-2's
    try:
        auto = AutoTokenizer.from_pretrained(name, revision=revision, **({"tokenizer_type": "gpt2"} if is_bare else {}))
        path = cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise not_found(name, "tokenizer", error) from error
    if path is None:
        if not isinstance(auto, PreTrainedTokenizerFast):
            raise InputError(f"{name}: its tokenizer has no fast form (tokenizer.json), which is needed")
        return auto
    file = PreTrainedTokenizerFast(tokenizer_file=path)
    ids = file.backend_tokenizer.encode(_PROBE, add_special_tokens=False).ids
    if isinstance(auto, PreTrainedTokenizerFast) and auto(_PROBE, add_special_tokens=False)["input_ids"] == ids:
        return auto
    vocabulary = file.get_vocab()
    for role, names in {
        "bos_token": ("<s>", "</s>"),
        "eos_token": ("</s>", "<|endoftext|>"),
        "unk_token": ("<unk>",),
        "pad_token": ("<pad>",),
    }.items():
        stated = getattr(auto, role, None)
        token = next((t for t in (stated, *names) if t in vocabulary), None)
        if token is not None:
            setattr(file, role, token)
    return file


def not_found(name: str, what: str, error: Exception) -> InputError:
    """What to say when a folder or the hub gives no `what` of that name."""
    reason = str(error).strip().split("\n")[0]
    folder = Path(name)
    if folder.exists():
        return InputError(
            f"{name}: no {what} could be loaded from this folder: {reason}; expected what `save_pretrained` of "
            "transformers writes, weights as safetensors"
        )
    near = suggest(folder.name, [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else [])
    return InputError(
        f"{name}: no such folder ({near}), and the hub did not give a {what} of that name: {reason}; "
        "without a network, name a local folder"
    )


def probe_identity(tokenizer: PreTrainedTokenizerFast, special: list[str]) -> None:
    """Raises InputError when the tokenizer reads a string with markers otherwise than its parts one by one."""
    parts = ["한 줄 text", " two", "세 번째"]
    marks = [special[n % len(special)] for n in range(2)]
    whole = tokenizer(parts[0] + marks[0] + parts[1].strip() + marks[1] + parts[2], add_special_tokens=False)
    apart: list[int] = []
    for part, mark in zip([parts[0], parts[1].strip(), parts[2]], [*marks, None], strict=True):
        apart += tokenizer(part, add_special_tokens=False)["input_ids"]
        apart += [tokenizer.convert_tokens_to_ids(mark)] if mark else []
    if whole["input_ids"] != apart:
        raise InputError(
            "this tokenizer reads text after a special token otherwise than the same text alone (prepend_scheme "
            "'first'?); a model trained with it could not be prompted with a plain string; use another tokenizer"
        )
