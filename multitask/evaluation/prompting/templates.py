r"""Prompt templates of a task, its own and those of the settings; how prompts of one language are written.

`templates_of(qa, "ko", {"qa": {"ko": [PromptConfig(template="{context}\n{question}")]}})` -> `settings-1`, then the
task's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from multitask.config.data import LANGUAGE, DataConfig
from multitask.config.evaluation import PromptConfig
from multitask.data.sources import resolve
from multitask.errors import InputError, suggest
from multitask.registry import prompt_problems
from multitask.task import Prompt, Task

Given = Mapping[str, Mapping[str, list[PromptConfig]]]


@dataclass(frozen=True)
class Style:
    """How prompts of one language are written, and which rule predicts a choice."""

    prompt: Prompt
    is_chat: bool = False
    rule: str = "raw"

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.prompt.name} (chat)" if self.is_chat else self.prompt.name


def templates_of(task: Task, language: str, given: Given) -> tuple[Prompt, ...]:
    """Those of the settings, then the task's own, each name once; of a language without any, those of the first one."""
    own = given.get(task.name, {})
    mine = own.get(language) or (() if task.prompts else next(iter(own.values()), ()))
    found = {}
    for place, one in enumerate(mine, 1):
        name = one.name or f"settings-{place}"
        # A word is a continuation and brings its space.
        spaced = [word if word[:1].isspace() else f" {word}" for word in one.words or ()]
        words = None if one.words is None else tuple(spaced)
        found[name] = Prompt(one.template, words, None if one.stop is None else tuple(one.stop), one.sentences, name)
    for prompt in task.templates(language):
        if language in task.prompts or not found:
            found.setdefault(prompt.name, prompt)
    return tuple(found.values())


def check_templates(task: Task, given: Given, data: DataConfig, wanted: str) -> None:
    """Raises InputError for templates of the settings that cannot be used, and for a wanted name that none has."""
    own = given.get(task.name, {})
    spoken = {*task.prompts, *(source.language or LANGUAGE for source in resolve(task, data))}
    problems = []
    for language, prompts in own.items():
        where = f"fewshot.prompts.{task.name}.{language}"
        if language not in spoken:
            nearest = suggest(language, spoken)
            problems.append(f"{where}: no prompt and no source of the task has this language; {nearest}")
            continue
        mine = templates_of(task, language, given)[: len(prompts)]
        if len({one.name or place for place, one in enumerate(prompts)}) < len(prompts):
            problems.append(f"{where}: two templates have the same name")
            continue
        problems += [
            f"{where}.{place} ({prompt.name}): {problem}"
            for place, prompt in enumerate(mine)
            for problem in prompt_problems(task, prompt)
        ]
    if problems:
        raise InputError("\n".join(problems))
    if not task.prompts and not own:
        raise InputError(
            f"task '{task.name}' has no plain prompts (`prompts` in its file, or fewshot.prompts); an untuned model "
            "needs one"
        )
    names = {prompt.name for language in {*task.prompts, *own} for prompt in templates_of(task, language, given)}
    if wanted not in ("best", "first", "all", *names):
        raise InputError(
            f"fewshot.templates: task '{task.name}' has no template '{wanted}'; "
            f"{suggest(wanted, {'best', 'first', 'all', *names})}"
        )
