#!/usr/bin/env python3
"""Compares GRPO steps per minute on the CPU: `reel grpo` and TRL's GRPOTrainer in alternation, in one run.

    python3 tools/benches/peers/trl_grpo.py --reel target/release/reel [--rounds 3] [--steps 20] [--out RECORD.json]
    python3 tools/benches/peers/trl_grpo.py --reel target/release/reel --before EARLIER_REEL [--rounds 3] [--steps 20] [--out RECORD.json]

Needs trl 0.23.0, transformers 4.56.2, torch 2.7.1, datasets and safetensors in a Python environment of their own.
Both sides: the same user messages with the model's chat template, prompts of about 100 tokens, one prompt per step, 8 completions of exactly 64 tokens, loss type grpo, beta 0.04,
learning rate 1e-6, temperature 1, top-p 0.95, f32, all cores. The reward is the number of distinct characters. The model has about a
million random parameters (hidden 128, 4 layers, 4 heads, 2 KV heads, intermediate 384, vocabulary 490); for TRL it is a Qwen2ForCausalLM
of the same shape. TRL runs with and without gradient checkpointing, and the faster one is compared. reel runs before, between and after
these two, and the median of all its steps counts: a round takes a minute, in which the speed of a virtual machine may change. The result is
the median of the ratios of the rounds. The first steps of a run do not count. Memory is the maximum resident set size.

With --before the peer is an earlier build of reel, which runs in turn with the other one.
"""
import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# transformers imports a library that has the name of a file in this folder, so the folder must not be on the import
# path.
sys.path = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(os.path.abspath(__file__))]

SHAPE = dict(hidden_size=128, num_hidden_layers=4, max_window_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=384)
VOCAB, GENERATIONS, LENGTH, BETA, RATE, WARM = 490, 8, 64, 0.04, 1e-6, 4
REWARD = "import sys, json\nfor line in sys.stdin:\n    print(len(set(json.loads(line)['completion'])), flush=True)\n"


