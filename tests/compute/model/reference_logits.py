#!/usr/bin/env python3
"""Logits of a Llama-architecture model in plain numpy, float64 but for K and V, which are rounded
to fp16 as in a cache of that type: an independent check of the runner.

    reference_logits.py golden MODEL_FOLDER OUT.json     logits of MODEL_FOLDER on a fixed prompt
    reference_logits.py tiny OUT_FOLDER                  makes tiny random models with their logits

The fixtures in tests/data were made by:
    reference_logits.py golden tests/data/needle-4m tests/data/needle-4m/golden_logits.json
    reference_logits.py tiny tests/data
"""

import glob
import json
import math
import os
import struct
import sys

import numpy as np

PROMPT = (
    "A cache keeps what was computed, so that it need not be computed again.\n"
    "One of the special magic numbers for bafikoze is: 4071835.\n"
    "def answer(question):\n    return 42 if question else None\n"
    "The special magic number for bafikoze mentioned in the text is: "
)


def read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + x for x in info["data_offsets"])
        raw = data[begin:end]
        if info["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[info["dtype"]])
        tensors[name] = values.astype(np.float64).reshape(info["shape"])
    return tensors


def load(folder):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    weights = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        weights.update(read_safetensors(path))
    return config, weights


def rope_frequencies(config, head_dim):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.get("rope_type", "default") != "llama3":
        return frequencies
    factor, low, high = (rope[k] for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope["original_max_position_embeddings"]
    scaled = []
    for f in frequencies:
        wavelength = 2 * math.pi / f
        if wavelength < original / high:
            scaled.append(f)
        elif wavelength > original / low:
            scaled.append(f / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * f / factor + smooth * f)
    return np.array(scaled)


def norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, cos, sin):  # x: [tokens, heads, head_dim]
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def logits(config, w, tokens):
    """[tokens, vocab]"""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    hidden = config["hidden_size"]
    d = config.get("head_dim") or hidden // heads
    eps = config["rms_norm_eps"]
    n = len(tokens)
    angle = np.arange(n)[:, None] * rope_frequencies(config, d)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    hide = np.triu(np.full((n, n), -np.inf), 1)
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = (
            (h @ w[f"{p}self_attn.{name}_proj.weight"].T).reshape(n, -1, d) for name in "qkv"
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.astype(np.float16).astype(np.float64) for t in (k, v))  # as a cache holds them
        k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(d) + hide
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        o = np.einsum("hij,jhd->ihd", scores, v).reshape(n, heads * d)
        x = x + o @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"], eps)
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        gate = gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T)
        x = x + gate @ w[p + "mlp.down_proj.weight"].T
    x = norm(x, w["model.norm.weight"], eps)
    tied = config.get("tie_word_embeddings", False)
    return x @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def write_golden(folder, tokens, path):
    config, weights = load(folder)
    all_logits = logits(config, weights, tokens)
    golden = {"tokens": list(tokens), "last_logits": [round(float(x), 5) for x in all_logits[-1]]}
    with open(path, "w") as f:
        json.dump(golden, f)
        f.write("\n")


def write_safetensors(path, tensors, dtype):
    header, blobs, at = {}, [], 0
    for name, values in tensors.items():
        blob = values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape),
                        "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_tiny(folder, dtype, seed):
    """Two layers, untied, grouped queries, llama3 RoPE whose three regimes all occur."""
    os.makedirs(folder, exist_ok=True)
    hidden, inner, vocab, heads, kv_heads, d, layers = 12, 20, 32, 4, 2, 8, 2
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=d, intermediate_size=inner, vocab_size=vocab, rope_theta=100.0,
        rope_scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
                          high_freq_factor=4.0, original_max_position_embeddings=64),
        rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=[2, 3])
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
        f.write("\n")
    rng = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": rng.normal(size=(vocab, hidden))}
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, shape in (
            ("self_attn.q_proj", (heads * d, hidden)), ("self_attn.k_proj", (kv_heads * d, hidden)),
            ("self_attn.v_proj", (kv_heads * d, hidden)), ("self_attn.o_proj", (hidden, heads * d)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
        ):
            tensors[f"{p}{name}.weight"] = rng.normal(size=shape) / math.sqrt(shape[1])
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{p}{name}.weight"] = rng.uniform(0.5, 1.5, hidden)
    tensors["model.norm.weight"] = rng.uniform(0.5, 1.5, hidden)
    tensors["lm_head.weight"] = rng.normal(size=(vocab, hidden))
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors, dtype)
    tokens = [int(t) for t in rng.integers(0, vocab, 100)]
    write_golden(folder, tokens, os.path.join(folder, "golden_logits.json"))


def main():
    mode, args = sys.argv[1], sys.argv[2:]
    if mode == "golden":
        write_golden(args[0], list(PROMPT.encode()), args[1])
    elif mode == "tiny":
        write_tiny(os.path.join(args[0], "tiny-llama-f16"), "F16", 1)
        write_tiny(os.path.join(args[0], "tiny-llama-f32"), "F32", 2)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
