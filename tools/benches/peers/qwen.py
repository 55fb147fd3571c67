"""Measures transformers' Qwen2.5-VL for comparison with `reel bench`: prefill, decode and a fine-tuning step.

    python3 tools/benches/peers/qwen.py MODEL [--what prefill,decode,compiled,train] [--device cuda|cpu] [--dtype bf16|f32]
                                  [--attention sdpa,flash_attention_2] [--load] [--prompt-tokens 4096] [--context 1024]
                                  [--tokens 64] [--train-tokens 8192] [--batch 1] [--rounds 5]

MODEL is a folder that `reel init` made. Only its config.json is read and weights are random, unless --load is given. Prints one line
of JSON per measurement, with the keys of `reel bench --json` and `peer`. If a library is not installed or memory is too small, the
line has `absent` or `error`; the exit status is still 0.

Rounds are as in `reel bench`: the same token ids, one warm-up round, then median, minimum and maximum. Prefill ends with the logits of
the last position. Decoding samples at temperature 1 from the whole vocabulary and starts with CONTEXT keys in the cache: once eager with
a growing cache (`decode`), once with a static cache and `torch.compile`, which captures CUDA graphs (`compiled`; compiling takes minutes,
so `run.sh` gives it a process and a time limit of its own). A fine-tuning step uses gradient checkpointing,
holds weights, gradients and moments in bf16, and uses fused AdamW: fewer bytes than the step of `reel`, which keeps exact f32 master
weights and f32 gradients.
"""

import argparse
import os
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from common import Clock, first_line, need, say, spread

torch, transformers = need("torch", "transformers")


def arguments():
    p = argparse.ArgumentParser(description="Times of transformers' Qwen2.5-VL.")
    p.add_argument("model")
    p.add_argument("--what", default="prefill,decode,compiled,train")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    p.add_argument("--attention", default="sdpa,flash_attention_2")
    p.add_argument("--load", action="store_true")
    p.add_argument("--prompt-tokens", type=int, default=4096)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--train-tokens", type=int, default=8192)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    return p.parse_args()


