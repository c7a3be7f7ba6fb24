#!/usr/bin/env python3
"""Holds Octavo's chat templates against the models' own, rendered by Jinja as Hugging Face transformers does.

    cmake --build build/default --target render_messages
    pip install jinja2 && pip download --no-deps -d /tmp/trl trl==1.16.0 && unzip -o -d /tmp/trl /tmp/trl/trl-*.whl
    python python/tools/chat_template_reference.py build/default/octavo/text/render_messages /tmp/trl/trl/chat_templates

The package `trl` carries byte-identical copies of the templates that models were published with. SmolLM2's comes from
models/; Qwen2's and those of Qwen2.5's base and mathematical models differ from a copy in the default system message only.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SMOLLM2 = "models/SmolLM2-135M-Instruct/tokenizer_config.json"
BOS = "<|begin_of_text|>"


def templates(folder: pathlib.Path) -> dict[str, str]:
    names = ["llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3", "qwen3_instruct_2507"]
    found = {name: (folder / f"{name}.jinja").read_text(encoding="utf-8") for name in names}
    found["smollm2"] = json.loads(pathlib.Path(SMOLLM2).read_text(encoding="utf-8"))["chat_template"]
    found["qwen2"] = found["smollm2"].replace(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "You are a helpful assistant."
    )
    instruct = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    found["qwen2_5_base"] = found["qwen2_5"].replace(instruct, "You are a helpful assistant.")
    found["qwen2_5_math"] = found["qwen2_5"].replace(
        instruct, r"Please reason step by step, and put your final answer within \\boxed{}."
    )
    return found


def text(rng: random.Random) -> str:
    parts = ["Hi", "1 + 1?", " ", "\n", "\t", "\u00a0", "\u2003", "\x1f", "\u00e9", "\U0001f600", "{{ x }}", "'", '"', "\\"]
    parts += ["<think>", "</think>", "\n</think>\n\n", "<tool_response>", "</tool_response>", "<|im_end|>"]
    return "".join(rng.choice(parts) for _ in range(rng.randrange(0, 7)))


def conversation(rng: random.Random) -> list[dict]:
    messages = [{"role": "system", "content": text(rng)}] if rng.random() < 0.4 else []
    for _ in range(rng.randrange(0, 4)):
        messages.append({"role": rng.choice(["user", "assistant", "assistant", "system"]), "content": text(rng)})
    user = text(rng)
    if rng.random() < 0.2:
        user = f"<tool_response>{user}</tool_response>"
    return [*messages, {"role": "user", "content": user}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("render_messages")
    parser.add_argument("templates", type=pathlib.Path)
    parser.add_argument("--conversations", type=int, default=300, help="of each template (default: %(default)s)")
    arguments = parser.parse_args()

    rng = random.Random(1)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    questions, expected, names = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in templates(arguments.templates).items():
            path = pathlib.Path(folder) / name
            path.mkdir()
            (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, "bos_token": BOS}))
            compiled = environment.from_string(source)
            for _ in range(arguments.conversations):
                options = {}
                if name == "qwen3" and rng.random() < 0.7:
                    options["enable_thinking"] = rng.random() < 0.5
                if name == "llama3_2" or (name == "llama3_1" and rng.random() < 0.5):
                    options["date_string"] = "24 Dec 2025"
                messages = conversation(rng)
                questions.append(json.dumps({"folder": str(path), "options": options, "messages": messages}))
                expected.append(
                    compiled.render(messages=messages, bos_token=BOS, add_generation_prompt=True, tools=None, **options)
                )
                names.append(name)
        answers = subprocess.run(
            [arguments.render_messages], input="\n".join(questions) + "\n", capture_output=True, text=True, check=True
        )
    print(answers.stderr, end="", file=sys.stderr)
    wrong = 0
    for name, question, want, line in zip(names, questions, expected, answers.stdout.splitlines(), strict=True):
        got = json.loads(line)
        if got == want:
            continue
        wrong += 1
        if wrong <= 3:
            print(f"{name}: {question}\n  expected {want!r}\n  got      {got!r}", file=sys.stderr)
    print(f"{len(expected)} conversations of {len(set(names))} templates, {wrong} rendered otherwise")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
