"""Measures torch's kernels for comparison with `reel bench op` and `reel kernels bench`.

    python3 tools/benches/peers/torch_kernels.py [--runs 20] [--only attention,products,…] [--device cuda|cpu] [--tiny]

Prints one line of JSON per kernel: kernel and size as in `reel bench op NAME --size …`, the peer, and seconds (median, minimum, maximum,
all runs). Times are GPU events around one call after 256 MiB were overwritten; reel times chains of calls in a captured graph, which favours
reel for short kernels. If a library is not installed, or this build of torch lacks a kernel, the line has `absent`
or `error`. --tiny selects small sizes to try the script, also on a CPU.

Parts: copy, products, norms, attention, vision, decode, pointwise, head, optimizer. (This file must not be called kernels.py, because
transformers imports a package of that name.)
"""

import argparse

from common import Clock, first_line, need, say, spread

(torch,) = need("torch")
import torch.nn.functional as F
import torch.utils.checkpoint

args = argparse.ArgumentParser(description="Times of torch's kernels.")
args.add_argument("--runs", type=int, default=20)
args.add_argument("--only", default="copy,products,norms,attention,vision,decode,pointwise,head,optimizer")
args.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
args.add_argument("--tiny", action="store_true")
args = args.parse_args()

if args.tiny:
    TOKENS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB, BATCH, CONTEXT = 64, 128, 192, 4, 2, 32, 500, 2, 128
else:
    TOKENS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB, BATCH, CONTEXT = 8192, 3584, 18944, 28, 4, 128, 152064, 16, 8192
CHUNK = 1024
DTYPES = [(torch.bfloat16, "bf16"), (torch.float32, "f32")]


def rand(*shape, dtype=torch.bfloat16, grad=False):
    return torch.randn(*shape, dtype=dtype, device=args.device).requires_grad_(grad)


def time(kernel, size, peer, f, **more):
    record = {"kernel": kernel, "size": size, "peer": f"torch {torch.__version__}: {peer}"}
    try:
        seconds = clock.runs(f, args.runs)
        s = spread(seconds)
        record |= {"seconds": s["seconds"], "min": s["least"], "max": s["most"], "n": s["n"], "samples": sorted(seconds), **more}
    except Exception as e:  # What this build of torch lacks is a line of its own.
        record["error"] = first_line(e)
    say(record)
    if args.device == "cuda":
        torch.cuda.empty_cache()


def backward(f, inputs):
    out = f()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def both(kernel, dtype, size, peer, f, inputs, also_compiled=True):
    """Measures forward and backward of `f`, eager and compiled."""
    ways = [(peer, f)]
    if also_compiled:
        ways.append((f"torch.compile of {peer}", torch.compile(f)))
    for name, way in ways:
        time(f"{kernel}_fwd_{dtype}", size, name, lambda: way().detach())
        try:
            gradient = backward(way, inputs)
        except Exception as e:
            say({"kernel": f"{kernel}_bwd_{dtype}", "size": size, "peer": name, "error": first_line(e)})
            continue
        time(f"{kernel}_bwd_{dtype}", size, name, gradient)


def copy():
    n = 1 << (20 if args.tiny else 32)
    a, b = (torch.empty(n, dtype=torch.uint8, device=args.device) for _ in range(2))
    time("copy", f"bytes={n}", "copy", lambda: a.copy_(b), bytes=2 * n)