class Bench:
    def __init__(self, args, attention):
        self.args, self.attention = args, attention
        self.dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
        self.clock = Clock(torch, args.device)
        self.peer = f"transformers {transformers.__version__}, torch {torch.__version__}, {attention}"
        kind = transformers.Qwen2_5_VLForConditionalGeneration
        if args.load:
            self.model = kind.from_pretrained(args.model, torch_dtype=self.dtype, attn_implementation=attention)
            self.model = self.model.to(args.device)
        else:
            config = transformers.AutoConfig.from_pretrained(args.model)
            config._attn_implementation = attention
            torch.set_default_dtype(self.dtype)
            with torch.device(args.device):
                self.model = kind._from_config(config, torch_dtype=self.dtype)
            torch.set_default_dtype(torch.float32)
        config = self.model.config
        self.text = getattr(config, "text_config", None) or config

    def ids(self, tokens):
        return (torch.arange(tokens, device=self.args.device) * 37 % 97).repeat(self.args.batch, 1)

    def positions(self, first, tokens):
        at = torch.arange(first, first + tokens, device=self.args.device)
        return at.view(1, 1, -1).expand(3, self.args.batch, tokens)

    def record(self, op, peer, seconds, tokens, context=0, **more):
        made = tokens * self.args.batch
        all_of_it = spread(seconds)
        say(
            {
                "op": op,
                "peer": peer,
                "tokens_per_second": made / all_of_it["seconds"],
                "min": made / all_of_it["most"],
                "max": made / all_of_it["least"],
                "n": all_of_it["n"],
                "tokens": tokens,
                "batch": self.args.batch,
                "context": context,
                "dtype": self.args.dtype,
                "device": self.args.device,
                "machine": machine(self.args.device),
                "model": self.args.model,
                "seconds": all_of_it["seconds"],
                "samples": seconds,
                "peak_bytes": torch.cuda.max_memory_allocated() if self.args.device == "cuda" else None,
                **more,
            }
        )

    @torch.no_grad()
    def prefill(self):
        tokens = self.args.prompt_tokens
        ids, at = self.ids(tokens), self.positions(0, tokens)
        model = self.model.eval()

        def read():
            out = model(input_ids=ids, position_ids=at, use_cache=True, logits_to_keep=1) if keeps_last else None
            if out is None:
                hidden = model.model(input_ids=ids, position_ids=at, use_cache=True)[0]
                return model.lm_head(hidden[:, -1:]).float().cpu()
            return out.logits.float().cpu()

        keeps_last = "logits_to_keep" in model.forward.__code__.co_varnames
        self.record("prefill", self.peer, self.clock.runs(read, self.args.rounds, warm=1, flush=False), tokens)

    @torch.no_grad()
    def decode(self, compiled):
        args, model = self.args, self.model.eval()
        made, context = args.tokens, args.context
        heads, kv_heads = self.text.num_attention_heads, self.text.num_key_value_heads
        head_dim = self.text.hidden_size // heads
        layers = self.text.num_hidden_layers
        shape = (args.batch, kv_heads, context, head_dim)

        if compiled:
            from transformers import StaticCache

            limit = context + made + 1
            static = StaticCache(self.text, max_batch_size=args.batch, max_cache_len=limit, device=args.device, dtype=self.dtype)

            def fresh():
                static.reset()
                return static

            forward = torch.compile(model.model, mode="reduce-overhead", fullgraph=False)
        else:
            from transformers import DynamicCache

            def fresh():
                cache = DynamicCache()
                for layer in range(layers):
                    keys = torch.zeros(shape, dtype=self.dtype, device=args.device)
                    cache.update(keys, keys.clone(), layer)
                return cache

            forward = model.model
        next_id = torch.ones(args.batch, 1, dtype=torch.long, device=args.device)
        # A static cache is masked at the position of each step, so entries beyond it have no effect.
        mask = None

        def step(cache, i, ids):
            position = self.positions(context + i, 1)
            where = torch.tensor([context + i], device=args.device)
            hidden = forward(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                cache_position=where,
                use_cache=True,
            )[0]
            logits = model.lm_head(hidden[:, -1]).float()
            p = torch.softmax(logits, -1)
            return torch.multinomial(p, 1)

        def run():
            cache, ids = fresh(), next_id
            if args.device == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            for i in range(made):
                ids = step(cache, i, ids).clone()
                ids.cpu()  # As an engine that must see stop tokens does.
            return time.perf_counter() - begun

        run()
        if compiled:
            run()
        name = "static cache, torch.compile" if compiled else "growing cache"
        self.record("decode", f"{self.peer}, {name}", [run() for _ in range(args.rounds)], made, context)

    def train(self):
        args, model, tokens = self.args, self.model.train(), self.args.train_tokens
        model.config.use_cache = False
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=args.device == "cuda")
        ids, at = self.ids(tokens), self.positions(0, tokens)

        def head_loss(hidden, targets):
            logits = model.lm_head(hidden).float()
            return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

        def step():
            optimizer.zero_grad(set_to_none=True)
            hidden = model.model(input_ids=ids, position_ids=at, use_cache=False)[0]
            learned, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            # Logits for 1024 rows at a time, recomputed in the backward pass: all logits would not fit into memory.
            total = 0.0
            for rows in range(0, len(targets), 1024):
                part = learned[rows : rows + 1024], targets[rows : rows + 1024]
                total = total + torch.utils.checkpoint.checkpoint(head_loss, *part, use_reentrant=False)
            (total / len(targets)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()

        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.clock.runs(step, args.rounds, warm=1, flush=False)
        # A table of embeddings that is no output layer multiplies nothing. The key `tie_word_embeddings` is in another config in each
        # version of transformers.
        embeddings = model.get_input_embeddings().weight
        table = 0 if model.lm_head.weight is embeddings else embeddings.numel()
        matrices = [p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "visual" not in name]
        weights = sum(matrices) - table
        width, layers = self.text.hidden_size, self.text.num_hidden_layers
        flops = args.batch * (6 * weights * tokens + 6 * tokens * tokens * width * layers)
        peak = 989.4e12 if any(kind in machine(args.device)["name"] for kind in ("H100", "H200")) else None
        self.record(
            "train",
            f"{self.peer}, AdamW in {args.dtype}",
            seconds,
            tokens,
            model_flops=flops,
            mfu=flops / spread(seconds)["seconds"] / peak if peak else None,
            gradient_checkpointing=True,
        )


def machine(device):
    return {"name": torch.cuda.get_device_name() if device == "cuda" else "cpu"}


def main():
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        return say({"peer": f"torch {torch.__version__}", "absent": "torch sees no GPU"})
    for attention in args.attention.split(","):
        try:
            bench = Bench(args, attention)
        except Exception as e:
            say({"peer": f"transformers {transformers.__version__}, {attention}", "absent": first_line(e)})
            continue
        work = {
            "prefill": [bench.prefill],
            "decode": [lambda: bench.decode(False)],
            "compiled": [lambda: bench.decode(True)],
            "train": [bench.train],
        }
        for what in args.what.split(","):
            for run in work[what]:
                try:
                    run()
                except Exception as e:
                    say({"op": what, "peer": bench.peer, "error": first_line(e)})
        del bench, work, run
        if args.device == "cuda":
            torch.cuda.empty_cache()


main()
