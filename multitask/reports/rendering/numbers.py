"""How a report writes numbers: `amount(6130688)` -> `"6.13 M"`, `probability(0.0002)` -> `"< 0.001"`."""

COUNTS = ("num_rows", "num_truncated", "num_dropped", "num_skipped", "num_chars_lost")
CONTAMINATION = ("num_duplicates", "num_contained", "ngram", "overlap")
COSTS = ("wall_s", "tokens", "peak_memory_bytes", "trainable_parameters")
"""What a figure shows scores over."""


def number(value: float | None) -> str:
    """As the report prints a score: three decimals, fewer for large ones."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    text = number(abs(value))
    return text if not text.strip("0.") else ("+" if value > 0 else "−") + text


def probability(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: float | None) -> str:
    """A count or a cost, with the unit's usual prefix from a million on."""
    if value is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.2f}"
