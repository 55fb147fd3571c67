#!/usr/bin/env python3
"""Runs an unchanged TRL reward function, or a tool that the model calls, for `reel grpo`.

    reel grpo … --reward-funcs FUNCTION                      # the program has a copy of this script
    reel grpo … --reward-command 'python3 docs/examples/rewards.py FUNCTION'
    python3 docs/examples/rewards.py FUNCTION --port 8001 &  reel grpo … --reward-url http://127.0.0.1:8001/

FUNCTION is MODULE:NAME or FILE.py:NAME, a function as TRL's GRPOTrainer takes it:

    def length(prompts, completions, **columns):   # completion_ids and every column of the data, as lists
        return [min(len(text), 100) / 100 for text in completions]

As in TRL, completions are strings if prompts are strings, and lists of one message if prompts are lists of messages. A
reward of None or NaN does not apply to its completion: it adds nothing to the sum, and the mean in the metrics leaves it
out. A function that takes these arguments gets them, as from TRL 1.16:

    trainer_state             global_step, max_steps and epoch of the run
    log_metric(name, value)   the mean of the values is the metric logged/NAME of the step
    log_extra(column, values) one value per completion, for `extra` of the records in OUT/rollouts

A tool (`--tools FUNCTION`) has the signature and the docstring that describe it to the model. It returns a text, or a
list of the parts of a message: {"type": "text", "text": …}, {"type": "image", "image": a path or data: URI},
{"type": "video", "video": a path, "video_start": seconds, "video_end": seconds}. An exception is the tool's answer,
too. If the function takes `row`, it gets the columns of the data row and `videos`, the files of its prompt:

    def count(word: str, row=None):
        '''Counts a word in the transcript.

        Args:
            word: The word to count.
        '''
        return str(row["transcript"].split().count(word))

What the function prints goes to standard error, which reel writes to OUT/reward.log. If the function raises an
exception, the last line of standard error is FILE:LINE: TYPE: MESSAGE.

Needs Python 3.8 and nothing else.
"""
import argparse
import asyncio
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
import typing
from http.server import BaseHTTPRequestHandler, HTTPServer


def load(name):
    """Imports the function that MODULE:NAME or FILE.py:NAME names."""
    source, _, function = name.rpartition(":")
    if not source or not function:
        raise SystemExit(f"{name}: is not the name of a function; give MODULE:NAME or FILE.py:NAME")
    if source.endswith(".py"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(source)))
        spec = importlib.util.spec_from_file_location("reward_functions", source)
        module = importlib.util.module_from_spec(spec)
        # Data classes and pickled functions of the file look their module up by its name.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(source)
    if not hasattr(module, function):
        raise SystemExit(f"{source}: has no function {function}")
    return getattr(module, function)


class TrainerState:
    """The progress of the run. Other fields of transformers' TrainerState are not known here."""

    def __init__(self, fields):
        self.__dict__.update(fields)

    def __getattr__(self, name):
        raise AttributeError(f"trainer_state has no {name} here; it has {', '.join(sorted(self.__dict__))}")


