"""Pretraining speed: beside a loop written by hand and Hugging Face's Trainer; and how fast text becomes token ids.

`python benchmarks/pretrain.py --rounds 3` trains the two shapes of `configs/korean_pretrain.yaml` and
`configs/shakespeare.yaml` on the same blocks in the same order, arms in turns, each time in a process of its own; it
checks that all arms compute the same losses, encodes 18 MB of text beside the `tokenizers` library alone, and writes
`benchmarks/pretrain.md`:

| arm | tokens/s | speed-up of ours | peak memory |

`make bench-pretrain` makes the environment.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import Clock, commit, processor, run_arm

SEED = 7
SHAPES = {"korean": "korean_pretrain", "shakespeare": "shakespeare"}
STEPS = {"korean": (10, 30), "shakespeare": (50, 300)}  # of one log line, which come first, and those that are timed
OURS, PLAIN, TRAINER = "ours", ("plain sdpa", "plain eager"), ("trainer sdpa", "trainer eager")
CHECKED_STEPS = 5
MOST_NATS = 1e-4  # two losses further apart than this are not equal
TEXTS = ("lm_en_wikitext2", "lm_ko_kaist", "lm_ko_novels")
REPEATS = 4  # of these files, about 18 MB
LIBRARY = ("encode_batch", "encode_batch_fast")
ENCODING = {  # what a document is: ours, and the library's ways
    "files": (OURS, LIBRARY),
    "lines": (f"{OURS}, lines", tuple(f"{name}, lines" for name in LIBRARY)),
}
SPIN = {"GOMP_SPINCOUNT": "10000"}  # for all arms, as the command line of ours sets it
TARGETS = {"plain": 1.0, "trainer": 1.3, "encoding": 0.9}


# ----------------------------------------------------------------------------------------------------- what all share


def prepare(work: Path, root: Path, num_steps: dict[str, tuple[int, int]], num_repeats: int) -> dict[str, Any]:
    """Writes each shape's model and blocks, and the text to encode in pieces and lines; returns facts."""
    shapes = {name: _prepare_shape(work / name, root, name, *num_steps[name]) for name in SHAPES}
    return {"shapes": shapes, "text": _prepare_text(work, root, num_repeats)}


def _prepare_shape(here: Path, root: Path, name: str, num_warm: int, num_timed: int) -> dict[str, Any]:
    """`model/`, with tokenizer, `facts.json`, and `blocks.npy`, (steps * blocks, T + 1), as `pretrain` draws them."""
    from multitask.batching.text_blocks import TextStream
    from multitask.config.loading import load, merged, read_yaml
    from multitask.config.run import PretrainConfig
    from multitask.device import choose_device, choose_precision
    from multitask.files import shipped
    from multitask.models.build import build_model
    from multitask.pattern import markers
    from multitask.registry import load_tasks
    from multitask.tokenization import train as tokenization_train
    from multitask.tokenization.token_file import token_file

    given = read_yaml(shipped("configs") / f"{SHAPES[name]}.yaml")
    given = merged(given, {"seed": SEED, "text": {"root": str(root), "cache": str(here / "cache")}})
    config = load(PretrainConfig, given)
    tasks = load_tasks() if config.tokenizer.tasks == "all" else {}
    tokenization_train.tokenizer(config.tokenizer, config.text, markers(tasks), here / "model")
    tokenizer = _tokenizer(here / "model")
    model, _ = build_model(config.model, tokenizer, [], SEED)
    model.save_pretrained(here / "model")
    tokens = token_file(tokenizer, config.text, "train")
    token_file(tokenizer, config.text, "validation")
    train = config.train
    block_size = train.block_size or model.config.n_positions
    num_blocks = train.batch_tokens // block_size
    stream = TextStream(tokens.ids, block_size, SEED, train.stride, train.blocks == "random")
    drawn = [d for block in stream.next_blocks((num_warm + num_timed) * num_blocks) for d in block]
    np.save(here / "blocks.npy", np.stack([stream.example(d)[0] for d in drawn]))
    facts = {
        "settings": given,
        "num_warm": num_warm,
        "num_steps": num_warm + num_timed,
        "log_every": num_warm,
        "usual_log_every": train.log_every_steps,
        "block_size": block_size,
        "num_blocks": num_blocks,
        "precision": choose_precision("auto", choose_device("cpu"), model.config.n_embd),
        "learning_rate": train.learning_rate,
        "betas": [train.beta1, train.beta2],
        "clip_norm": train.clip_norm,
        "dropout": config.model.dropout,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": f"{model.config.n_layer} layers, width {model.config.n_embd}, {model.config.n_head} heads, "
        f"{len(tokenizer):,} tokens",
        "files": tokens.report["files"],
    }
    (here / "facts.json").write_text(json.dumps(facts), "utf-8")
    return facts


