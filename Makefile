PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
# One thread a process: two test processes on two cores are faster than one with two threads.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -q

.PHONY: demo test test-slow test-oldest style quality clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$@ -m pip install --quiet --upgrade pip

$(OLDEST)/bin/python:
	$(PYTHON) -m venv $(OLDEST)
	$@ -m pip install --quiet --upgrade pip

# An install is repeated only when what it depends on has changed.
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable ".[$*]"
	touch $@

$(OLDEST)/installed: pyproject.toml | $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pip install --quiet "torch==2.11.*" "transformers==5.17.0" --editable ".[dev]"
	touch $@

demo: $(VENV)/installed-train  ## Fine-tune a small CrossFormer on handwritten digits and classify with it.
	$(VENV)/bin/python examples/digits_demo.py

test: $(VENV)/installed-dev  ## Run the tests, with transformers' own common tests among them.
	$(VENV)/bin/python tests/upstream.py
	$(PYTEST)

test-slow: $(VENV)/installed-dev  ## Run the tests that take minutes.
	$(PYTEST) -m slow

test-oldest: $(OLDEST)/installed  ## Run the tests on the oldest supported versions.
	$(OLDEST)/bin/python tests/upstream.py
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 -q

style: $(VENV)/installed-dev  ## Format the code.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

quality: $(VENV)/installed-dev  ## Check style.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) $(OLDEST) .cache outputs