def accepted(function, arguments):
    """Those of the arguments that the function takes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}


def score(function, rows, state):
    """Calls the function; returns one reply per row: a number, None, or an object with what the function logs."""
    extra, metrics = [{} for _ in rows], {}

    def log_extra(column, values):
        values = list(values)
        if len(values) != len(rows):
            raise ValueError(f"log_extra got {len(values)} values of {column} for {len(rows)} completions")
        for logged, value in zip(extra, values):
            logged[column] = value

    def log_metric(name, value):
        # TRL's means leave NaN out, too.
        metrics.setdefault(name, []).extend([float(value)] if math.isfinite(value) else [])

    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    columns.pop("_batch", None)
    prompts, completions = columns.pop("prompt"), columns.pop("completion")
    # If the prompt is a list of messages, TRL passes the completion as a list with the assistant's message.
    if "messages" in columns:  # turns of the model and of tools
        completions = columns.pop("messages")
    elif isinstance(prompts[0], list):
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    columns.update(accepted(function, dict(trainer_state=state, log_extra=log_extra, log_metric=log_metric)))
    rewards = function(prompts=prompts, completions=completions, **columns)
    if inspect.isawaitable(rewards):
        rewards = asyncio.run(_result(rewards))
    rewards = [None if reward is None else float(reward) for reward in rewards]
    if len(rewards) != len(rows):
        raise ValueError(f"the function returned {len(rewards)} rewards for {len(rows)} completions")
    for i, reward in enumerate(rewards):
        if reward is not None and math.isinf(reward):
            raise ValueError(f"the function returned {reward} for completion {i}")
    if not metrics and not any(extra):
        return rewards
    replies = [{"reward": reward, "extra": logged} for reward, logged in zip(rewards, extra)]
    replies[0]["metrics"] = metrics
    return replies


TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def schema(annotation):
    """The JSON schema of a type hint; {} for hints that it does not know."""
    origin, inner = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    if origin in (list, tuple):
        return {"type": "array", "items": schema(inner[0]) if inner else {}}
    if type(None) in inner:
        return schema(next(hint for hint in inner if hint is not type(None)))
    return {"type": TYPES[annotation]} if annotation in TYPES else {}


def description(function):
    """A tool's name, description and parameters, from its signature and its docstring in Google's style."""
    text = inspect.getdoc(function) or ""
    head, _, arguments = text.partition("\nArgs:\n")
    helps = {}
    for line in arguments.partition("\n\n")[0].splitlines():
        name, colon, told = line.strip().partition(":")
        if colon:
            helps[name.partition("(")[0].strip()] = told.strip()
    fields, required = {}, []
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "row" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        fields[name] = dict(schema(hints.get(name)), **({"description": helps[name]} if name in helps else {}))
        if parameter.default is parameter.empty:
            required.append(name)
    parameters = {"type": "object", "properties": fields, "required": required}
    return {"name": function.__name__, "description": head.strip(), "parameters": parameters}


def call_tool(function, request):
    """Runs a call of the function; an exception becomes the answer that the model reads."""
    try:
        result = function(**request["arguments"], **accepted(function, {"row": request["row"]}))
        return asyncio.run(_result(result)) if inspect.isawaitable(result) else result
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def place(error, name):
    """Where an exception was raised: the last line of the user's file in the traceback, as FILE:LINE."""
    source = name.rpartition(":")[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    script = globals().get("__file__")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<" and f.filename != script]
    own = [frame for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(source)]
    if own:
        return f"{source}:{own[-1].lineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else source


async def _result(awaitable):
    return await awaitable


def serve_pipes(name):
    """Reads batches of lines from standard input and writes one reward per line to standard output."""
    # Standard output carries rewards only, so whatever the function prints is redirected to standard error.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    # Programs that the function starts must not read the rows.
    rows = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    function = load(name)
    batch = []
    for line in rows:
        batch.append(json.loads(line))
        if "list_tools" in batch[0] or "tool" in batch[0]:
            request = batch.pop()
            reply = call_tool(function, request) if "tool" in request else [description(function)]
            print(json.dumps(reply, default=str), file=replies, flush=True)
            continue
        if len(batch) == batch[-1]["_batch"]["size"]:
            state = TrainerState(batch[-1]["_batch"].get("trainer_state", {}))
            replies.writelines(json.dumps(reply, default=str) + "\n" for reply in score(function, batch, state))
            replies.flush()
            batch = []


def serve_http(function, host, port):
    """Serves HTTP: replies to `POST {"rows": [...]}` with `{"rewards": [...]}`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            try:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(body)
                rewards = score(function, body["rows"], TrainerState(body.get("trainer_state", {})))
                status, reply = 200, json.dumps({"rewards": rewards}, default=str)
            except Exception as e:  # The client reports any error of the function; the server keeps running.
                status, reply = 500, f"{type(e).__name__}: {e}"
            text = reply.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = HTTPServer((host, port), Handler)
    print(f"listening on http://{host}:{server.server_port}/", file=sys.stderr, flush=True)
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", metavar="FUNCTION", help="MODULE:NAME or FILE.py:NAME")
    parser.add_argument("--port", type=int, help="serve HTTP on this port (0: any) instead of the pipes")
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    try:
        if arguments.port is None:
            serve_pipes(arguments.function)
        else:
            serve_http(load(arguments.function), arguments.host, arguments.port)
    except Exception as e:
        traceback.print_exc()
        message = " ".join(str(e).split())
        raise SystemExit(f"{place(e, arguments.function)}: {type(e).__name__}: {message}") from None


if __name__ == "__main__":
    main()
