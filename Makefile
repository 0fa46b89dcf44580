# Every target makes .venv by itself and installs the tested versions from constraints.txt.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= auto

# The suite starts one process per core; threads inside each would only fight over the same cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --maxprocesses=4 --dist loadfile
BENCHMARKS := $(filter-out benchmarks/_% benchmarks/readme_table.py benchmarks/make_hub.py,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test lint type wheel docs bench hub clean

help:
	@echo 'make demo    learn Two Rooms from pixels and plan through the door (five minutes on two AVX2 cores)'
	@echo 'make test    run the test suite'
	@echo 'make lint    ruff: rules and formatting; the figures in README and docs/results.md'
	@echo 'make type    mypy over jepa_rl, jepa_rl.agents and jepa_rl.envs'
	@echo 'make wheel   build sdist and wheel, check both, install the wheel elsewhere and use it'
	@echo 'make docs    build the documentation site in site/; a warning is an error'
	@echo 'make bench   every benchmark (days: pixel control is most of it); make bench QUICK=1 for minutes'
	@echo 'make hub     the checkpoints in jepa_rl/hub again, from runs of the benchmarks (hours where runs are missing)'
	@echo 'make clean   remove .venv and everything generated except runs/'

demo: $(VENV)/.core
	$(PY) examples/quickstart.py

test: $(VENV)/.dev
	$(PYTEST) $(ARGS)

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) benchmarks/readme_table.py --check

# agents/ and envs/ are installed as jepa_rl.agents and jepa_rl.envs; the link tree shows mypy and mkdocstrings the
# same names.
.PHONY: links
links:
	@rm -rf .links && mkdir -p .links/jepa_rl && ln -s $(CURDIR)/jepa_rl/* $(CURDIR)/agents $(CURDIR)/envs .links/jepa_rl

type: $(VENV)/.dev links
	cd .links && ../$(PY) -m mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p jepa_rl

docs: $(VENV)/.docs links
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build --strict
	@echo 'wrote site/index.html'

wheel: $(VENV)/.dev
	$(PY) tests/wheel_check.py

bench: $(VENV)/.dev
	@set -e; for script in $(BENCHMARKS); do \
		echo "== $$script"; $(PY) $$script $(if $(QUICK),--quick); \
	done
	$(if $(QUICK),,$(PY) benchmarks/readme_table.py)

hub: $(VENV)/.dev
	$(PY) benchmarks/make_hub.py $(if $(NAMES),--names $(NAMES))

clean:
	rm -rf $(VENV) .links site .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jepa-rl needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: setup.cfg pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dmc,offline,pretrained,zoo,dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.docs: setup.cfg pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.core