def products():
    """Measures the linear layers of the model: forward and both gradients."""
    qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    layers = [(qkv, HIDDEN), (HIDDEN, HEADS * HEAD_DIM), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
    for n, k in layers:
        x, w, dy = rand(TOKENS, k), rand(n, k), rand(TOKENS, n)
        size, flops = f"m={TOKENS} n={n} k={k}", 2 * TOKENS * n * k
        time("matmul_fwd_bf16", size, "matmul (cuBLAS)", lambda: x @ w.t(), flops=flops)
        time("matmul_dx_bf16", size, "matmul (cuBLAS)", lambda: dy @ w, flops=flops)
        time("matmul_dw_bf16", size, "matmul (cuBLAS)", lambda: dy.t() @ x, flops=flops)


def norms():
    for dtype, name in DTYPES:
        x, w = rand(TOKENS, HIDDEN, dtype=dtype, grad=True), rand(HIDDEN, dtype=dtype, grad=True)
        size = f"tokens={TOKENS} hidden={HIDDEN}"
        both("rms_norm", name, size, "rms_norm", lambda: F.rms_norm(x, (HIDDEN,), w, 1e-6), [x, w])
        width = 1152
        y, v, b = (rand(*s, dtype=dtype, grad=True) for s in [(TOKENS, width), (width,), (width,)])
        size = f"rows={TOKENS} cols={width}"
        both("layer_norm", name, size, "layer_norm", lambda: F.layer_norm(y, (width,), v, b, 1e-6), [y, v, b])


def attention():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for tokens in [TOKENS] if args.tiny else [TOKENS // 8, TOKENS // 2, TOKENS, 2 * TOKENS]:
        q, k, v = (rand(1, h, tokens, HEAD_DIM, grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))
        # For backends without grouped-query attention, keys and values are repeated first; the arithmetic is the same.
        repeated = [x.detach().repeat_interleave(HEADS // KV_HEADS, 1).requires_grad_() for x in (k, v)]
        size = f"tokens={tokens} heads={HEADS} kv_heads={KV_HEADS} head_dim={HEAD_DIM} causal=1 seqs=1 prefix=0"
        flops = 4 * HEAD_DIM * HEADS * tokens * (tokens + 1) // 2
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with sdpa_kernel(backend):
                sdpa_both(f"sdpa {backend.name}", size, flops, q, (k, v), repeated)
        flash_attn(size, flops, q, k, v)


def vision():
    """Measures the vision tower's products and its attention: over all patches, and in windows of 64."""
    patches, width, inner, heads, head_dim, windows = (64, 64, 171, 4, 16, 4) if args.tiny else (16384, 1280, 3420, 16, 80, 128)
    for n, k in [(inner, width), (width, inner)]:
        x, w, dy = rand(patches, k), rand(n, k), rand(patches, n)
        size, flops = f"m={patches} n={n} k={k}", 2 * patches * n * k
        time("matmul_fwd_bf16", size, "matmul (cuBLAS)", lambda: x @ w.t(), flops=flops)
        time("matmul_dx_bf16", size, "matmul (cuBLAS)", lambda: dy @ w, flops=flops)
        time("matmul_dw_bf16", size, "matmul (cuBLAS)", lambda: dy.t() @ x, flops=flops)
    for seqs in (1, windows):
        q, k, v = (rand(seqs, heads, TOKENS // seqs, head_dim, grad=True) for _ in range(3))
        size = f"tokens={TOKENS} heads={heads} kv_heads={heads} head_dim={head_dim} causal=0 seqs={seqs} prefix=0"
        both("attention", "bf16", size, "sdpa", lambda: F.scaled_dot_product_attention(q, k, v), [q, k, v], also_compiled=False)


def sdpa_both(peer, size, flops, q, grouped, repeated):
    """Measures forward, backward, and backward with deterministic algorithms."""
    f, inputs = lambda: F.scaled_dot_product_attention(q, *grouped, is_causal=True, enable_gqa=True), [q, *grouped]
    try:
        backward(f, inputs)()
    except Exception:
        peer += ", keys repeated"
        f, inputs = lambda: F.scaled_dot_product_attention(q, *repeated, is_causal=True), [q, *repeated]
    time("attention_fwd_bf16", size, peer, lambda: f().detach(), flops=flops)
    for deterministic in (False, True):
        name = f"{peer}{', deterministic' if deterministic else ''}"
        torch.use_deterministic_algorithms(deterministic)
        try:
            time("attention_bwd_bf16", size, name, backward(f, inputs), flops=5 * flops // 2)
        except Exception as e:
            say({"kernel": "attention_bwd_bf16", "size": size, "peer": name, "error": first_line(e)})
        finally:
            torch.use_deterministic_algorithms(False)


def flash_attn(size, flops, q, k, v):
    try:
        from flash_attn import __version__ as version
        from flash_attn import flash_attn_func
    except Exception as e:
        return say({"kernel": "attention", "peer": "flash_attn", "absent": first_line(e)})
    q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v))
    for deterministic in (False, True):
        name = f"flash_attn {version}{', deterministic' if deterministic else ''}"
        f = lambda: flash_attn_func(q, k, v, causal=True, deterministic=deterministic)
        try:
            gradient = backward(f, [q, k, v])
        except Exception as e:
            say({"kernel": "attention", "size": size, "peer": name, "error": first_line(e)})
            continue
        if not deterministic:
            time("attention_fwd_bf16", size, name, lambda: f().detach(), flops=flops)
        time("attention_bwd_bf16", size, name, gradient, flops=5 * flops // 2)


def decode():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for batch, context in [(BATCH, CONTEXT)] if args.tiny else [(1, 1024), (BATCH, CONTEXT), (64, 2048)]:
        q = rand(batch, HEADS, 1, HEAD_DIM)
        k, v = rand(batch, KV_HEADS, context, HEAD_DIM), rand(batch, KV_HEADS, context, HEAD_DIM)
        size = f"batch={batch} context={context} heads={HEADS} kv_heads={KV_HEADS} head_dim={HEAD_DIM}"
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with sdpa_kernel(backend):
                f = lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                time("paged_attention_fwd_bf16", size, f"sdpa {backend.name}, contiguous cache", f)
    w, w2 = rand(INTERMEDIATE, HIDDEN), rand(INTERMEDIATE, HIDDEN)
    for batch in [BATCH] if args.tiny else [1, 8, BATCH]:
        x = rand(batch, HIDDEN)
        size = f"batch={batch} n={INTERMEDIATE} k={HIDDEN}"
        time("skinny_linear_bf16", size, "linear (cuBLAS)", lambda: F.linear(x, w))
        time("skinny_swiglu_bf16", size, "linear twice, silu, mul", lambda: F.silu(F.linear(x, w)) * F.linear(x, w2))
    logits = rand(BATCH, VOCAB, dtype=torch.float32)

    def sample():
        values, ids = logits.topk(50)
        p = values.softmax(-1)
        keep = p.cumsum(-1) - p < 0.95
        choice = torch.multinomial(p * keep, 1)
        return ids.gather(1, choice), torch.log_softmax(logits, -1).gather(1, ids.gather(1, choice))

    time("sample", f"rows={BATCH} vocab={VOCAB}", "topk, softmax, multinomial, log_softmax", sample)


def pointwise():
    for dtype, name in DTYPES:
        g, u = (rand(TOKENS, INTERMEDIATE, dtype=dtype, grad=True) for _ in range(2))
        size = f"tokens={TOKENS} intermediate={INTERMEDIATE}"
        both("swiglu", name, size, "silu, mul", lambda: F.silu(g) * u, [g, u])
        width = 5120
        x = rand(TOKENS, width, dtype=dtype, grad=True)
        both("gelu", name, f"count={TOKENS * width}", "gelu", lambda: F.gelu(x), [x], also_compiled=False)
        a, b = rand(TOKENS, HIDDEN, dtype=dtype), rand(TOKENS, HIDDEN, dtype=dtype)
        size = f"tokens={TOKENS} hidden={HIDDEN}"
        time(f"add_{name}", size, "add", lambda: a + b)
        total = rand(HIDDEN, dtype=torch.float32)
        time(f"column_sum_{name}", size, "sum", lambda: total.add_(a.sum(0, dtype=torch.float32)))
        ids = torch.arange(TOKENS, device=args.device) * 7919 % VOCAB
        table = rand(VOCAB, HIDDEN, dtype=dtype)
        time(f"embedding_fwd_{name}_{name}", f"{size} vocab={VOCAB}", "embedding", lambda: F.embedding(ids, table))
    a = rand(TOKENS, HIDDEN, dtype=torch.float32)
    time("cast_f32_bf16", size, "to", lambda: a.to(torch.bfloat16))
    w = rand(INTERMEDIATE, HIDDEN)
    time("sum_squares_bf16", f"count={w.numel()}", "norm", lambda: torch.linalg.vector_norm(w, dtype=torch.float32))


def head():
    """Measures the LM head with log-probabilities, computed in chunks so that not all logits are in memory."""
    h, w = rand(TOKENS, HIDDEN, grad=True), rand(VOCAB, HIDDEN, grad=True)
    targets = torch.arange(TOKENS, device=args.device) * 7919 % VOCAB
    size = f"tokens={TOKENS} hidden={HIDDEN} vocab={VOCAB}"
    flops = 2 * TOKENS * HIDDEN * VOCAB

    def loss(rows, wanted):
        return F.cross_entropy(F.linear(rows, w).float(), wanted, reduction="sum")

    def chunked(loss):
        total = 0.0
        for at in range(0, TOKENS, CHUNK):
            part = h[at : at + CHUNK], targets[at : at + CHUNK]
            total = total + torch.utils.checkpoint.checkpoint(loss, *part, use_reentrant=False)
        return total

    def forward(loss):
        with torch.no_grad():
            return [loss(h[at : at + CHUNK], targets[at : at + CHUNK]) for at in range(0, TOKENS, CHUNK)]

    def there_and_back(loss):
        h.grad = w.grad = None
        chunked(loss).backward()

    words = f"linear, cross_entropy by {CHUNK} rows"
    for peer, way in [(words, loss), (f"torch.compile of {words}", torch.compile(loss))]:
        time("linear_log_prob_fwd_bf16", size, peer, lambda: forward(way), flops=flops)
        # The backward pass recomputes the logits, which costs one more forward pass than the gradients alone.
        time("linear_log_prob_fwd_and_bwd_bf16", size, f"{peer}, logits again", lambda: there_and_back(way), flops=3 * flops)
    alone = lambda: [F.linear(c, w.detach()) for c in h.detach().split(CHUNK)]
    time("linear_log_prob_fwd_bf16", size, "linear alone (cuBLAS)", alone, flops=flops)
    rows = 110
    logits = rand(rows, VOCAB, dtype=torch.float32)
    few = targets[:rows, None] if TOKENS >= rows else targets.repeat(rows)[:rows, None]
    ce = lambda: torch.log_softmax(logits, -1).gather(1, few)
    time("log_prob_fwd", f"rows={rows} vocab={VOCAB}", "log_softmax, gather", ce)
    time("log_prob_fwd", f"rows={rows} vocab={VOCAB}", "torch.compile of log_softmax, gather", torch.compile(ce))


def optimizer():
    count = INTERMEDIATE * HIDDEN
    for dtype, kernel in [(torch.float32, "adamw_f32"), (torch.bfloat16, "adamw_bf16_moments_bf16")]:
        p = rand(INTERMEDIATE, HIDDEN, dtype=dtype, grad=True)
        p.grad = torch.randn_like(p)
        words = "AdamW fused" if dtype == torch.float32 else "AdamW fused, all of it bf16: no master copy"
        step = torch.optim.AdamW([p], lr=1e-6, fused=True).step
        time(kernel, f"count={count}", words, step)


def main():
    parts = {f.__name__: f for f in (copy, products, norms, attention, vision, decode, pointwise, head, optimizer)}
    for name in args.only.split(","):
        try:
            parts[name]()
        except Exception as e:
            say({"kernel": name, "peer": f"torch {torch.__version__}", "error": first_line(e)})


if args.device == "cuda" and not torch.cuda.is_available():
    say({"peer": f"torch {torch.__version__}", "absent": "torch sees no GPU"})
else:
    clock = Clock(torch, args.device)
    main()
