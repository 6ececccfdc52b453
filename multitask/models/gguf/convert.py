"""A GGUF file as a Hugging Face folder: weights de-quantised to float32, tokenizer, generation settings, card.

`import_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), Path("smollm2"))` -> a folder that `AutoModelForCausalLM` and
`AutoTokenizer` load without the package `gguf`.

transformers reads the file (its `gguf_file`), but does not save what it read, and some of its tokenizers differ from
llama.cpp's. The folder is loaded again and compared before it gets its name.
"""

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers import __version__ as version
from transformers.utils import logging

from multitask.errors import InputError
from multitask.models.cards import from_template
from multitask.models.gguf.header import Header, read_header
from multitask.models.io import check_new_folder, whole_folder
from multitask.tokenization.tokenizer import pad_left

_CARD = Path(__file__).parent / "card.md.j2"
_TEXTS = (
    "The capital of France is Paris.",
    "It's 3.14, isn't it?\n\n1998  was 12 years ago.",
    "이 영화는 정말 재미있다.",
    "서울에서 부산까지 400 km",
)
"""Encoded and decoded, before and after saving."""
_NUM_LOGITS = 12
_UNREADABLE = (ValueError, LookupError, RuntimeError, NotImplementedError, OSError, AttributeError, TypeError)
"""What transformers raises for an architecture or a tensor type that it does not know."""
_DIGIT_SPLITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Pre-tokenizers of llama.cpp that split each digit from its neighbours before GPT-2's pattern is applied."""
_PLAIN_SPLITS = {"default", "gpt-2", "gpt2", "phi-2", "jina-es", "jina-de"}
"""Those that are GPT-2's pattern alone."""


@dataclass(frozen=True)
class Imported:
    """What was written."""

    name: str
    architecture: str
    num_tensors: int
    num_parameters: int
    quantization: str
    license: str
    author: str
    sha256: str
    """Of the GGUF file."""
    note: str
    """What could not be checked; empty otherwise."""


def import_gguf(
    file: Path, out: Path, extra: Mapping[str, bytes] | None = None, facts: Mapping[str, str] | None = None
) -> Imported:
    """Writes the model of a GGUF file as the folder `out`, completely or not at all.

    Args:
        file: one file with the whole model.
        out: a new or empty folder.
        extra: further files of the folder by name, such as a licence.
        facts: further lines of the card's table.

    Raises:
        InputError: the file is missing, damaged or of a kind that transformers does not read; `out` has files
        already or cannot be written; the package `gguf` is not installed.
    """
    with _without_progress_bars():
        out = check_new_folder(out)
        return _import(read_header(file), out, extra or {}, facts or {})


