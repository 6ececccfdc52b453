r"""Tokenizers: built here of three kinds, loaded from a folder or the hub, with the task tokens put in.

`train_tokenizer(texts, 2000, ["<|pad|>", "<|end|>", "<|sep|>"])` -> a byte-level BPE in which `<|sep|>` is one token,
and `"A<|sep|>B"` reads as `A`, `<|sep|>` and `B` read apart. How each kind reads the two lines `the cat`, `고양이`:

    bytes        Ġthe Ġcat Ċ ê³łìĸĳìĿ´       UTF-8 bytes, in the letters that GPT-2 writes them with
    metaspace    ▁the ▁cat \n ▁고양이          each line begins with a space, as each word does
    characters   t h e ␣ c a t \n 고 양 이
"""

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from multitask import damage
from multitask.errors import InputError
from multitask.task import END, PAD
from multitask.tokenization.bpe import Bpe

Kind = Literal["bytes", "metaspace", "characters"]
UNKNOWN = "<unk>"
_BYTES = pre_tokenizers.ByteLevel.alphabet()
_PROBE = "The cat, 3 eggs\n와 고양이 세 마리!"


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Radford et al., 2019): any text survives it, whatever it was trained on."""
    made = train_bpe(texts, "bytes", vocab_size)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=_reader("bytes", made, None, True, False))
    add_markers(wrapped, special)
    return wrapped


def train_bpe(
    texts: Iterable[str],
    kind: Kind,
    vocab_size: int,
    min_frequency: int = 0,
    prefix_space: bool = True,
    clean: bool = False,
) -> Bpe:
    """The vocabulary of a stream of texts, which is read once; as large as the text gives, at most `vocab_size`.

    Single characters (or bytes) come first, in the order of their code points, and each is a token however rare;
    then what merging makes, the most frequent pair first. For characters there is no limit and no merge.
    """
    if kind == "characters":
        found: set[str] = set()
        for text in texts:
            found.update(text)
        return Bpe({character: number for number, character in enumerate(sorted(found))})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=_BYTES if kind == "bytes" else [],
        show_progress=False,
    )
    trained = _reader(kind, Bpe({}), None, prefix_space, clean)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    return Bpe(model["vocab"], [(left, right) for left, right in model["merges"]])


def assemble(
    bpe: Bpe,
    kind: Kind,
    special: Sequence[str],
    separator: str | None = None,
    *,
    prefix_space: bool = True,
    clean: bool = False,
    has_unknown: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer with these special tokens; those that `bpe` lacks get the ids after its own, in order.

    Args:
        bpe: tokens of text, and of files written elsewhere special ones too.
        kind: how text becomes what merging starts from.
        special: tokens beside `<|pad|>`, the separator, `<unk>` (of metaspace, and of characters with `has_unknown`)
            and `<s>` (of metaspace).
        separator: becomes eos; None: `<|endoftext|>`, of metaspace `</s>`.
        prefix_space: of bytes; read a text as if a space stood before it.
        clean: of metaspace; BERT's clean-up.
        has_unknown: of characters.

    Raises:
        InputError: a vocabulary of another kind, or a special token that text can become.
    """
    _check_kind(bpe, kind)
    unknown = UNKNOWN if kind == "metaspace" or (kind == "characters" and has_unknown) else None
    bos = "<s>" if kind == "metaspace" else None
    eos = separator or ("</s>" if kind == "metaspace" else "<|endoftext|>")
    own = bpe.special()
    tokens = list(dict.fromkeys(token for token in (*own, unknown, bos, eos, PAD, *special) if token))
    for token in tokens:
        if token in bpe.vocabulary and token not in own:
            raise InputError(
                f"'{token}' cannot be a special token: it is token {bpe.vocabulary[token]} of the text, which holds it "
                "often; take it out of the text (separators are put in by id), or choose another one"
            )
    reader = _reader(kind, bpe, unknown, prefix_space, clean)
    reader.add_special_tokens(tokens)
    roles = {"bos_token": bos, "unk_token": unknown}
    return PreTrainedTokenizerFast(
        tokenizer_object=reader,
        eos_token=eos,
        pad_token=PAD,
        extra_special_tokens=[token for token in tokens if token not in (eos, PAD, *roles.values())],
        **{role: token for role, token in roles.items() if token},
    )


def _reader(kind: Kind, bpe: Bpe, unknown: str | None, prefix_space: bool, clean: bool) -> Tokenizer:
    """How text of a kind is read and written, without special tokens."""
    vocabulary = dict(bpe.vocabulary)
    if unknown is not None:
        vocabulary.setdefault(unknown, len(vocabulary))
    reader = Tokenizer(models.BPE(vocab=vocabulary, merges=list(bpe.merges), unk_token=unknown))
    if kind == "bytes":
        # With the space, a word is the same token at the start of a field as inside it; a tiny model learns to copy
        # much sooner.
        reader.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        reader.decoder = decoders.ByteLevel()
    elif kind == "metaspace":
        # Without `strip_accents=False` BERT's clean-up may take Hangul apart; its spaces around Chinese characters
        # would not come back as they were.
        cleaner = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
        )
        # `^` is the beginning of every line and of what follows a special token: all of them read alike, alone or not.
        begin = normalizers.Replace(Regex(r"^(?=\S)"), " ")
        reader.normalizer = normalizers.Sequence([normalizers.NFC(), *([cleaner] if clean else []), begin])
        # A line break is a token of its own, never part of a word.
        other_space = pre_tokenizers.Split(Regex(r"[^\S ]"), "isolated")
        reader.pre_tokenizer = pre_tokenizers.Sequence([other_space, pre_tokenizers.Metaspace(prepend_scheme="never")])
        unmarked = decoders.Metaspace(prepend_scheme="never")
        reader.decoder = decoders.Sequence([unmarked, decoders.Fuse(), decoders.Replace(Regex("^ "), "")])
    else:
        reader.decoder = decoders.Fuse()
    return reader