def _tokenizer(folder: Path) -> Any:
    from multitask.tokenization.tokenizer import load_tokenizer

    return load_tokenizer(str(folder))


def _prepare_text(work: Path, root: Path, num_repeats: int) -> dict[str, Any]:
    """`names.json`: files for ours to read; `files.json`, in pieces, and `lines.json`: what the library is given."""
    from multitask.tokenization.chunks import pieces
    from multitask.tokenization.token_file import _PIECE
    from multitask.tokenization.tokenizer import plain_reader

    names = sorted(path.name for start in TEXTS for path in root.glob(f"{start}.*.txt")) * num_repeats
    texts = [(root / name).read_text("utf-8") for name in names]
    plain = plain_reader(_tokenizer(work / "korean" / "model"))
    cut = [piece for text in texts for piece in pieces([text], plain, _PIECE)]
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    for name, found in {"names": names, "files": cut, "lines": lines}.items():
        (work / f"{name}.json").write_text(json.dumps(found), "utf-8")
    return {
        "files": len(names) // num_repeats,
        "repeats": num_repeats,
        "bytes": sum(len(text.encode()) for text in texts),
        "pieces": len(cut),
        "lines": len(lines),
    }


# --------------------------------------------------------------------------------------------- one process: training


class _Run:
    """One arm's settings; `losses` are nats per token of each log line, `result` what the clock said at the end."""

    def __init__(self, here: Path, out: Path, *, is_check: bool = False) -> None:
        self.facts = json.loads((here / "facts.json").read_text("utf-8"))
        self.model, self.out = here / "model", out
        self.blocks = np.load(here / "blocks.npy", mmap_mode="r")
        if is_check:
            # Dropout draws other masks in each arm, and bf16 rounds otherwise in each attention.
            self.facts |= {"precision": "fp32", "dropout": 0.0, "log_every": 1, "num_warm": 1}
            self.facts["num_steps"] = min(CHECKED_STEPS, self.facts["num_steps"])
        self.losses: list[float] = []
        self.result: dict[str, float] = {}
        self._clock: Clock | None = None

    def reached(self, step: int) -> None:
        """Starts and stops the clock."""
        first, last = self.facts["num_warm"], self.facts["num_steps"]
        if step == first:
            self._clock = Clock()
        elif step == last and self._clock is not None:
            num_tokens = (last - first) * self.facts["num_blocks"] * self.facts["block_size"]
            self.result = self._clock.result("tokens", num_tokens)

    def load(self, attention: str) -> Any:
        """The model of transformers, with an attention of its own."""
        from transformers import GPT2LMHeadModel

        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), self.facts["dropout"])
        return GPT2LMHeadModel.from_pretrained(self.model, attn_implementation=attention, use_cache=False, **drop)


class _Enough(Exception):
    """Leaves `pretrain` from inside its progress report, before it validates."""


