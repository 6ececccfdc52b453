r"""Prompts as a chat: what a tokenizer's chat template makes of questions and answers.

`Chat(tokenizer, "a model").text([("1+1=", "2")], "2+2=")` ->
`"<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n ... <|im_start|>assistant\n"`
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from multitask.errors import InputError

_QUESTION, _ANSWER = "question0", "answer0"


class Chat:
    """A chat template; raises InputError where it cannot be used.

    space: white space between the assistant's header and an answer. end_ids: the token that ends a turn, if one does.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name, self.opening = tokenizer, name, ""
        header = self.text([], _QUESTION)
        whole = self._render([("user", _QUESTION), ("assistant", _ANSWER)], has_header=False)
        at = whole.rfind(_ANSWER)
        if _QUESTION not in header or at < 0:
            raise self._error("it leaves out a question or an answer")
        before = whole[len(header) : at] if whole.startswith(header) else ""
        self.space = before if not before.strip() else ""
        self.opening = before if before.strip() else ""  # for instance an empty <think></think>
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        ids = tokenizer(whole[at + len(_ANSWER) :].lstrip(), add_special_tokens=False)["input_ids"]
        self.end_ids: set[int] = {ids[0]} & special if ids else set()

    def text(self, solved: Sequence[tuple[str, str]], question: str) -> str:
        """Questions with their answers, a last question, and the header of the answer to it."""
        turns = [turn for asked, answer in solved for turn in (("user", asked), ("assistant", answer))]
        return self._render([*turns, ("user", question)], has_header=True) + self.opening

    def ids(self, text: str, contents: Sequence[str], plain: Tokenizer) -> list[int]:
        """Ids of a rendered text, markers of the template as special tokens; nothing is put before or behind it.

        contents: the messages in their order. One that holds the text of a special token is read as plain text.
        """
        special = self.tokenizer.get_added_vocab()
        found: list[int] = []
        start = done = 0
        for content in map(str.strip, contents):
            at = text.find(content, start)
            if at < 0:
                continue
            start = at + len(content)
            if any(token in content for token in special):
                found += self._ids(text[done:at]) + plain.encode(content, add_special_tokens=False).ids
                done = start
        return found + self._ids(text[done:])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, turns: Sequence[tuple[str, str]], has_header: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, add_generation_prompt=has_header, tokenize=False)
        except Exception as error:  # whatever a template raises
            raise self._error(f"{type(error).__name__}: {error}") from error
        return text

    def _error(self, why: str) -> InputError:
        return InputError(f"{self.name}: its chat template cannot be used ({why}); prompt it as plain text: --chat off")
