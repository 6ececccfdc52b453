"""Scores: equal to the official scripts and to rouge_score, right by hand, sums divided once, honest intervals."""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import unicodedata
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TASKS, make_row

from multitask.config.run import RunConfig
from multitask.errors import InputError
from multitask.evaluation import bootstrap, metrics
from multitask.evaluation.baselines import measure_with, scores_of
from multitask.evaluation.metrics import descriptors
from multitask.evaluation.metrics.rouge import kiwi

GOLDEN = Path(__file__).parents[1] / "golden"
OF_REFERENCES = sorted(set(metrics.NAMES) - set(metrics.FROM_NLL) - set(metrics.DESCRIPTORS))
needs_kiwi = pytest.mark.skipif(
    importlib.util.find_spec("kiwipiepy") is None, reason="needs kiwipiepy: pip install 'multitask[ko]'"
)

ENGLISH = "the The a cat cats sat mat, don't U.S. 3.5 naïve - running (and) well-known A."
KOREAN = "고양이가 고양이는 앉았다. 서울, 《춘향전》 3.1운동 읽었습니다 K팝 정말 ㅋㅋㅋ 영화 '좋다' the"
VOCABULARY = {"en": ENGLISH.split(), "ko": KOREAN.split()}
ODD = ("", " ", "...", "!? -", "“…”", "😀", "😀 😀 👍🏽", "。、", "\n")


def some_text(rng, language):
    """Up to 12 words in lines and sentences; sometimes nothing, punctuation alone, an emoji, one word over and over."""
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(ODD)
    if kind < 0.2:
        return " ".join([rng.choice(VOCABULARY[language])] * rng.randint(2, 6))
    words = [rng.choice([*VOCABULARY[language], "😀"]) for _ in range(rng.randint(1, 12))]
    return "".join(word + rng.choice([" ", " ", "  ", "\n", ". "]) for word in words)


def kinds(text):
    """What is special about a text."""
    words = text.split()
    found = {"empty": not words, "twice": len(set(words)) < len(words), "emoji": "😀" in text}
    found["punctuation"] = bool(words) and all(unicodedata.category(c)[0] in "PZC" for c in text)
    found["ko"] = any("가" <= c <= "힣" for c in text)
    found["en"] = any(c.isascii() and c.isalpha() for c in text)
    return [kind for kind, holds in found.items() if holds]


def score_of(name, pairs, language="en", tokenizer="eojeol"):
    metric = metrics.build(name, language, tokenizer)
    return metrics.score(metric, [metric.per_example(p, r if isinstance(r, list) else [r]) for p, r in pairs])


# --- Answers


@pytest.mark.parametrize(("script", "language"), [("squad", "en"), ("korquad", "ko")])
def test_answers_score_as_in_the_official_script(script, language):
    cases = json.loads((GOLDEN / f"metrics_{script}.json").read_text("utf-8"))["cases"]
    exact, f1 = metrics.build("exact_match", language), metrics.build("f1", language)
    for prediction, references, official_exact, official_f1 in cases:
        assert exact.per_example(prediction, references) == {"exact_match": official_exact, "count": 1}
        # the script divides in another order: a rounding error, no more
        assert f1.per_example(prediction, references)["f1"] == pytest.approx(official_f1, abs=1e-12), prediction
    assert len(cases) >= 1000
    assert sum(0 < case[3] < 1 for case in cases) > 200
    assert any(case[2] and not case[3] for case in cases), "two texts of punctuation alone are equal, with an F1 of 0"
    met = Counter(kind for case in cases for text in (case[0], *case[1]) for kind in kinds(text))
    assert min(met[kind] for kind in ("empty", "punctuation", "emoji", "twice", "ko", "en")) >= 50