def run_ours(run: _Run) -> None:
    """This project's loop as `run.py pretrain` runs it."""
    from multitask.api import pretrain
    from multitask.config.loading import merged

    facts = run.facts

    def report(record: Any) -> None:
        if record["event"] != "step":
            return
        run.losses.append(record["loss"]["text"])
        run.reached(record["step"])
        if record["step"] == facts["num_steps"]:
            raise _Enough

    settings = merged(
        {key: value for key, value in facts["settings"].items() if key != "model"},
        {
            "device": "cpu",
            "model": {"name": str(run.model), "dropout": facts["dropout"]},
            "train": {
                "max_steps": facts["num_steps"],
                "precision": facts["precision"],
                "learning_rate": facts["learning_rate"],
                "schedule": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "log_every_steps": facts["log_every"],
                "eval_every_steps": 10**6,
                "save_every_steps": 0,
            },
        },
    )
    try:
        pretrain(settings, out=run.out, report=report)
    except _Enough:
        return
    raise AssertionError("the run reported no last step")


def run_plain(run: _Run, attention: str) -> None:
    """The loop that one writes by hand."""
    import torch

    facts = run.facts
    model = run.load(attention).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=facts["learning_rate"], betas=facts["betas"], weight_decay=0.0, fused=True
    )
    torch.manual_seed(SEED)
    losses = []
    for step in range(facts["num_steps"]):
        rows = slice(step * facts["num_blocks"], (step + 1) * facts["num_blocks"])
        ids = torch.from_numpy(run.blocks[rows].astype(np.int64))
        read, following = ids[:, :-1], ids[:, 1:].contiguous()
        # The id after a block is a label too, hence `shift_labels`; without `labels` there is no loss.
        with torch.autocast("cpu", torch.bfloat16, enabled=facts["precision"] == "bf16"):
            loss = model(input_ids=read, labels=following, shift_labels=following).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), facts["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        run.reached(step + 1)
    run.losses = [float(loss) for loss in losses]


def run_trainer(run: _Run, attention: str) -> None:
    """Hugging Face's Trainer over a list of blocks that are tensors already."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    facts = run.facts

    class Blocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(run.blocks)

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(run.blocks[number].astype(np.int64))
            return {"input_ids": ids[:-1], "labels": ids[1:], "shift_labels": ids[1:]}

    class Timing(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:  # not the summary at the end
                run.losses.append(float(logs["loss"]))
                run.reached(state.global_step)

    Trainer(
        model=run.load(attention),
        args=TrainingArguments(
            output_dir=str(run.out),
            per_device_train_batch_size=facts["num_blocks"],
            max_steps=facts["num_steps"],
            learning_rate=facts["learning_rate"],
            adam_beta1=facts["betas"][0],
            adam_beta2=facts["betas"][1],
            weight_decay=0.0,
            max_grad_norm=facts["clip_norm"],
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            bf16=facts["precision"] == "bf16",
            use_cpu=True,
            logging_steps=facts["log_every"],
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,  # it would drop `shift_labels`
            train_sampling_strategy="sequential",
            seed=SEED,
        ),
        train_dataset=Blocks(),
        callbacks=[Timing()],
    ).train()


def train_arm(arm: str, run: _Run) -> None:
    """Runs an arm of training."""
    kind, _, attention = arm.partition(" ")
    if kind == OURS:
        run_ours(run)
    else:
        {"plain": run_plain, "trainer": run_trainer}[kind](run, attention)


def run_training(work: Path, shape: str, arm: str) -> dict[str, float]:
    """One arm, on the clock."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        run = _Run(work / shape, Path(out) / "run")
        train_arm(arm, run)
    return run.result


def run_check(work: Path, shape: str) -> dict[str, list[float]]:
    """Losses of each arm's first steps, fp32 and without dropout."""
    losses = {}
    for arm in (OURS, *PLAIN, *TRAINER):
        with tempfile.TemporaryDirectory(dir=work) as out:
            run = _Run(work / shape, Path(out) / "run", is_check=True)
            train_arm(arm, run)
            losses[arm] = run.losses
    return losses


# --------------------------------------------------------------------------------------------- one process: encoding


def run_encoding(work: Path, root: Path, arm: str) -> dict[str, Any]:
    """Encodes the text; `digest` is of the ids without what stands between documents."""
    num_bytes = json.loads((work / "facts.json").read_text("utf-8"))["text"]["bytes"]
    if arm.startswith(OURS):
        return _encode_to_file(work, root, arm.endswith("lines"), num_bytes)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "korean" / "model" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # markers in the text are text, as in ours
    name, _, kind = arm.partition(", ")
    texts = json.loads((work / f"{kind or 'files'}.json").read_text("utf-8"))
    encode: Callable[..., Any] = getattr(tokenizer, name)
    clock = Clock()
    encodings = encode(texts, add_special_tokens=False)
    result = clock.result("bytes", num_bytes)
    ids = np.concatenate([np.array(encoded.ids, "<u2") for encoded in encodings])
    return {**result, "digest": hashlib.sha256(ids.tobytes()).hexdigest(), "num_tokens": len(ids)}


def _encode_to_file(work: Path, root: Path, is_by_line: bool, num_bytes: int) -> dict[str, Any]:
    from multitask.config.data import TextConfig
    from multitask.tokenization.token_file import token_file

    tokenizer = _tokenizer(work / "korean" / "model")
    with tempfile.TemporaryDirectory(dir=work) as cache:
        config = TextConfig(
            files={"train": json.loads((work / "names.json").read_text("utf-8"))},
            root=root,
            documents="line" if is_by_line else "file",
            validation=0,
            cache=Path(cache),
        )
        clock = Clock()
        tokens = token_file(tokenizer, config, "train")
        result = clock.result("bytes", num_bytes)
        ids = np.array(tokens.ids[tokens.ids != tokens.after_id])
    return {**result, "digest": hashlib.sha256(ids.tobytes()).hexdigest(), "num_tokens": len(ids)}


# ------------------------------------------------------------------------------------------------------------ all arms


def run_child(work: Path, root: Path, part: str, arm: str) -> dict[str, Any]:
    """One arm of a part in its own process."""
    environment = SPIN | {"XDG_CACHE_HOME": str(work / "home")}
    return run_arm(__file__, arm, work, {"--part": part, "--data": str(root)}, environment)


def measure(
    work: Path, root: Path, num_rounds: int
) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], dict[str, dict[str, list[float]]]]:
    """Runs of every arm by part (a shape, or `encoding`), and by shape the losses of each arm's first steps.

    Where another's work can be done in two ways, both are tried in the first round, and from then on the faster one.
    The Trainer gets the attention of the faster plain loop.
    """
    losses = {shape: run_child(work, root, shape, "check") for shape in SHAPES}
    print(json.dumps(losses), flush=True)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {part: defaultdict(list) for part in (*SHAPES, "encoding")}

    def take(part: str, arms: Sequence[str]) -> None:
        for arm in arms:
            results[part][arm].append(run_child(work, root, part, arm))
            print(f"{part}, {arm}, {len(results[part][arm])}: {json.dumps(results[part][arm][-1])}", flush=True)

    def left(part: str, ways: Sequence[str]) -> Sequence[str]:
        return [faster(results[part], ways)] if ways[0] in results[part] else ways

    for _ in range(num_rounds):
        for shape in SHAPES:
            take(shape, [OURS, *left(shape, PLAIN)])
            take(shape, [TRAINER[PLAIN.index(faster(results[shape], PLAIN))]])
        for ours, ways in ENCODING.values():
            take("encoding", [ours, *left("encoding", ways)])
    return results, losses


