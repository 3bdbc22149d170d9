#!/usr/bin/env python3
"""Attention of one new token over dense bf16 keys and values, by the libraries that are installed.

The baseline of gpu_attention_bench: the same shape (32 query heads on 8 KV heads of dimension 128,
one layer), sizes and way of timing. Tried are every backend of PyTorch's scaled_dot_product_attention,
both with `enable_gqa` and with the four query heads of a KV head folded into the query length (so
that K and V are read once a KV head), FlashInfer and FlashAttention. JSON goes to standard output:
for every size the fastest one's figures and what became of the others.

Needs PyTorch with CUDA and a GPU. tests/bench/gpu_attention.py runs this and the compact side.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import warnings

QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
GROUP = QUERY_HEADS // KV_HEADS
SHAPES = [(b, t) for b in (1, 8, 32, 128) for t in (4096, 32768, 131072)]
QUICK_SHAPES = [(32, 32768), (8, 32768), (1, 131072), (128, 32768)]
ROTATED_BYTES = 1 << 30  # inputs go round through this much, 17 times the L2 of an H200
MOST_SETS = 64
MOST_LAUNCHES = 128
MATH_BYTES = 1 << 30  # the backend "math" keeps copies of K and V and is slow: small sizes only


def parse_shape(text):
    """ "32x32k" -> (32, 32768)"""
    batch, _, tokens = text.partition("x")
    try:
        shape = int(batch), int(tokens[:-1]) * 1024 if tokens.endswith("k") else int(tokens)
    except ValueError:
        shape = (0, 0)
    if not (1 <= shape[0] <= 4096 and 1 <= shape[1] <= 1 << 20):
        raise argparse.ArgumentTypeError(f"'{text}' is not like 32x32k: BATCHxTOKENS")
    return shape


def shape_name(batch, tokens):
    return f"{batch}x{tokens // 1024}k" if tokens % 1024 == 0 else f"{batch}x{tokens}"


def elapsed_us(torch, work):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


class Data:
    """Keys and values of `sets` caches of one size, all of them distinct memory."""

    def __init__(self, torch, batch, tokens):
        self.batch, self.tokens = batch, tokens
        elements = batch * tokens * KV_HEADS * HEAD_DIM
        self.bytes = 4 * elements
        self.sets = max(1, min(MOST_SETS, math.ceil(ROTATED_BYTES / self.bytes)))
        if self.sets * self.bytes > torch.cuda.mem_get_info()[0] - (2 << 30):
            raise MemoryError(f"{self.sets * self.bytes / 2**30:.1f} GiB do not fit")
        new = lambda: torch.empty(elements, dtype=torch.bfloat16, device="cuda").normal_()
        self.k = [new() for _ in range(self.sets)]
        self.v = [new() for _ in range(self.sets)]
        self.q = torch.randn(batch, QUERY_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")

    def by_head(self, x):  # [batch][KV heads][tokens][dim]
        return x.view(self.batch, KV_HEADS, self.tokens, HEAD_DIM)

    def by_token(self, x):  # [batch][tokens][KV heads][dim]
        return x.view(self.batch, self.tokens, KV_HEADS, HEAD_DIM)


def sdpa_variants(torch, data):
    """(name, call(set) -> [batch][query heads][dim], has heads outside tokens)"""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend = torch.nn.functional.scaled_dot_product_attention
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    folded = data.q.view(data.batch, KV_HEADS, GROUP, HEAD_DIM)
    grouped = data.q.view(data.batch, QUERY_HEADS, 1, HEAD_DIM)
    for name, backend in backends.items():
        if name == "math" and data.bytes > MATH_BYTES:
            continue

        def fold(i, backend=backend):
            with sdpa_kernel(backend):
                out = attend(folded, data.by_head(data.k[i]), data.by_head(data.v[i]))
            return out.reshape(data.batch, QUERY_HEADS, HEAD_DIM)

        def group(i, backend=backend):
            with sdpa_kernel(backend):
                out = attend(
                    grouped, data.by_head(data.k[i]), data.by_head(data.v[i]), enable_gqa=True
                )
            return out.reshape(data.batch, QUERY_HEADS, HEAD_DIM)

        yield f"sdpa-{name}-folded", fold, True
        yield f"sdpa-{name}-gqa", group, True


def flash_attention_variants(data):
    for module in ("flash_attn_interface", "flash_attn"):  # FlashAttention 3, then 2
        with contextlib.suppress(ImportError):
            attend = __import__(module).flash_attn_with_kvcache
            q = data.q.view(data.batch, 1, QUERY_HEADS, HEAD_DIM)

            def call(i, attend=attend):
                out = attend(q, data.by_token(data.k[i]), data.by_token(data.v[i]))
                return out.reshape(data.batch, QUERY_HEADS, HEAD_DIM)

            yield module, call, False


def flashinfer_variants(torch, data):
    try:
        import flashinfer
    except ImportError:
        return
    page = 64
    pages = data.tokens // page
    if data.tokens % page != 0:
        return
    for tensor_cores in (True, False):
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=tensor_cores
        )
        arange = lambda n: torch.arange(n, dtype=torch.int32, device="cuda")
        wrapper.plan(
            arange(data.batch + 1) * pages,
            arange(data.batch * pages),
            torch.full((data.batch,), page, dtype=torch.int32, device="cuda"),
            QUERY_HEADS,
            KV_HEADS,
            HEAD_DIM,
            page,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )

        def call(i, wrapper=wrapper):
            shape = (data.batch * pages, page, KV_HEADS, HEAD_DIM)
            return wrapper.run(data.q, (data.k[i].view(shape), data.v[i].view(shape)))

        yield f"flashinfer{'-tensor-cores' if tensor_cores else ''}", call, False


def relative_error(torch, data, call, head_major):
    """Of the first sequence's first KV head, against float64."""
    out = call(0)[0, :GROUP].double()
    view = data.by_head if head_major else data.by_token
    k, v = view(data.k[0])[0], view(data.v[0])[0]
    k, v = ((x[0] if head_major else x[:, 0]).double() for x in (k, v))
    q = data.q[0, :GROUP].double()
    expected = torch.softmax(q @ k.T / math.sqrt(HEAD_DIM), -1) @ v
    return ((out - expected).norm() / expected.norm()).item()


