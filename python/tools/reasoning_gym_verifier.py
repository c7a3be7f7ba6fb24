#!/usr/bin/env python3
"""The verifier `command` for data of reasoning_gym_data.py (the protocol: octavo/tasks/command_verifier.h).

Scores with the task's own scorer what stands in the last <answer></answer>, or else all of the completion. The reward is the
score, from 0 to 1; it is correct where the score is 1.
"""

import functools
import json
import sys

import reasoning_gym
from reasoning_gym.utils import extract_answer


@functools.lru_cache(maxsize=None)
def scorer(name: str):
    return reasoning_gym.get_score_answer_fn(name)


def score(answer: str, entry: dict) -> float:
    score_answer = scorer(entry["metadata"]["source_dataset"])
    try:
        return float(score_answer(answer, entry))
    except Exception as error:
        # Some scorers raise at an answer that they cannot read. If they can score the right one, it was the answer's fault.
        score_answer(entry["answer"], entry)
        print(f"score 0: {entry['metadata']['source_dataset']} cannot read {answer[:100]!r}: {error}", file=sys.stderr)
        return 0.0


def judge(question: dict) -> dict:
    answer = extract_answer(question["completion"])
    reward = score(question["completion"].strip() if answer is None else answer, question["line"]["entry"])
    return {"id": question["id"], "reward": reward, "correct": reward >= 1.0}


def main() -> None:
    # Scorers print now and then; the answers have standard output for themselves.
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
