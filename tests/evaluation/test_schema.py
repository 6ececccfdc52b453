"""Results files: the published JSON schema is that of the models; files of the release before are read."""

import json
from typing import Any

from helpers import ROOT

from multitask.evaluation.schema import Data, Results, Score, Shots, TaskScores


def test_the_published_schema_is_that_of_the_models() -> None:
    published = json.loads((ROOT / "docs" / "results.schema.json").read_text("utf-8"))
    assert published == Results.model_json_schema(), (
        "docs/results.schema.json is older than multitask/evaluation/schema.py"
    )


def test_what_is_read_is_what_was_written() -> None:
    shots = Shots(metric="f1", mean=0.5, sd=None, low=0.4, high=0.6, metrics={})
    scores = TaskScores(num_examples=2, metrics={"f1": Score(value=0.5, low=0.0, high=1.0)}, per_shot={4: shots})
    data = Data(files=["a.jsonl"], sha256=["0"], split="test", num_rows=2)
    results = Results(kind="evaluate", arm="tuned", seed=7, data={"qa": data}, tasks={"qa": scores})
    written = json.loads(json.dumps(results.to_json()))
    assert written["tasks"]["qa"]["per_shot"]["4"]["sd"] is None, "what was set to None is written"
    assert "generation" not in written["tasks"]["qa"], "what was not set is left out"
    assert Results.model_validate(written) == results


def test_files_of_the_release_before_are_read() -> None:
    old: dict[str, Any] = {"split": "test", "num_rows": 3, "num_cut": 1, "num_refused": 2, "hygiene": {"num_train": 9}}
    data = Data.model_validate(old)
    assert (data.num_truncated, data.num_dropped) == (1, 2)
    assert data.contamination is not None
    assert data.contamination.num_train == 9
