"""Natural language inference: does the premise entail the hypothesis?

Row: {"premise": str, "hypothesis": str, "label": "entailment" | "neutral" | "contradiction"}
Source: KLUE-NLI (Park et al., 2021), SNLI (Bowman et al., 2015).
"""

from multitask.task import Prompt, Task

TASK = Task(
    name="nli",
    stream="{premise}<|sep|>{hypothesis}<|nli|>{label}<|end|>",
    target="label",
    truncate="premise",
    label="label",
    choices=("entailment", "neutral", "contradiction"),
    prompts={
        "en": (
            Prompt(
                "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:",
                (" True", " Neither", " False"),
                name="gpt3",
            ),
            Prompt(
                "Suppose that {premise}\nCan we then conclude that {hypothesis} Yes, maybe or no?\nAnswer:",
                (" Yes", " Maybe", " No"),
                name="suppose",
            ),
            Prompt(
                "Decide whether the hypothesis is true given the premise. Answer with true, unknown or false.\n"
                "Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:",
                (" true", " unknown", " false"),
                name="instruction",
            ),
        ),
        "ko": (
            Prompt("{premise}\n가설: {hypothesis}\n관계:", (" 함의", " 중립", " 모순"), name="labelled"),
            Prompt(
                "{premise}\n질문: 그렇다면 다음은 참, 거짓, 알 수 없음 중 무엇입니까? {hypothesis}\n답:",
                (" 참", " 알 수 없음", " 거짓"),
                name="question",
            ),
            Prompt(
                "전제가 맞다고 할 때 가설도 맞는지 예, 아마도, 아니요 중 하나로 답하세요.\n"
                "전제: {premise}\n가설: {hypothesis}\n답:",
                (" 예", " 아마도", " 아니요"),
                name="instruction",
            ),
        ),
    },
    metrics=("accuracy", "macro_f1"),
    baselines=("majority",),
    max_new_tokens=8,
    columns={"premise": ("sentence1", "전제"), "hypothesis": ("sentence2", "가설"), "label": ()},
)
