"""Times of torch's kernels at the sizes of `reel kernels list`, for `reel kernels bench` to be put beside.

    python3 benches/peers/kernels.py [RUNS]

One line of JSON each. Before each run the L2 cache is overwritten, and the GPU's own clock is read, as there.
"""

import json
import sys

import torch
import torch.nn.functional as F

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
TOKENS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB, BATCH = 8192, 3584, 18944, 28, 4, 128, 152064, 16
flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def rand(*shape, dtype=torch.bfloat16, grad=False):
    return torch.randn(*shape, dtype=dtype, device="cuda").requires_grad_(grad)


def time(kernel, peer, f):
    try:
        for _ in range(3):
            f()
        times = []
        for i in range(RUNS):
            flush.fill_(i & 255)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            f()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        times.sort()
        record = {"kernel": kernel, "peer": peer, "least_us": times[0], "median_us": times[len(times) // 2]}
    except Exception as e:  # A peer that this build of torch lacks is a line of its own.
        record = {"kernel": kernel, "peer": peer, "error": str(e).split("\n")[0]}
    print(json.dumps(record), flush=True)
    torch.cuda.empty_cache()


def backward(f, inputs):
    out = f()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def norms():
    for dtype, name in [(torch.bfloat16, "bf16"), (torch.float32, "f32")]:
        x, w = rand(TOKENS, HIDDEN, dtype=dtype, grad=True), rand(HIDDEN, dtype=dtype, grad=True)
        f = lambda: F.rms_norm(x, (HIDDEN,), w, 1e-6)
        time(f"rms_norm_fwd_{name}", "torch rms_norm", lambda: f().detach())
        time(f"rms_norm_bwd_{name}", "torch rms_norm", backward(f, [x, w]))
        y, v, b = (rand(*s, dtype=dtype, grad=True) for s in [(TOKENS, 1152), (1152,), (1152,)])
        g = lambda: F.layer_norm(y, (1152,), v, b, 1e-6)
        time(f"layer_norm_fwd_{name}", "torch layer_norm", lambda: g().detach())
        time(f"layer_norm_bwd_{name}", "torch layer_norm", backward(g, [y, v, b]))


def attention():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (rand(1, h, TOKENS, HEAD_DIM, grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            f = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            try:
                f()
            except RuntimeError:
                # Without grouped queries: keys and values repeated beforehand, which does the same arithmetic.
                k2, v2 = (x.detach().repeat_interleave(HEADS // KV_HEADS, 1).requires_grad_() for x in (k, v))
                f = lambda: F.scaled_dot_product_attention(q, k2, v2, is_causal=True)
                k_v = [k2, v2]
            else:
                k_v = [k, v]
            time("attention_fwd_bf16", f"torch sdpa {backend.name}", lambda: f().detach())
            time("attention_bwd_bf16", f"torch sdpa {backend.name}", backward(f, [q, *k_v]))
    q1 = rand(BATCH, HEADS, 1, HEAD_DIM)
    kb, vb = rand(BATCH, KV_HEADS, TOKENS, HEAD_DIM), rand(BATCH, KV_HEADS, TOKENS, HEAD_DIM)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            f = lambda: F.scaled_dot_product_attention(q1, kb, vb, enable_gqa=True)
            time("paged_attention_fwd_bf16", f"torch sdpa {backend.name}, contiguous cache", f)


def pointwise():
    for dtype, name in [(torch.bfloat16, "bf16"), (torch.float32, "f32")]:
        g, u = (rand(TOKENS, INTERMEDIATE, dtype=dtype, grad=True) for _ in range(2))
        f = lambda: F.silu(g) * u
        time(f"swiglu_fwd_{name}", "torch silu, mul", lambda: f().detach())
        time(f"swiglu_bwd_{name}", "torch silu, mul", backward(f, [g, u]))
        x = rand(TOKENS, 5120, dtype=dtype, grad=True)
        f = lambda: F.gelu(x)
        time(f"gelu_fwd_{name}", "torch gelu", lambda: f().detach())
        time(f"gelu_bwd_{name}", "torch gelu", backward(f, [x]))
        a, b = rand(TOKENS, HIDDEN, dtype=dtype), rand(TOKENS, HIDDEN, dtype=dtype)
        time(f"add_{name}", "torch add", lambda: a + b)
        total = rand(HIDDEN, dtype=torch.float32)
        time(f"column_sum_{name}", "torch sum", lambda: total.add_(a.sum(0, dtype=torch.float32)))
        ids = torch.arange(TOKENS, device="cuda") * 7919 % VOCAB
        table = rand(VOCAB, HIDDEN, dtype=dtype)
        time(f"embedding_fwd_{name}", "torch embedding", lambda: F.embedding(ids, table))
    a = rand(TOKENS, HIDDEN, dtype=torch.float32)
    time("cast_f32_bf16", "torch to", lambda: a.to(torch.bfloat16))
    w = rand(INTERMEDIATE, HIDDEN)
    time("sum_squares_bf16", "torch norm", lambda: torch.linalg.vector_norm(w, dtype=torch.float32))


def optimizer():
    p = rand(INTERMEDIATE, HIDDEN, dtype=torch.float32, grad=True)
    p.grad = torch.randn_like(p)
    step = torch.optim.AdamW([p], lr=1e-6, fused=True).step
    time("adamw_f32", "torch AdamW fused", step)


def log_probs():
    h, w = rand(TOKENS, HIDDEN), rand(VOCAB, HIDDEN)
    targets = torch.arange(TOKENS, device="cuda") * 7919 % VOCAB

    def chunked():
        out = []
        for rows in range(0, TOKENS, 1024):
            logits = F.linear(h[rows : rows + 1024], w).float()
            log_p = torch.log_softmax(logits, -1)
            out.append(log_p.gather(1, targets[rows : rows + 1024, None]))
            (log_p.exp() * log_p).sum(-1)
        return torch.cat(out)

    time("linear_log_prob_fwd_bf16", "torch linear, log_softmax by 1024 rows", chunked)
    time("linear_log_prob_fwd_bf16", "torch linear alone (cuBLAS)", lambda: [F.linear(c, w) for c in h.split(1024)])
    logits = rand(110, VOCAB, dtype=torch.float32)
    some = targets[:110, None]
    time("log_prob_fwd", "torch log_softmax, gather", lambda: torch.log_softmax(logits, -1).gather(1, some))


def decode():
    x, w, w2 = rand(BATCH, HIDDEN), rand(INTERMEDIATE, HIDDEN), rand(INTERMEDIATE, HIDDEN)
    time("skinny_linear_bf16", "torch linear (cuBLAS)", lambda: F.linear(x, w))
    time("skinny_swiglu_bf16", "torch linear twice, silu, mul", lambda: F.silu(F.linear(x, w)) * F.linear(x, w2))
    logits = rand(BATCH, VOCAB, dtype=torch.float32)

    def sample():
        values, ids = logits.topk(50)
        p = values.softmax(-1)
        keep = p.cumsum(-1) - p < 0.95
        choice = torch.multinomial(p * keep, 1)
        return ids.gather(1, choice), torch.log_softmax(logits, -1).gather(1, ids.gather(1, choice))

    time("sample", "torch topk, softmax, multinomial, log_softmax", sample)


n = 8192
a, b = rand(n, n), rand(n, n)
time("matmul_bf16_8192", "torch matmul (cuBLAS)", lambda: a @ b)
c, d = torch.empty(4 << 30, dtype=torch.uint8, device="cuda"), torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
time("copy_4GiB", "torch copy", lambda: c.copy_(d))
del a, b, c, d
for part in (norms, attention, pointwise, optimizer, log_probs, decode):
    part()
