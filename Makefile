# The commands of this repository. `make test` and `make demo` work on a fresh Debian 12 machine.

JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60
MODEL := models/SmolLM2-135M-Instruct

.PHONY: setup model build test demo test-gpu gpu-bundle test-asan test-tsan fuzz lint clean

setup:
	@scripts/setup.sh

model: setup
	@.venv/bin/python python/tools/make_smollm2.py --out $(MODEL)

build: setup
	@cmake --preset default >/dev/null
	@cmake --build build/default -j $(JOBS)

test: build model
	@ctest --test-dir build/default -j $(JOBS) --output-on-failure --no-tests=error

demo: build model
	@scripts/demo.sh build/default/cli/octavo

# Every CUDA kernel against the CPU, on a machine with nvcc and a Hopper GPU.
test-gpu: build model
	@build/default/tests/gpu/gpu_test

# The same, built here, for a machine with a Hopper GPU and nothing else: programs, libraries and data in one archive.
gpu-bundle: build
	@scripts/gpu_bundle.sh build/default build/octavo-gpu.tar.xz

# Every test under the address and undefined-behaviour sanitizers.
test-asan: model
	@cmake --preset asan >/dev/null
	@cmake --build build/asan -j $(JOBS)
	@UBSAN_OPTIONS=print_stacktrace=1 ctest --test-dir build/asan -j $(JOBS) --output-on-failure --no-tests=error

# What runs on more than one thread, under the thread sanitizer. GCC 12's cannot place its shadow memory where newer
# kernels randomize addresses widely, so randomization is turned off where the machine lets us.
TSAN_FOLDERS := octavo/base octavo/quant octavo/refit octavo/engine
FIXED_ADDRESSES = $(shell setarch -R true 2>/dev/null && echo setarch -R)
test-tsan: model
	@cmake --preset tsan >/dev/null
	@cmake --build build/tsan -j $(JOBS) --target $(addsuffix /all,$(TSAN_FOLDERS))
	@set -e; for folder in $(TSAN_FOLDERS); do \
	  $(FIXED_ADDRESSES) ctest --test-dir build/tsan/$$folder -j $(JOBS) --output-on-failure --no-tests=error; \
	done

# Each reader of untrusted input under libFuzzer for FUZZ_SECONDS.
fuzz:
	@scripts/setup.sh --clang
	@cmake --preset fuzz >/dev/null
	@cmake --build build/fuzz -j $(JOBS) --target fuzz/all
	@scripts/fuzz.sh build/fuzz/fuzz $(FUZZ_SECONDS)

lint:
	@scripts/setup.sh --clang
	@cmake --preset default >/dev/null
	@scripts/lint.sh build/default $(JOBS)

clean:
	rm -rf build