def _check_kind(bpe: Bpe, kind: Kind) -> None:
    """Raises InputError for the vocabulary of another kind, which would drop or misread text without a word."""
    lacking = [byte for byte in sorted(_BYTES) if byte not in bpe.vocabulary]
    is_marked = any(token.startswith("▁") for token in bpe.vocabulary)
    if kind == "bytes" and lacking:
        hint = "; words begin with ▁ in it: kind metaspace reads it" if is_marked else ""
        raise InputError(
            f"this vocabulary lacks {len(lacking)} of the 256 bytes, the first being '{lacking[0]}', and text that "
            f"holds them would lose them{hint}"
        )
    if kind == "metaspace" and not is_marked:
        hint = "" if lacking else "; it holds all bytes in GPT-2's letters: kind bytes reads it"
        raise InputError(f"no token of this vocabulary begins with ▁, the mark of a word's beginning{hint}")


def check_characters(tokenizer: PreTrainedTokenizerFast, text: str, where: str, first_line: int = 1) -> None:
    """Raises InputError for a character that a tokenizer of characters without `<unk>` would drop without a word.

    Of any other tokenizer nothing is asked. first_line: number of the text's first line in what `where` names.
    """
    reader = tokenizer.backend_tokenizer
    is_of_characters = isinstance(reader.model, models.BPE) and reader.pre_tokenizer is None
    if not is_of_characters or reader.model.unk_token is not None:
        return
    known = tokenizer.get_vocab()
    missing = set(text).difference(known)
    if missing:
        place = min(map(text.index, missing))
        line, column = text.count("\n", 0, place) + first_line, place - text.rfind("\n", 0, place)
        raise InputError(
            f"{where}:{line}: character {text[place]!r} (U+{ord(text[place]):04X}, number {column} of its line) is "
            f"none of the {sum(len(token) == 1 for token in known):,} that this tokenizer of characters knows; take it "
            "out of the text, or train the tokenizer with --characters or with --unknown unk"
        )


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


def pad_left(tokenizer: PreTrainedTokenizerFast) -> None:
    """Pads batches on the left, in saved copies too: generated tokens continue the prompt, never padding."""
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # what save_pretrained writes


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
    except Exception as error:  # of a damaged file: whatever `tokenizers` raises, which has no class of its own
        if not isinstance(error, OSError | ValueError) and not damage.of_model(folder):
            raise
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
    if problem := damage.of_model(folder):
        return InputError(problem)
    if folder.exists():
        return InputError(
            f"{name}: no {what} could be loaded from this folder: {reason}; expected what `save_pretrained` of "
            "transformers writes, weights as safetensors"
        )
    return InputError(
        f"{name}: no such folder{_near_folder(folder)}, and the hub did not give a {what} of that name: {reason}; "
        "without a network, name a local folder"
    )


def _near_folder(missing: Path) -> str:
    """The nearest name of a folder beside one that does not exist, for a message; files are no models."""
    names = [path.name for path in missing.parent.iterdir() if path.is_dir()] if missing.parent.is_dir() else []
    near = difflib.get_close_matches(missing.name, names, n=1)
    return f" (did you mean '{missing.parent / near[0]}'?)" if near else ""


def first_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that a tokenizer puts before every text: `<bos>` of Gemma, nothing of GPT-2.

    A model that was trained with them expects them. Raises InputError for a tokenizer that adds ids behind a text.
    """
    own = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    found: list[int] = whole[: len(whole) - len(own)]
    if [*found, *own] != whole:
        raise InputError(
            f"this tokenizer adds {tokenizer.convert_ids_to_tokens(whole[-1])!r} behind a text, which a model would "
            "have to continue; save it with add_eos_token=False"
        )
    return found


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


def plain_reader(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy that reads special tokens in user text as plain text; the tokenizer itself keeps parsing them."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()  # what an earlier call of the tokenizer asked for stays switched on in it
    plain.no_padding()
    return plain


def lost_characters(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, plain: Tokenizer) -> Counter[str]:
    """Characters that do not survive encode and decode, with counts; after NFC and white-space folding.

    A line break between words that comes back as a space is lost too: lists, verses and dialogues are made of them.
    Counting unknown ids would miss what a normaliser drops without a trace.
    """
    lost: Counter[str] = Counter()
    back: list[str] = tokenizer.batch_decode(
        [e.ids for e in plain.encode_batch(list(texts), add_special_tokens=False)],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    for before, after in zip(texts, back, strict=True):
        gone = Counter(fold(before)) - Counter(fold(after))
        # Folding calls every gap a space; of the gaps that are gone, the characters that stood there are named.
        gaps = [c for c in (Counter(before) - Counter(after)).elements() if c.isspace()]
        vanished = gaps[: gone.pop(" ", 0)]
        lost.update(vanished)
        lost.update(gone)
        lost["\n"] += max(0, before.strip().count("\n") - after.strip().count("\n") - vanished.count("\n"))
    return +lost


def whole_text(text: str) -> str:
    """Decoded ids without the character that a limit of tokens cut in half: byte-level tokens end anywhere."""
    return text.rstrip("\ufffd")


def fold(text: str) -> str:
    """A text without what no tokenizer is asked to keep: NFC, each gap one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())
