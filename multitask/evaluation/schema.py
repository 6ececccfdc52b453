"""Results files as pydantic models: built and read through the same classes.

`Results.model_validate_json(path.read_text())`; `docs/results.schema.json` is the JSON schema of `Results`.
"""

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from multitask.events import Json

SCHEMA = 2
"""Version of the format."""
READABLE = (1, 2)
"""1, of the release before, wrote num_cut, num_refused and hygiene."""


class _Part(BaseModel):
    """Frozen; keys that a later release adds are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def to_json(self) -> Json:
        """As JSON holds it: what was set, by its name in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Score(_Part):
    """A score with its 95 % interval over rows."""

    value: float
    low: float | None = None
    high: float | None = None


class Spread(_Part):
    """A mean over draws of demonstrations, their standard deviation, and the 95 % interval over rows."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


class Draw(_Part):
    """One set of demonstrations and the score with it."""

    seed: int | None = None
    value: float
    num_fitted: float | None = None
    """Demonstrations that fit the context window, on average."""


class Selection(_Part):
    """How prompts of one language are written with one number of demonstrations, and the scores that decided it.

    The scores are of the task's first metric, with the first draw of demonstrations, on rows that are not scored.
    """

    template: str
    """The chosen one."""
    rule: str | None = None
    """Of a closed task, the rule that predicts."""
    split: str | None = None
    """Of the rows that were chosen on; None: nothing was chosen."""
    num_rows: int = 0
    templates: dict[str, float] = {}
    """The score of each template; of a closed task that of its best rule."""
    rules: dict[str, float] = {}
    """Of a closed task, the chosen template's score with each rule."""


class Shots(Spread):
    """Scores with one number of demonstrations, over draws; mean, sd, low and high are those of `metric`."""

    metric: str
    draws: list[Draw] = []
    num_unfinished: int = 0
    """Generated answers that nothing ended within `max_new_tokens`, of all draws."""
    num_empty: int = 0
    """Generated answers without text, of all draws."""
    num_unscored: int = 0
    metrics: dict[str, Spread] = {}
    rules: dict[str, Spread] = {}
    """Of a closed task: the score with each rule that turns likelihoods of choices into a prediction."""
    selection: dict[str, Selection] = {}
    """By language: the chosen template and rule."""
    by_template: dict[str, Spread] = {}
    """With `fewshot.templates: all`: scores of each template on the same rows, with the chosen rule; none was chosen by
    them."""


class FreeAnswers(_Part):
    """A closed task answered by free generation: how many answers are outside the closed set."""

    num: int
    num_outside: int


class GeneratedTexts(_Part):
    """Sampled texts, described: descriptors of each text on average, and of all together."""

    num_texts: int
    num_unfinished: int
    sample: list[str]
    distinct1: float
    distinct2: float
    repetition: float
    length: float
    corpus_distinct1: float
    corpus_distinct2: float
    label_agreement: float | None = None
    """How often the model, prompted as a closed task, gives a text the label that it was generated for."""
    num_labelled: int | None = None


class Confusion(_Part):
    """Counts by gold class (rows) and predicted class (columns, the last one: outside the set)."""

    classes: list[str]
    counts: list[list[int]]


class TaskScores(_Part):
    """One task's part of a results file."""

    num_examples: int = 0
    num_unfinished: int = 0
    """Generated answers that did not end within `max_new_tokens`."""
    num_empty: int = 0
    """Generated answers without text."""
    num_unscored: int = 0
    """Rows whose target does not fit the block size behind its prompt, so that it has no likelihood."""
    separator: str | None = None
    """Of prompted models: what stands between demonstrations."""
    metrics: dict[str, Score] = {}
    by_language: dict[str, dict[str, float]] = {}
    confusion: Confusion | None = None
    hub_metrics: dict[str, dict[str, float]] = {}
    baselines: dict[str, dict[str, Score]] = {}
    num_baseline_rows: int | None = None
    """Training rows that the baselines were fitted on, where they are an evenly spaced sample; None: all."""
    free_answers: FreeAnswers | None = None
    generation: GeneratedTexts | None = None
    per_shot: dict[int, Shots] = {}
    bigram_entropy: float | None = None
    """Of a plain text corpus: nats of the next token given the current one, by counts."""
    sample: str | None = None
    """Of a plain text corpus: a text that the model generated."""


class Contamination(_Part):
    """Overlap of the evaluated rows with the training rows, by n-grams of words."""

    num_train: int = 0
    """Training rows that were compared: the first million, where there are more."""
    num_test: int = 0
    num_duplicates: int = 0
    ngram: int = 0
    num_short: int = 0
    num_ngrams: int = 0
    overlap: float = 0
    num_contained: int = 0


class Data(_Part):
    """Which rows were scored: names and SHA-256 of files, the split, and counts."""

    files: list[str] = []
    sha256: list[str] = []
    revision: str | None = None
    split: str
    num_rows: int
    num_truncated: int = Field(0, validation_alias=AliasChoices("num_truncated", "num_cut"))
    num_dropped: int = Field(0, validation_alias=AliasChoices("num_dropped", "num_refused"))
    """Rows that cannot be encoded: too long without a field to truncate, or without a token of prompt or target."""
    num_skipped: int = 0
    """Rows that cannot be used, under `on_bad_row: skip`, and rows of `skip_labels`."""
    num_chars_lost: int = 0
    chars_lost: dict[str, int] = {}
    unused_labels: list[str] = []
    """Of a closed task's encoded rows: words of classes that no row has."""
    num_tokens: int | None = None
    contamination: Contamination | None = Field(None, validation_alias=AliasChoices("contamination", "hygiene"))
    train: "Data | None" = None
    num_documents: int | None = None
    num_characters: int | None = None
    num_bytes: int | None = None
    num_words: int | None = None
    num_unknown: int | None = None


class Model(_Part):
    """Which model was scored."""

    name: str


class Hardware(_Part):
    """Where it ran; gpu: its name, where one was used."""

    machine: str | None = None
    num_threads: int | None = None
    num_cpus: int | None = None
    gpu: str | None = None


class Cost(_Part):
    """What it took, in seconds, tokens and bytes."""

    wall_s: float | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    train_s: float | None = None
    steps: int | None = None
    best_step: int | None = None
    epochs: dict[str, float] = {}
    sampling_rates: dict[str, float] = Field({}, validation_alias=AliasChoices("sampling_rates", "shares"))


class PlainText(_Part):
    """Sliding-window perplexity of a plain text (`evaluate --text`)."""

    file: str
    perplexity: float
    word_perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_scored: int
    num_words: int
    num_bytes: int
    num_windows: int
    window: int
    stride: int


class Results(_Part):
    """A results file."""

    schema_version: int = Field(SCHEMA, alias="schema")
    kind: str
    """train, pretrain, evaluate, fewshot, baseline."""
    arm: str
    """What a report calls the run."""
    model: Model = Model(name="")
    config: Json = {}
    """All settings, as used."""
    versions: dict[str, str] = {}
    commit: str | None = None
    hardware: Hardware = Hardware()
    seed: int
    data: dict[str, Data]
    """By task, or `text`."""
    tasks: dict[str, TaskScores]
    cost: Cost = Cost()
    text: PlainText | None = None
