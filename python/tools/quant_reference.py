"""An independent implementation of docs/numerics.md on numpy and ml_dtypes, held against octavo/quant bit for bit.

    quant_reference.py --golden DIR            write DIR/cases.bin and DIR/results.bin (committed, read by the C++ tests)
    quant_reference.py --check QUANTIZE_FILE   run the binary on fresh random matrices and compare [--matrices N] [--seed S]
"""

import argparse
import pathlib
import struct
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np

WEIGHT, TILED_WEIGHT, ACTIVATION = range(3)
DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]  # in the order of octavo::DType
DIVIDE, NEMO_RL = range(2)
BLOCK = 128
F32 = np.float32


def e4m3(values):
    """FP32 to E4M3FN codes: nearest even, saturating. ml_dtypes does not saturate, so clip first."""
    codes = np.clip(values, F32(-448), F32(448)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.where(np.isnan(values), np.uint8(0x7F), codes)


def scale_of(amax, pow2, formula):
    """(scale, multiplier) as FP32 scalars."""
    one = F32(1)
    tiny = np.finfo(F32).tiny
    if np.isnan(amax):
        nan = np.uint32(0x7FC00000).view(F32)
        return nan, nan
    if formula == DIVIDE:
        scale = amax / F32(448)
        if scale < tiny:
            return one, one
        if pow2 and np.isfinite(scale):
            mantissa, exponent = np.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
            scale = np.ldexp(one, exponent - 1 if mantissa == 0.5 else exponent)
        return scale, one / scale
    if pow2:
        log2 = np.log2(np.float64(amax / F32(448))).astype(F32)
        exponent = int(np.clip(np.ceil(log2), -127, 127)) + 127
        multiplier = one if exponent == 0 else np.ldexp(one, 127 - exponent)
        return one / multiplier, multiplier
    if amax == 0 or np.isinf(amax):
        return one, one
    multiplier = F32(448) / amax
    scale = one / multiplier
    return (one, one) if scale < tiny else (scale, multiplier)


def quantize(case):
    """The expected result: (bad index, codes, scales)."""
    values = case["values"].astype(F32)
    rows, cols = values.shape
    bad = np.flatnonzero(~np.isfinite(values))
    if case["kind"] != ACTIVATION and bad.size:
        return int(bad[0]), None, None
    height = 1 if case["kind"] == ACTIVATION else BLOCK
    codes = np.empty((rows, cols), np.uint8)
    scales = []
    for r in range(0, rows, height):
        for c in range(0, cols, BLOCK):
            block = values[r : r + height, c : c + BLOCK]
            scale, multiplier = scale_of(np.max(np.abs(block)), case["pow2"], case["formula"])
            scales.append(scale)
            codes[r : r + height, c : c + BLOCK] = e4m3(block * multiplier)
    return -1, codes, np.array(scales, F32)


def write_case(out, case):
    rows, cols = case["values"].shape
    out.write(struct.pack("<6i", case["kind"], case["dtype"], rows, cols, case["pow2"], case["formula"]))
    out.write(case["values"].tobytes())


def write_result(out, result):
    bad, codes, scales = result
    out.write(struct.pack("<q", bad))
    if bad < 0:
        out.write(codes.tobytes() + scales.tobytes())


def random_values(rng, rows, cols):
    """Matrices that training produces, and matrices that it should not."""
    values = rng.standard_normal((rows, cols)).astype(F32)
    kind = rng.integers(9)
    if kind == 1:  # every magnitude that FP32 has
        values = rng.integers(0, 2**32, (rows, cols), dtype=np.uint32).view(F32).copy()
        values[~np.isfinite(values)] = 0
    elif kind == 2:  # around the edge where the scale would be subnormal
        values *= F32(2.0) ** F32(rng.integers(-126, -110))
    elif kind == 3:
        values *= F32(1e37)
    elif kind == 4:
        values[:] = 0
    elif kind == 5:
        values = (values * F32(1e-3)).astype(F32)
        values[:, :: int(rng.integers(1, 9))] *= F32(1e4)  # outlier columns
    elif kind == 6:  # exact codes and halfway points, under scales that are powers of two or nearly so
        values = rng.integers(0, 512, (rows, cols)).astype(F32) * F32(0.5) ** F32(rng.integers(0, 12))
        values[0, 0] = np.nextafter(F32(448), F32(rng.choice([0, 448, 1e9]))) * F32(0.5) ** F32(rng.integers(0, 8))
    elif kind == 7:  # FP32 denormals
        values = rng.integers(0, 2**23, (rows, cols), dtype=np.uint32).view(F32).copy()
    elif kind == 8:  # mostly zeros, both signs
        values = np.where(rng.random((rows, cols)) < 0.9, F32(-0.0), values)
    return values


EDGE_SHAPES = [(1, 1), (1, 300), (127, 129), (128, 128), (129, 127), (3, 577), (16, 32), (17, 33), (255, 2), (2, 255)]


def random_case(rng, shapes=EDGE_SHAPES, largest=320):
    rows, cols = shapes[rng.integers(len(shapes))] if rng.random() < 0.5 else rng.integers(1, largest, 2)
    dtype = int(rng.integers(3))
    kind = int(rng.integers(3)) if dtype < 2 else int(rng.integers(2))
    with np.errstate(over="ignore"):
        values = random_values(rng, int(rows), int(cols)).astype(DTYPES[dtype])
    finite = np.isfinite(values.astype(F32))
    values[~finite] = 0  # overflow of the narrower type
    if rng.random() < 0.1:
        for _ in range(rng.integers(1, 4)):
            values[rng.integers(rows), rng.integers(cols)] = rng.choice([np.inf, -np.inf, np.nan])
    return dict(kind=kind, dtype=dtype, pow2=int(rng.integers(2)), formula=int(rng.integers(2)), values=values)


def write_golden(folder):
    rng = np.random.default_rng(20240607)
    shapes = [(1, 1), (1, 130), (127, 129), (3, 257), (17, 33), (129, 5), (40, 131)]
    cases, size = [], 0
    while size < 200_000:
        case = random_case(rng, shapes, largest=48)
        cost = case["values"].size * (case["values"].itemsize + 1)
        if cost < 60_000:
            cases.append(case)
            size += cost
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cases.bin", "wb") as out:
        for case in cases:
            write_case(out, case)
    with open(folder / "results.bin", "wb") as out:
        for case in cases:
            write_result(out, quantize(case))
    print(f"{len(cases)} cases")


def check(binary, matrices, seed):
    rng = np.random.default_rng(seed)
    cases = [random_case(rng) for _ in range(matrices)]
    for kind in range(3):  # one of the embedded model's shapes each
        values = rng.standard_normal((576, 1536)).astype(ml_dtypes.bfloat16)
        cases.append(dict(kind=kind, dtype=1, pow2=0, formula=DIVIDE, values=values))
    with tempfile.TemporaryDirectory() as folder:
        case_file, result_file = f"{folder}/cases", f"{folder}/results"
        with open(case_file, "wb") as out:
            for case in cases:
                write_case(out, case)
        subprocess.run([binary, case_file, result_file], check=True)
        got = pathlib.Path(result_file).read_bytes()
    at = elements = refused = 0
    for number, case in enumerate(cases):
        bad, codes, scales = quantize(case)
        expected = struct.pack("<q", bad) + (b"" if bad >= 0 else codes.tobytes() + scales.tobytes())
        if got[at : at + len(expected)] != expected:
            what = {k: v for k, v in case.items() if k != "values"} | {"shape": case["values"].shape}
            sys.exit(f"seed {seed}, matrix {number} {what}: the bits differ")
        at += len(expected)
        elements += case["values"].size
        refused += bad >= 0
    if at != len(got):
        sys.exit(f"{len(got) - at} bytes too many in the results")
    print(f"seed {seed}: {len(cases)} matrices ({elements} elements, {refused} refused as non-finite): equal bits")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--golden", type=pathlib.Path, metavar="DIR")
    what.add_argument("--check", metavar="QUANTIZE_FILE")
    parser.add_argument("--matrices", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=np.random.SeedSequence().entropy % 2**32)
    args = parser.parse_args()
    with np.errstate(all="ignore"):  # infinities and subnormals are part of the contract
        if args.golden:
            write_golden(args.golden)
        else:
            check(args.check, args.matrices, args.seed)


if __name__ == "__main__":
    main()
