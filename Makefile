# Each target sets itself up from nothing: Python 3.11 or newer, make and a package index are all it takes.
# The environment is rebuilt only when the lock or pyproject.toml changes. The lock names the whole set, so that pip
# resolves nothing (--no-deps): what the index gained since the lock was made cannot change or break an install.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
BIN := .venv/bin
WORKERS ?= auto

.PHONY: demo test verify bench studies lint format lock audit clean venv

demo: venv
	$(BIN)/python scripts/train.py --config=configs/breast_cancer.py --workdir=runs/demo

test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal

# What `make test` samples, whole: masked against sliced, claims of privacy against audits, any three names together,
# full sizes, many more examples, and all tests with annotations checked.
verify: venv
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 PYTHONPATH=. $(BIN)/python -m tests.submodels.matrix
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile=deep -m "slow or hypothesis"
	JAXTYPING_DISABLE=0 $(BIN)/python -m pytest -n $(WORKERS)

bench: venv
	for name in peers tiers scale loop precision together branches bootstrap; do $(BIN)/python scripts/bench.py --name=$$name || exit; done

# The commands of all studies; studies/README.md has their findings.
studies: venv
	@$(BIN)/python studies/pages.py --commands

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright fairjax

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Resolves the newest set for every supported Python. jax stays below 0.12 until a GPU machine has run it.
lock: venv
	echo "jax<0.12" | $(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes --upgrade \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links -c - -o requirements.lock pyproject.toml

# Known vulnerabilities of the locked set. It fails where the index has no advisories; no test depends on it.
audit: venv
	$(BIN)/uv tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis
