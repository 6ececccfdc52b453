"""Scores: equal to the official scripts and to rouge_score, right by hand, sums divided once, honest intervals."""

import json
import math
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from multitask import metrics
from multitask.errors import InputError

GOLDEN = Path(__file__).parent / "golden"


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


# --- ROUGE


def test_words_are_rouge_scores_own():
    from rouge_score.rouge_scorer import RougeScorer

    rng = random.Random(5)
    words = ["the", "The", "a", "cat", "cats", "sat", "mat,", "don't", "U.S.", "3.5", "naïve", "고양이", "-", "running"]

    def text():
        return "".join(rng.choice(words) + rng.choice([" ", " ", "\n", ". "]) for _ in range(rng.randint(0, 12)))

    theirs = RougeScorer(metrics.ROUGE)
    ours = {name: metrics.build(name, "en", "words") for name in metrics.ROUGE}
    partly = 0
    for _ in range(1000):
        prediction, references = text(), [text() for _ in range(rng.randint(1, 3))]
        expected = theirs.score_multi(references, prediction)
        for name, metric in ours.items():
            assert metric.per_example(prediction, references) == {name: expected[name].fmeasure, "count": 1}
        partly += 0 < expected["rougeL"].fmeasure < expected["rougeLsum"].fmeasure < 1
    assert partly > 100


@pytest.mark.parametrize("name", metrics.ROUGE)
def test_identical_korean_texts_are_identical(name):
    text = "서울은 대한민국의 수도이다.\n한강이 흐른다."
    assert score_of(name, [(text, text)], "ko", "eojeol") == 1
    assert score_of(name, [(text, text)], "ko", "chars") == 1
    assert score_of(name, [(text, text)], "ko", "words") == 0, "rouge_score keeps a-z0-9 alone"


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


# --- Perplexity


def test_perplexity_and_bits_per_byte_divide_once():
    rows = [{"nll": 2.0, "tokens": 1, "bytes": 4}, {"nll": 1.0, "tokens": 5, "bytes": 8}]
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
    monkeypatch.setattr(metrics, "MAX_CELLS", 21)  # blocks of a few resamples, the last one shorter
    low, high = metrics.interval(metric.finish, rows, 200, seed=3)
    rng = np.random.default_rng(3)
    drawn = [metrics.score(metric, [rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(200)]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert low < metrics.score(metric, rows) < high


def test_an_interval_has_the_width_that_theory_gives():
    accuracy = metrics.build("accuracy", "en")
    rows = [{"correct": float(i < 300), "count": 1.0} for i in range(1000)]
    low, high = metrics.interval(accuracy.finish, rows, 2000, seed=7)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.2 * half)  # 2,000 resamples: about 5 % of half


def test_an_interval_is_a_function_of_the_seed():
    finish, rows = metrics.build("perplexity", "en").finish, ROWS["perplexity"]
    assert metrics.interval(finish, rows, 100, seed=7) == metrics.interval(finish, rows, 100, seed=7)
    assert metrics.interval(finish, rows, 100, seed=7) != metrics.interval(finish, rows, 100, seed=8)


def test_finish_of_arrays_is_finish_of_each_and_never_warns():
    rng = np.random.default_rng(1)
    keys = ["correct", "count", "exact_match", "f1", "nll", "tokens", "bytes", "tp:a", "fp:a", "fn:a", "tp:b", "fn:c"]
    sums = {key: rng.integers(0, 3, size=50).astype(float) for key in [*keys, *metrics.ROUGE]}
    for key in ["count", "tokens", "bytes"]:
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


# --- evaluate


def test_evaluate_metrics_combine_offline(tmp_path):
    import evaluate

    ours = [metrics.evaluate_metric(name, "ko", cache_dir=str(tmp_path)) for name in ("f1", "rougeL", "macro_f1")]
    predictions, references = ["이순신 장군", "서울"], [["이순신"], ["부산", "서울"]]
    expected = {
        name: score_of(name, list(zip(predictions, references, strict=True)), "ko")
        for name in ("f1", "rougeL", "macro_f1")
    }
    assert evaluate.combine(ours).compute(predictions=predictions, references=references) == expected
    f1 = ours[0]
    for prediction, reference in zip(predictions, ["이순신", "서울"], strict=True):
        f1.add_batch(predictions=[prediction], references=[reference])  # a text in place of a list
    assert f1.compute() == {"f1": expected["f1"]}


def test_evaluate_metrics_refuse_nothing(tmp_path):
    f1 = metrics.evaluate_metric("f1", "ko", cache_dir=str(tmp_path))
    for inputs in ({}, {"predictions": [], "references": []}):
        with pytest.raises(InputError, match="metric 'f1' has no examples to score; at least one was expected"):
            f1.compute(**inputs)
    assert f1.compute(predictions=["예"], references=["예"]) == {"f1": 1}, "a refusal leaves no trace"
    with pytest.raises(InputError, match="'perplexity' is computed from the model's nll"):
        metrics.evaluate_metric("perplexity", "ko")


# --- Messages


def test_every_metric_needs_references_in_a_list():
    for name in set(metrics.NAMES) - set(metrics.FROM_NLL):
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
        metrics.interval(accuracy.finish, [], 10, seed=0)


def test_lower_is_better_where_it_is():
    assert {n for n in metrics.NAMES if not metrics.build(n, "en").higher_is_better} == {"perplexity", "bits_per_byte"}


def test_importing_metrics_is_light():
    code = "import sys, multitask.metrics; print({'torch', 'evaluate', 'datasets', 'rouge_score'} & set(sys.modules))"
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
