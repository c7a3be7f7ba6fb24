#!/usr/bin/env python3
"""Writes a reasoning-gym data set as JSONL that `octavo train` reads.

    pip install reasoning-gym
    python python/tools/reasoning_gym_data.py chain_sum --size 2000 --seed 42 --out data/chain_sum.jsonl \\
        --config '{"min_terms": 2, "max_terms": 3}'

and in the recipe:

    data: {train: {dataset_name: ResponseDataset, data_path: data/chain_sum.jsonl, env_name: gym}}
    env: {gym: {verifier: command, command: [python3, python/tools/reasoning_gym_verifier.py]}}

Each line holds the question as `prompt`, one right answer as `answer` (null where the task has none to show), and the task's
entry as `entry`, which its scorer wants back.
"""

import argparse
import json
import sys

INSTRUCTION = "{} Put your final answer between <answer> and </answer>."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a registered data set, such as chain_sum or countdown")
    parser.add_argument("--size", type=int, default=2000, help="samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--config", type=json.loads, default={}, help="the data set's options as a JSON object")
    parser.add_argument("--prompt", default=INSTRUCTION, help="text around the question, {} (default: %(default)r)")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    if "{}" not in arguments.prompt:
        parser.error("--prompt must have {} where the question goes")

    try:
        import reasoning_gym
    except ImportError:
        print("reasoning_gym_data: pip install reasoning-gym", file=sys.stderr)
        return 2
    try:
        data = reasoning_gym.create_dataset(
            arguments.name, size=arguments.size, seed=arguments.seed, **arguments.config
        )
    except (AssertionError, TypeError, ValueError) as error:
        print(f"reasoning_gym_data: {arguments.name}: {error}", file=sys.stderr)
        return 2
    with open(arguments.out, "w", encoding="utf-8") as out:
        for entry in data:
            # default=str: a few tasks keep objects for people to read in their metadata.
            line = {
                "prompt": arguments.prompt.replace("{}", entry["question"]),
                "answer": entry["answer"],
                "entry": entry,
            }
            out.write(json.dumps(line, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
