"""The synthetic dataset: rows are a pure function of their place, splits share nobody, prompts decide answers."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from math import log
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

from multitask.data.synthetic import dataset
from multitask.errors import InputError

LABELLED = frozenset({"text", "label"})
INFERENCE = frozenset({"premise", "hypothesis", "label"})
QUESTION = frozenset({"context", "question", "answer"})
SUMMARY = frozenset({"document", "summary"})
PAIR = frozenset({"source", "translation"})
EVERY = (LABELLED, INFERENCE, QUESTION, SUMMARY, PAIR)
SPLITS = ("train", "validation", "test")
STATEMENTS = {
    language: {
        (kind, attribute): re.compile(
            re.sub(r".\(.\)", "(?:은|는|을|를)", said.rstrip(".")).format(n="(.+?)", v="(.+)") + "[.]"
        )
        for kind, facts in kinds.items()
        for attribute, (said, _) in facts.items()
    }
    for language, kinds in dataset._FACTS.items()
}


def facts(text: str, language: str) -> set[tuple[str, str, str, str]]:
    """Read a passage back, sentence by sentence: (kind, attribute, name, value), every kind that the wording fits."""
    found = set()
    for sentence in re.findall(r"[^.]+[.]", text):
        readings = {
            (kind, attribute, match[1], match[2])
            for (kind, attribute), pattern in STATEMENTS[language].items()
            if (match := pattern.fullmatch(sentence.strip())) and match[2] in sort_of(kind, attribute, language)
        }
        assert readings, sentence
        found |= readings
    return found


def sort_of(kind: str, attribute: str, language: str) -> dict[str, int]:
    """Which sort each value is of, 0 or 1, and the names of the sorts themselves."""
    every = dataset.values(kind, attribute)
    names = [dataset._by_language(pair)[language] for pair in dataset.SORTS.get(attribute, ())]
    return {value[language]: 2 * i // len(every) for i, value in enumerate(every)} | {n: i for i, n in enumerate(names)}


def strings(row: dict[str, Any]) -> Iterator[str]:
    yield from (v for key, v in row.items() if isinstance(v, str) and key not in ("id", "language", "label"))


@pytest.mark.parametrize("fields", EVERY, ids=lambda f: "+".join(sorted(f)))
def test_a_row_is_a_pure_function_of_its_place(fields: frozenset[str]) -> None:
    few, many = list(dataset.rows(fields, "test", 20)), list(dataset.rows(fields, "test", 60))
    assert many[:20] == few
    assert list(dataset.rows(fields, "validation", 20)) != few
    assert len({row["id"] for row in many}) == 60
    assert all(fields <= row.keys() and all(text.strip() == text != "" for text in strings(row)) for row in many)
    assert Counter(row["language"] for row in many) == {"ko": 30, "en": 30}
    assert all(bool(re.search("[가-힣]", next(strings(row)))) == (row["language"] == "ko") for row in many)


def test_rows_stream() -> None:
    endless = dataset.rows(PAIR, "train", 10**12)
    assert next(endless) == next(dataset.rows(PAIR, "train", 1))


def test_nobody_lives_in_two_splits() -> None:
    names = {split: {name for pair in dataset.names(split) for name in pair} for split in SPLITS}
    assert all(not names[a] & names[b] for a, b in combinations(SPLITS, 2))
    assert len(names["train"]) > 8000
    assert len(names["test"]) > 1000
    for split in SPLITS:
        others = set().union(*(names[s] for s in SPLITS if s != split))
        told = [text for fields in EVERY for row in dataset.rows(fields, split, 200) for text in strings(row)]
        words = {word for text in [*told, *dataset.texts(split, 200)] for word in re.findall(r"\w+", text)}
        stems = words | {word[:2] for word in words if re.match("[가-힣]{3}", word)}
        assert len(stems & names[split]) > 100
        # a two-syllable stem of an ordinary word may be a name by chance: words of the templates do not count
        fixed = set(re.findall(r"\w+", str(dataset._FACTS) + str(dataset._VALUES) + str(dataset._NEAR)))
        fixed |= {word[:2] for word in fixed}
        assert not (stems - fixed) & others


def test_labels_are_balanced_in_each_language() -> None:
    for fields, classes in ((LABELLED, tuple(dataset.LABELS)), (INFERENCE, dataset.RELATIONS)):
        count = Counter((row["language"], row["label"]) for row in dataset.rows(fields, "train", 240))
        assert set(count) == {(language, label) for language in dataset.LANGUAGES for label in classes}
        assert len(set(count.values())) == 1


def test_a_label_follows_from_premise_and_hypothesis() -> None:
    seen: Counter[str] = Counter()
    for row in dataset.rows(INFERENCE, "test", 600):
        language = row["language"]
        told = {(k, a, n): v for k, a, n, v in facts(row["premise"], language)}
        readings = set()
        for kind, attribute, name, sort in facts(row["hypothesis"], language):
            value = told.get((kind, attribute, name))
            sorts = sort_of(kind, attribute, language)
            is_so = value is not None and sorts[value] == sorts[sort]
            readings.add("neutral" if value is None else "entailment" if is_so else "contradiction")
            assert sort in language_names(language)
        assert readings == {row["label"]}, row
        seen[row["label"]] += 1
    assert min(seen.values()) == 200


def language_names(language: str) -> set[str]:
    return {dataset._by_language(pair)[language] for pairs in dataset.SORTS.values() for pair in pairs}


def naive_bayes(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """Accuracy of word and word-pair counts with add-one smoothing."""

    def features(text: str) -> set[str]:
        words = text.split()
        return {*words, *map(" ".join, pairwise(words))}

    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    sizes = Counter(label for _, label in train)
    for text, label in train:
        counts[label].update(features(text))

    def guess(text: str) -> str:
        return max(
            sizes,
            key=lambda label: sum(log((counts[label][f] + 1) / (sizes[label] + 2)) for f in features(text)),
        )

    return sum(guess(text) == label for text, label in test) / len(test)


def share(fields: frozenset[str], text: Callable[[dict[str, Any]], str]) -> float:
    """Accuracy of a guess from this part of a row."""
    sizes = {"train": 6000, "test": 1500}
    train, test = ([(text(row), row["label"]) for row in dataset.rows(fields, split, n)] for split, n in sizes.items())
    return naive_bayes(train, test)


def test_the_hypothesis_alone_tells_nothing() -> None:
    # chance is 1/3; 1500 draws at chance stray by more than 0.05 once in 20,000 times
    assert share(INFERENCE, lambda row: row["hypothesis"]) == pytest.approx(1 / 3, abs=0.05)
    # the premise alone, and both as bags of words, only hint: the sort is asked for unevenly, on purpose
    assert 0.36 < share(INFERENCE, lambda row: row["premise"]) < 0.5
    assert share(INFERENCE, lambda row: row["premise"] + " | " + row["hypothesis"]) < 0.5


def test_the_last_sentence_alone_misleads_about_the_class() -> None:
    last = re.compile(r"[^.]+\.$")
    assert share(LABELLED, lambda row: last.search(row["text"])[0]) < 0.45  # type: ignore[index]
    assert share(LABELLED, lambda row: row["text"]) > 0.9


def test_an_answer_is_where_the_row_says() -> None:
    several = 0
    for row in dataset.rows(QUESTION, "test", 480):
        start = row["answer_start"][0]
        assert row["answers"] == [row["answer"]]
        assert row["context"][start : start + len(row["answer"])] == row["answer"]
        told = facts(row["context"], row["language"])
        names = {n for _, _, n, _ in told}
        several += len(names) == 2
        about = next(n for n in names if n in row["question"])
        assert row["answer"] in {v for _, _, n, v in told if n == about}
    assert several == 80


def test_a_summary_says_what_the_document_says() -> None:
    for row in dataset.rows(SUMMARY, "test", 200):
        told = {a: (n, v) for _, a, n, v in facts(row["document"], row["language"])}
        assert {"what", "town", "day"} < set(told)
        assert all(word in row["summary"] for a in ("what", "town", "day") for word in told[a])
        assert all(told[a][1] not in row["summary"] for a in set(told) - {"what", "town", "day"})


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_sentences_are_no_summary(count: int) -> None:
    class Words:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    scores = [
        scorer.score(row["summary"], " ".join(re.findall(r"[^.]+\.", row["document"])[:count]))["rougeL"].fmeasure
        for row in dataset.rows(SUMMARY, "test", 400)
    ]
    assert 0.1 < sum(scores) / len(scores) < 0.5


def test_facts_stay_true_from_row_to_row() -> None:
    name = dataset.names("train")[0]
    assert dataset.Being("place", name).facts == dataset.Being("place", name).facts
    assert len({str(dataset.Being(kind, name).facts) for kind in dataset.LABELS}) == len(dataset.LABELS)


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("말은(는) 콩을(를) 먹고 소은(는) 배을(를) 먹습니다.", "말은 콩을 먹고 소는 배를 먹습니다."),
        ("옆에 소란이(가), 소라이(가) 있습니다.", "옆에 소란이, 소라가 있습니다."),
        ("no particle (at all)", "no particle (at all)"),
    ],
)
def test_particles_follow_the_sound_before(text: str, settled: str) -> None:
    assert dataset.particles(text) == settled


def test_no_template_mark_is_left() -> None:
    for fields in EVERY:
        for row in dataset.rows(fields, "train", 200):
            assert not re.search(r"[(){}]", " ".join(strings(row)))


def test_texts_are_paragraphs_in_both_languages() -> None:
    paragraphs = list(dataset.texts("train", 40))
    assert paragraphs[:10] == list(dataset.texts("train", 10))
    assert sum(bool(re.search("[가-힣]", text)) for text in paragraphs) == 20
    assert all(2 <= text.count(".") <= 5 for text in paragraphs)


def test_unknown_fields_and_splits_are_named() -> None:
    with pytest.raises(InputError, match=r"no rows of the fields colour, text; it has rows of: .*document, summary"):
        next(dataset.rows(frozenset({"text", "colour"}), "train", 1))
    with pytest.raises(InputError, match=r"no split 'tests'; did you mean 'test'\?"):
        next(dataset.rows(SUMMARY, "tests", 1))
    with pytest.raises(InputError, match=r"no split 'dev'"):
        next(dataset.texts("dev", 1))


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, multitask.data.synthetic.dataset; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