def measure(torch, data, call, repeat, fastest):
    """Microseconds a launch: inside a CUDA graph that goes through all sets, and launched one by one."""
    for _ in range(2):
        call(0)
    torch.cuda.synchronize()
    estimate = elapsed_us(torch, lambda: [call(i % data.sets) for i in range(3)]) / 3
    if estimate > 3 * fastest and estimate > 200:
        return {"microseconds": estimate, "note": "one quick run: too slow to be the baseline"}
    launches = max(data.sets, min(MOST_LAUNCHES, math.ceil(2000 / estimate)))
    work = lambda: [call(i % data.sets) for i in range(launches)]
    replays = max(5, min(repeat, math.ceil(3e5 / (launches * estimate))))
    result = {"launches": launches, "replays": replays}
    work()
    stream = [elapsed_us(torch, work) / launches for _ in range(min(replays, 5))]
    result["stream_microseconds"] = statistics.median(stream)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graph.replay()
        times = [elapsed_us(torch, graph.replay) / launches for _ in range(replays)]
        result["microseconds"] = statistics.median(times)
    except Exception as error:  # what cannot be captured is timed as it is
        torch.cuda.synchronize()
        result["microseconds"] = result["stream_microseconds"]
        result["note"] = f"not in a CUDA graph: {first_line(error)}"
    return result


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def run_shape(torch, batch, tokens, repeat):
    data = Data(torch, batch, tokens)
    tried = {}
    fastest = math.inf
    families = {
        "sdpa": sdpa_variants(torch, data),
        "flash_attn": flash_attention_variants(data),
        "flashinfer": flashinfer_variants(torch, data),
    }
    for name, family in families.items():
        while True:
            try:
                name, call, head_major = next(family)
                result = measure(torch, data, call, repeat, fastest)
                if "launches" in result:
                    result["relative_error"] = relative_error(torch, data, call, head_major)
                fastest = min(fastest, result["microseconds"])
                tried[name] = result
            except StopIteration:
                break
            except Exception as error:  # a backend that refuses this shape
                tried[name] = {"error": first_line(error)}
    timed = {name: r for name, r in tried.items() if "launches" in r}
    if not timed:
        raise RuntimeError(f"no dense backend runs here: {tried}")
    best = min(timed, key=lambda name: timed[name]["microseconds"])
    row = {
        "case": f"{shape_name(batch, tokens)}:dense",
        "batch": batch,
        "tokens": tokens,
        "profile": best,
        "bytes": data.bytes,
    }
    row.update(timed[best])
    row["bytes_per_second"] = data.bytes / row["microseconds"] * 1e6
    row["tried"] = tried
    return row


def copy_rate(torch):
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    times = [elapsed_us(torch, lambda: target.copy_(source)) for _ in range(20)]
    return 2 * source.numel() / statistics.median(times) * 1e6


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the four main sizes")
    parser.add_argument(
        "--shape", type=parse_shape, action="append", metavar="BxT", help="only this size: 32x32k"
    )
    parser.add_argument("--repeat", type=int, default=15, help="timed replays (default 15)")
    args = parser.parse_args()
    if not 1 <= args.repeat <= 1000:
        parser.error("--repeat must be from 1 to 1000")
    try:
        import torch
    except ImportError:
        sys.exit("gpu_dense_attention.py: PyTorch is not installed: pip install torch")
    if not torch.cuda.is_available():
        sys.exit("gpu_dense_attention.py: PyTorch finds no CUDA device")
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # why a backend refuses a shape is in the report
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bytes_per_second": copy_rate(torch),
        "rows": [],
        "skipped": {},
    }
    torch.cuda.empty_cache()
    for batch, tokens in args.shape or (QUICK_SHAPES if args.quick else SHAPES):
        name = shape_name(batch, tokens)
        try:
            row = run_shape(torch, batch, tokens, args.repeat)
            report["rows"].append(row)
            for key, value in row["tried"].items():
                told = value.get("error") or f"{value['microseconds']:.1f} us"
                print(f"{name:>9} {key:<24} {told}", file=sys.stderr)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            report["skipped"][name] = first_line(error)
            print(f"{name:>9} skipped: {first_line(error)}", file=sys.stderr)
        torch.cuda.empty_cache()
    for row in report["rows"]:
        row["fraction_of_copy"] = row["bytes_per_second"] / report["copy_bytes_per_second"]
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
