"""Documents of the world: pure functions of their place, one split's names each, and no wording of the prompts."""

import re
from collections.abc import Callable
from random import Random

import pytest

from multitask.config.data import DataConfig, SourceConfig
from multitask.data.rows import Counts, read_rows
from multitask.data.sources import provenance
from multitask.data.synthetic import dataset, documents
from multitask.errors import InputError
from multitask.registry import load_tasks
from multitask.tokenization.tokenizer import train_tokenizer

SPLITS = ("train", "validation", "test")
TASKS = load_tasks()
SOURCE = SourceConfig(synthetic={"train": 40}, columns={"text": "document"})


def literals() -> set[str]:
    """The prompts' own wording, line by line."""
    templates = [p.template for task in TASKS.values() for language in task.prompts for p in task.templates(language)]
    return {text.strip() for t in templates for part in re.split(r"\{\w+\}", t) for text in part.split("\n")} - {""}


def test_the_wording_of_the_prompts_never_occurs() -> None:
    told = "\n".join(documents.documents("train", 4000))
    assert {"Answer:", "True, False or Neither?", "TL;DR:", "질문:", "요약:"} <= literals()
    assert [literal for literal in literals() if literal in told] == []


def test_a_document_is_a_pure_function_of_its_place() -> None:
    few, many = list(documents.documents("test", 20)), list(documents.documents("test", 60))
    assert many[:20] == few
    assert len(set(many)) == 60
    assert few != list(documents.documents("validation", 20))
    assert all(text == text.strip() for text in many)
    assert next(iter(documents.documents("train", 10**12)))
    with pytest.raises(InputError, match=r"no split 'tests'; did you mean 'test'\?"):
        next(documents.documents("tests", 1))


def test_documents_tell_of_names_of_their_split_only() -> None:
    names = {split: {name for pair in dataset.names(split) for name in pair} for split in SPLITS}
    fixed = set(
        re.findall(r"\w+", str(dataset._FACTS) + str(dataset._VALUES) + str(dataset._NEAR) + str(dataset.SORTS))
    )
    fixed |= {
        word for pool in (documents._HEADS, documents._CLASSES) for text in pool.values() for word in text.split()
    }
    fixed |= {word[:2] for word in fixed}
    for split in SPLITS:
        words = {word for text in documents.documents(split, 300) for word in re.findall(r"\w+", text)}
        stems = words | {word[:2] for word in words if re.match("[가-힣]{3}", word)}
        assert len(stems & names[split]) > 100
        others = set().union(*(names[s] for s in SPLITS if s != split))
        assert not (stems - fixed) & others


def test_an_invented_word_is_nobodys_name() -> None:
    names = {name for split in SPLITS for pair in dataset.names(split) for name in pair}
    for language in dataset.LANGUAGES:
        words = {documents.invent(Random(n), language) for n in range(3000)}
        assert len(words) > 1000
        assert not {word.capitalize() for word in words} & names


@pytest.mark.parametrize("make", [documents._sorts, documents._lookups], ids=lambda make: make.__name__)
def test_the_answer_follows_from_the_items_before(make: Callable[..., documents.Maker]) -> None:
    again = 0
    for number in range(60):
        item = make(Random(number), "train", "en")
        seen: dict[str, str] = {}
        for part, answer in (item() for _ in range(30)):
            again += part in seen
            assert seen.setdefault(part, answer) == answer
    assert again > 300


def test_a_word_for_a_class_means_nothing_outside_its_document() -> None:
    meanings: dict[str, set[str]] = {}
    for number in range(300):
        words = documents._words(Random(number), "en", list(dataset.LABELS))
        assert len(set(words.values())) == len(words)
        for kind, word in words.items():
            meanings.setdefault(word, set()).add(kind)
    common = [kinds for word, kinds in meanings.items() if word in documents._CLASSES["en"].split()]
    assert len(common) > 20
    assert all(kinds == set(dataset.LABELS) for kinds in common)


def test_a_layout_sets_out_an_item() -> None:
    layout = documents.Layout(("Mork: ", "-> "), (" ok?", ""), "\n", "\n\n", "#. ")
    assert layout.item(("Soran sings.", "tulp"), 3) == "3. Mork: Soran sings. ok?\n-> tulp"


def test_documents_fit_the_window_of_the_recipe() -> None:
    texts = list(documents.documents("train", 1500))
    lengths = sorted(map(len, train_tokenizer(texts, 1500, [])(texts)["input_ids"]))
    assert lengths[-15] < 768 - 2
    assert lengths[-40] > 400  # places far into the window are learned too


def test_a_task_reads_documents_by_naming_the_column() -> None:
    task = TASKS["gen"]
    rows = list(read_rows(task, SOURCE, "train", DataConfig(), Counts()))
    assert [row.fields["text"] for row in rows] == list(documents.documents("train", 40))
    assert all(row.fields.keys() == {"text"} for row in rows)
    assert [row.language for row in rows[:4]] == ["ko", "en", "ko", "en"]
    plain = SourceConfig(synthetic={"train": 40})
    assert provenance(SOURCE, "train", DataConfig())["sha256"] != provenance(plain, "train", DataConfig())["sha256"]
