#!/usr/bin/env python3
"""Uploads runs that `reel` wrote for Weights & Biases with the client's command `wandb sync` to a test server on this machine, and
compares what arrives with metrics.jsonl.

    pip install wandb            # checked with 0.31.0 and 0.19.11
    python3 tools/benches/peers/wandb_sync.py OUT [--client wandb] [--again]

OUT is the folder of a run with `--report-to wandb`. The client gets all folders of OUT/wandb and skips those marked as uploaded; --again
removes these marks first, which tests folders with equal run ids. All records are first parsed with the client's message classes. The
server stores history lines by the offset that the client sends, as the real server does, and replies only to requests of the client.
No data leaves this machine. Exit code 1 if anything differs.
"""
import argparse
import gzip
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "0123456789" * 4


def records(path):
    """The records of a .wandb file, parsed with the client's message classes; damage is an error."""
    from wandb.proto import wandb_internal_pb2

    data = Path(path).read_bytes()
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0), f"{path}: header {data[:7]}"
    at, parts, found = 7, b"", []
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            assert not any(data[at : at + left]), f"{path}: padding at {at}"
            at += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + 7])
        payload = data[at + 7 : at + 7 + length]
        assert zlib.crc32(bytes([kind]) + payload) == crc, f"{path}: checksum at {at}"
        at += 7 + length
        parts += payload
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            assert record.num == len(found) + 1, f"{path}: record {record.num} is number {len(found) + 1}"
            found.append(record)
            parts = b""
    assert not parts, f"{path}: ends within a record"
    return found


class Server(ThreadingHTTPServer):
    """A test server that stores runs by id, history lines, the latest summary, files, and exit codes of runs."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.history, self.summary, self.files, self.ends, self.unknown = {}, {}, {}, {}, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Ignores clients that disconnect; missing data shows in the comparison."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while n := int(self.rfile.readline(), 16):
                data += self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.server.files[self.path.removeprefix("/upload/")] = self.body()
        self.answer({})

    def do_POST(self):
        body = json.loads(self.body() or b"{}")
        if self.path.endswith("/file_stream"):
            return self.answer(self.stream(self.path.split("/")[-2], body))
        if not self.path.endswith("graphql"):
            self.server.unknown.append(self.path)
            return self.answer({})
        query, variables = body.get("query", ""), body.get("variables") or {}
        self.answer({"data": self.graphql(query, variables)})

    def stream(self, run, body):
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                kept = self.server.history.setdefault(run, [])
                kept[part["offset"] : part["offset"] + len(part["content"])] = [json.loads(line) for line in part["content"]]
            elif name == "wandb-summary.json":
                self.server.summary[run] = json.loads(part["content"][-1])
        if body.get("complete"):
            self.server.ends.append((run, body.get("exitcode")))
        return {"exitcode": None, "limits": {}}

    def graphql(self, query, variables):
        entity = {"id": "e", "name": "me"}
        if "upsertBucket" in query:
            name = variables.get("name") or variables.get("id")
            new = name not in self.server.runs
            known = self.server.runs.setdefault(name, {})
            known.update({k: v for k, v in variables.items() if v is not None})
            project = {"id": "p", "name": known.get("project"), "entity": entity}
            bucket = {"id": name, "name": name, "displayName": known.get("displayName"), "description": None, "config": known.get("config"),
                      "sweepName": None, "project": project, "historyLineCount": len(self.server.history.get(name, []))}
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        files = [{"name": f, "uploadUrl": f"{self.server.url}/upload/{f}", "url": f"{self.server.url}/upload/{f}"} for f in variables.get("files") or []]
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "viewer" in query or "Viewer" in query:
            viewer = {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}, "admin": False}
            return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {"max_cli_version": "9"}, "latestLocalVersionInfo": None}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9"}, "latestLocalVersionInfo": None}}
        if "model(" in query:
            edges = {"edges": [{"node": f} for f in files]}
            bucket = {"id": variables.get("run"), "files": edges | {"uploadHeaders": []}}
            return {"model": {"bucket": bucket, "id": "p", "name": variables.get("name"), "entity": entity}}
        if "__type" in query or "__schema" in query:
            return {name: {"fields": [], "inputFields": []} for name in re.findall(r"(\w+): ?__type", query)}
        self.server.unknown.append(query.strip().split("\n")[0])
        return {}


def sync(client, folders, server):
    """Runs the client on folders and returns its output."""
    with tempfile.TemporaryDirectory() as home:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        own = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false", "HOME": home, "WANDB_SILENT": "false"}
        done = subprocess.run([client, "sync", *map(str, folders)], env=keep | own, cwd=home, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--client", default="wandb")
    options.add_argument("--again", action="store_true")
    args = options.parse_args()
    folders = sorted((args.out.resolve() / "wandb").glob("offline-run-*"))
    assert folders, f"{args.out}/wandb: no runs"
    for folder in folders:
        (log,) = folder.glob("*.wandb")
        kinds = [record.WhichOneof("record_type") for record in records(log)]
        print(f"{folder.name}: {len(kinds)} records: " + ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)))

    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for mark in args.out.glob("wandb/*/*.sync*") if args.again else []:
        mark.unlink()
    # Some versions ignore the marks of folders that are named explicitly, so they get only folders without a mark.
    code, said = sync(args.client, [f for f in folders if not list(f.glob("*.synced"))], server)
    print("\n".join("  | " + line for line in said.strip().splitlines()))
    assert code == 0, f"the client ended with {code}"

    faults = [f"unknown request: {what}" for what in server.unknown]
    lines = [json.loads(line) for line in (args.out / "metrics.jsonl").read_text().splitlines()]
    run = folders[-1].name.split("-")[-1]
    assert run in server.runs, f"{run}: was not uploaded"
    history = server.history.get(run, [])
    print(f"run {run}: project {server.runs[run].get('project')}, name {server.runs[run].get('displayName')}; {len(history)} lines of history; ended with {[e[1] for e in server.ends]}")
    print(f"  config: {len(json.loads(server.runs[run].get('config') or '{}'))} entries; summary: {len(server.summary.get(run, {}))} values")
    print("  files: " + ", ".join(f"{name} ({len(data)})" for name, data in sorted(server.files.items())))
    if [row.get("_step") for row in history] != [line["step"] for line in lines]:
        faults.append(f"steps {[row.get('_step') for row in history]}, not {[line['step'] for line in lines]}")
    for row, line in zip(history, lines):
        curves = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k not in ("step", "tokens", "step_seconds")}
        got = {k.removeprefix("train/"): v for k, v in row.items() if k.startswith("train/")}
        if got != curves:
            faults.append(f"step {line['step']}: {got}, not {curves}")
        for value in row.values():
            if isinstance(value, dict) and "path" in value and len(server.files.get(value["path"], b"")) != value["size"]:
                faults.append(f"step {line['step']}: {value['path']} was not uploaded whole")
    last = {k: v for k, v in (history or [{}])[-1].items() if k.startswith("train/")}
    if any(server.summary.get(run, {}).get(k) != v for k, v in last.items()):
        faults.append("the summary is not the last step")
    print("\n".join(faults) or "everything equals metrics.jsonl")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