def test_languages_read_the_same_answer_differently():
    assert score_of("f1", [("이순신 장군", "이순신")], "en") == pytest.approx(2 / 3)  # words: 1 of 2, 1 of 1
    assert score_of("f1", [("이순신 장군", "이순신")], "ko") == pytest.approx(6 / 8)  # characters: 3 of 5, 3 of 3
    assert score_of("exact_match", [("The cat.", "cat")], "en") == 1
    assert score_of("exact_match", [("The cat.", "cat")], "ko") == 0
    assert score_of("exact_match", [("《춘향전》", "춘향전")], "ko") == 1
    assert score_of("exact_match", [("《춘향전》", "춘향전")], "en") == 0


def test_the_best_reference_counts():
    assert score_of("exact_match", [("two", ["one", "two"]), ("six", ["one", "two"])]) == 0.5
    assert score_of("f1", [("red house", ["house", "big red house"])]) == pytest.approx(4 / 5)
    assert score_of("accuracy", [("b", ["a", "b"])]) == 1


# --- Classes


def test_accuracy_and_macro_f1_by_hand():
    #          gold a: a a b    gold b: b b    gold c: a
    pairs = [("a", "a"), ("a", "a"), ("b", "a"), ("b", "b"), ("b", "b"), ("a", "c")]
    assert score_of("accuracy", pairs) == pytest.approx(4 / 6)
    # a: tp 2, fp 1, fn 1 -> 4/6; b: tp 2, fp 1 -> 4/5; c: fn 1 -> 0
    assert score_of("macro_f1", pairs) == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)


def test_macro_f1_counts_an_invented_class_and_keeps_colons_in_names():
    # x:y: tp 1, fn 1 -> 2/3; the made-up 'x': fp 1 -> 0
    assert score_of("macro_f1", [("x:y", "x:y"), ("x", "x:y")]) == pytest.approx((2 / 3 + 0) / 2)
    assert score_of("macro_f1", [("x:y", "x:y"), ("z", "z")]) == 1


@pytest.mark.parametrize("language", ["en", "ko"])
def test_classes_are_counted_as_by_brute_force(language):
    rng = random.Random(8)
    labels = {"en": ["yes", "no", "may be", "a:b"], "ko": ["함의", "중립", "모순", "가:나"]}[language]
    for case in range(1000):
        gold = [rng.choice(labels) for _ in range(rng.randint(1, 12))]
        predicted = [rng.choice([*labels, rng.choice([*ODD, "yes yes"])]) for _ in gold]
        pairs = list(zip(predicted, gold, strict=True))
        hits = sum(p == g for p, g in pairs)
        assert score_of("accuracy", pairs) == pytest.approx(hits / len(pairs))
        f1 = []
        for label in set(gold) | set(predicted):
            right = sum(p == g == label for p, g in pairs)
            precision = right / max(1, sum(p == label for p in predicted))
            recall = right / max(1, sum(g == label for g in gold))
            f1.append(2 * precision * recall / (precision + recall) if right else 0.0)
        assert score_of("macro_f1", pairs) == pytest.approx(sum(f1) / len(f1))
        table = metrics.confusion(((p, [g]) for p, g in pairs), labels if case % 2 else None)
        assert table["classes"] == (labels if case % 2 else sorted(set(gold)))
        expected = [
            [sum(p == b and g == a for p, g in pairs) for b in table["classes"]]
            + [sum(g == a and p not in table["classes"] for p, g in pairs)]
            for a in table["classes"]
        ]
        assert table["counts"] == expected
        assert sum(row[n] for n, row in enumerate(expected)) == hits


def test_confusion_by_hand():
    pairs = [("a", ["a"]), ("b", ["a"]), ("made up", ["b"]), ("b", ["a", "b"]), ("c", ["b", "a"])]
    assert metrics.confusion(pairs, ["b", "c", "a"]) == {
        "classes": ["b", "c", "a"],
        "counts": [[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]],
    }
    with pytest.raises(InputError, match=r"reference 'entails' is none of the classes .*did you mean 'entailment'\?"):
        metrics.confusion([("a", ["entails"])], ["entailment", "neutral"])
    with pytest.raises(InputError, match="list of references is empty"):
        metrics.confusion([("a", [])])


