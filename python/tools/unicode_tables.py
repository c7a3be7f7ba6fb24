#!/usr/bin/env python3
"""Writes octavo/text/unicode_tables.inc: where Hugging Face `tokenizers` and older Unicode libraries differ.

    pip install tokenizers==0.22.1
    python3.11 python/tools/unicode_tables.py > octavo/text/unicode_tables.inc

The package is asked, character by character, what its regex engine and its normalizer know. Python 3.11 (Unicode 14,
as PCRE2 10.40 to 10.42) says what is old.
"""

import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = ("Lu Ll Lt Lm Lo Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Mn Mc Me Zs Zl Zp Cc Cf Cn Co").split()
CHARACTERS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def regex_categories():
    """The general category of each character as the package's regex engine sees it."""
    categories = {}
    for category in CATEGORIES:
        split = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\P{%s}" % category), "removed"),
                pre_tokenizers.Split(Regex("(?m:.)"), "isolated"),
            ]
        )
        for i in range(0, len(CHARACTERS), 4096):
            text = "".join(map(chr, CHARACTERS[i : i + 4096]))
            categories.update((ord(piece), category) for piece, _ in split.pre_tokenize_str(text))
    return categories


def ranges(pairs):
    """[(first, last, value)] of sorted (character, value) pairs."""
    out = []
    for character, value in pairs:
        if out and out[-1][1] == character - 1 and out[-1][2] == value:
            out[-1][1] = character
        else:
            out.append([character, character, value])
    return out


def young(categories):
    """(character, an old character of the same category and UTF-8 length) where the category has changed."""
    def length(c):
        return len(chr(c).encode())

    stand_ins = {}
    for c in CHARACTERS:
        if unicodedata.category(chr(c)) == categories[c]:
            stand_ins.setdefault((categories[c], length(c)), c)
    # PCRE2 counts U+180E as white space, which it was before Unicode 6.3.
    return [
        (c, stand_ins[categories[c], length(c)])
        for c in CHARACTERS
        if unicodedata.category(chr(c)) != categories[c] or c == 0x180E
    ]


def inert_in_nfc():
    """Characters that Unicode 14 reorders or composes and the package's normalizer does not."""
    nfd = normalizers.NFD().normalize_str
    composing = set()
    for c in CHARACTERS:
        decomposed = unicodedata.normalize("NFD", chr(c))
        if decomposed != chr(c) and nfd(chr(c)) != decomposed:
            composing.update(map(ord, decomposed), [c])

    def moves(c):  # past a mark of the lowest class, or before one of the highest
        mark = chr(c)
        return nfd("x" + mark + "\u0334") != "x" + mark + "\u0334" or nfd("x\u0345" + mark) != "x\u0345" + mark

    for c in CHARACTERS:
        if (unicodedata.combining(chr(c)) or c in composing) and not moves(c):
            yield c, None


def main():
    if unicodedata.unidata_version != "14.0.0":
        sys.exit("unicode_tables.py: needs Unicode 14, that is Python 3.11")
    print("// Written by python/tools/unicode_tables.py.\n")
    print("// first, last, an old character of the same category and UTF-8 length\nconstexpr LikeRange kYoung[] = {")
    for first, last, like in ranges(young(regex_categories())):
        print(f"    {{0x{first:X}, 0x{last:X}, 0x{like:X}}},")
    print("};\n\n// first, last\nconstexpr Range kInertInNfc[] = {")
    for first, last, _ in ranges(inert_in_nfc()):
        print(f"    {{0x{first:X}, 0x{last:X}}},")
    print("};")


if __name__ == "__main__":
    main()
