"""Hours and cost of a run by size of the model, tokens and GPUs: writes the tables of `docs/scaling.md`.

`hours(SIZES["124M"], 1e9, 1)` -> 0.7: FLOPs of a token times tokens, over the rate at which one H200 was measured to
compute packed rows of GPT-2 124M (`benchmarks/gpu.md`). What was not measured is a formula, and says so.
"""

from dataclasses import dataclass
from pathlib import Path

RATE = 0.425 * 780e12
"""FLOP/s of one H200: MFU times the measured peak (`benchmarks/gpu.md`, passes of 32,768 tokens, compiled blocks)."""
PRICE = 3.0
"""US dollars of one GPU for an hour: put in your own."""
WINDOW = 1024
NVLINK, NETWORK = 450e9, 50e9
"""Bytes/s that a GPU sends: NVLink 4 (900 GB/s in both directions), and one 400 Gbit/s port for each GPU."""
NODE = 8
STEP_TOKENS = 524_288
"""Of a step, over all GPUs: GPT-2's and GPT-3's small models were trained with about half a million."""


@dataclass(frozen=True)
class Size:
    """A GPT-2 shape: layers, width, and words of the tokenizer."""

    layers: int
    width: int
    words: int = 50257

    @property
    def parameters(self) -> float:
        """12 C^2 a layer, and the embedding, which is the output matrix, too."""
        return 12.0 * self.layers * self.width**2 + self.words * self.width

    @property
    def flops(self) -> float:
        """Of a token, forward and backward: 6 a parameter, and 6 L C T of causal attention (Kaplan et al., 2020)."""
        return 6 * self.parameters + 6 * self.layers * self.width * WINDOW


SIZES = {"124M": Size(12, 768), "355M": Size(24, 1024), "774M": Size(36, 1280), "1.5B": Size(48, 1600)}


def hours(size: Size, tokens: float, gpus: int) -> float:
    """Hours of compute, communication not counted."""
    return tokens * size.flops / RATE / gpus / 3600


def seconds(size: Size, gpus: int) -> float:
    """Of compute in one step of `STEP_TOKENS`."""
    return STEP_TOKENS * size.flops / RATE / gpus


def sent(size: Size, gpus: int, is_sharded: bool) -> float:
    """Bytes that each GPU sends in a step.

    DDP: a ring all-reduce of float32 gradients sends 2 (G - 1) / G of them (Patarasuk & Yuan, 2009). FSDP: weights are
    gathered twice in bf16 and gradients scattered once in float32 (Zhao et al., 2023), (G - 1) / G of each.
    """
    part = (gpus - 1) / gpus
    return part * size.parameters * (2 + 2 + 4 if is_sharded else 2 * 4)


def transfer(size: Size, gpus: int, is_sharded: bool) -> float:
    """Seconds to send them: within a node by NVLink, else as fast as the network between nodes."""
    return sent(size, gpus, is_sharded) / (NVLINK if gpus <= NODE else NETWORK)


def state(size: Size, gpus: int = 1) -> float:
    """Bytes of weights, gradients and AdamW's two moments in float32, on each of so many GPUs that share them."""
    return 16 * size.parameters / gpus


def _time(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:,.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


def one_gpu() -> list[str]:
    """The table of hours and cost on one GPU."""
    lines = [
        "| parameters | FLOPs a token | tokens/s | 10^8 tokens | 10^9 | 10^10 | 10^11 | 10^12 | weights and AdamW |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, size in SIZES.items():
        taken = [hours(size, tokens, 1) for tokens in (1e8, 1e9, 1e10, 1e11, 1e12)]
        times = " | ".join(f"{_time(each)}, ${each * PRICE:,.0f}" for each in taken)
        rate = f"{size.flops / 1e9:.2f} G | {RATE / size.flops:,.0f}"
        lines.append(f"| {name} | {rate} | {times} | {state(size) / 1e9:.0f} GB |")
    return lines


def several_gpus() -> list[str]:
    """The table of a step's compute and communication."""
    lines = [
        "| parameters | GPUs | tokens of each | compute | DDP sends | efficiency >= | FSDP sends | 10^10 | 10^12 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, size in SIZES.items():
        for gpus in (8, 64, 256, 1024):
            parts = seconds(size, gpus), transfer(size, gpus, False), transfer(size, gpus, True)
            compute, ddp, fsdp = (f"{part * 1e3:,.0f} ms" for part in parts)
            least = parts[0] / (parts[0] + parts[1])
            times = " | ".join(_time(hours(size, tokens, gpus) / least) for tokens in (1e10, 1e12))
            lines.append(
                f"| {name} | {gpus:,} | {STEP_TOKENS // gpus:,} | {compute} | {ddp} | {least:.2f} | {fsdp} | {times} |"
            )
    return lines


def page(text: str) -> str:
    """The page with its tables written anew."""
    for name, lines in {"one GPU": one_gpu(), "several GPUs": several_gpus()}.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = before + f"<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    return text


def main() -> None:
    """Writes the tables of the page."""
    path = Path(__file__).parent.parent / "docs" / "scaling.md"
    path.write_text(page(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
