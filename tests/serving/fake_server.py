"""A server with canned answers of the serving API, for the page's tests: `with served(app(runs)) as address:`.

The field text decides what happens: `slow` streams slowly, `busy` answers 429, `break` ends a stream early.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from multitask.serving import runs

PAGE = Path(runs.__file__).parent / "page"
SCRIPT = "<script>window.taken = true</script><img src=x onerror='window.taken = true'>"
HOME = "/home/someone"
DEMONSTRATIONS = [
    "Premise: It rains. Hypothesis: The sun is out.\nRelation: contradiction",
    "Premise: A man sleeps. Hypothesis: Someone is asleep.\nRelation: entailment",
    "Premise: A dog runs. Hypothesis: The dog is brown.\nRelation: neutral",
    f"Premise: {SCRIPT} Hypothesis: A page.\nRelation: neutral",
]
ARMS = [
    {"name": "demo", "model": "demo", "kind": "tuned", "shots": 0},
    {"name": "demo-lora", "model": "demo-lora", "kind": "lora", "shots": 0},
    {"name": "base", "model": "base", "kind": "prompted", "shots": 0},
    {"name": "base-4", "model": "base", "kind": "prompted", "shots": 4},
]


def field(name: str, is_optional: bool = False, is_list: bool = False) -> dict[str, Any]:
    return {"name": name, "is_optional": is_optional, "is_list": is_list}


TASKS = [
    {
        "name": "nli",
        "pattern": "{premise}<|sep|>{hypothesis}<|nli|>{label}<|end|>",
        "fields": [field("premise"), field("hypothesis")],
        "target": "label",
        "is_closed": True,
        "choices": {"en": ["entailment", "neutral", "contradiction"]},
        "max_new_tokens": 8,
        "examples": [
            {
                "premise": "A man in a blue shirt is playing the guitar on a small stage.",
                "hypothesis": "Someone is making music.",
            },
            {"premise": "두 아이가 공원에서 연을 날리고 있다.", "hypothesis": "아이들이 집에서 자고 있다."},
        ],
        "arms": ARMS,
    },
    {
        "name": "summ",
        "pattern": "{document}<|summarize|>{summary}<|end|>",
        "fields": [field("document")],
        "target": "summary",
        "is_closed": False,
        "choices": {},
        "max_new_tokens": 64,
        "examples": [
            {
                "document": "Die Forscher trained small language models on five tasks at once. The models share one "
                "vocabulary, and every task adds one pattern. With the same number of steps, the joint model was "
                "better than models that were trained on one task alone on four of five test sets."
            }
        ],
        "arms": [ARMS[0], ARMS[2]],
    },
    {
        "name": "gen",
        "pattern": "<|start|>{label} {text}<|end|>",
        "fields": [field("label", is_optional=True)],
        "target": "text",
        "is_closed": False,
        "choices": {},
        "max_new_tokens": 64,
        "examples": [{"label": "긍정"}],
        "arms": ARMS,
    },
    {
        "name": "chat",
        "pattern": "{system}(<|user|>{user}<|assistant|>{reply}<|end|>)+",
        "fields": [field("system", is_optional=True), field("user", is_list=True), field("reply", is_list=True)],
        "target": "reply",
        "is_closed": False,
        "choices": {},
        "max_new_tokens": 64,
        "examples": [
            {"system": "Answer briefly.", "user": ["Hello!", "How are you?"], "reply": ["Hello, how can I help?"]}
        ],
        "arms": [ARMS[0]],
    },
]
ANSWERS = {
    "summ": "One model that learns five tasks together is better than single-task models on four of five test sets.",
    "gen": "정말 오랜만에 본 좋은 영화였다.\n배우들의 연기가 좋았다.",
    "chat": "I am fine, thank you.",
}
CLASSES = {
    "demo": {"entailment": 0.931, "neutral": 0.058, "contradiction": 0.011},
    "demo-lora": {"neutral": 0.2, "entailment": 0.74, "contradiction": 0.06},
    "base": {"entailment": 0.2, "neutral": 0.45, "contradiction": 0.35},
    "base-4": {"neutral": 0.52, "entailment": 0.31, "contradiction": 0.17},
}


def token(text: str, number: int) -> dict[str, Any]:
    probability = (0.97, 0.72, 0.41, 0.18, 0.06, 0.93)[number % 6]
    others = [("the", 0.5), (" a", 0.3), ("</b>", 0.2)]
    top = [(text, probability), *((other, (1 - probability) * part) for other, part in others)]
    top.sort(key=lambda one: -one[1])
    return {
        "text": text,
        "logprob": math.log(probability),
        "top": [{"text": one, "logprob": math.log(part)} for one, part in top],
    }


def answer(task: dict[str, Any], arm: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    given = " ".join(text if isinstance(text, str) else " ".join(text) for text in row.values())
    classes = CLASSES[arm["name"]] if task["is_closed"] else None
    if SCRIPT in given:
        text = SCRIPT
    elif classes:
        text = max(classes, key=lambda word: classes[word])
    else:
        text = ANSWERS[task["name"]]
        text = text if arm["kind"] == "tuned" else f"{text} {text} {text}"
    pieces = [text[:5], text[5:]] if classes else [one + " " for one in text.split(" ")]
    shown = DEMONSTRATIONS[: arm["shots"]]
    return {
        "prediction": text,
        "completion": text if arm["kind"] != "prompted" else f" {text}\n\nPremise: and more",
        "finish_reason": "length" if arm["name"] == "base" and not classes else "stop",
        "classes": classes,
        "prompt": "\n\n".join([*shown, json.dumps(row, ensure_ascii=False)]),
        "demonstrations": shown,
        "is_truncated": len(given) > 2000,
        "tokens": [token(piece, number) for number, piece in enumerate(pieces) if piece],
        "ms": 41.7 if arm["kind"] == "tuned" else 1312.0,
    }


def error(status: int, message: str) -> JSONResponse:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status_code=status)


def app(root: Path, key: str | None = None) -> FastAPI:
    """The page, its run data, and canned answers; `app.state.asked` holds the bodies of all predictions."""
    made = FastAPI()
    made.state.asked = []
    made.state.cancelled = 0
    made.include_router(runs.make_router(root))
    made.mount("/page", StaticFiles(directory=PAGE))

    @made.middleware("http")
    async def check(request: Request, call_next: Any) -> Response:
        if key and request.url.path.startswith("/v1/") and request.headers.get("Authorization") != f"Bearer {key}":
            return error(401, "a valid API key is needed")
        response: Response = await call_next(request)
        return response

    @made.get("/")
    def playground() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @made.get("/runs")
    def run_page() -> FileResponse:
        return FileResponse(PAGE / "runs.html")

    @made.get("/v1/tasks")
    def tasks() -> dict[str, Any]:
        return {"tasks": TASKS}

    @made.post("/v1/tasks/{name}/predict", response_model=None)
    async def predict(name: str, request: Request) -> Response | dict[str, Any]:
        body = await request.json()
        made.state.asked.append(body)
        task = next(one for one in TASKS if one["name"] == name)
        arm = next(one for one in ARMS if one["name"] == body["arm"])
        (row,) = body["rows"]
        given = json.dumps(row)
        if "busy" in given:
            return error(429, "the queue is full (64 requests)")
        found = answer(task, arm, row)
        if not body["stream"]:
            await asyncio.sleep(0.2)
            return {"task": name, "arm": arm["name"], "predictions": [found]}

        async def events() -> AsyncIterator[str]:
            try:
                for one in found["tokens"]:
                    yield f"data: {json.dumps({'text': one['text'], 'token': one})}\n\n"
                    await asyncio.sleep(0.5 if "slow" in given else 0.01)
                    if "break" in given:
                        broken = {
                            "message": "the model was unloaded",
                            "type": "server_error",
                            "param": None,
                            "code": None,
                        }
                        yield f"data: {json.dumps({'error': broken})}\n\n"
                        return
                yield f"data: {json.dumps({'prediction': found})}\n\n"
                yield "data: [DONE]\n\n"
            except asyncio.CancelledError:
                made.state.cancelled += 1
                raise

        return StreamingResponse(events(), media_type="text/event-stream")

    return made


@contextmanager
def served(made: FastAPI) -> Iterator[str]:
    """The address of the app, served from a thread."""
    server = uvicorn.Server(uvicorn.Config(made, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(1000):
        if server.started:
            break
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def write_run(folder: Path, num_lines: int = 40, *, is_done: bool = True, max_steps: int | None = None) -> None:
    """A run's files: losses that fall, three validations, two predictions with a script in them."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for number in range(1, num_lines + 1):
        step, fall = 20 * number, math.exp(-number / 12)
        wave = 0.1 * math.sin(number * 1.7)
        loss = {
            "nli": 0.55 + 6 * fall * fall + wave,
            "summ": 2.2 + 6 * fall + wave,
            "cls": 0.3 + 5 * fall**3 + wave / 2,
        }
        lines.append(
            {
                "event": "step",
                "step": step,
                **({} if max_steps is None else {"max_steps": max_steps}),
                "tokens": 4096 * step,
                "loss": loss,
                "learning_rate": 0.003 * min(1, number / 5) * (1 - number / (num_lines + 1)),
                "epochs": {"nli": number / 100},
                "tokens_per_s": 9800 + 300 * math.sin(number),
                "peak_memory_bytes": 10**9,
            }
        )
        if number % 10 == 0:
            lines.append(
                {
                    "event": "validation",
                    "step": step,
                    "tokens": 4096 * step,
                    "loss": {k: v + 0.1 for k, v in loss.items()},
                    "score": {"nli": 0.4 + number / 100, "summ": 0.2 + number / 300, "cls": 0.6 + number / 200},
                    "is_best": True,
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    if not is_done:
        return
    metrics = {
        "accuracy": {"value": 0.8123, "low": 0.79, "high": 0.83},
        "macro_f1": {"value": 0.8, "low": 0.78, "high": 0.82},
    }
    results = {
        "schema": 2,
        "kind": "train",
        "arm": "multitask",
        "model": {"name": f"{HOME}/model"},
        "config": {"data": {"root": f"{HOME}/data"}},
        "seed": 7,
        "tasks": {
            "nli": {"num_examples": 80, "metrics": metrics},
            "gen": {"generation": {"sample": ["정말 좋은 영화다.", SCRIPT]}},
        },
        "cost": {"tokens_per_s": 9012.5},
    }
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    (folder / "predictions").mkdir()
    rows = [
        {
            "id": "1",
            "prompt": "A man sleeps.<|sep|>Someone is asleep.<|nli|>",
            "prediction": "entailment",
            "references": ["entailment"],
            "where": f"{HOME}/data/nli.jsonl:1",
        },
        {
            "id": "2",
            "prompt": SCRIPT,
            "prediction": SCRIPT,
            "references": ["neutral"],
            "where": f"{HOME}/data/nli.jsonl:2",
        },
    ]
    (folder / "predictions" / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
