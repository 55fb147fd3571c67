#!/usr/bin/env python3
"""The peers of serving.py, each in a process of its own.

    python3 tools/benches/peers/serving_peers.py openvino|llama_cpp|llama_cpp_f16 FOLDER THREADS

Reads lines with a workload in JSON, {"clients", "requests", "prompt", "tokens"}, and answers each with
{"output_throughput"}: tokens per second from the first request to the last token. The loop is closed: `clients`
requests run at any time, and the next one is added when one ends, until `requests` have run. Prompts are `prompt` token
ids, each another sequence; each answer has `tokens` tokens.
"""
import json
import os
import sys
import time

from decoder import export_to_openvino, write_gguf

# A library of transformers has the name of a file in this folder, so it must not be on the import path.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]

MAX_CLIENTS, MAX_TOKENS = 32, 1024


def prompt_ids(request, tokens):
    return [(i * 37 + request * 11 + i * request) % 97 for i in range(tokens)]


class OpenVino:
    """OpenVINO GenAI: ContinuousBatchingPipeline with add_request and step, bf16, random weights."""

    def __init__(self, folder, threads):
        import numpy
        import openvino
        import openvino_genai as genai
        self.numpy, self.tensor, self.genai = numpy, openvino.Tensor, genai
        exported = folder + "-openvino"
        if not os.path.exists(os.path.join(exported, "openvino_model.xml")):
            export_to_openvino(folder, exported)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching, scheduler.max_num_seqs = 2, False, MAX_CLIENTS
        scheduler.max_num_batched_tokens = 2048
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
        self.pipe = genai.ContinuousBatchingPipeline(exported, scheduler, "CPU", options)
        self.added = 0

    def run(self, clients, requests, prompt, tokens):
        options = self.genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        inputs = [self.tensor(self.numpy.array([prompt_ids(r, prompt)], dtype="int64")) for r in range(requests)]
        running, generated = [], 0
        while inputs or running:
            while inputs and len(running) < clients:
                running.append(self.pipe.add_request(self.added, inputs.pop(), options))
                self.added += 1
            self.pipe.step()
            ended = [handle for handle in running if handle.get_status() != self.genai.GenerationStatus.RUNNING]
            generated += sum(len(output.generated_ids) for handle in ended for output in handle.read_all())
            running = [handle for handle in running if handle not in ended]
        return generated


class LlamaCpp:
    """llama.cpp by its C interface: one llama_decode per step for all sequences and new prompts, greedy."""

    def __init__(self, folder, threads, is_f16=False):
        import llama_cpp
        self.api = llama_cpp
        path = folder + ("-f16.gguf" if is_f16 else ".gguf")
        if not os.path.exists(path):
            write_gguf(folder, path, is_f16)
        # Only errors (level 4) are printed. The object keeps the callback, which C calls as long as it lives.
        self.log = llama_cpp.llama_log_callback(lambda level, text, _: level == 4 and print(text.decode(), file=sys.stderr))
        llama_cpp.llama_log_set(self.log, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = MAX_TOKENS * MAX_CLIENTS, MAX_CLIENTS
        options.n_batch, options.n_threads, options.n_threads_batch = 2048, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, options) if self.model else None
        if not self.context:
            sys.exit(f"{path}: llama.cpp cannot load it; its message is above")
        self.greedy = llama_cpp.llama_sampler_init_greedy()
        self.batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)

    def add(self, token, position, sequence, has_logits):
        """Adds a token to the batch; returns its index."""
        at = self.batch.n_tokens
        self.batch.token[at], self.batch.pos[at] = token, position
        self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
        self.batch.logits[at] = has_logits
        self.batch.n_tokens += 1
        return at

    def run(self, clients, requests, prompt, tokens):
        waiting = [prompt_ids(r, prompt) for r in range(requests)]
        free, running, generated = list(range(clients)), {}, 0
        while waiting or running:
            self.batch.n_tokens = 0
            row = {}
            # llama.cpp computes sequences together only if their numbers ascend.
            for sequence in sorted(running):
                ids = running[sequence]
                row[sequence] = self.add(ids[-1], prompt + len(ids) - 1, sequence, True)
            while waiting and free and self.batch.n_tokens + prompt <= 2048:
                sequence, ids = min(free), waiting.pop()
                free.remove(sequence)
                running[sequence] = []
                for i, token in enumerate(ids):
                    row[sequence] = self.add(token, i, sequence, i == prompt - 1)
            if self.api.llama_decode(self.context, self.batch) != 0:
                sys.exit("llama_decode failed; its message is above")
            for sequence, at in row.items():
                running[sequence].append(self.api.llama_sampler_sample(self.greedy, self.context, at))
                if len(running[sequence]) == tokens:
                    generated += len(running.pop(sequence))
                    self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), sequence, -1, -1)
                    free.append(sequence)
        return generated


# llama.cpp computes with weights in f16 by other code than in bf16, which may be faster.
PEERS = {"openvino": OpenVino, "llama_cpp": LlamaCpp, "llama_cpp_f16": lambda *options: LlamaCpp(*options, is_f16=True)}


def main():
    kind, folder, threads = sys.argv[1:]
    # Libraries print to stdout, which is for results.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = PEERS[kind](folder, int(threads))
    for line in sys.stdin:
        work = json.loads(line)
        begun = time.perf_counter()
        generated = peer.run(**work)
        seconds = time.perf_counter() - begun
        if generated != work["requests"] * work["tokens"]:
            sys.exit(f"{kind}: generated {generated} tokens for {line}")
        print(json.dumps({"output_throughput": generated / seconds}), file=results, flush=True)


if __name__ == "__main__":
    main()
