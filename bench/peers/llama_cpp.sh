#!/usr/bin/env bash
# Builds llama.cpp, the peer that Octavo's CPU backend is measured against, from the sdist of llama-cpp-python with
# native flags, and makes BF16 and Q8_0 GGUFs of the embedded model (from the GGUF that it comes from, with llama.cpp's
# own quantizer) or of a Hugging Face folder (with llama.cpp's own converter).
#
#   bench/peers/llama_cpp.sh DIR [MODEL_FOLDER]
#
# DIR receives bin/llama-bench, bin/llama-batched-bench, bin/llama-quantize, bin/llama-perplexity, bf16.gguf and
# q8_0.gguf. A step whose result is there is skipped. For a MODEL_FOLDER the converter needs torch and transformers: they
# go into DIR/venv unless PEER_PYTHON names an interpreter that has them. JOBS bounds the build (default: all cores).
set -euo pipefail

version=0.3.36
repo=$(cd "$(dirname "$0")/../.." && pwd)
if [ $# -lt 1 ] || [[ $1 == -* ]]; then
  echo "usage: bench/peers/llama_cpp.sh DIR [MODEL_FOLDER]" >&2
  exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)
model=${2:-}
jobs=${JOBS:-$(nproc)}
source=$dir/llama_cpp_python-$version/vendor/llama.cpp
programs=(llama-bench llama-batched-bench llama-quantize llama-perplexity)

if [ ! -f "$source/CMakeLists.txt" ]; then
  python3 -m pip download -q --no-deps --no-binary llama-cpp-python --dest "$dir" "llama-cpp-python==$version"
  tar -xzf "$dir/llama_cpp_python-$version.tar.gz" -C "$dir"
fi

if [ ! -x "$dir/bin/llama-perplexity" ]; then
  cmake -S "$source" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF
  cmake --build "$dir/build" -j "$jobs" --target "${programs[@]}"
  mkdir -p "$dir/bin"
  for program in "${programs[@]}"; do
    cp "$dir/build/bin/$program" "$dir/bin/"
  done
fi

if [ ! -f "$dir/bf16.gguf" ] && [ -z "$model" ]; then
  origin=$(PYTHONPATH=$repo/python/tools "$repo/.venv/bin/python" -c 'import make_smollm2; print(make_smollm2.packaged_gguf())')
  "$dir/bin/llama-quantize" --allow-requantize "$origin" "$dir/bf16.gguf.part" BF16
  mv "$dir/bf16.gguf.part" "$dir/bf16.gguf"
elif [ ! -f "$dir/bf16.gguf" ]; then
  python=${PEER_PYTHON:-$dir/venv/bin/python}
  if [ -z "${PEER_PYTHON:-}" ] && [ ! -x "$python" ]; then
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install -q torch==2.11.0 transformers==4.57.1 sentencepiece protobuf numpy
  fi
  PYTHONPATH=$source/gguf-py "$python" "$source/convert_hf_to_gguf.py" "$model" --outtype bf16 \
    --outfile "$dir/bf16.gguf.part"
  mv "$dir/bf16.gguf.part" "$dir/bf16.gguf"
fi
if [ ! -f "$dir/q8_0.gguf" ]; then
  "$dir/bin/llama-quantize" "$dir/bf16.gguf" "$dir/q8_0.gguf.part" Q8_0
  mv "$dir/q8_0.gguf.part" "$dir/q8_0.gguf"
fi
echo "llama.cpp is ready in $dir"