def rows(n):
    words = "the cat sat on a mat and the dog saw it go by in the rain while we had tea with milk at the old house".split()
    return [" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(29)) for i in range(n)]


def messages(row):
    return [{"role": "user", "content": row}]


def make_models(reel, folder):
    """Writes a model folder for reel, and one for TRL in `trl/`, with the same tokenizer and random weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

    subprocess.run([reel, "init", "--preset", "tiny", "--vocab", str(VOCAB), "--seed", "0", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    config.update(SHAPE)
    config["vocab_size"] = VOCAB
    json.dump(config, open(path, "w"), indent=2)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder))
    classic = lambda n: n.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    weights = {classic(n): p.detach().contiguous() for n, p in model.named_parameters() if n != "lm_head.weight"}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    peer = os.path.join(folder, "trl")
    own = {k: v for k, v in SHAPE.items()}
    ids = {k: config[k] for k in ("bos_token_id", "eos_token_id")}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, tie_word_embeddings=True, **own, **ids)).save_pretrained(peer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))
    eos = tokenizer.convert_ids_to_tokens(ids["eos_token_id"])
    tokenizer.add_special_tokens({"eos_token": eos, "pad_token": eos})
    tokenizer.chat_template = json.load(open(os.path.join(folder, "chat_template.json")))["chat_template"]
    tokenizer.save_pretrained(peer)


def trl(folder, steps, checkpointing):
    """Runs GRPOTrainer once in this process and prints the seconds of each step."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        times = []

        def on_step_begin(self, *_, **__):
            self.begun = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.times.append(time.perf_counter())

    torch.set_num_threads(os.cpu_count())
    clock = Clock()
    peer = os.path.join(folder, "trl")
    tokenizer = AutoTokenizer.from_pretrained(peer)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    config = GRPOConfig(
        output_dir=os.path.join(folder, "trl-out"), per_device_train_batch_size=GENERATIONS, num_generations=GENERATIONS, gradient_accumulation_steps=1,
        max_completion_length=LENGTH, generation_kwargs={"min_new_tokens": LENGTH}, beta=BETA, loss_type="grpo", learning_rate=RATE, max_steps=steps,
        temperature=1.0, top_p=0.95, use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=checkpointing, report_to=[], save_strategy="no",
        logging_steps=1000, disable_tqdm=True, max_prompt_length=None, seed=0)
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(peer), processing_class=tokenizer, args=config, train_dataset=Dataset.from_dict({"prompt": [messages(r) for r in rows(64)]}),
        reward_funcs=lambda completions, **_: [float(len(set(c[0]["content"]))) for c in completions], callbacks=[clock])
    trainer.train()
    seconds = [b - a for a, b in zip(clock.times, clock.times[1:])]
    prompts = [len(tokenizer.apply_chat_template(messages(r), add_generation_prompt=True)) for r in rows(64)]
    print(json.dumps({"seconds": seconds, "prompt_tokens": prompts, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run_trl(folder, steps, checkpointing):
    command = [sys.executable, os.path.abspath(__file__), "--reel", "-", "--trl", folder, "--steps", str(steps)] + (["--checkpointing"] if checkpointing else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"TRL failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_reel(reel, folder, steps):
    data, out = os.path.join(folder, "rows.jsonl"), os.path.join(folder, "out")
    with open(data, "w", encoding="utf-8") as f:
        for row in rows(64):
            f.write(json.dumps({"prompt": messages(row)}) + "\n")
    reward = os.path.join(folder, "reward.py")
    with open(reward, "w", encoding="utf-8") as f:
        f.write(REWARD)
    command = [reel, "grpo", "--model", folder, "--data", data, "--out", out, "--overwrite", "--device", "cpu", "--dtype", "f32", "--max-steps", str(steps),
               "--num-generations", str(GENERATIONS), "--per-device-train-batch-size", str(GENERATIONS), "--min-completion-length", str(LENGTH),
               "--max-completion-length", str(LENGTH), "--beta", str(BETA), "--learning-rate", str(RATE), "--gradient-checkpointing", "none",
               "--reward-command", f"{sys.executable} {reward}", "--save-steps", "0", "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"reel grpo exited with status {status}")
    lines = [json.loads(x) for x in open(os.path.join(out, "metrics.jsonl"), encoding="utf-8")]
    if any(x["completion_length"] != LENGTH for x in lines):
        sys.exit("reel sampled completions of another length")
    # A step computes all tokens of the prompt but the last one once. For each completion it computes the last token of the
    # prompt and all tokens of the completion but the last one.
    prompts = [x["tokens"] - GENERATIONS * LENGTH + 1 for x in lines]
    return {"seconds": [x["step_seconds"] for x in lines], "prompt_tokens": prompts, "rss": usage.ru_maxrss * 1024}


def handover_nanoseconds(reel, folder):
    """The time from one core to the other at this moment. On some virtual machines it changes, and with it the speed."""
    command = [reel, "bench", "rollout", "--model", folder, "--device", "cpu", "--dtype", "f32", "--tokens", "4", "--rounds", "1", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["handover_nanoseconds"][0]


def per_minute(run):
    return 60 / statistics.median(run["seconds"][WARM:])


def together(runs):
    """Several runs as one; the first steps of each do not count."""
    seconds = [s for run in runs for s in run["seconds"][WARM:]]
    return runs[0] | {"seconds": runs[0]["seconds"][:WARM] + seconds, "rss": max(run["rss"] for run in runs)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--reel", required=True)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=24)
    p.add_argument("--before")
    p.add_argument("--out")
    p.add_argument("--make", help=argparse.SUPPRESS)
    p.add_argument("--trl", help=argparse.SUPPRESS)
    p.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.make:
        return make_models(os.path.abspath(a.reel), a.make)
    if a.trl:
        return trl(a.trl, a.steps, a.checkpointing)
    reel, folder = os.path.abspath(a.reel), tempfile.mkdtemp()
    rounds = []
    try:
        model = os.path.join(folder, "model")
        # Runs in a process of its own: memory that a child inherits from this process would count as the
        # child's memory.
        subprocess.run([sys.executable, os.path.abspath(__file__), "--reel", reel, "--make", model], check=True)
        for _ in range(a.rounds):
            if a.before:
                row = {f"{name}_steps_per_minute": per_minute(run_reel(os.path.abspath(program), model, 3 * a.steps)) for name, program in (("before", a.before), ("reel", reel))}
                rounds.append(row | {"peer": "before", "speed": row["reel_steps_per_minute"] / row["before_steps_per_minute"]})
                continue
            own = [run_reel(reel, model, a.steps)]
            runs = {}
            for name, checkpointing in (("trl", False), ("trl_checkpointing", True)):
                runs[name] = run_trl(model, a.steps, checkpointing)
                own.append(run_reel(reel, model, a.steps))
            runs["reel"] = together(own)
            row = {f"{name}_steps_per_minute": per_minute(run) for name, run in runs.items()}
            row |= {f"{name}_resident_mib": run["rss"] / 2**20 for name, run in runs.items()}
            row["handover_nanoseconds"] = handover_nanoseconds(reel, model)
            best = max(("trl", "trl_checkpointing"), key=lambda name: row[f"{name}_steps_per_minute"])
            row["peer"] = best
            row["speed"] = row["reel_steps_per_minute"] / row[f"{best}_steps_per_minute"]
            row["memory"] = row["reel_resident_mib"] / row[f"{best}_resident_mib"]
            if not set(runs["reel"]["prompt_tokens"]) <= set(runs["trl"]["prompt_tokens"]):
                sys.exit("reel and TRL have prompts of different lengths")
            row |= {f"{name}_prompt_tokens": statistics.mean(runs[name]["prompt_tokens"]) for name in ("trl", "reel")}
            rounds.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {"machine": cpu_name(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "commit": commit(), "command": " ".join(["tools/benches/peers/trl_grpo.py", *sys.argv[1:]]),
              "speed": statistics.median(r["speed"] for r in rounds)}
    if not a.before:
        result["memory"] = statistics.median(r["memory"] for r in rounds)
    result["rounds"] = rounds
    text = json.dumps(result, indent=1)
    print(text)
    if a.out:
        with open(a.out, "w", encoding="utf-8") as f:
            f.write(text + "\n")


def cpu_name():
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit():
    here = os.path.dirname(os.path.abspath(__file__))
    p = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True)
    return p.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