def speed(run: dict[str, Any]) -> float:
    """Tokens or bytes per second."""
    return float(next(value for key, value in run.items() if key.endswith("_per_s")))


def faster(results: dict[str, list[dict[str, Any]]], ways: Sequence[str]) -> str:
    """The way that was the fastest in the first round."""
    return max(ways, key=lambda arm: speed(results[arm][0]))


def furthest(losses: dict[str, list[float]]) -> float:
    """Largest difference between ours and any other arm's losses; infinite when their numbers differ."""
    if len({len(found) for found in losses.values()}) > 1:
        return float("inf")
    ours = np.array(losses[OURS])
    return max(float(np.abs(ours - np.array(found)).max()) for found in losses.values())


# ---------------------------------------------------------------------------------------------------------- the report


def markdown(
    results: dict[str, dict[str, list[dict[str, Any]]]],
    losses: dict[str, dict[str, list[float]]],
    facts: dict[str, Any],
    command: str,
    notes: Sequence[str],
) -> str:
    """The report: what was measured, on what, how, and what came out."""
    encoding, text = results["encoding"], facts["text"]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("multitask", "torch", "transformers", "accelerate", "tokenizers")
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    return "\n".join(
        [
            "# Pretraining speed",
            "",
            *(_training_summary(shape, results[shape]) for shape in SHAPES),
            *(
                f"- Encoding to the token file, {kind} as documents: {_ratio(encoding, ours, faster(encoding, ways))} "
                f"the rate of `{faster(encoding, ways).partition(',')[0]}` (target: {TARGETS['encoding']})."
                for kind, (ours, ways) in ENCODING.items()
            ),
            "",
            *(line for shape in SHAPES for line in [*_table(f"training, {shape}", results[shape], "tokens/s", 1), ""]),
            *_table("encoding", encoding, "MB/s", 1e6),
            "",
            "- ours: `multitask.api.pretrain`, logging to its file; `multitask.tokenization.token_file.token_file` "
            "with an empty cache.",
            "- plain: `GPT2LMHeadModel` with labels, backward, clipping, AdamW (fused), and no logging, with either of "
            "the attention implementations that transformers has for a CPU; blocks are sampled beforehand, which ours "
            "does during training.",
            "- trainer: `Trainer`, logging as ours, no progress bar, its default data loader, over blocks sampled "
            "beforehand; with the attention of the faster plain loop.",
            "- encode_batch, encode_batch_fast (without offsets): the `tokenizers` library alone, in one call over all "
            f"text in memory: the {text['pieces']:,} pieces that ours splits files into, or {text['lines']:,} "
            "non-empty lines. Reading text, extracting ids from its encodings, counting and writing are not included; "
            "in ours they are.",
            "",
            "## Equal results",
            "",
            f"Losses of the first {len(losses['korean'][OURS])} steps from the same weights, fp32, no dropout; "
            f"equal: no arm differs from ours by more than {MOST_NATS:g}. Losses are shown with five decimals.",
            "",
            *(line for shape in SHAPES for line in [*_losses(shape, losses[shape]), ""]),
            *(_ids_agree(kind, encoding) for kind in ENCODING),
            "",
            "## How it was measured",
            "",
            f"- n = {len(encoding[OURS])} rounds, arms interleaved, each run in its own process. Where another "
            "library has two ways, both run in the first round, afterwards only the faster one. Timed from the first "
            "log line to the last, logging included; imports, loading, the first steps, validation and "
            "saving are not included. The column per CPU second divides by the process's CPU time instead, which is "
            "less affected by other work on the machine. Peak memory is the process's largest resident set, including "
            "imports and all text or blocks in memory, the largest of its rounds.",
            *(f"- {shape}: {_describe(shape, facts['shapes'][shape])}" for shape in SHAPES),
            f"- All arms: fused AdamW with a constant learning rate and without weight decay (the Trainer would apply "
            f"it to other parameters than ours), bf16 as autocast over fp32 weights, the same weights at the start "
            f"(seed "
            f"{SEED}), `gelu_pytorch_tanh`, no key-value cache; {' '.join(f'`{k}={v}`' for k, v in SPIN.items())}, "
            "which our command line sets.",
            f"- Encoding: {text['files']} files ({', '.join(f'{name}.*.txt' for name in TEXTS)}), {text['repeats']} "
            f"times over, {text['bytes'] / 1e6:.1f} MB (of 10^6 bytes), with the Korean shape's byte-level tokenizer.",
            f"- Hardware: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
            f"{f', OMP_NUM_THREADS={threads}' if threads else ''}.",
            f"- Python {platform.python_version()}, {versions}{commit()}.",
            f"- Command: `{command}`",
            *(["", "## Observations", "", *(f"- {note}" for note in notes)] if notes else []),
            "",
        ]
    )


