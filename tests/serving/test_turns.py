"""Conversations over HTTP: examples with all their turns, and models that are prompted by their chat template."""

from pathlib import Path

import pytest
from helpers import CHATML, ROOT, conversations, untrained
from serving_helpers import Server, running
from transformers import AutoTokenizer

from multitask import train
from multitask.serving.loading import load_served
from multitask.serving.predictions import task_arms

TASKS_DIR = ROOT / "examples" / "tasks"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    work = tmp_path_factory.mktemp("turns")
    train(conversations(work), out=work / "run", tasks_dirs=TASKS_DIR)
    for name, template in (("instruct", CHATML), ("broken", "{{ raise_exception('no') }}")):
        tokenizer = AutoTokenizer.from_pretrained(untrained(work / name, n_positions=512))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(work / name)
    return [work / "run", work / "instruct"]


def test_a_conversation_is_answered_by_its_run_and_by_a_chat_template(folders: list[Path]) -> None:
    with running(folders, tasks_dirs=[TASKS_DIR]) as server:
        (task,) = server.get("/v1/tasks")["tasks"]
        assert [arm["name"] for arm in task["arms"]] == [
            "run", "run 0-shot", "run 4-shot",
            "instruct 0-shot", "instruct 4-shot", "instruct 0-shot chat", "instruct 4-shot chat",
        ]  # fmt: skip
        example = task["examples"][0]
        first, second = example["user"]
        (reply,) = example["reply"]
        assert (reply, second.split()[0]) == (f"{first}!", "again")
        (tuned,) = server.predict("chat", example)["predictions"]
        assert tuned["prompt"].count("<|user|>") == 2
        check_chat(server, example, first, second, reply)


def check_chat(server: Server, example: dict[str, list[str]], first: str, second: str, reply: str) -> None:
    """The turns of a chat are those of the template, demonstrations before them."""
    (zero,) = server.predict("chat", example, arm="instruct 0-shot chat")["predictions"]
    user, assistant, end = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
    turns = (
        f"{user}User: {first}\nAssistant:{end}{assistant}{reply}{end}{user}User: {second}\nAssistant:{end}{assistant}"
    )
    assert zero["prompt"] == turns
    (four,) = server.predict("chat", example, arm="instruct 4-shot chat")["predictions"]
    assert four["prompt"].endswith(turns)
    assert four["prompt"].count(user) > 2
    assert len(four["demonstrations"]) > 0


def test_a_chat_template_that_cannot_be_used_is_reported(folders: list[Path]) -> None:
    lines: list[str] = []
    broken = folders[0].parent / "broken"
    served = load_served([str(broken)], "cpu", report=lines.append)
    arms = task_arms(served, lines.append)["nli"].arms
    assert list(arms) == ["broken 0-shot", "broken 4-shot"]
    (line,) = (line for line in lines if "chat template" in line)
    assert line.startswith("broken: its chat template cannot be used")
    assert line.endswith("it is prompted as plain text")