# --- ROUGE


@pytest.mark.parametrize("language", ["en", "ko"])
def test_words_are_rouge_scores_own(language):
    from rouge_score.rouge_scorer import RougeScorer

    rng = random.Random(5)
    theirs = RougeScorer(metrics.ROUGE)
    ours = {name: metrics.build(name, language, "words") for name in metrics.ROUGE}
    partly, met = 0, Counter()
    for _ in range(1000):
        prediction = some_text(rng, language)
        references = [some_text(rng, language) for _ in range(rng.randint(1, 3))]
        expected = theirs.score_multi(references, prediction)
        has_words = any(metrics.TOKENIZERS["words"](reference) for reference in references)
        for name, metric in ours.items():
            scored = {name: expected[name].fmeasure, "count": 1} if has_words else {}
            assert metric.per_example(prediction, references) == scored
        partly += 0 < expected["rougeL"].fmeasure < expected["rougeLsum"].fmeasure < 1
        met.update(kinds(prediction))
    assert partly > (100 if language == "en" else 0)
    assert min(met[kind] for kind in ("empty", "punctuation", "emoji", "twice", language)) >= 20


def plain_rouge(name, prediction, reference):
    """ROUGE-1, -2 or -L of two lists, by multisets and by recursion over the longest common subsequence."""
    if name == "rougeL":
        table = {}
        for i in range(len(prediction) + 1):
            for j in range(len(reference) + 1):
                if not i * j:
                    table[i, j] = 0
                elif prediction[i - 1] == reference[j - 1]:
                    table[i, j] = table[i - 1, j - 1] + 1
                else:
                    table[i, j] = max(table[i - 1, j], table[i, j - 1])
        here, there, shared = len(prediction), len(reference), table[len(prediction), len(reference)]
    else:
        n = int(name[-1])
        bags = [Counter(tuple(part[i : i + n]) for i in range(len(part) - n + 1)) for part in (prediction, reference)]
        here, there = (sum(bag.values()) for bag in bags)
        shared = sum(min(count, bags[1][gram]) for gram, count in bags[0].items())
    return 2 * shared / (here + there) if shared else 0.0


@pytest.mark.parametrize("tokenizer", ["eojeol", "chars", pytest.param("morphemes", marks=needs_kiwi)])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_rouge_of_any_tokens_is_plain_rouge(language, tokenizer):
    rng = random.Random(6)
    tokens = metrics.TOKENIZERS[tokenizer]
    ours = {name: metrics.build(name, language, tokenizer) for name in ("rouge1", "rouge2", "rougeL")}
    partly = 0
    for _ in range(1000):
        prediction, reference = some_text(rng, language), some_text(rng, language)
        if not tokens(reference):
            continue
        for name, metric in ours.items():
            expected = plain_rouge(name, tokens(prediction), tokens(reference))
            assert metric.per_example(prediction, [reference])[name] == pytest.approx(expected), (prediction, reference)
            partly += 0 < expected < 1
    assert partly > 500


@needs_kiwi
def test_morphemes_by_hand():
    assert metrics.TOKENIZERS["morphemes"]("책을 읽었다. Cat!") == ["책", "을", "읽", "었", "다", "cat"]
    assert [metrics.TOKENIZERS["morphemes"](text) for text in ("", " ", "...", "“!”")] == [[]] * 4
    # 고양이+가 / 고양이+는: one of two morphemes, of eojeol none
    assert score_of("rouge1", [("고양이가", "고양이는")], "ko", "morphemes") == pytest.approx(1 / 2)
    assert score_of("rouge1", [("고양이가", "고양이는")], "ko", "eojeol") == 0
    assert kiwi() is kiwi(), "a model of 100 MB is loaded once"


def test_morphemes_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "kiwipiepy", None)  # importing it raises ImportError
    kiwi.cache_clear()
    with pytest.raises(InputError, match=r"needs the package kiwipiepy.*`pip install 'multitask\[ko\]'`"):
        metrics.build("rougeL", "ko", "morphemes")
    assert metrics.build("f1", "ko", "morphemes").name == "f1", "only ROUGE has need of it"