def _import(header: Header, out: Path, extra: Mapping[str, bytes], facts: Mapping[str, str]) -> Imported:
    tokenizer, read = _load(header)
    ids = torch.arange(1, _NUM_LOGITS + 1)[None] * 37 % read.config.vocab_size
    expected, model = _logits(read, ids), _plain(read)
    del read
    note = _adapt_tokenizer(header, tokenizer, model)
    encoded = _encode(tokenizer)
    _check_round_trip(header, tokenizer)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    card = _card(header, num_parameters, facts, note, has_chat_template=bool(tokenizer.chat_template))
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        pad_left(tokenizer)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, "utf-8")
        for name, content in extra.items():
            (folder / name).write_bytes(content)
        del model
        # transformers 5.6 does not load its own Gemma tokenizer of a GGUF file as it saved it.
        wrong = None
        if not torch.equal(_logits(AutoModelForCausalLM.from_pretrained(folder), ids), expected):
            wrong = "model computes other logits"
        elif _encode(AutoTokenizer.from_pretrained(folder)) != encoded:
            wrong = "tokenizer gives other ids"
        if wrong is not None:
            raise InputError(
                f"{header.path}: the saved {wrong} than the one that was read, expected the same; transformers "
                f"{version} does not save this kind: upgrade it (5.23.0 was tested)"
            )
    return Imported(
        header.name,
        header.architecture,
        header.num_tensors,
        num_parameters,
        header.file_type,
        header.license,
        header.author,
        header.sha256,
        note,
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """One remains, of the de-quantisation, which takes longest."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _load(header: Header) -> tuple[PreTrainedTokenizerFast, Any]:
    """Tokenizer and model as transformers reads them."""
    with _alone(header.path) as folder:
        where = {"pretrained_model_name_or_path": folder, "gguf_file": header.path.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where)
            read, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{header.path}: transformers does not read this model of the architecture '{header.architecture}' "
                f"({type(error).__name__}: {reason}); use another file, or the model's Hugging Face folder"
            ) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{header.path}: lacks {len(missing)} of the model's weights, for instance '{missing[0]}'; expected a "
            "whole language model: use another file"
        )
    return tokenizer, read


def _plain(read: Any) -> Any:
    """The same model without the mark of a quantised one, with which save_pretrained refuses to save."""
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.__dict__.pop("_model_name_or_path", None)  # general.name
    config.name_or_path = ""
    config.architectures = [type(read).__name__]
    model = type(read).from_pretrained(None, config=config, state_dict=read.state_dict(), dtype=torch.float32)
    model.generation_config = read.generation_config
    return model


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A folder with this file only: transformers would read a config or an adapter that lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder, path.name)
        try:
            os.symlink(path.resolve(), inside)
        except OSError:  # Windows without the right to make links
            shutil.copy(path, inside)
        yield folder


def _adapt_tokenizer(header: Header, tokenizer: PreTrainedTokenizerFast, model: Any) -> str:
    """Makes tokenizer, config and generation settings what the metadata says; returns what could not be checked."""
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token_id = header.token_id(key)
        if token_id is None:
            continue
        setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))
        for settings in (model.config, model.generation_config):
            present = getattr(settings, f"{name}_token_id", None)
            if token_id not in (present if isinstance(present, list) else [present]):  # some have several ends
                setattr(settings, f"{name}_token_id", token_id)
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    note = _adapt_split(header, tokenizer)
    _adapt_bos(header, tokenizer)
    return note


def _adapt_split(header: Header, tokenizer: PreTrainedTokenizerFast) -> str:
    """Splits text before BPE as llama.cpp does; returns a note where neither side is known to do the same."""
    kind, split = (header.metadata.get(f"tokenizer.ggml.{key}", "") for key in ("model", "pre"))
    backend = tokenizer.backend_tokenizer
    if kind != "gpt2":
        return ""
    backend.decoder = decoders.ByteLevel()  # that of transformers 5.6 drops the first space
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        return ""
    if split in _DIGIT_SPLITS:
        # transformers 5.23 has no split of that name, and joins the newline before a digit to it.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return ""
    if split in _PLAIN_SPLITS or not split:
        return ""
    return (
        f"the file names the pre-tokenizer '{split}', which transformers does not know; text is split as for GPT-2, so "
        "some texts may get other tokens than in training"
    )


def _adapt_bos(header: Header, tokenizer: PreTrainedTokenizerFast) -> None:
    """With special tokens, puts the first token in front of a text exactly when the file says so."""
    wanted = header.metadata.get("tokenizer.ggml.add_bos_token")
    bos, ids = tokenizer.bos_token_id, tokenizer("a").input_ids
    if wanted is None or bos is None or (ids[:1] == [bos]) == bool(wanted):
        return
    single = f"{tokenizer.bos_token} $A" if wanted else "$A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} {single.replace('A', 'B')}:1", special_tokens=[(tokenizer.bos_token, bos)]
    )


def _check_round_trip(header: Header, tokenizer: PreTrainedTokenizerFast) -> None:
    """That texts come back; those that need the unknown token cannot, and are passed over."""
    for text in _TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if tokenizer.unk_token_id in ids:
            continue
        found = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if found.strip() != text:
            raise InputError(
                f"{header.path}: the tokenizer turns {text!r} into {found!r}, expected the same text; its kind "
                f"('{header.metadata.get('tokenizer.ggml.model')}') is not supported: use the model's Hugging "
                "Face folder"
            )


def _encode(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Ids of all texts, with special tokens and without, and of the chat template's prompt."""
    found = [tokenizer(text, add_special_tokens=special).input_ids for text in _TEXTS for special in (False, True)]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)]
    return [*found, [-1 if end is None else end for end in ends], list((tokenizer.chat_template or "").encode())]


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(ids).logits
    return logits


def _card(header: Header, num_parameters: int, more: Mapping[str, str], note: str, has_chat_template: bool) -> str:
    license = header.license
    facts = {
        "author": header.author or "not named in the file",
        "licence": license or "not named in the file: ask its author",
        "licence text": header.text("license.link"),
        "quantisation": f"{header.file_type} ({', '.join(f'{n} {kind}' for kind, n in header.tensor_types.items())})",
        "file": header.path.name,
        "SHA-256": header.sha256,
        **more,
    }
    return from_template(
        _CARD,
        name=header.name,
        architecture=header.architecture,
        num_parameters=num_parameters,
        license_id=license if re.fullmatch(r"[a-z][a-z0-9.-]*", license) else "",
        facts={key: value for key, value in facts.items() if value},
        note=note,
        has_chat_template=has_chat_template,
    )