def _training_summary(shape: str, results: dict[str, list[dict[str, Any]]]) -> str:
    plain, trainer = faster(results, PLAIN), next(arm for arm in results if arm in TRAINER)
    return (
        f"- Training, {shape}: {_ratio(results, OURS, plain)} the tokens/s of the plain loop ({plain}; target: "
        f"{TARGETS['plain']}), {_ratio(results, OURS, trainer)} those of `Trainer` ({trainer}; target: "
        f"{TARGETS['trainer']}), {_peak(results[OURS]) / _peak(results[plain]):.2f} and "
        f"{_peak(results[OURS]) / _peak(results[trainer]):.2f} times their peak memory."
    )


def _median(runs: list[dict[str, Any]]) -> float:
    return statistics.median(map(speed, runs))


def _peak(runs: list[dict[str, Any]]) -> float:
    return float(max(run["peak_bytes"] for run in runs) / 2**20)


def _ratio(results: dict[str, list[dict[str, Any]]], ours: str, theirs: str) -> str:
    """`**1.31 times** (by round: 1.30, 1.32)`, of medians."""
    ratio = _median(results[ours]) / _median(results[theirs])
    by_round = [speed(run) / speed(other) for run, other in zip(results[ours], results[theirs], strict=True)]
    return f"**{ratio:.2f} times** (by round: {', '.join(f'{r:.2f}' for r in by_round)})"


