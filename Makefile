PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
SITE_INSTALLED := .venv/.installed-site

.DEFAULT_GOAL := help
.PHONY: help demo test lab site explorer format export notebooks badges readme clean

help: ## show this table
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## run the short demonstration (maevit demo)
	$(BIN)/maevit demo $(ARGS)

# Two processes with one thread each keep two cores busier than one process with two.
test: $(SITE_INSTALLED) ## run all tests; options for pytest go in ARGS="..."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 tests $(ARGS)

lab: $(INSTALLED) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs $(ARGS)

site: $(SITE_INSTALLED) ## build the website in site/ from the stored outputs
	$(BIN)/python web/build.py
	$(BIN)/python tools/explorer.py site/explorer

explorer: $(SITE_INSTALLED) ## build the page in which the models run, in site/explorer/ (part of `make site`)
	$(BIN)/python tools/explorer.py site/explorer $(ARGS)

format: $(INSTALLED) ## format notebooks, tests and tools, and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

export: $(INSTALLED) ## write the library, maevit_course/, from the notebooks
	$(BIN)/nbdev_export

# The second export is there because cleaning gives an id to cells that had none.
notebooks: $(INSTALLED) ## run the notebooks in place (all, or ARGS="nbs/60_core.ipynb ..."), then export and readme
	$(BIN)/nbdev_export
	$(BIN)/python tools/notebooks.py render $(ARGS)
	$(BIN)/nbdev_export
	$(BIN)/python tools/notebooks.py readme

badges: $(INSTALLED) ## write Colab's badges and the folding of cells anew (after a change in settings.ini or of `#| fold`), and the README
	$(BIN)/python tools/notebooks.py badges
	$(BIN)/python tools/notebooks.py readme

readme: $(INSTALLED) ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/notebooks.py readme

clean: ## delete caches and build leftovers (keeps .venv, data and runs)
	rm -rf build dist site _proc *.egg-info .pytest_cache .hypothesis
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is simply taken up again.
$(INSTALLED): settings.ini setup.py
	@echo "Installing PyTorch, Jupyter and this project into .venv: several GB, a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@echo "Installed."

# The explorer needs the extra `export` and a package from npm; with axe-core, the tests check whether
# everybody can use the pages. Without npm, the tests of the website and the explorer are skipped.
$(SITE_INSTALLED): $(INSTALLED) web/package-lock.json
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[site,export]'
	@if command -v npm >/dev/null; then cd web && npm ci --silent --no-audit --no-fund; fi
	@touch $@