@pytest.mark.parametrize("name", metrics.ROUGE)
def test_identical_korean_texts_are_identical(name):
    text = "서울은 대한민국의 수도이다.\n한강이 흐른다."
    assert score_of(name, [(text, text)], "ko", "eojeol") == 1
    assert score_of(name, [(text, text)], "ko", "chars") == 1
    assert metrics.build(name, "ko", "words").per_example(text, [text]) == {}, "rouge_score keeps a-z0-9 alone"


def test_eojeol_and_characters_by_hand():
    prediction, reference = "“서울은” 큰 도시다!", "서울은 아름다운 도시다."
    # 서울은 큰 도시다 / 서울은 아름다운 도시다: 2 of 3 and 3 words, no pair of neighbours
    assert score_of("rouge1", [(prediction, reference)]) == pytest.approx(2 / 3)
    assert score_of("rouge2", [(prediction, reference)]) == 0
    assert score_of("rougeL", [(prediction, reference)]) == pytest.approx(2 / 3)
    assert score_of("rougeL", [("Tea, please", "(tea) PLEASE ...")]) == 1
    assert score_of("rouge1", [("3.1운동 don't", "3.1운동 dont")]) == pytest.approx(1 / 2), "only edges are stripped"
    assert score_of("rougeL", [("K팝", "k 팝")], tokenizer="chars") == 1
    # 가나다 / 나가다: all 3 shared, the longest common subsequence has 2; pairs 가나 나다 / 나가 가다
    assert score_of("rouge1", [("가 나다", "나가다")], tokenizer="chars") == 1
    assert score_of("rougeL", [("가 나다", "나가다")], tokenizer="chars") == pytest.approx(2 / 3)
    assert score_of("rouge2", [("가 나다", "나가다")], tokenizer="chars") == 0


def test_lines_are_sentences_for_rouge_lsum_alone():
    pair = [("가 나\n다 라", "다 라\n가 나")]
    assert score_of("rougeLsum", pair) == 1
    assert score_of("rougeL", pair) == pytest.approx(2 / 4)


# --- Descriptors


def test_descriptors_by_hand():
    texts = ["a b a b a b", "나 는 나", "", "one", "a b"]
    alone = {name: score_of(name, [(text, []) for text in texts]) for name in metrics.DESCRIPTORS}
    assert alone["length"] == pytest.approx((6 + 3 + 0 + 1 + 2) / 5)
    assert alone["distinct1"] == pytest.approx((2 / 6 + 2 / 3 + 1 + 1) / 4), "of nothing there is no share"
    assert alone["distinct2"] == pytest.approx((2 / 5 + 1 + 1) / 3)
    assert alone["repetition"] == pytest.approx(1 / 3), "abab baba abab: one of three was there before"
    assert score_of("repetition", [("! " * 8, [])]) == pytest.approx(4 / 5), "marks are words here"
    assert {name: score_of(name, [(text, ["a b"]) for text in texts]) for name in metrics.DESCRIPTORS} == alone


@pytest.mark.parametrize("language", ["en", "ko"])
def test_descriptors_are_counted_as_by_brute_force(language):
    rng = random.Random(9)
    for name, n in {"distinct1": 1, "distinct2": 2, "repetition": 4}.items():
        metric = metrics.build(name, language)
        partly = 0
        for _ in range(1000):
            words = (text := some_text(rng, language)).split()
            grams = [words[i : i + n] for i in range(len(words) - n + 1)]
            again = sum(gram in grams[:i] for i, gram in enumerate(grams))
            share = (again if name == "repetition" else len(grams) - again) / max(1, len(grams))
            numbers = metric.per_example(text, [])
            assert numbers == {name: pytest.approx(share), "count": bool(grams)}
            partly += 0 < share < 1
        assert partly > 30