def _table(title: str, results: dict[str, list[dict[str, Any]]], unit: str, scale: float) -> list[str]:
    form = ",.0f" if scale == 1 else ",.2f"
    lines = [
        f"| {title} | {unit}, median [min-max] | speed-up of ours | per CPU second | peak memory |",
        "|---|---|---|---|---|",
    ]
    for arm, runs in results.items():
        speeds = [speed(run) / scale for run in runs]
        per_cpu = statistics.median(v for run in runs for key, v in run.items() if key.endswith("_per_cpu_s")) / scale
        ours = f"{OURS}, lines" if arm.endswith(", lines") else OURS
        ratio = "1" if arm == ours else f"{_median(results[ours]) / _median(runs):.2f}"
        lines.append(
            f"| {arm} | {statistics.median(speeds):{form}} [{min(speeds):{form}}-{max(speeds):{form}}] | {ratio} "
            f"| {per_cpu:{form}} | {_peak(runs):,.0f} MiB |"
        )
    return lines


def _losses(shape: str, losses: dict[str, list[float]]) -> list[str]:
    apart = furthest(losses)
    verdict = "equal" if apart <= MOST_NATS else "NOT equal"
    steps = " | ".join(f"step {number + 1}" for number in range(len(losses[OURS])))
    return [
        f"| {shape}: {verdict}, at most {apart:.1e} apart | {steps} |",
        "|---" * (1 + len(losses[OURS])) + "|",
        *(f"| {arm} | {' | '.join(f'{loss:.5f}' for loss in found)} |" for arm, found in losses.items()),
    ]


