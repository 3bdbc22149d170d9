#!/usr/bin/env python3
"""Attention on compact caches beside attention on dense ones, on one GPU: the whole table.

Runs gpu_attention_bench (this project's codec profiles), gpu_sequence_bench if it was built (the
published form, "faithful", and for small sizes the published method, "rebuild") and
gpu_dense_attention.py (PyTorch and whatever else is installed), all for one new token of each sequence
in one layer of Llama-3.1-8B's shape, and divides.
Every speed-up is against the fastest dense attention found: a library's, or this project's own on
pages. Without PyTorch only the latter, which the table says.

Times are medians of replays of a CUDA graph whose launches go through 1 GiB or more of distinct caches.
Bytes are those of payloads and pages; "of copy" is their rate divided by that of a device-to-device
copy (bytes read plus bytes written) in the same run. Errors are relative, against float64 on the same
compact data, so they are the kernel's and not the codec's; "as timed" counts that outputs are bf16.

    cmake --preset cuda
    cmake --build --preset cuda --target gpu_attention_bench gpu_sequence_bench
    tests/bench/gpu_attention.py            # everything, a few minutes
    tests/bench/gpu_attention.py --quick    # the four main sizes
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
DEFAULT_BENCH = HERE.parent.parent / "build" / "cuda" / "bin" / "gpu_attention_bench"
REBUILD_TOKENS = 1 << 18  # more, with the published method, take seconds
LAUNCH_BOUND = 1.1  # launched singly, this much slower than in a graph: worth a mark


def run(command):
    """What the command printed, or None if it failed; it has then said why."""
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    return result.stdout if result.returncode == 0 else None


def run_json(command):
    output = run(command)
    return None if output is None else json.loads(output)


def sequence_rows(line):
    """Rows of the table from a line of gpu_sequence_bench about one size."""
    size = {"batch": line["batch"], "tokens": line["context"], "bytes": line["bytes"]}
    size["dense_bytes"] = line["bytes"] / line["bytes_of_dense"]
    rows = [
        {
            "profile": "faithful",
            "microseconds": line["us"],
            "stream_microseconds": line["us_stream"],
            "relative_error": line["relative_error"],
        }
    ]
    if "rebuild_us" in line:
        rows.append(
            {
                "profile": "rebuild",
                "microseconds": line["rebuild_us"],
                "stream_microseconds": line["rebuild_us"],
                "relative_error": line["rebuild_relative_error"],
            }
        )
    for row in rows:
        row |= size
        row["case"] = f"{line['batch']}x{line['context'] // 1024}k:{row['profile']}"
        row["bytes_per_second"] = line["bytes"] / row["microseconds"] * 1e6
    return rows


def run_sequence(program, quick, repeat):
    """Rows of the published form; none if the program is not there or fails."""
    grids = (["8", "32", "128"], ["32768"]), (["1"], ["131072"])
    if not quick:
        grids = ((["1", "8", "32", "128"], ["4096", "32768", "131072"]),)
    if not program.is_file():
        print(f"gpu_attention.py: without the published form: no {program}", file=sys.stderr)
        return []
    rows = []
    for batches, contexts in grids:
        command = [program, "--repeat", str(repeat), "--rebuild-tokens", str(REBUILD_TOKENS)]
        output = run([*command, "--batch", *batches, "--context", *contexts]) or b""
        for line in map(json.loads, output.splitlines()):
            rows += sequence_rows(line) if "batch" in line else []
    return rows


def combine(compact, dense):
    """One report of both; `dense` may be None. Rows are sorted by size, dense ones first."""
    report = {key: value for key, value in compact.items() if key != "rows"}
    report["dense_libraries"] = None
    rows = []
    if dense is not None:
        report["dense_libraries"] = {key: dense[key] for key in ("torch", "skipped")}
        for row in dense["rows"]:
            rows.append(dict(row, dense=True, dense_bytes=row["bytes"]))
    rows += [dict(row, dense=row["profile"] == "plain-dense") for row in compact["rows"]]
    fastest = {}
    for row in rows:
        size = (row["batch"], row["tokens"])
        best = fastest.get(size)
        if row["dense"] and (best is None or row["microseconds"] < best["microseconds"]):
            fastest[size] = row
    for row in rows:
        row["fraction_of_copy"] = row["bytes_per_second"] / compact["copy_bytes_per_second"]
        best = fastest.get((row["batch"], row["tokens"]))
        if best is not None:
            row["fastest_dense"] = best["profile"]
            row["speed_up"] = best["microseconds"] / row["microseconds"]
    rows.sort(key=lambda row: (row["tokens"], row["batch"], not row["dense"]))
    report["rows"] = rows
    return report


def number(value, form, unit=""):
    return "-" if value is None else format(value, form) + unit


def table(report):
    lines = [
        f"{report['device']}: copy {report['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"read {report['read_bytes_per_second'] / 1e12:.2f} TB/s"
    ]
    libraries = report["dense_libraries"]
    if libraries is None:
        lines.append("dense: this project's own kernel only; PyTorch could not be run")
    else:
        lines.append(f"dense: PyTorch {libraries['torch']} and what else is installed")
    heads = ("size", "attention", "us", "MB", "of dense", "TB/s", "of copy", "speed-up", "error",
             "as timed")
    form = "{:>9}  {:<24} {:>9} {:>9} {:>8} {:>6} {:>8} {:>9} {:>8} {:>8}"
    marked = False
    size = None
    for row in report["rows"]:
        name = row["case"].split(":")[0]
        if name != size:
            lines += ["", form.format(*heads)]
            size = name
        slow_launch = row["stream_microseconds"] > LAUNCH_BOUND * row["microseconds"]
        marked |= slow_launch
        what = row["profile"] + ("+exact" if row.get("exact_regions") else "")
        lines.append(
            form.format(
                name,
                what,
                f"{row['microseconds']:.1f}" + ("*" if slow_launch else " "),
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['bytes'] / row['dense_bytes']:.1%}",
                f"{row['bytes_per_second'] / 1e12:.2f}",
                f"{row['fraction_of_copy']:.0%}",
                number(row.get("speed_up"), ".2f", "x"),
                number(row.get("relative_error"), ".1e"),
                number(row.get("relative_error_rounded"), ".1e"),
            )
        )
    lines.append("")
    if marked:
        lines.append("* in a CUDA graph; launched one by one the host is the limit (see JSON)")
    for name, why in report["skipped"].items():
        lines.append(f"skipped {name}: {why}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the four main sizes")
    parser.add_argument("--bench", default=DEFAULT_BENCH, help=f"default {DEFAULT_BENCH}")
    parser.add_argument("--repeat", type=int, default=15, help="timed replays (default 15)")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    args = parser.parse_args()
    if not 2 <= args.repeat <= 1000:
        parser.error("--repeat must be from 2 to 1000")
    if not pathlib.Path(args.bench).is_file():
        sys.exit(
            f"gpu_attention.py: {args.bench} is not there: build it with `cmake --preset cuda && "
            "cmake --build --preset cuda --target gpu_attention_bench`, or say where with --bench"
        )
    flags = ["--repeat", str(args.repeat)] + (["--quick"] if args.quick else [])
    compact = run_json([args.bench, *flags])
    if compact is None:
        sys.exit("gpu_attention.py: gpu_attention_bench failed")
    sequence_bench = pathlib.Path(args.bench).with_name("gpu_sequence_bench")
    compact["rows"] += run_sequence(sequence_bench, args.quick, args.repeat)
    dense = None
    if importlib.util.find_spec("torch") is None:
        print("gpu_attention.py: PyTorch is not installed for this python", file=sys.stderr)
    else:
        dense = run_json([sys.executable, HERE / "gpu_dense_attention.py", *flags])
    report = combine(compact, dense)
    print(json.dumps(report, indent=1) if args.output == "json" else table(report))


if __name__ == "__main__":
    main()