def test_corpus_distinct_counts_a_word_of_two_texts_once(monkeypatch):
    monkeypatch.setattr(descriptors, "MAX_CELLS", 5)  # merge often
    rng = random.Random(10)
    for n in (1, 2):
        texts = [some_text(rng, "ko") for _ in range(100)]
        grams = [tuple(w[i : i + n]) for w in map(str.split, texts) for i in range(len(w) - n + 1)]
        corpus = metrics.CorpusDistinct(n)
        assert corpus.value() == 0
        for text in texts:
            corpus.add(text)
        assert corpus.value() == corpus.value() == len(set(grams)) / len(grams)
        assert len(corpus._seen) == len(set(grams)), "memory follows the different n-grams"


# --- Perplexity


def test_perplexities_and_bits_per_byte_divide_once():
    rows = [{"nll": 2.0, "tokens": 1, "words": 2, "bytes": 4}, {"nll": 1.0, "tokens": 5, "words": 2, "bytes": 8}]
    assert metrics.score(metrics.build("word_perplexity", "en"), rows) == pytest.approx(math.exp(3 / 4))
    assert metrics.score(metrics.build("perplexity", "en"), rows) == pytest.approx(math.exp(3 / 6))
    assert metrics.score(metrics.build("bits_per_byte", "en"), rows) == pytest.approx(3 / math.log(2) / 12)


def test_perplexity_of_a_broken_model_is_large_but_finite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perplexity = metrics.build("perplexity", "en")
        assert metrics.score(perplexity, [{"nll": 1e9, "tokens": 2, "bytes": 2}]) == pytest.approx(math.exp(700))


# --- Sums and intervals

ROWS = {
    "perplexity": [{"nll": 0.3 * i, "tokens": i % 4, "bytes": 3 * i} for i in range(30)],
    "accuracy": [{"correct": i % 3 == 0, "count": 1} for i in range(30)],
    "macro_f1": [{"tp:a": 1}, {"tp:b": 1}, {"fp:a": 1, "fn:b": 1}, {"fp:b": 1, "fn:rare": 1}] * 3,
}


