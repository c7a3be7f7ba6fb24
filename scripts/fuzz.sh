#!/usr/bin/env bash
# Runs every fuzzer of a folder for a bounded time, from the seeds in fuzz/corpus/<name> where there are any:
#   scripts/fuzz.sh FOLDER_OF_BINARIES SECONDS
# A finding ends the run with the fuzzer's report; the input that caused it stays in the folder.
set -euo pipefail
folder=$1
seconds=$2

mapfile -t fuzzers < <(find "$folder" -maxdepth 1 -name 'fuzz_*' -type f -executable | sort)
if [ ${#fuzzers[@]} = 0 ]; then
  echo "fuzz: no fuzzer in $folder; build with the preset fuzz" >&2
  exit 1
fi
for fuzzer in "${fuzzers[@]}"; do
  name=$(basename "$fuzzer")
  mkdir -p "$folder/corpus/$name"
  corpus=("$folder/corpus/$name")
  [ -d "fuzz/corpus/$name" ] && corpus+=("fuzz/corpus/$name")
  echo "fuzz: $name for $seconds s"
  if ! "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -print_funcs=0 \
    -artifact_prefix="$folder/$name." "${corpus[@]}" >"$folder/$name.log" 2>&1; then
    tail -n 60 "$folder/$name.log"
    echo "fuzz: $name found a fault; the input is in $folder, the full report in $folder/$name.log" >&2
    exit 1
  fi
  grep number_of_executed_units "$folder/$name.log"
done
echo "fuzz: no fault found by ${#fuzzers[@]} fuzzers"
