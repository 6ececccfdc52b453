"""Arithmetic: the sum of two numbers of two digits each, a question that nothing but the model can answer.

Row: {"first": str, "second": str, "sum": str}, numbers written in digits.
Source: the experiment is that of GPT-3 (Brown et al., 2020, section 3.9.1); the synthetic dataset draws the pairs, and
one that is asked in test stands in train in neither order. No pair is cut: rows that do not fit are refused.

`multitask fewshot --tasks arithmetic --tasks-dir examples/tasks --shots 0,1,4,8`
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="arithmetic",
    stream="{first}<|plus|>{second}<|equals|>{sum}<|end|>",
    target="sum",
    prompts={
        "en": Prompt("Q: What is the sum of {first} and {second}?\nA:"),
        "ko": Prompt("질문: {first} 더하기 {second}의 값은 얼마입니까?\n답:"),
    },
    metrics=("exact_match",),
    max_new_tokens=8,
)