def _ids_agree(kind: str, encoding: dict[str, list[dict[str, Any]]]) -> str:
    ours, ways = ENCODING[kind]
    is_same = len({run["digest"] for arm in (ours, *ways) for run in encoding[arm]}) == 1
    num_tokens = encoding[ours][0]["num_tokens"]
    return f"- Encoding {kind}: {'the same' if is_same else 'NOT the same'} {num_tokens:,} ids of text in all arms."


def _describe(shape: str, facts: dict[str, Any]) -> str:
    return (
        f"the shape of `configs/{SHAPES[shape]}.yaml`, {facts['parameters'] / 1e6:.2f} M parameters "
        f"({facts['shape']}); steps of {facts['num_blocks']} blocks of {facts['block_size']} tokens of "
        f"{', '.join(facts['files'])}; precision {facts['precision']}, dropout {facts['dropout']}, clipping at "
        f"{facts['clip_norm']}; a log line every {facts['log_every']} steps (as shipped {facts['usual_log_every']}), "
        f"{facts['num_warm']} steps, then {facts['num_steps'] - facts['num_warm']} timed."
    )


@click.command()
@click.option("--rounds", "num_rounds", default=3, show_default=True, help="How often each arm runs.")
@click.option("--data", "root", type=Path, help="Folder of the texts.  [default: MULTITASK_DATA, else ../shared/data]")
@click.option(
    "--out", type=Path, default=Path(__file__).with_suffix(".md"), help="Report.  [default: pretrain.md here]"
)
@click.option("--note", "notes", multiple=True, help="A remark for the report; may be given several times.")
@click.option("--quick", is_flag=True, help="One round of few steps and little text: does it run at all?")
@click.option("--part", type=click.Choice([*SHAPES, "encoding"]), hidden=True)
@click.option(
    "--arm",
    type=click.Choice([*PLAIN, *TRAINER, "check", *(arm for ours, ways in ENCODING.values() for arm in (ours, *ways))]),
    hidden=True,
)
@click.option("--work", type=Path, hidden=True)
def main(
    num_rounds: int,
    root: Path | None,
    out: Path,
    notes: tuple[str, ...],
    quick: bool,
    part: str | None,
    arm: str | None,
    work: Path | None,
) -> None:
    """Tokens per second of pretraining beside a plain loop and Trainer; megabytes per second of encoding text."""
    root = (root or Path(os.environ.get("MULTITASK_DATA") or Path(__file__).parents[2] / "shared" / "data")).resolve()
    if part is not None:
        assert arm is not None
        assert work is not None
        if part == "encoding":
            found: Any = run_encoding(work, root, arm)
        else:
            found = run_check(work, part) if arm == "check" else run_training(work, part, arm)
        print(json.dumps(found))
        return
    wanted = [*(f"{name}.*.txt" for name in TEXTS), "lm_en_tinyshakespeare.txt"]
    missing = [name for name in wanted if not any(root.glob(name))]
    if missing:
        raise click.UsageError(f"{root}: no {', '.join(missing)}; name the folder of the texts with --data")
    num_steps, num_repeats = STEPS, REPEATS
    if quick:
        num_rounds, num_repeats, num_steps = 1, 1, dict.fromkeys(SHAPES, (1, 4))
    command = f"python benchmarks/pretrain.py --rounds {num_rounds}{' --quick' if quick else ''}"
    with tempfile.TemporaryDirectory() as folder:
        facts = prepare(Path(folder), root, num_steps, num_repeats)
        (Path(folder) / "facts.json").write_text(json.dumps(facts), "utf-8")
        print(json.dumps(facts, ensure_ascii=False), flush=True)
        results, losses = measure(Path(folder), root, num_rounds)
    out.write_text(markdown(results, losses, facts, command, notes), "utf-8")
    print(f"wrote {out.name}")
    if max(map(furthest, losses.values())) > MOST_NATS:
        raise click.ClickException(f"the arms do not compute the same losses: see {out.name}")


if __name__ == "__main__":
    main()
