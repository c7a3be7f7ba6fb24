#!/bin/bash
# Everything that a GPU machine needs to run the GPU tests and benches, and nothing of it installed there: programs,
# their shared libraries but the C library's, the tests' data.
#
#   scripts/gpu_bundle.sh BUILD OUT.tar.xz
#
# There: tar xJf OUT.tar.xz && octavo-gpu/run gpu_test   (or octavo bench …, gemm_gpu_bench …)
set -euo pipefail
build=$1 out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
to=$work/octavo-gpu
mkdir -p "$to/bin" "$to/lib" "$to/tests"
[ -e "$build/tests/gpu/gpu_test" ] || { echo "gpu_bundle.sh: $build has no tests/gpu/gpu_test; it is built where there is nvcc" >&2; exit 1; }
for program in cli/octavo tests/gpu/gpu_test bench/{gemm_gpu,gpu_ops,gpu_refit,gpu_step}_bench; do
  strip -o "$to/bin/$(basename "$program")" "$build/$program"
done
ldd "$to"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' | xargs -I{} cp -L {} "$to/lib/"
cp -r tests/golden "$to/tests/"
cat > "$to/run" <<'RUN'
#!/bin/bash
# run PROGRAM [argument ...]: one of bin/, with the libraries beside it, where the tests' data is.
cd "$(dirname "${BASH_SOURCE[0]}")"
LD_LIBRARY_PATH=$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "bin/$1" "${@:2}"
RUN
chmod +x "$to/run"
tar cJf "$out" -C "$work" octavo-gpu
echo "$out: $(du -h "$out" | cut -f1); there: tar xJf $(basename "$out") && octavo-gpu/run gpu_test"