@pytest.mark.parametrize("name", ROWS)
def test_an_interval_is_the_score_of_rows_drawn_again(name, monkeypatch):
    metric, rows = metrics.build(name, "en"), ROWS[name]
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 21)  # blocks of a few resamples, the last one shorter
    low, high = bootstrap.interval(metric.finish, rows, 200, seed=3)
    rng = np.random.default_rng(3)
    drawn = [metrics.score(metric, [rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(200)]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert low < metrics.score(metric, rows) < high


def test_an_interval_has_the_width_that_theory_gives():
    accuracy = metrics.build("accuracy", "en")
    rows = [{"correct": float(i < 300), "count": 1.0} for i in range(1000)]
    low, high = bootstrap.interval(accuracy.finish, rows, 2000, seed=7)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.2 * half)  # 2,000 resamples: about 5 % of half


def test_an_interval_is_a_function_of_the_seed():
    finish, rows = metrics.build("perplexity", "en").finish, ROWS["perplexity"]
    assert bootstrap.interval(finish, rows, 100, seed=7) == bootstrap.interval(finish, rows, 100, seed=7)
    assert bootstrap.interval(finish, rows, 100, seed=7) != bootstrap.interval(finish, rows, 100, seed=8)


def test_finish_of_arrays_is_finish_of_each_and_never_warns():
    rng = np.random.default_rng(1)
    keys = ["correct", "count", "exact_match", "f1", "nll", "tokens", "words", "bytes"]
    keys += ["tp:a", "fp:a", "fn:a", "tp:b", "fn:c", *metrics.ROUGE, *metrics.DESCRIPTORS]
    sums = {key: rng.integers(0, 3, size=50).astype(float) for key in keys}
    for key in ["count", "tokens", "words", "bytes"]:
        assert (sums[key] == 0).any(), "dividing by nothing must occur here"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in metrics.NAMES:
            finish = metrics.build(name, "en").finish
            known = {k: v for k, v in sums.items() if (":" in k) == (name == "macro_f1")}
            at_once = finish(known)
            assert at_once.shape == (50,)
            assert np.isfinite(at_once).all()
            assert at_once.tolist() == pytest.approx([finish({k: v[i] for k, v in known.items()}) for i in range(50)])


def test_numbers_survive_json():
    for name in set(metrics.NAMES) - set(metrics.FROM_NLL):
        numbers = metrics.build(name, "ko").per_example("서울 예", ["서울", "예"])
        assert json.loads(json.dumps(numbers)) == numbers
        assert {type(n) for n in numbers.values()} == {float}


# --- metrics of the hub


SCRIPT = """
import datasets
import evaluate


class Ends(evaluate.Metric):
    def _info(self):
        texts = datasets.Features({"predictions": datasets.Value("string"), "references": %s})
        return evaluate.MetricInfo(description="", citation="", features=texts)

    def _compute(self, predictions, references):
        same = [p[-1:] == (r if isinstance(r, str) else r[-1])[-1:] for p, r in zip(predictions, references)]
        return {"ends": sum(same) / len(same), "by": {"row": same}, "note": "a text", "none": float("nan")}
"""


def test_metrics_of_the_hub_and_of_scripts(tmp_path):
    for name, feature in {
        "one": 'datasets.Value("string")',
        "many": 'datasets.Sequence(datasets.Value("string"))',
        "whole": 'datasets.Value("int32")',
    }.items():
        (tmp_path / f"{name}.py").write_text(SCRIPT % feature, "utf-8")
    (tmp_path / "needy.py").write_text("import evaluate\nimport no_such_package\n", "utf-8")
    # evaluate copies scripts into its cache, whose place it reads when it is imported: hence another process
    code = """
from multitask.evaluation import metrics
from multitask.errors import InputError

def refused(do, *arguments):
    try:
        do(*arguments)
    except InputError as error:
        print(error)

one, many, whole = (metrics.hub_metric(f"{name}.py") for name in ("one", "many", "whole"))
predictions, references = ["a cat", "dog"], [["the hen", "hut"], ["dug"]]
print(metrics.hub_scores(one, predictions, references))
print(metrics.hub_scores(many, predictions, references))
refused(metrics.hub_scores, whole, predictions, references)
refused(metrics.hub_scores, one, [], [])
refused(metrics.hub_metric, "rouge_1")
refused(metrics.hub_metric, "gone.py")
refused(metrics.hub_metric, "needy.py")
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_EVALUATE_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    first, second, texts, nothing, unknown, gone, needy = done.stdout.splitlines()
    assert first == "{'ends': 0.5, 'by.row.0': 0.0, 'by.row.1': 1.0}"
    assert second == "{'ends': 1.0, 'by.row.0': 1.0, 'by.row.1': 1.0}"
    assert texts.startswith("metric 'ends' does not take texts as they are scored here: ")
    assert nothing == "metric 'ends' has no examples to score; at least one was expected"
    assert unknown.startswith("metric 'rouge_1' is none of ours (did you mean 'rouge1'?), neither a script nor")
    assert "offline, name a metric that was loaded before, or the path of a script" in unknown
    assert gone == "metric 'gone.py': no such metric script; expected a file, or a folder/folder.py"
    assert needy.startswith("metric 'needy.py' cannot be loaded: ")
    assert "no_such_package" in needy


# --- Messages


def test_every_metric_needs_references_in_a_list():
    for name in OF_REFERENCES:
        per_example = metrics.build(name, "en").per_example
        with pytest.raises(InputError, match="list of references is empty; at least one accepted text was expected"):
            per_example("a", [])
        with pytest.raises(InputError, match="references are the text 'abc', a list of texts was expected"):
            per_example("a", "abc")


def test_wrong_names_and_nothing_to_score():
    with pytest.raises(InputError, match=r"metric 'rouge-1' does not exist; did you mean 'rouge1'\?"):
        metrics.build("rouge-1", "en")
    with pytest.raises(InputError, match=r"ROUGE tokenizer 'word' does not exist; did you mean 'words'\?"):
        metrics.build("rouge1", "en", "word")
    with pytest.raises(InputError, match="not from written text; metrics of texts are accuracy, macro_f1"):
        metrics.build("bits_per_byte", "en").per_example("a", ["a"])
    accuracy = metrics.build("accuracy", "en")
    with pytest.raises(InputError, match="metric 'accuracy' has no examples to score"):
        metrics.score(accuracy, [])
    with pytest.raises(InputError, match="no examples to resample"):
        bootstrap.interval(accuracy.finish, [], 10, seed=0)


def test_lower_is_better_where_it_is():
    up = {name: metrics.build(name, "en").higher_is_better for name in metrics.NAMES}
    assert {name for name in up if up[name] is False} == {*metrics.FROM_NLL, "repetition"}
    assert {name for name in up if up[name] is None} == {"length"}


def test_importing_metrics_is_light():
    heavy = {"torch", "evaluate", "datasets", "rouge_score", "kiwipiepy"}
    code = f"import sys, multitask.evaluation.metrics; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_numbers_are_rows_of_dictionaries_in_less_memory():
    rng = random.Random(5)
    rows = [{"count": 1.0, rng.choice("abc"): rng.random()} for _ in range(500)]
    rows[3] = {}
    numbers = metrics.Numbers(rows)
    assert len(numbers) == 500
    drawn = np.array([rng.randrange(3) for _ in rows])
    for key, column in numbers.columns.items():
        assert numbers.sums()[column] == pytest.approx(sum(row.get(key, 0.0) for row in rows))
        by_hand = sum(row.get(key, 0.0) * times for row, times in zip(rows, drawn, strict=True))
        assert numbers.sums(drawn)[column] == pytest.approx(by_hand)
    held = sum(part.buffer_info()[1] * part.itemsize for part in (numbers._rows, numbers._places, numbers._values))
    assert held == 16 * sum(map(len, rows))


# ---------------------------------------------------------------- texts in two Unicode forms


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_texts_are_compared_in_one_unicode_form(form: Any) -> None:
    """A tokenizer may compose what the file decomposes: the same syllables are the same answer."""
    names = ["rougeL", "exact_match", "f1", "accuracy"]
    row = make_row(TASKS["qa"], {"context": "c", "question": "q", "answer": "자연을 보았다"})
    measure = measure_with(names, RunConfig(tasks=["qa"]))
    text = "자연을 보았다"
    for language in ("ko", "en"):
        found = measure(
            replace(row, language=language), unicodedata.normalize(form, text), [unicodedata.normalize("NFD", text)]
        )
        scores = {name: next(iter(found[name].values()), None) for name in names}
        assert scores == dict.fromkeys(names, 1.0) | ({"rougeL": None} if language == "en" else {})


def test_a_reference_without_a_word_is_not_scored_as_wrong() -> None:
    """English words of a Korean text are none: once a ROUGE-L of 0.000 for equal texts, without a word about it."""
    metric = metrics.build("rougeL", "en", "words")
    rows = [("a cat", ["a cat"]), ("자연을", ["자연을"]), ("a dog", ["a cat"]), ("x", ["...", "x"])]
    numbers = metrics.Numbers(metric.per_example(*row) for row in rows)
    assert [metric.per_example(*row) == {} for row in rows] == [False, True, False, False]
    assert metrics.score(metric, numbers) == pytest.approx(2.5 / 3)
    scores = scores_of({"rougeL": numbers}, TASKS["summ"], RunConfig(tasks=["summ"]))
    assert scores["rougeL"].value == pytest.approx(2.5 / 3, abs=1e-6)
    assert scores_of({"rougeL": metrics.Numbers([{}, {}])}, TASKS["summ"], RunConfig(tasks=["summ"])) == {}
