"""Model cards: each task's prompt string and a snippet of plain Hugging Face code that a test executes."""

import json
from collections.abc import Mapping

from multitask.pattern import fields, render, text_of
from multitask.task import END, Task


def card(tasks: Mapping[str, Task], examples: Mapping[str, Mapping[str, str]], base: str | None = None) -> str:
    """The model card: each task's prompt string, and a snippet of plain Hugging Face code.

    base: with LoRA, where the base is, as a Python expression.
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        "# One GPT-2, many tasks",
        "",
    ]
    lines += ["| task | prompt | the model writes |", "| --- | --- | --- |"]
    for name, task in tasks.items():
        shown = prompt_text(task, {field: f"{{{field}}}" for field in fields(task.stream)}).replace("|", "\\|")
        lines.append(f"| {name} | `{shown}` | {{{task.target}}}, then `{END.replace('|', chr(92) + '|')}` |")
    name, task = next(iter(tasks.items()))
    prompt = prompt_text(task, examples.get(name) or {field: "" for field in fields(task.stream)})
    load = (
        ["model = AutoModelForCausalLM.from_pretrained(FOLDER)"]
        if base is None
        else [
            f"model = AutoModelForCausalLM.from_pretrained({base})",
            "model = PeftModel.from_pretrained(model, FOLDER)",
        ]
    )
    lines += [
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *(["from peft import PeftModel"] if base else []),
        'FOLDER = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        *load,
        f"inputs = tokenizer({json.dumps(prompt, ensure_ascii=False)}, return_tensors='pt')",
        f"ids = model.generate(**inputs, max_new_tokens={task.max_new_tokens})[0, inputs['input_ids'].shape[1]:]",
        "print(tokenizer.decode(ids, skip_special_tokens=True).strip())",
        "```",
        "",
    ]
    return "\n".join(lines)


def prompt_text(task: Task, values: Mapping[str, str]) -> str:
    """The prompt string; the literal text before the target belongs to the target."""
    return text_of(render(task, values, with_target=False))
