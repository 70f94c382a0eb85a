# make test    builds and tests     make gpu-check   the GPU's checks, with the current Python
# make bench   builds and measures  make cuda-build  compiles, links and imports for CUDA; needs nvcc, no GPU
# make lint    checks the style     make format      applies it
# Variables: PYTHON=python3.12  TORCH="torch==2.11.0"  VENV=.venv  ARGS="-k residual"  WORKERS=2, processes that test

PYTHON     ?= python3
TORCH      ?= -r requirements.txt
VENV       ?= .venv
CUDA_TORCH ?= torch==2.11.0
CUDA_VENV  ?= .venv-cuda
ARGS       ?=
WORKERS    ?= 2

RUN     := $(VENV)/bin/python
SOURCES := setup.py $(shell find csrc -type f)
STYLED  := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# Stamps carry the variables in their names: with other values the environment and the extension are made anew.
STAMP   := $(subst /,_,$(PYTHON))-$(subst =,_,$(subst $() ,_,$(TORCH)))
READY   := $(VENV)/.ready-$(STAMP)
BUILT   := build/.built-$(subst /,_,$(VENV))-$(STAMP)

.PHONY: test bench bench-full gpu-check build cuda-build lint format clean

# Several processes test at once: threads that wait actively for each other would take the cores from the others.
test: $(BUILT)
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n $(WORKERS) $(ARGS)

bench: $(BUILT)
	$(RUN) -m bench --quick $(ARGS)

# The versions that were tried. Where one does not install, its rows are left out and the report says so.
bench-full: $(BUILT)
	-$(RUN) -m pip install --quiet onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2
	-$(RUN) -m pip install --quiet openvino==2026.4.1
	$(RUN) -m bench real
	-POINTWISE_EXT_CPU=avx512 $(RUN) -m bench layers --quick --mode forward --dtype bf16,fp16 --label fp16 --goals
	$(RUN) -m bench layers --cold --rounds 5 --mode forward --label cold
	$(RUN) -m bench layers --quick --threads 1,all --mode forward,backward,step --compile max-autotune --label compile
	$(RUN) -m bench layers --rounds 9 --sample-ms 4 --mode forward,backward,step --goals --update-readme $(ARGS)

gpu-check:
	PYTHON=$(PYTHON) bash tests/gpu_check.sh

build: $(BUILT)

$(BUILT): $(READY) $(SOURCES)
	$(RUN) setup.py build_ext --inplace
	@rm -f build/.built-* && touch $@

$(READY): requirements.txt requirements-dev.txt
	$(call environment,$(VENV))
	$(RUN) -m pip install $(TORCH) -r requirements-dev.txt
	@rm -f $(VENV)/.ready-* && touch $@

# With an environment and a source tree of its own: the extension built in place stays as it is.
cuda-build: $(READY)
	$(call environment,$(CUDA_VENV))
	$(CUDA_VENV)/bin/python -m pip install $(CUDA_TORCH) numpy "setuptools>=70.1" ninja pytest pytest-timeout pytest-xdist
	-$(RUN) -m pip install --quiet nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	PW_CUDA_PYTHON=$(abspath $(CUDA_VENV))/bin/python $(RUN) -m pytest -m slow tests/cuda_build $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(STYLED)

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(STYLED)

clean:
	rm -rf build dist *.egg-info pointwise_ext/*.so pointwise_ext/_build_info.json

# An environment in the folder $(1), made anew when it is of another Python.
NEEDS := Python 3.10 or newer with its venv module and headers, and a C++ compiler. \
  Debian, Ubuntu: apt install python3-venv python3-dev g++
define environment
@$(PYTHON) -c 'import os, sys, sysconfig, venv, ensurepip; sys.exit(sys.version_info < (3, 10) or \
  not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' && command -v $${CXX:-c++} >/dev/null || \
  { echo "make needs $(NEEDS)"; exit 1; }
@test "$$($(1)/bin/python -V 2>&1)" = "$$($(PYTHON) -V)" || { rm -rf $(1) && $(PYTHON) -m venv $(1); }
endef
