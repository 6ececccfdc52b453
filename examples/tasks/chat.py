"""Chat: the assistant's replies of a conversation of one or more turns; the loss falls on every reply.

Row, in any of the published forms:
- `messages`: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, ...]}; a first
  message of role `system` is the system prompt.
- ShareGPT: {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, ...]}.
- Alpaca: {"instruction": str, "input": str, "output": str}; with "history": [[str, str], ...] of earlier turns, and
  "system", where there are any.
- {"user": [str, ...], "reply": [str, ...]}, or a text each for a conversation of one turn; "system" is optional.

Turns alternate, the user first. Scores and prompts are of the last reply, after all turns before it; the training loss
and the validation loss are of all replies. Of a conversation that is longer than the window the first turns are left
out (counted as truncated).
Source: the format of Alpaca (Taori et al., 2023) and of Vicuna's ShareGPT conversations (Chiang et al., 2023).

`multitask train --tasks chat --tasks-dir examples/tasks` trains on conversations of the synthetic dataset, and with
`--config chat.yaml` on those of a file.
"""

from typing import Any

from multitask.task import Prompt, Task

_USER = ("user", "human", "prompter")
_ASSISTANT = ("assistant", "gpt", "chatgpt", "model", "bot")
_CONVERSATIONS = ("messages", "conversations", "conversation")


def prepare(row: dict[str, Any]) -> dict[str, Any]:
    """The texts of users and replies, each a list in the order of turns."""
    name = next((name for name in _CONVERSATIONS if row.get(name) is not None), None)
    if name is not None:
        return {**row, **_of_messages(name, row[name], row.get("system"))}
    if row.get("instruction") is not None:
        return {**row, **_of_instruction(row)}
    return row


def _of_messages(name: str, messages: Any, system: Any) -> dict[str, Any]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"field '{name}' is {str(messages)[:80]!r}, expected a list of messages")
    found: dict[str, Any] = {"system": system, "user": [], "reply": []}
    for number, message in enumerate(messages, 1):
        role, text = _message(name, number, message)
        if role == "system" and number == 1:
            found["system"] = text
            continue
        expected = "user" if len(found["user"]) == len(found["reply"]) else "assistant"
        if role != expected:
            raise ValueError(f"field '{name}': message {number} is of role '{role}', expected '{expected}'")
        found["user" if role == "user" else "reply"].append(text)
    return found


def _message(name: str, number: int, message: Any) -> tuple[str, str]:
    """Role and text of one message."""
    if not isinstance(message, dict):
        raise ValueError(f"field '{name}': message {number} is {str(message)[:80]!r}, expected an object")
    role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(text, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in text):
        text = "".join(part["text"] for part in text)  # content in parts
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"field '{name}': message {number} is {str(text)[:80]!r}, expected a text that is not empty")
    role = "user" if role in _USER else "assistant" if role in _ASSISTANT else role
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"field '{name}': message {number} is of role {role!r}, expected system, user or assistant")
    return str(role), text


def _of_instruction(row: dict[str, Any]) -> dict[str, Any]:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history):
        raise ValueError(f"field 'history' is {str(history)[:80]!r}, expected a list of [user, reply]")
    text = "\n\n".join(
        part for part in (row["instruction"], row.get("input")) if isinstance(part, str) and part.strip()
    )
    replies = [row["output"]] if row.get("output") is not None else []
    return {"user": [*(turn[0] for turn in history), text], "reply": [*(turn[1] for turn in history), *replies]}


TASK = Task(
    name="chat",
    stream="{system}(<|user|>{user}<|assistant|>{reply}<|end|>)+",
    target="reply",
    optional=("system",),
    prompts={
        "en": (
            Prompt("{system}\nUser: {user}\nAssistant:", stop=("\nUser:", "\nAssistant:")),
            Prompt("{system}\nQ: {user}\nA:", stop=("\nQ:",), name="question"),
        ),
        "ko": (
            Prompt("{system}\n사용자: {user}\n도우미:", stop=("\n사용자:", "\n도우미:")),
            Prompt("{system}\n질문: {user}\n답:", stop=("\n질문:",), name="question"),
        ),
    },
    metrics=("rougeL",),
    max_new_tokens=128,
    prepare=prepare,
)
