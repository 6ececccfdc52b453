"""Typed settings: every default and every meaning once. YAML sets fields, dotted `--set` flags win.

`loading.load(RunConfig, {"train": {"learning_rate": 3e-4}}, ["train.clip_norm=0.5"])` -> one frozen `RunConfig`, or one
`InputError` that lists every problem with its path.
"""
